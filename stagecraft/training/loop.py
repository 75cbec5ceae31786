"""The one training loop: teacher, extractor, supernets, retraining and baselines all run here.

A batch depends on (seed, step) alone, so a killed run resumes from its checkpoint and ends with the same weights. Several
processes (stagecraft.runtime.processes) take a share of each batch and add up their gradients, so they follow the curve of one.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from stagecraft.config.sections import Optimised, OptimizerName
from stagecraft.runtime.processes import add_up, from_main, is_main, rank, world_size
from stagecraft.runtime.progress import Progress
from stagecraft.runtime.seeds import generator_for
from stagecraft.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from stagecraft.training.optimizers import make_optimizer

Losses = Callable[[int, torch.Generator], Iterable[tuple[str, torch.Tensor]]]


@dataclass(frozen=True)
class TrainSettings:
    """Hyperparameters of one run of the loop.

    Args:
        steps: optimiser steps.
        learning_rate: peak of the learning rate, after a linear warm-up.
        warmup_steps: steps of the warm-up.
        ema_decay: decay of the exponential moving average of the weights; None keeps no average.
        gradient_clip: largest norm of the gradient; None does not clip.
        optimizer: `adamw` or `muon`.
        decay: `cosine` to zero, or `constant`, after the warm-up.
        checkpoint_every: steps between checkpoints.
        gradient_checkpointing: whether the backward pass of a diffusers model computes its activations again.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 0
    ema_decay: float | None = None
    gradient_clip: float | None = None
    weight_decay: float = 0.0
    optimizer: OptimizerName = "adamw"
    decay: str = "cosine"
    seed: int = 0
    checkpoint_every: int = 1000
    gradient_checkpointing: bool = False

    @classmethod
    def of(cls, section: Optimised | Mapping[str, Any], seed: int) -> "TrainSettings":
        """The settings among the keys of one section of the params."""
        known = {key: value for key, value in dict(section).items() if key in cls.__dataclass_fields__}
        return cls(**known, seed=seed)


@dataclass
class TrainResult:
    """`history`: mean losses over each hundredth of the steps; `ema`: averaged weights by name, or None."""

    history: list[dict[str, float]] = field(default_factory=list)
    ema: dict[str, torch.Tensor] | None = None


def learning_rate_factor(step: int, settings: TrainSettings) -> float:
    """Factor on the peak learning rate at a step: linear warm-up, then `constant` or `cosine` to zero."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.decay == "constant":
        return 1.0
    share = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * share))


def train(
    model: nn.Module,
    losses: Losses,
    settings: TrainSettings,
    *,
    checkpoint: Path | None = None,
    fingerprint: Mapping[str, object] | None = None,
    label: str = "training",
) -> TrainResult:
    """Train `model` in place.

    Args:
        losses: called as losses(step, generator), yields (name, scalar loss) pairs. Each loss is backwarded before
            the next is made, so that paths of a supernet do not hold their graphs together. Gradients add up, over the
            pairs and over the processes; one optimiser step follows.
        checkpoint: file to resume from and to write to, also after the last step, as what follows may take long; the
            caller removes it once the result is stored.
        fingerprint: what the checkpoint must have been made with (params, hashes of inputs).

    Raises:
        ValueError: a loss, the gradient or a weight is not finite, or the checkpoint is damaged. The last checkpoint stays.
    """
    run = _Run(model, settings, json.dumps(fingerprint, sort_keys=True))
    resume(run, checkpoint)
    progress = Progress(label, settings.steps, run.step)
    model.train()
    if settings.gradient_checkpointing:
        cast(Any, model).enable_gradient_checkpointing()
    while run.step < settings.steps:
        total = run.advance(losses)
        progress.update(run.step, f"loss {total:.4f}")
        if run.step % settings.checkpoint_every == 0 or run.step == settings.steps:
            run.check_weights()
            if checkpoint and is_main():
                save_checkpoint(checkpoint, run.state())
    model.eval()
    if settings.gradient_checkpointing:
        cast(Any, model).disable_gradient_checkpointing()
    return TrainResult(fill_missing_losses(run.history), run.ema)


def resume(run: "_Run", checkpoint: Path | None) -> None:
    """Go on from a checkpoint, where there is one; ValueError where not all processes see the same one."""
    state = load_checkpoint(checkpoint, run.fingerprint) if checkpoint else None
    if state:
        run.restore(state)
    if from_main(run.step) != run.step:
        raise ValueError(
            f"{checkpoint}: process {rank()} finds step {run.step} and not that of process 0; share the folder"
        )


def fill_missing_losses(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The records with every loss name in each, 0 where a loss was not computed."""
    names = {name for record in history for name in record}
    return [dict.fromkeys(names, 0.0) | record for record in history]


class _Run:
    """The state of a run between two steps."""

    def __init__(self, model: nn.Module, settings: TrainSettings, fingerprint: str) -> None:
        self.model = model
        self.settings = settings
        self.fingerprint = fingerprint
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(model, settings.optimizer, settings.learning_rate, settings.weight_decay)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.stretch: dict[str, list[float]] = {}
        self.ema: dict[str, torch.Tensor] | None = None
        if settings.ema_decay is not None:
            self.ema = {name: p.detach().clone() for name, p in model.state_dict().items()}

    def advance(self, losses: Losses) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * learning_rate_factor(self.step, self.settings)
        named = []
        # Dropout draws from the global generator, and differs between the processes.
        torch.manual_seed(generator_for(self.settings.seed, f"dropout/{rank()}", self.step).initial_seed())
        for name, loss in losses(self.step, generator_for(self.settings.seed, "train", self.step)):
            loss.backward()
            named.append((name, loss.item()))
        total = 0.0
        for name, value in self._combine(named) if world_size() > 1 else named:
            self._check(f"loss '{name}'", value)
            total += value
            self.stretch.setdefault(name, []).append(value)
        self._check("the norm of the gradient", self._clip())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._average()
        self._record(total)
        return total

    def _clip(self) -> float:
        """Clip the gradient if the settings say so; its norm before that."""
        if self.settings.gradient_clip is not None:
            return float(nn.utils.clip_grad_norm_(self.weights, self.settings.gradient_clip))
        return float(nn.utils.get_total_norm([p.grad for p in self.weights if p.grad is not None]))

    def _check(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise ValueError(
                f"{what} is {value} at step {self.step}; lower learning_rate, or set precision: fp32 where it is bf16; "
                "the last good checkpoint is kept"
            )

    def check_weights(self) -> None:
        """Raise ValueError when a weight is not finite; a loss would show it at the next step only."""
        for name, p in self.model.state_dict().items():
            self._check(f"a weight of {name}", 0.0 if p.isfinite().all() else math.nan)

    def _combine(self, named: list[tuple[str, float]]) -> list[tuple[str, float]]:
        """Add up losses and gradients over the processes; a weight without a gradient on any of them keeps none."""
        flags = [float(p.grad is not None) for p in self.weights]
        numbers = torch.tensor([*flags, *(value for _, value in named)], dtype=torch.float64)
        sums = add_up(numbers.to(self.weights[0].device)).tolist()
        reached = [p for p, flag in zip(self.weights, sums, strict=False) if flag]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in reached]
        flat = add_up(torch.cat([gradient.flatten() for gradient in gradients]))
        for p, piece in zip(reached, flat.split([p.numel() for p in reached]), strict=True):
            p.grad = piece.view_as(p)
        return [(name, value) for (name, _), value in zip(named, sums[len(flags) :], strict=True)]

    def _average(self) -> None:
        """EMA with decay min(`ema_decay`, (1 + step) / (10 + step)): early on, an average over a tenth of the steps so far."""
        if self.ema is None or self.settings.ema_decay is None:
            return
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        for name, p in self.model.state_dict().items():
            if p.is_floating_point():
                self.ema[name].lerp_(p, 1 - decay)
            else:
                self.ema[name].copy_(p)

    def _record(self, total: float) -> None:
        self.stretch.setdefault("loss", []).append(total)
        if self.step % max(1, self.settings.steps // 100) == 0 or self.step == self.settings.steps:
            means = {name: sum(values) / len(values) for name, values in self.stretch.items()}
            self.history.append({"step": self.step} | means)
            self.stretch = {}

    def state(self) -> TrainState:
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "history": self.history,
            "stretch": self.stretch,
        }

    def restore(self, state: TrainState) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            assert state["ema"] is not None, "kept with the rest"
            for name, value in state["ema"].items():
                self.ema[name].copy_(value)
        self.step = state["step"]
        self.history = state["history"]
        self.stretch = state["stretch"]
