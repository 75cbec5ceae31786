"""A model's samples on their way from noise: what it was given at each step, and the image that it predicted from it."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stagecraft.data.pixels import to_uint8
from stagecraft.diffusion.sampling import Sampler
from stagecraft.runtime.device import autocast

SAMPLES = 3
MOST_STEPS = 25


class Recorder(torch.nn.Module):
    """A model that remembers its calls: `calls` has (t, x_t, output), x_t and output (N,C,H,W)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, **condition: torch.Tensor) -> Any:
        output = self.model(x_t, t, **condition)
        self.calls.append((t, x_t, output.sample))
        return output


def draw_path(model: Any, sampler: Sampler) -> dict[str, np.ndarray]:
    """Samples of a model without guidance at up to 25 evenly spaced network evaluations, the first and the last among them.

    Returns:
        `path_t` (S,), descending; `path_sample`, x_t scaled to the variance of images, and `path_image`, the denoised image that
        the output implies, uint8 (S,N,H,W,C).
    """
    recorder = Recorder(model)
    replace(sampler, guidance=1.0).draw_undecoded(recorder, range(SAMPLES))
    count = min(len(recorder.calls), MOST_STEPS)
    shown = np.linspace(0, len(recorder.calls) - 1, count).round().astype(int).tolist()
    calls = [recorder.calls[i] for i in shown]
    pairs = [show_call(sampler, *call) for call in calls]
    return {
        "path_t": np.array([t.item() for t, _, _ in calls]),
        "path_sample": np.stack([sample for sample, _ in pairs]),
        "path_image": np.stack([image for _, image in pairs]),
    }


def show_call(
    sampler: Sampler, t: torch.Tensor, x_t: torch.Tensor, output: torch.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """x_t and the denoised image of one call as uint8 (N,H,W,C)."""
    alpha, sigma = sampler.process.alpha_sigma(t.cpu())
    p, q = sampler.process.image_factors(t.cpu())
    sample = x_t.float() / (alpha**2 + sigma**2).sqrt().item()
    image = p.item() * output.float() + q.item() * x_t.float()
    return to_pixels(sampler, sample), to_pixels(sampler, image)


def to_pixels(sampler: Sampler, x_NCHW: torch.Tensor) -> np.ndarray:
    """Pixels or latents as uint8 images (N,H,W,C); grey where a prediction from noise alone says nothing of the image."""
    x_NCHW = x_NCHW.nan_to_num(nan=0.0)
    with torch.no_grad(), autocast(sampler.device, sampler.precision):
        return to_uint8(sampler.decode(x_NCHW) if sampler.decode else x_NCHW).cpu().numpy()
