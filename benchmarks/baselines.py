"""The teacher with channels pruned by a criterion, which a search has to beat.

Channels are pruned with torch-pruning, whole dependency groups at a time and the same share of every layer, as in Diff-Pruning
(arXiv 2305.10924), until the MACs, counted as thop does, are at the target. GroupNorms keep their number of groups, attention
its inner width.
"""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import Downsample2D, Upsample2D
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import Batch, NoisyBatches
from stagecraft.diffusion.losses import predict
from stagecraft.diffusion.process import Process
from stagecraft.networks.costs import count_network_macs
from stagecraft.runtime.seeds import generator_for

STEPS = 100  # in which the share of pruned channels rises
MOST = 0.95  # share of a layer's channels that may go
TOLERANCE = 0.02
MOST_LEFT_OUT = 30  # steps, before a target counts as out of reach
THRESHOLD = 0.05  # Diff-Pruning: timesteps whose loss is a smaller share of the largest do not count
INTERVALS, BATCH = 100, 64  # of t, and samples in each, that gradients come from


def pruned(teacher: UNet2DModel, ratio: float, importance: Any) -> UNet2DModel:
    """A copy of the teacher whose MACs are at most `ratio` of its own and at least 98 % of that.

    A step that would overshoot by more is left out, and those after it are tried.

    Args:
        importance: an importance of torch-pruning; those of gradients read `teacher`'s, which are copied.

    Raises:
        ValueError: no sequence of steps that was tried ends within the tolerance.
    """
    shape = (teacher.config["in_channels"], teacher.config["sample_size"], teacher.config["sample_size"])
    target = ratio * count_network_macs(teacher)
    left_out: set[tuple[int, str]] = set()
    while True:
        net, overshot = copied(teacher), None
        for name, group in steps_of(net, shape, importance):
            if name in left_out:
                continue
            group.prune()
            mend(net)
            macs = count_network_macs(net)
            if macs < (1 - TOLERANCE) * target:
                overshot = name
                break
            if macs <= target:
                net.zero_grad()
                return net
        if overshot is None or len(left_out) == MOST_LEFT_OUT:
            raise ValueError(f"no pruning of this teacher has {ratio} of its MACs to within {TOLERANCE:.0%}")
        left_out.add(overshot)


def copied(teacher: UNet2DModel) -> UNet2DModel:
    """A copy with its gradients."""
    net: UNet2DModel = copy.deepcopy(teacher).train(False)
    for own, other in zip(net.parameters(), teacher.parameters(), strict=True):
        own.requires_grad_(True)
        own.grad = None if other.grad is None else other.grad.clone()
    return net


def steps_of(net: Any, shape: tuple[int, int, int], importance: Any) -> Iterator[tuple[tuple[int, str], Any]]:
    """Groups of channels to prune, in turn, each with the step and the layer that it is named after."""
    ignored: list[nn.Module] = [net.conv_out]
    for module in net.modules():
        if isinstance(module, Attention):
            ignored += [module.to_q, module.to_k, module.to_v]
    names = {module: name for name, module in net.named_modules()}
    pruner = tp.pruner.BasePruner(
        net,
        (torch.randn(1, *shape), torch.tensor([0])),
        importance=importance,
        iterative_steps=STEPS,
        pruning_ratio=MOST,
        ignored_layers=ignored,
    )
    for step in range(STEPS):
        for group in pruner.step(interactive=True):
            yield (step, names[group[0].dep.target.module]), group


def mend(net: nn.Module) -> None:
    """Tell diffusers' resampling layers their new width, which they check."""
    for module in net.modules():
        if isinstance(module, (Downsample2D, Upsample2D)) and module.conv is not None:
            module.channels = module.conv.in_channels


def importance_of(criterion: str, teacher: UNet2DModel, process: Process, data: TrainingSet, seed: int) -> Any:
    """The importance of a criterion; those of gradients leave the gradients that they need in the teacher.

    `taylor` is |w g| of the loss at random timesteps. `diff-pruning` adds up g over ascending timesteps until the loss, in terms
    of the noise, falls under 0.05 of its maximum.
    """
    torch.manual_seed(seed)
    if criterion == "random":
        return tp.importance.RandomImportance()
    if criterion == "magnitude":
        return tp.importance.MagnitudeImportance(p=2)
    teacher.requires_grad_(True).zero_grad()
    if criterion == "taylor":
        batches = NoisyBatches(data, process, BATCH, teacher.device)
        for step in range(INTERVALS):
            noise_loss(teacher, process, batches(generator_for(seed, "taylor", step))).backward()
    else:
        accumulate_by_time(teacher, process, data, seed)
    return tp.importance.TaylorImportance()


def accumulate_by_time(teacher: UNet2DModel, process: Process, data: TrainingSet, seed: int) -> int:
    """Add up gradients over ascending intervals of t while the loss counts; returns how many did."""
    largest = 0.0
    for step in range(INTERVALS):
        edges = [process.at_share(step / INTERVALS), process.at_share((step + 1) / INTERVALS)]
        batches = NoisyBatches(data, process, BATCH, teacher.device, intervals=[edges], probabilities=[1.0])
        loss = noise_loss(teacher, process, batches(generator_for(seed, "diff-pruning", step)))
        largest = max(largest, loss.item())
        if loss.item() < THRESHOLD * largest:
            return step
        loss.backward()
    return INTERVALS


def noise_loss(net: UNet2DModel, process: Process, batch: Batch) -> torch.Tensor:
    """Mean square error of the noise that a prediction implies at its x_t; a scalar."""
    alpha, sigma = process.alpha_sigma(batch.t)
    a, b = process.target_factors(alpha, sigma)
    factor = alpha / (b * alpha - a * sigma)  # by which an error of the prediction is one of the noise
    error = (predict(net, batch.x_t, batch.t, batch.condition) - batch.target).square().mean(dim=(1, 2, 3))
    return (error * factor.square().to(error.device, error.dtype)).mean()
