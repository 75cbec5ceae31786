"""Images per second and peak memory of teacher and student, measured in turn so that both meet the same machine."""

import os
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stagecraft.diffusion.losses import predict
from stagecraft.evaluation.cost import interval_timesteps
from stagecraft.evaluation.metrics import Speed
from stagecraft.networks.families import example_condition
from stagecraft.runtime.device import autocast

WARM_UP = 2
# A level above all that Kineto, the library behind torch's profiler, has to say.
SILENT = "6"
# Kinds of operations by what their names contain; the first that fits counts.
KINDS = {
    "convolution": ("conv",),
    "matrix product": ("mm", "linear", "matmul", "attention", "gemm"),
    "normalisation": ("norm",),
    "activation": ("silu", "softmax", "gelu", "relu"),
}
OTHER = "other (sums, copies, concatenation, resampling)"


def measure_speed(
    models: dict[str, nn.Module],
    shape: tuple[int, int, int],
    boundaries: Sequence[float],
    steps: Mapping[str, Sequence[int]],
    *,
    batch: int,
    repeats: int,
    device: torch.device,
    precision: str,
) -> dict[str, Speed]:
    """Time whole-sampler throughput from single network evaluations.

    Every repeat evaluates each model once in each interval, one model after the other; see `sampling_seconds`. The scheduler's
    arithmetic is left out.

    Args:
        models: name -> UNet called as model(x_NCHW, t), on `device`.
        shape: C, H, W.
        boundaries, steps: as in `cost.model_cost`, the steps by the models' names.
    """
    x_NCHW = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0)).to(device)
    times = interval_timesteps(boundaries)
    with torch.no_grad(), autocast(device, precision):
        totals = sampling_seconds(time_in_turn(models, x_NCHW, times, repeats), steps)
        memory = {name: peak_memory(model, x_NCHW, times) for name, model in models.items()}
        kinds = {name: time_by_operation(model, x_NCHW, times, steps[name]) for name, model in models.items()}
    return {
        name: {
            "images_per_second": batch / totals[name],
            "milliseconds": 1000 * totals[name] / batch / sum(steps[name]),
            "peak_memory_mib": memory[name],
            "time_by_operation": kinds[name],
        }
        for name in models
    }


def time_in_turn(
    models: dict[str, nn.Module], x_NCHW: Tensor, times: Sequence[float], repeats: int
) -> dict[tuple[str, int], list[float]]:
    """Seconds of every evaluation by model and number of the time, all evaluated in turn `repeats` times after warm-up."""
    seconds: dict[tuple[str, int], list[float]] = {(name, s): [] for name in models for s in range(len(times))}
    for repeat in range(WARM_UP + repeats):
        for (name, interval), taken in seconds.items():
            elapsed = time_evaluation(models[name], x_NCHW, times[interval])
            taken += [elapsed] if repeat >= WARM_UP else []
    return seconds


def sampling_seconds(
    seconds: Mapping[tuple[str, int], Sequence[float]], steps: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Seconds in which each model makes its evaluations of a whole batch, `steps[name][s]` in interval s.

    Of the first model that is the median over the turns, of any other the first's times the median share of it that the other
    took in the same turn, so that a clock that wanders slows both.
    """
    turns = {
        name: np.array([seconds[name, s] for s in range(len(counts))]).T @ counts for name, counts in steps.items()
    }
    first, *others = turns
    whole = np.median(turns[first]).item()
    return {first: whole} | {name: whole * np.median(turns[name] / turns[first]).item() for name in others}


def time_evaluation(model: nn.Module, x_NCHW: Tensor, timestep: float) -> float:
    """Seconds of one network evaluation, with the device's queue empty before and after."""
    condition = example_condition(model, len(x_NCHW)).to(x_NCHW.device)
    synchronize(x_NCHW.device)
    begun = time.perf_counter()
    predict(model, x_NCHW, timestep, condition)
    synchronize(x_NCHW.device)
    return time.perf_counter() - begun


def time_by_operation(
    model: nn.Module, x_NCHW: Tensor, timesteps: Sequence[float], steps: Sequence[int]
) -> dict[str, float]:
    """Share of the time of a whole sampling run that each kind of operation takes, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    cuda = x_NCHW.device.type == "cuda"
    if not cuda:
        # Kineto looks for a GPU all the same, and calls it an error that there is none.
        os.environ.setdefault("KINETO_LOG_LEVEL", SILENT)
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    taken = dict.fromkeys([*KINDS, OTHER], 0.0)
    for timestep, count in zip(timesteps, steps, strict=True):
        with profile(activities=[activity], acc_events=True) as profiler:
            time_evaluation(model, x_NCHW, timestep)
        for event in profiler.key_averages():
            taken[kind_of(event.key)] += count * (event.self_device_time_total if cuda else event.self_cpu_time_total)
    total = sum(taken.values())
    return {kind: microseconds / total for kind, microseconds in taken.items()}


def kind_of(operation: str) -> str:
    """The kind of an operation or a device kernel by its name."""
    name = operation.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), OTHER)


def synchronize(device: torch.device) -> None:
    """Wait for a CUDA device; the CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(model: nn.Module, x_NCHW: Tensor, timesteps: Sequence[float]) -> float | None:
    """MiB of the model's weights and of the most that one evaluation allocates on a CUDA device; None on the CPU."""
    if x_NCHW.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(x_NCHW.device)
    before = torch.cuda.memory_allocated(x_NCHW.device)
    for timestep in timesteps:
        time_evaluation(model, x_NCHW, timestep)
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return (torch.cuda.max_memory_allocated(x_NCHW.device) - before + weights) / 2**20
