"""The one sampler of all evaluation: sample i is drawn from its own generator, whatever the batch it is in."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stages.device import autocast
from stages.diffusion.images import to_uint8
from stages.diffusion.process import VPProcess
from stages.diffusion.seeds import generator_for
from stages.pieces import Pieces, find_array, keep_array
from stages.processes import count, from_main, is_main, rank, to_main
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
    *,
    label: str = "samples",
    pieces: Pieces | None = None,
) -> torch.Tensor:
    """Draw one image per index.

    Args:
        model: a UNet called as model(x_t, t).sample.
        scheduler: `ddim` (Song et al. 2021, eta 0), `ddpm` (Ho et al. 2020) or `dpm_solver` (DPM-Solver++ 2M, Lu et al. 2022).
        steps: number of network evaluations per image (NFE).
        indices: sample i starts from, and is stepped with, a generator of its own made from (seed, i).
        shape: C, H, W.
        label: what is drawn; names its batches among the pieces.
        pieces: batches drawn by a run that was killed, and where to keep those of this one.

    Returns:
        uint8 tensor N,H,W,C on the CPU, in the order of `indices`. Of several processes each draws whole batches; rank 0 returns
        the images of all, the others none.
    """
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    names = [f"{label}-{number:05}.npy" for number in range(len(batches))]
    drawn = {name: images for name in names if (images := find_array(pieces, name)) is not None}
    missing = from_main([number for number, name in enumerate(names) if name not in drawn])
    progress = Progress(f"sampling {label}", len(indices), sum(map(len, drawn.values())))

    def draw(number: int) -> np.ndarray:
        generators = [generator_for(seed, "sample", i) for i in batches[number]]
        with torch.no_grad(), autocast(device, precision):
            x_NCHW = _sample_batch(model, process.scheduler(scheduler), steps, generators, shape, device)
        return to_uint8(x_NCHW).cpu().numpy()

    for first in range(0, len(missing), count()):
        mine = missing[first : first + count()][rank() : rank() + 1]
        for number, images in itertools.chain.from_iterable(to_main([(number, draw(number)) for number in mine])):
            drawn[names[number]] = keep_array(pieces, names[number], images)
        progress.update(sum(map(len, drawn.values())))
    none = np.empty((0, *shape[1:], shape[0]), np.uint8)
    return torch.from_numpy(np.concatenate([drawn[name] for name in names] if is_main() else [none]))


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
