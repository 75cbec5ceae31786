"""The teacher: a network built from params and trained on the noise process."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from stagecraft.config.sections import Teacher
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.losses import predict
from stagecraft.networks.configs import CONFIGS, TRAINED
from stagecraft.networks.families import teacher_class
from stagecraft.networks.family import Module
from stagecraft.runtime.device import autocast
from stagecraft.runtime.processes import own_rows


def build_teacher(settings: Teacher, resolution: int, channels: int, seed: int, classes: int | None = None) -> Module:
    """A network with random weights, as the `train_teacher` section describes it.

    Args:
        classes: number of classes of a class-conditional network.
    """
    torch.manual_seed(seed)
    return teacher_class(TRAINED)(
        sample_size=resolution,
        in_channels=channels,
        out_channels=channels,
        num_class_embeds=classes,
        **CONFIGS[TRAINED].trained(settings),
    )


class DenoisingLoss:
    """Mean square error to the process's target (Ho et al. 2020, eq. 14), for the training loop."""

    def __init__(self, model: torch.nn.Module, batches: NoisyBatches, precision: str) -> None:
        self.model = model
        self.batches = batches
        self.precision = precision

    def __call__(self, step: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
        batch = self.batches(generator)
        own = batch.rows(own_rows(len(batch.t)))
        with autocast(self.batches.device, self.precision):
            prediction = predict(self.model, own.x_t, own.t, own.condition)
        yield "noise", F.mse_loss(prediction.float(), own.target) * (len(prediction) / len(batch.t))
