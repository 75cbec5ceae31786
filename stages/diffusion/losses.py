"""Losses of diffusion training and of imitation."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from stages.diffusion.images import to_network
from stages.diffusion.process import VPProcess
from stages.processes import add_up, count


class NoisyBatches:
    """Batches (x_t, t, target) that depend on the generator alone.

    Args:
        images_NHWC: uint8 training images.
        flip: mirror each image left to right with probability one half.

    Raises:
        ValueError: a process would get no sample.
    """

    def __init__(
        self, images_NHWC: Any, process: VPProcess, batch_size: int, device: torch.device, flip: bool = False
    ) -> None:
        if batch_size < count():
            raise ValueError(f"batch_size: {batch_size} is less than the {count()} processes that share it; raise it")
        self.x0 = torch.as_tensor(images_NHWC)
        self.process, self.batch_size, self.device, self.flip = process, batch_size, device, flip

    def __call__(self, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x_t (N,C,H,W), t (N,) and the target (N,C,H,W), on the device."""
        rows = torch.randint(len(self.x0), (self.batch_size,), generator=generator)
        x0 = to_network(self.x0[rows])
        if self.flip:
            mirrored = torch.rand(self.batch_size, generator=generator) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        t = self.process.draw(self.batch_size, generator)
        eps = torch.randn(x0.shape, generator=generator)
        x0, eps, t = x0.to(self.device), eps.to(self.device), t.to(self.device)
        return self.process.noise(x0, eps, t), t, self.process.target(x0, eps, t)


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
