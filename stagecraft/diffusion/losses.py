"""Losses of diffusion training and of imitation."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from stagecraft.data.condition import UNCONDITIONAL, Condition
from stagecraft.runtime.processes import add_up


def predict(
    model: Any, x_t: torch.Tensor, t: torch.Tensor | float, condition: Condition = UNCONDITIONAL
) -> torch.Tensor:
    """The output of a UNet, conditional or not, of the shape of x_t."""
    output: torch.Tensor = model(x_t, t, **condition.arguments()).sample
    return output


def predict_guided(
    model: Any, x_t: torch.Tensor, t: torch.Tensor | float, condition: Condition, empty: Condition, scale: float
) -> torch.Tensor:
    """The output with classifier-free guidance (Ho & Salimans 2022), as diffusers has it: e + scale (c - e).

    Args:
        empty: what stands in place of `condition` in e, with as many rows.
        scale: 1 for the output given the condition itself.
    """
    if scale == 1:
        return predict(model, x_t, t, condition)
    times = torch.as_tensor(t, device=x_t.device).expand(len(x_t))
    both = predict(model, torch.cat([x_t, x_t]), torch.cat([times, times]), empty.joined(condition))
    without, given = both.chunk(2)
    return without + scale * (given - without)


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
