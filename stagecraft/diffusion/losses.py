"""Losses of diffusion training and of imitation."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.process import Process
from stagecraft.runtime.processes import add_up, count


class Batch(NamedTuple):
    """Noised samples: x_t and target (N,C,H,W), t (N,), labels (N,) of a class-conditional network, else None."""

    x_t: torch.Tensor
    t: torch.Tensor
    target: torch.Tensor
    labels: torch.Tensor | None = None

    def rows(self, rows: slice) -> "Batch":
        """Some of the samples."""
        labels = None if self.labels is None else self.labels[rows]
        return Batch(self.x_t[rows], self.t[rows], self.target[rows], labels)


class NoisyBatches:
    """Batches that depend on the generator alone.

    Args:
        data: what to train on.
        flip: mirror each image left to right with probability one half.
        labels: whether the network is class-conditional.
        stages: [lo, hi) of t in every stage, for `probabilities`.
        probabilities: how often a sample falls into each stage; None leaves that to the process's density of t.

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
        labels: bool = False,
        stages: Sequence[Sequence[float]] = (),
        probabilities: Sequence[float] | None = None,
    ) -> None:
        if batch_size < count():
            raise ValueError(f"batch_size: {batch_size} is less than the {count()} processes that share it; raise it")
        if labels and data.labels is None:
            raise ValueError("the teacher is class-conditional, but the images have no labels; give class sub-folders")
        self.data, self.labels = data, data.labels if labels else None
        self.process, self.batch_size, self.device, self.flip = process, batch_size, device, flip
        self.stages, self.probabilities = stages, probabilities

    def __call__(self, generator: torch.Generator) -> Batch:
        """The next batch, on the device."""
        rows = torch.randint(len(self.data), (self.batch_size,), generator=generator)
        x0 = self.data.x0(rows)
        if self.flip:
            mirrored = torch.rand(self.batch_size, generator=generator) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        t = self.draw_t(generator)
        eps = torch.randn(x0.shape, generator=generator)
        x0, eps, t = x0.to(self.device), eps.to(self.device), t.to(self.device)
        labels = None if self.labels is None else self.labels[rows].to(self.device)
        return Batch(self.process.noise(x0, eps, t), t, self.process.target(x0, eps, t), labels)

    def draw_t(self, generator: torch.Generator) -> torch.Tensor:
        """t of a batch, (batch_size,): by the process's density, or first the stages and then t within each."""
        if self.probabilities is None:
            return self.process.draw(self.batch_size, generator)
        weights = torch.tensor(self.probabilities, dtype=torch.float64)
        stages = torch.multinomial(weights, self.batch_size, replacement=True, generator=generator)
        counts = stages.bincount(minlength=len(weights)).tolist()
        return torch.cat(
            [self.process.draw(n, generator, *edges) for n, edges in zip(counts, self.stages, strict=True)]
        )


def predict(model: Any, x_t: torch.Tensor, t: torch.Tensor | float, labels: torch.Tensor | None = None) -> torch.Tensor:
    """The output of a UNet, class-conditional or not, of the shape of x_t."""
    output: torch.Tensor = (model(x_t, t) if labels is None else model(x_t, t, labels)).sample
    return output


def nmse(
    outputs: Iterable[torch.Tensor],
    targets: Sequence[torch.Tensor],
    variances: Iterable[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Sum over tensors of MSE(output, target) / Var(target); a scalar.

    Args:
        variances: those of the targets over a batch of which the targets are only a part.
    """
    found = [ref.float().var() for ref in targets] if variances is None else variances
    terms = [F.mse_loss(out.float(), ref.float()) / var for out, ref, var in zip(outputs, targets, found, strict=True)]
    return torch.stack(terms).sum()


def joint_variances(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Unbiased variance of every tensor together with its counterparts on all other processes, some of them empty."""
    sums = [
        torch.stack([x.new_tensor(x.numel(), dtype=torch.float64), x.sum(), x.square().sum()])
        for x in (tensor.detach().double() for tensor in tensors)
    ]
    totals = add_up(torch.stack(sums))
    return [((squares - total**2 / n) / (n - 1)).float() for n, total, squares in totals]
