"""One whole UNet for each interval, nothing shared: what a shared encoder is compared with."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from stagecraft.networks.family import Architecture
from stagecraft.networks.unet.family import student_config
from stagecraft.networks.unet.student import entry_of, interval_of
from stagecraft.networks.unet2d.multi_decoder_unet import MultiDecoderUNet2DModel


def architecture_at(architecture: dict[str, Any], interval: int) -> dict[str, Any]:
    """The architecture of one interval alone."""
    blocks = {name: [entry_of(entries, interval) | {"range": [0]}] for name, entries in architecture["blocks"].items()}
    return architecture | {"blocks": blocks}


class SeparateUNet2DModel(ModelMixin, ConfigMixin):
    """One whole UNet per stage, nothing shared: what the multi-decoder UNet is compared with.

    The same arguments and the same call as MultiDecoderUNet2DModel's.
    """

    @register_to_config
    def __init__(
        self,
        unet: dict[str, Any],
        architecture: dict[str, Any],
        boundaries: list[float],
        sample_size: int | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            MultiDecoderUNet2DModel(unet=unet, architecture=architecture_at(architecture, interval), boundaries=[])
            for interval in range(len(boundaries) + 1)
        )

    @property
    def num_intervals(self) -> int:
        """Number of intervals K."""
        return len(self.nets)

    @property
    def decoders(self) -> nn.ModuleList:
        """What one stage has for itself: everything."""
        return self.nets

    def interval_of(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Stage index of each timestep, same shape, int64."""
        return interval_of(timesteps, self.config.boundaries)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict for x_t (N,C,H,W) at one timestep or at one per sample (N,)."""
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(sample.shape[0])
        stage = self.interval_of(timesteps)
        output = None
        for index in stage.unique().tolist():
            rows = (stage == index).nonzero().flatten()
            labels = None if class_labels is None else class_labels[rows]
            part = self.nets[index](sample[rows], timesteps[rows], labels).sample
            output = part.new_empty(len(sample), *part.shape[1:]) if output is None else output
            output = output.index_copy(0, rows, part)
        return UNet2DOutput(sample=output) if return_dict else (output,)


def build_separate(teacher: Any, architecture: Architecture, boundaries: list[float], seed: int) -> SeparateUNet2DModel:
    """A net of its own for each interval, with random weights."""
    torch.manual_seed(seed)
    return SeparateUNet2DModel(**student_config(teacher, MultiDecoderUNet2DModel.repeated, architecture, boundaries))
