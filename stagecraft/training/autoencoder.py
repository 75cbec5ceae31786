"""Training of a small AutoencoderKL (Rombach et al. 2022, without their perceptual and adversarial losses)."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from stagecraft.config.sections import Autoencoder
from stagecraft.data.training import TrainingSet
from stagecraft.runtime.device import autocast


class ReconstructionLoss:
    """Mean square error of the decoded posterior sample, plus `kl_weight` times the KL divergence per pixel, for the loop."""

    def __init__(
        self, vae: Any, data: TrainingSet, settings: Autoencoder, device: torch.device, precision: str
    ) -> None:
        self.vae = vae
        self.data = data
        self.device = device
        self.precision = precision
        self.batch_size = settings.batch_size
        self.kl_weight = settings.kl_weight

    def __call__(self, step: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
        rows = torch.randint(len(self.data), (self.batch_size,), generator=generator)
        x = self.data.x0(rows).to(self.device)
        with autocast(self.device, self.precision):
            posterior = self.vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
            decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).sum()
        yield "reconstruction_and_kl", F.mse_loss(decoded.float(), x) + self.kl_weight * kl / x.numel()
