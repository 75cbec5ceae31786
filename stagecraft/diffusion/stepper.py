"""diffusers' schedulers, as samplers use them: one call whatever a scheduler is called with, remembers or scales."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Stepper:
    """A scheduler that has been given its steps.

    Args:
        scheduler: of `Process.scheduler`, for this object alone.
        steps: network evaluations.
        restarts: boundaries at which a multistep solver forgets its earlier evaluations, which were another decoder's.
        latents: whether the sample is a latent, which is not to be clipped to the range of images.
    """

    def __init__(
        self,
        scheduler: Any,
        steps: int,
        device: torch.device | None = None,
        restarts: Sequence[float] = (),
        *,
        latents: bool = False,
    ) -> None:
        self.scheduler = unclipped(scheduler) if latents else scheduler
        self.scheduler.set_timesteps(steps, device=device)
        self.takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        self.intervals = intervals_of(self.timesteps, restarts).tolist()

    @property
    def timesteps(self) -> torch.Tensor:
        """The t of the network evaluations, descending, (steps,)."""
        times: torch.Tensor = self.scheduler.timesteps
        return times

    def run(self, noise: torch.Tensor, predict: Predict, generators: list[torch.Generator]) -> torch.Tensor:
        """From standard normal noise (N,C,H,W) to a sample.

        Args:
            predict: from the network's input and one t, a tensor without dimensions, to its output.
            generators: one for each sample, for schedulers that draw noise.
        """
        x = noise * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for i, t in enumerate(self.timesteps):
            if i and self.intervals[i] != self.intervals[i - 1]:
                self.restart()
            prediction = predict(self.network_input(x, t), t)
            x = self.step(prediction.float(), t, x, generators)
        return x

    def network_input(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network is given for x, for schedulers whose x is no x_t."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return x
        scaled: torch.Tensor = self.scheduler.scale_model_input(x, t)
        return scaled

    def step(
        self, prediction: torch.Tensor, t: torch.Tensor, x: torch.Tensor, generators: list[torch.Generator]
    ) -> torch.Tensor:
        """x after the step from t; the steps are taken in the order of `timesteps`."""
        drawing = {"generator": generators} if self.takes_generator else {}
        later: torch.Tensor = self.scheduler.step(prediction, t, x, **drawing).prev_sample
        return later

    def restart(self) -> None:
        """Forget the evaluations that a multistep solver would look back on."""
        if hasattr(self.scheduler, "lower_order_nums"):
            self.scheduler.lower_order_nums = 0


def unclipped(scheduler: Any) -> Any:
    """The scheduler without clipping to the range of images, which latents do not keep to."""
    return (
        type(scheduler).from_config(scheduler.config, clip_sample=False)
        if "clip_sample" in scheduler.config
        else scheduler
    )


def intervals_of(t: torch.Tensor, boundaries: Sequence[float]) -> torch.Tensor:
    """The interval of each t, the number of boundaries <= t; of the shape of t."""
    return torch.bucketize(t.float(), torch.tensor(boundaries, dtype=torch.float32, device=t.device), right=True)
