"""Graphs beside the student they were made from: how far their outputs differ, and how long they take."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stagecraft.data.condition import UNCONDITIONAL, Condition, class_condition
from stagecraft.diffusion.losses import predict
from stagecraft.diffusion.process import Process
from stagecraft.evaluation.cost import interval_timesteps
from stagecraft.evaluation.speed import sampling_seconds, time_in_turn
from stagecraft.networks.pipelines import is_class_conditional
from stagecraft.runtime.seeds import generator_for

INPUTS = 100
TOLERANCE = 1e-4


def random_inputs(student: Any, process: Process, seed: int) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    """100 inputs: standard normal samples (N,C,H,W), timesteps (N,) of every interval in turn, and classes if there are any."""
    generator = generator_for(seed, "export", 0)
    config = student.config
    sample = torch.randn(INPUTS, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    edges = process.edges(list(config.boundaries))
    timestep = torch.cat([process.draw(1, generator, *edges[number % len(edges)]) for number in range(INPUTS)])
    if not is_class_conditional(student):
        return sample, timestep, UNCONDITIONAL
    return sample, timestep, class_condition(torch.randint(config.num_class_embeds, (INPUTS,), generator=generator))


@torch.no_grad()
def compare_outputs(
    student: Any, graphs: Mapping[str, Any], inputs: tuple[torch.Tensor, torch.Tensor, Condition]
) -> dict[str, dict[str, float]]:
    """The mean and the worst absolute difference of each graph's outputs from the student's, all inputs in one batch."""
    expected = predict(student, *inputs)
    differences = {name: (predict(graph, *inputs) - expected).abs() for name, graph in graphs.items()}
    return {name: {"mean": d.mean().item(), "worst": d.max().item()} for name, d in differences.items()}


def check_differences(differences: Mapping[str, Mapping[str, float]]) -> None:
    """Raise ValueError when a graph differs from the student by more than the tolerance."""
    for name, difference in differences.items():
        # Written so that NaN, too, is refused.
        if not difference["worst"] <= TOLERANCE:
            raise ValueError(
                f"export: graph {name} differs from PyTorch by {difference['worst']:.2g} on {INPUTS} random inputs, more "
                f"than {TOLERANCE:g}; install onnx, onnxruntime and onnxscript as requirements.lock pins them"
            )


@torch.no_grad()
def measure_milliseconds(
    models: dict[str, Any],
    shape: tuple[int, int, int],
    boundaries: Sequence[float],
    steps: Sequence[int],
    batch: int,
    repeats: int,
) -> dict[str, float]:
    """Milliseconds an image of one evaluation, the mean over the sampler's, of all models in turn (see `sampling_seconds`)."""
    sample = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0))
    turns = time_in_turn(models, sample, interval_timesteps(boundaries), repeats)
    seconds = sampling_seconds(turns, dict.fromkeys(models, steps))
    return {name: 1000 * taken / sum(steps) / batch for name, taken in seconds.items()}
