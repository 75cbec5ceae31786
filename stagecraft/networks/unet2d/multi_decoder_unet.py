"""A UNet2DModel with one decoder per range of timesteps, and every block built from an architecture spec.

Self-contained (torch and diffusers only): the file that travels with the weights has the modules of this package in place of
their imports, so that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` needs nothing else.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from stagecraft.networks.unet.student import (
    Architecture,
    Module,
    MultiDecoderModel,
    Rebuilder,
    build_attention,
    build_resnet,
    self_contained,
)

BLOCK_TYPES = {
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "UNetMidBlock2D",
    "UpBlock2D",
    "AttnUpBlock2D",
    "ResnetUpsampleBlock2D",
}

# How each kind of layer that can be searched is built, by the name of the list that holds it in a block.
BUILDERS: dict[str, Callable[[Module, Any], Module]] = {
    "resnets": build_resnet,
    "attentions": build_attention,
}
REBUILDER = Rebuilder(BLOCK_TYPES, BUILDERS)
apply_spec = REBUILDER.apply_spec
narrow_stream = REBUILDER.narrow_stream


class MultiDecoderUNet2DModel(MultiDecoderModel):
    """A UNet2DModel rebuilt: shared encoder and mid block, one decoder per interval.

    With the identity spec and a UNet2DModel's weights it returns that model's output bit for bit.

    Args:
        unet, architecture, boundaries: as in `MultiDecoderModel.build`.
        sample_size, in_channels, out_channels, num_class_embeds: as in `unet`; repeated where pipelines look for them.

    Raises:
        ValueError: the architecture does not fit the blocks or the intervals.
    """

    file = Path(__file__)
    code = self_contained(file)
    teacher_class = UNet2DModel
    rebuilder = REBUILDER
    repeated: ClassVar[tuple[str, ...]] = ("sample_size", "in_channels", "out_channels", "num_class_embeds")

    @register_to_config
    def __init__(
        self,
        unet: Mapping[str, object],
        architecture: Architecture,
        boundaries: list[float],
        sample_size: int | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        self.build(unet, architecture, boundaries)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict for x_t (N,C,H,W) at one timestep or at one per sample (N,); the same call as UNet2DModel's."""
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        interval = self.interval_of(timesteps)
        timesteps = timesteps.expand(sample.shape[0])
        emb = self.embed(timesteps, class_labels)
        output = self.decode(*self.encode(sample, emb), emb, interval)
        if self.base_config.time_embedding_type == "fourier":
            output = output / timesteps.reshape(-1, 1, 1, 1)
        return UNet2DOutput(sample=output) if return_dict else (output,)
