"""Multiply-accumulates (MACs) of one network evaluation, and parameters: the same count for teacher and student.

MACs are those of one image. A student's are weighted by the steps that the sampler takes in each interval.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from thop import profile
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stagecraft.diffusion.losses import predict
from stagecraft.evaluation.metrics import Cost, DecoderCost
from stagecraft.networks.costs import count_parameters
from stagecraft.networks.families import example_condition


def model_cost(
    model: nn.Module,
    shape: tuple[int, int, int],
    boundaries: Sequence[float],
    steps: Sequence[int],
    shares: Sequence[float] | None = None,
    samplers: Mapping[str, Sequence[int]] | None = None,
) -> Cost:
    """Costs of `model` for a sampler with `steps[s]` evaluations in interval s, and in training.

    Args:
        model: a network called as model(x_NCHW, t), which may run other layers in every interval.
        shape: C, H, W of one image.
        boundaries: K - 1 ascending timesteps between the intervals.
        steps: K numbers of network evaluations.
        shares: how often training draws each interval, K numbers that sum to 1.
        samplers: `steps` of other samplers by name.
    """
    assert len(steps) == len(boundaries) + 1, "one number of steps per interval"
    times = interval_timesteps(boundaries)
    thop = [count_macs(model, shape, t) for t in times]
    attention = [count_macs_with_attention(model, shape, t) for t in times]
    cost: Cost = {
        "macs": weighted_mean(thop, steps),
        "macs_with_attention": weighted_mean(attention, steps),
        "macs_per_interval": thop,
        "macs_with_attention_per_interval": attention,
        "params": count_parameters(model),
        "params_active": max(count_active_parameters(model, shape, t) for t in times),
    }
    if shares is not None:
        cost["macs_training"] = weighted_mean(thop, shares)
    if samplers is not None:
        cost["macs_of_samplers"] = {name: weighted_mean(thop, counts) for name, counts in samplers.items()}
    return cost


def interval_timesteps(boundaries: Sequence[float]) -> list[float]:
    """One timestep inside each interval; the interval of t is the number of boundaries <= t."""
    return [boundaries[0] - 1, *boundaries] if boundaries else [0]


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Mean of `values` weighted by `weights`."""
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def count_macs(model: nn.Module, shape: tuple[int, int, int], timestep: float) -> int:
    """MACs of convolutions and linear layers by thop, the literature's number; products inside attention are not seen.

    thop leaves buffers in the model it counts, so it is given a copy.
    """
    model, inputs = copy_for_counting(model, shape, timestep)
    return int(profile(model, inputs=inputs, verbose=False)[0])


def count_macs_with_attention(model: nn.Module, shape: tuple[int, int, int], timestep: float) -> int:
    """MACs by torch's FlopCounterMode (half its FLOPs), the products inside attention included.

    Attention runs as plain matrix products here: fused kernels are counted on some devices only.
    """
    model, inputs = copy_for_counting(model, shape, timestep)
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2


def copy_for_counting(model: Any, shape: tuple[int, int, int], timestep: float) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A copy of the model on the CPU and inputs for one image at one timestep."""
    inputs = (torch.zeros(1, *shape), torch.tensor([timestep]))
    return _Predict(copy.deepcopy(model).cpu().eval()), inputs


class _Predict(nn.Module):
    """A network's prediction as a module of its own, to be counted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.condition = example_condition(model, 1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return predict(self.model, x_t, t, self.condition)


class _Decode(nn.Module):
    """An autoencoder's decoder as a module of its own, to be counted."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z).sample


def decoder_cost(vae: Any, shape: tuple[int, int, int]) -> DecoderCost:
    """`decoder_macs` (thop, once per image) and `params` of an autoencoder; `shape` is c, h, w of the latents."""
    module = _Decode(copy.deepcopy(vae).cpu().eval())
    macs = int(profile(module, inputs=(torch.zeros(1, *shape),), verbose=False)[0])
    return {"decoder_macs": macs, "params": count_parameters(vae)}


def count_active_parameters(model: nn.Module, shape: tuple[int, int, int], timestep: float) -> int:
    """Parameters of all that one evaluation at a timestep runs."""
    model, inputs = copy_for_counting(model, shape, timestep)
    active: dict[nn.Parameter, int] = {}

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        active.update((parameter, parameter.numel()) for parameter in module.parameters(recurse=False))

    for module in model.modules():
        module.register_forward_pre_hook(note)
    with torch.no_grad():
        model(*inputs)
    return sum(active.values())
