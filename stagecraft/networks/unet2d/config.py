"""Facts about a UNet2DModel that its config gives without building it. Light: no torch, no diffusers."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stagecraft.config.sections import Teacher
from stagecraft.networks.given import TEACHER, Config
from stagecraft.networks.unet.config import UNetConfig

# Types of blocks that can be searched; multi_decoder_unet.py rebuilds them.
BLOCK_TYPES = {
    "DownBlock2D",
    "AttnDownBlock2D",
    "ResnetDownsampleBlock2D",
    "UNetMidBlock2D",
    "UpBlock2D",
    "AttnUpBlock2D",
    "ResnetUpsampleBlock2D",
}


class UNet2DConfig(UNetConfig):
    """The configs of diffusers' UNet2DModel."""

    class_name = "UNet2DModel"
    student_file = "multi_decoder_unet.py"
    types = BLOCK_TYPES
    defaults: ClassVar[Mapping[str, object]] = {
        "mid_block_type": "UNetMidBlock2D",
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [224, 448, 672, 896],
    }

    def check_features(self, path: Path, config: Config) -> None:
        """Raise ValueError for embeddings of other classes, or samplers of other kinds."""
        if config.get("class_embed_type") is not None:
            raise ValueError(
                f"{path}: class_embed_type is {config['class_embed_type']!r}, but only classes given by num_class_embeds are "
                f"supported; {TEACHER}"
            )
        for key in ("downsample_type", "upsample_type"):
            if config.get(key, "conv") not in ("conv", "resnet", None):
                raise ValueError(f"{path}: {key} is {config[key]!r}, but only conv and resnet are supported; {TEACHER}")

    def trained(self, settings: Teacher, prompt_width: int | None = None) -> dict[str, object]:
        """The arguments of a UNet2DModel that is trained here, but for its images and classes.

        Attention stands in the levels of `attention` that are true, and in the mid block.
        """
        attention = settings.attention
        return {
            "block_out_channels": tuple(settings.block_out_channels),
            "down_block_types": tuple("AttnDownBlock2D" if on else "DownBlock2D" for on in attention),
            "up_block_types": tuple("AttnUpBlock2D" if on else "UpBlock2D" for on in reversed(attention)),
            "layers_per_block": settings.layers_per_block,
            "attention_head_dim": settings.attention_head_dim,
            "norm_num_groups": settings.norm_num_groups,
            "dropout": settings.dropout,
        }
