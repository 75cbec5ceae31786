"""Losses of diffusion training and of imitation."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from stagecraft.data.condition import LABELS, UNCONDITIONAL, Condition, class_condition
from stagecraft.runtime.processes import add_up


def predict(
    model: Any, x_t: torch.Tensor, t: torch.Tensor | float, condition: Condition = UNCONDITIONAL
) -> torch.Tensor:
    """The output of a UNet, class-conditional or not, of the shape of x_t."""
    labels = condition.tensors.get(LABELS)
    output: torch.Tensor = (model(x_t, t) if labels is None else model(x_t, t, labels)).sample
    return output


def example_condition(model: Any, count: int) -> Condition:
    """What a UNet can be given beside `count` samples, for measurements: class 0 if it is class-conditional."""
    conditional = getattr(model, "config", {}).get("num_class_embeds") is not None
    return class_condition(torch.zeros(count, dtype=torch.int64) if conditional else None)


def nmse(
    outputs: Iterable[torch.Tensor],
    targets: Sequence[torch.Tensor],
    variances: Iterable[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Sum over tensors of MSE(output, target) / Var(target); a scalar.

    Args:
        variances: those of the targets over a batch of which the targets are only a part.
    """
    spreads = [ref.float().var() for ref in targets] if variances is None else variances
    terms = [
        F.mse_loss(out.float(), ref.float()) / var for out, ref, var in zip(outputs, targets, spreads, strict=True)
    ]
    return torch.stack(terms).sum()


def joint_variances(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Unbiased variance of every tensor together with its counterparts on all other processes, some of them empty."""
    sums = [
        torch.stack([x.new_tensor(x.numel(), dtype=torch.float64), x.sum(), x.square().sum()])
        for x in (tensor.detach().double() for tensor in tensors)
    ]
    totals = add_up(torch.stack(sums))
    return [((squares - total**2 / n) / (n - 1)).float() for n, total, squares in totals]
