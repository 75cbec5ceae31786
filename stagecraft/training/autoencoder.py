"""Training of a small AutoencoderKL (Rombach et al. 2022, without their perceptual and adversarial losses)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from stagecraft.config.sections import Autoencoder
from stagecraft.config.stages import TrainAutoencoder
from stagecraft.data.prepared import PreparedData
from stagecraft.data.training import TrainingSet
from stagecraft.networks.autoencoder import build_autoencoder, check_fits, encode_all, load_given_autoencoder
from stagecraft.runtime.device import autocast
from stagecraft.training.loop import TrainSettings, train


def make_autoencoder(
    params: TrainAutoencoder, prepared: PreparedData, device: torch.device, checkpoint: Path
) -> tuple[Any, list[dict[str, float]]]:
    """The autoencoder of a folder or one trained here, on the CPU, and the loss history of its training.

    Raises:
        ValueError: that of a folder does not fit the images.
    """
    settings = params.train_autoencoder
    if settings.source == "path":
        given = load_given_autoencoder(Path(settings.path))
        check_fits(given, settings.path, prepared.resolution, prepared.channels)
        return given, []
    images = TrainingSet.of_images(prepared.train_images)
    vae = build_autoencoder(settings.as_dict(), prepared.channels, prepared.resolution, params.seed).to(device)
    result = train(
        vae,
        ReconstructionLoss(vae, images, settings, device, params.precision),
        TrainSettings.of(settings, params.seed),
        checkpoint=checkpoint,
        fingerprint={"params": params.as_given(), "data": prepared.meta["sha256"]},
        label="train_autoencoder",
    )
    assert result.ema is not None
    vae.load_state_dict(result.ema)
    vae.register_to_config(scaling_factor=float(1 / encode_all(vae, images, device).std()))
    return vae.cpu(), result.history


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
