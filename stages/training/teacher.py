"""The teacher: a UNet2DModel built from params and trained on the noise process."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from stages.device import autocast
from stages.diffusion.losses import NoisyBatches
from stages.processes import own_rows


def build_teacher(settings: dict[str, Any], resolution: int, channels: int, seed: int) -> UNet2DModel:
    """A UNet2DModel with random weights, as the `train_teacher` section describes it.

    Attention stands in the levels of `attention` that are true, and in the mid block.
    """
    torch.manual_seed(seed)
    attention = settings["attention"]
    return UNet2DModel(
        sample_size=resolution,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(settings["block_out_channels"]),
        down_block_types=tuple("AttnDownBlock2D" if on else "DownBlock2D" for on in attention),
        up_block_types=tuple("AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(attention)),
        layers_per_block=settings["layers_per_block"],
        attention_head_dim=settings["attention_head_dim"],
        norm_num_groups=settings["norm_num_groups"],
        dropout=settings["dropout"],
    )


class DenoisingLoss:
    """Mean square error to the process's target (Ho et al. 2020, eq. 14), for the training loop."""

    def __init__(self, model: torch.nn.Module, batches: NoisyBatches, precision: str) -> None:
        self.model, self.batches, self.precision = model, batches, precision

    def __call__(self, step: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
        x_t, t, target = self.batches(generator)
        rows = own_rows(len(t))
        with autocast(self.batches.device, self.precision):
            prediction = self.model(x_t[rows], t[rows]).sample
        yield "noise", F.mse_loss(prediction.float(), target[rows]) * (len(prediction) / len(t))
