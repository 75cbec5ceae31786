"""Noised training batches."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from stagecraft.data.condition import UNCONDITIONAL, Condition
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.process import Process
from stagecraft.runtime.processes import world_size


class Batch(NamedTuple):
    """Noised samples: x_t and target (N,C,H,W), t (N,), and what a conditional network is given beside them."""

    x_t: torch.Tensor
    t: torch.Tensor
    target: torch.Tensor
    condition: Condition = UNCONDITIONAL

    def rows(self, rows: slice) -> "Batch":
        """The samples of these rows."""
        return Batch(self.x_t[rows], self.t[rows], self.target[rows], self.condition.rows(rows))


class NoisyBatches:
    """Batches that depend on the generator alone.

    Args:
        data: what to train on.
        flip: mirror each image left to right with probability one half.
        conditional: whether the network is class-conditional.
        intervals: [lo, hi) of t in every interval, for `probabilities`.
        probabilities: how often a sample falls into each interval; None leaves that to the process's density of t.

    Raises:
        ValueError: a process would get no sample, or there are no labels.
    """

    def __init__(
        self,
        data: TrainingSet,
        process: Process,
        batch_size: int,
        device: torch.device,
        flip: bool = False,
        *,
        conditional: bool = False,
        intervals: Sequence[Sequence[float]] = (),
        probabilities: Sequence[float] | None = None,
    ) -> None:
        if batch_size < world_size():
            raise ValueError(
                f"batch_size: {batch_size} is less than the {world_size()} processes that share it; raise it"
            )
        if conditional and not data.conditions:
            raise ValueError("the teacher is class-conditional, but the images have no labels; give class sub-folders")
        self.data = data
        self.conditional = conditional
        self.process = process
        self.batch_size = batch_size
        self.device = device
        self.flip = flip
        self.intervals = intervals
        self.probabilities = probabilities

    def __call__(self, generator: torch.Generator) -> Batch:
        """The next batch, on the device."""
        rows = torch.randint(len(self.data), (self.batch_size,), generator=generator)
        x0 = self.data.x0(rows)
        if self.flip:
            mirrored = torch.rand(self.batch_size, generator=generator) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        t = self.draw_t(generator)
        eps = torch.randn(x0.shape, generator=generator)
        x0 = x0.to(self.device)
        eps = eps.to(self.device)
        t = t.to(self.device)
        condition = self.data.condition(rows, generator).to(self.device) if self.conditional else UNCONDITIONAL
        return Batch(self.process.noise(x0, eps, t), t, self.process.target(x0, eps, t), condition)

    def draw_t(self, generator: torch.Generator) -> torch.Tensor:
        """t of a batch, (batch_size,): by the process's density, or first the intervals and then t within each."""
        if self.probabilities is None:
            return self.process.draw(self.batch_size, generator)
        weights = torch.tensor(self.probabilities, dtype=torch.float64)
        intervals = torch.multinomial(weights, self.batch_size, replacement=True, generator=generator)
        counts = intervals.bincount(minlength=len(weights)).tolist()
        return torch.cat(
            [self.process.draw(n, generator, *edges) for n, edges in zip(counts, self.intervals, strict=True)]
        )
