"""The one sampler of all evaluation: sample i is drawn from its own generator, whatever the batch it is in."""

from collections.abc import Sequence
from typing import Any

import torch

from stages.device import autocast
from stages.diffusion.images import to_uint8
from stages.diffusion.process import VPProcess
from stages.diffusion.seeds import generator_for
from stages.progress import Progress


def sample(
    model: torch.nn.Module,
    process: VPProcess,
    scheduler: str,
    steps: int,
    indices: Sequence[int],
    seed: int,
    shape: tuple[int, int, int],
    device: torch.device,
    batch_size: int,
    precision: str = "fp32",
) -> torch.Tensor:
    """Draw one image per index.

    Args:
        model: a UNet called as model(x_t, t).sample.
        scheduler: `ddim` (Song et al. 2021, eta 0), `ddpm` (Ho et al. 2020) or `dpm_solver` (DPM-Solver++ 2M, Lu et al. 2022).
        steps: number of network evaluations per image (NFE).
        indices: sample i starts from, and is stepped with, a generator of its own made from (seed, i).
        shape: C, H, W.

    Returns:
        uint8 tensor N,H,W,C on the CPU, in the order of `indices`.
    """
    progress = Progress("sampling", len(indices))
    images = []
    for start in range(0, len(indices), batch_size):
        chunk = indices[start : start + batch_size]
        generators = [generator_for(seed, "sample", i) for i in chunk]
        with torch.no_grad(), autocast(device, precision):
            images.append(
                to_uint8(_sample_batch(model, process.scheduler(scheduler), steps, generators, shape, device)).cpu()
            )
        progress.update(start + len(chunk))
    return torch.cat(images)


def _sample_batch(
    model: torch.nn.Module,
    scheduler: Any,
    steps: int,
    generators: list[torch.Generator],
    shape: tuple[int, int, int],
    device: torch.device,
) -> torch.Tensor:
    scheduler.set_timesteps(steps, device=device)
    x = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction = model(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(prediction.float(), t, x, generator=generators).prev_sample
    return x


def steps_per_stage(process: VPProcess, scheduler: str, steps: int, boundaries: Sequence[float]) -> list[int]:
    """How many of the sampler's network evaluations fall into each stage; t belongs to stage #{boundaries <= t}."""
    timetable = process.scheduler(scheduler)
    timetable.set_timesteps(steps)
    stage = torch.bucketize(timetable.timesteps.float(), torch.tensor(boundaries, dtype=torch.float32), right=True)
    return torch.bincount(stage, minlength=len(boundaries) + 1).tolist()
