"""The one sampler of all evaluation: sample i is drawn from its own generator, whatever the batch it is in."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from stagecraft.data.condition import UNCONDITIONAL, Condition
from stagecraft.data.pixels import to_uint8
from stagecraft.diffusion.losses import predict_guided
from stagecraft.diffusion.process import Process
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.stepper import Stepper, intervals_of
from stagecraft.runtime.device import autocast
from stagecraft.runtime.journal import Pieces, find_array, keep_array
from stagecraft.runtime.processes import from_main, is_main, rank, to_main, world_size
from stagecraft.runtime.progress import Progress
from stagecraft.runtime.seeds import generator_for


@dataclass(frozen=True)
class Sampler:
    """How images are drawn from a process.

    Args:
        scheduler: of vp `ddim` (Song et al. 2021, eta 0), `ddpm` (Ho et al. 2020) or `dpm_solver` (DPM-Solver++ 2M, Lu et al.
            2022); of edm `edm_euler` (Karras et al. 2022) or `edm_dpm_solver`; of flow `flow_euler`.
        steps: number of network evaluations per image (NFE).
        shape: C, H, W of what the network draws.
        restarts: boundaries at which a multistep solver forgets its earlier evaluations, which were another decoder's.
        decode: from what the network draws to images in [-1, 1], both N,C,H,W.
        condition: what a conditional network is given beside the samples of these indices.
        guidance: scale of classifier-free guidance; 1 for none.
        empty: what guidance puts in place of the condition of so many samples.
    """

    process: Process
    scheduler: str
    steps: int
    seed: int
    shape: tuple[int, int, int]
    device: torch.device
    batch_size: int
    precision: str = "fp32"
    restarts: Sequence[float] = ()
    decode: Callable[[torch.Tensor], torch.Tensor] | None = None
    condition: Callable[[Sequence[int]], Condition] | None = None
    guidance: float = 1.0
    empty: Callable[[int], Condition] | None = None

    @classmethod
    def of(
        cls,
        params: dict[str, Any],
        shape: tuple[int, int, int],
        device: torch.device,
        batch_size: int,
        *,
        restarts: Sequence[float] = (),
        decode: Callable[[torch.Tensor], torch.Tensor] | None = None,
        condition: Callable[[Sequence[int]], Condition] | None = None,
        guidance: float = 1.0,
        empty: Callable[[int], Condition] | None = None,
        stated: Mapping[str, object] | None = None,
    ) -> Self:
        """The sampler that params describe.

        Args:
            condition, guidance, empty: as in `Sampler`.
            stated: the scheduler config of a given teacher, as in `Process`.
        """
        return cls(
            make_process(params["diffusion"], stated),
            params["sampling"]["scheduler"],
            params["sampling"]["steps"],
            params["seed"],
            shape,
            device,
            batch_size,
            params["precision"],
            restarts,
            decode,
            condition,
            guidance,
            empty,
        )

    def draw(self, model: torch.nn.Module, indices: Sequence[int]) -> np.ndarray:
        """One batch of images, uint8 N,H,W,C; sample i starts from, and is stepped with, a generator of its own."""
        x = self.draw_undecoded(model, indices)
        with torch.no_grad(), autocast(self.device, self.precision):
            return to_uint8(self.decode(x) if self.decode else x).cpu().numpy()

    def draw_undecoded(self, model: torch.nn.Module, indices: Sequence[int]) -> torch.Tensor:
        """One batch as N,C,H,W on the device: latents, or pixels that may be outside of [-1, 1]."""
        generators = [generator_for(self.seed, "sample", i) for i in indices]
        condition = UNCONDITIONAL if self.condition is None else self.condition(indices).to(self.device)
        with torch.no_grad(), autocast(self.device, self.precision):
            return self._integrate(model, generators, condition)

    def _integrate(
        self, model: torch.nn.Module, generators: list[torch.Generator], condition: Condition
    ) -> torch.Tensor:
        scheduler = self.process.scheduler(self.scheduler)
        stepper = Stepper(scheduler, self.steps, self.device, self.restarts, latents=self.decode is not None)
        noise = torch.stack([torch.randn(self.shape, generator=generator) for generator in generators]).to(self.device)
        empty = UNCONDITIONAL if self.empty is None else self.empty(len(noise)).to(self.device)
        return stepper.run(noise, lambda x, t: predict_guided(model, x, t, condition, empty, self.guidance), generators)


def draw_condition_rows(count: int, seed: int, indices: Sequence[int]) -> torch.Tensor:
    """Whose condition samples are drawn with: numbers of images below `count`, each from its sample's own seed."""
    return torch.cat([torch.randint(count, (1,), generator=generator_for(seed, "label", index)) for index in indices])


def sample(
    model: torch.nn.Module,
    sampler: Sampler,
    indices: Sequence[int],
    *,
    label: str = "samples",
    pieces: Pieces | None = None,
) -> torch.Tensor:
    """Draw one image per index.

    Args:
        model: as `predict` takes it.
        indices: sample i depends on (seed, i) and nothing else.
        label: what is drawn; names its batches among the pieces.
        pieces: batches drawn by a run that was killed, and where to keep those of this one.

    Returns:
        uint8 tensor N,H,W,C on the CPU, in the order of `indices`. Of several processes each draws whole batches; rank 0 returns
        the images of all, the others none.
    """
    size = sampler.batch_size
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    names = [f"{label}-{number:05}.npy" for number in range(len(batches))]
    drawn = {name: images for name in names if (images := find_array(pieces, name)) is not None}
    missing = from_main([number for number, name in enumerate(names) if name not in drawn])
    progress = Progress(f"sampling {label}", len(indices), sum(map(len, drawn.values())))

    for first in range(0, len(missing), world_size()):
        mine = missing[first : first + world_size()][rank() : rank() + 1]
        for number, images in itertools.chain.from_iterable(
            to_main([(number, sampler.draw(model, batches[number])) for number in mine])
        ):
            drawn[names[number]] = keep_array(pieces, names[number], images)
        progress.update(sum(map(len, drawn.values())))
    if not is_main():
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(np.concatenate([drawn[name] for name in names]))


def evaluation_timesteps(process: Process, scheduler: str, steps: int) -> torch.Tensor:
    """The t of a sampler's network evaluations, descending."""
    return Stepper(process.scheduler(scheduler), steps).timesteps


def steps_per_interval(process: Process, scheduler: str, steps: int, boundaries: Sequence[float]) -> list[int]:
    """How many of the sampler's network evaluations fall into each interval."""
    intervals = intervals_of(evaluation_timesteps(process, scheduler, steps), boundaries)
    return torch.bincount(intervals, minlength=len(boundaries) + 1).tolist()


def snap(process: Process, scheduler: str, steps: int, boundaries: Sequence[float]) -> list[float]:
    """Boundaries moved to just above the sampler's nearest evaluation, so that no step crosses one.

    A step goes from an evaluation to the next lower one. With a boundary just above an evaluation, the step from there on
    belongs to the lower interval as a whole, and the step to there to the upper.

    Raises:
        ValueError: two boundaries would be one.
    """
    nodes = evaluation_timesteps(process, scheduler, steps).double().cpu()[1:]
    near = [nodes[(nodes - b).abs().argmin()].item() for b in boundaries]
    snapped = [process.above(t) for t in near]
    if len({*snapped}) < len(snapped):
        raise ValueError(
            f"assemble.snap_boundaries: the {steps} steps of {scheduler} are too few to keep the boundaries {list(boundaries)} "
            "apart; raise sampling.steps or set it to false"
        )
    return snapped
