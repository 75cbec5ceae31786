"""The teacher: a UNet2DModel built from params and trained on the noise process."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from stagecraft.config.sections import Teacher
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.losses import predict
from stagecraft.runtime.device import autocast
from stagecraft.runtime.processes import own_rows


def build_teacher(
    settings: Teacher, resolution: int, channels: int, seed: int, classes: int | None = None
) -> UNet2DModel:
    """A UNet2DModel with random weights, as the `train_teacher` section describes it.

    Attention stands in the levels of `attention` that are true, and in the mid block.

    Args:
        classes: number of classes of a class-conditional network.
    """
    torch.manual_seed(seed)
    attention = settings.attention
    return UNet2DModel(
        sample_size=resolution,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(settings.block_out_channels),
        down_block_types=tuple("AttnDownBlock2D" if on else "DownBlock2D" for on in attention),
        up_block_types=tuple("AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(attention)),
        layers_per_block=settings.layers_per_block,
        attention_head_dim=settings.attention_head_dim,
        norm_num_groups=settings.norm_num_groups,
        dropout=settings.dropout,
        num_class_embeds=classes,
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
