"""What turns gradients into steps: AdamW, or Muon for matrices beside AdamW for what else there is.

torch.optim.Muon takes no kernels of convolutions, and multiplies in bfloat16, which is slow on a CPU without such instructions.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from stagecraft.config.sections import OptimizerName


def make_optimizer(
    model: nn.Module, name: OptimizerName, learning_rate: float, weight_decay: float
) -> "torch.optim.AdamW | MuonAdamW":
    """An optimizer of the weights of `model` that are trained."""
    weights = [p for p in model.parameters() if p.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") for p in weights)
    if name == "adamw":
        return torch.optim.AdamW(weights, learning_rate, weight_decay=weight_decay, fused=fused)
    of_layers = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    matrices = [p for p in weights if id(p) in of_layers]
    others = [p for p in weights if id(p) not in of_layers]
    adamw = torch.optim.AdamW(others, learning_rate, weight_decay=weight_decay, fused=fused)
    return MuonAdamW(Muon(matrices, learning_rate, weight_decay), adamw)


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonal matrices (Jordan et al. 2024), a kernel (out, in, h, w) taken as (out, in * h * w).

    Args:
        params: weights of two or more dimensions, those of outputs first.
        lr: a step is scaled to the root mean square that one of AdamW has at this rate (Liu et al. 2025, arXiv 2502.16982).
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of the weights that have a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(group["momentum"]).add_(p.grad)
                ahead = p.grad.add(state["momentum"], alpha=group["momentum"])  # Nesterov's
                matrix = orthogonalise(ahead.flatten(1))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(matrix.reshape(p.shape), alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix (M, N) with its singular values moved to about 1, by five Newton-Schulz steps with Jordan's coefficients."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.mT
    found = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = found @ found.mT
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found if wide is matrix else found.mT


class MuonAdamW:
    """Two optimizers that step together, for the loop as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """One step of all parts."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        for part, kept in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(kept)
