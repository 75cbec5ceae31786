"""What the config of a UNet2DModel tells before there is a network. Light: no torch, no diffusers."""

from collections.abc import Sequence
from pathlib import Path

from stagecraft.config.sections import Teacher
from stagecraft.networks.given import (
    TEACHER,
    Config,
    Sides,
    SiteNames,
    check_groups,
)
from stagecraft.networks.unet.names import DOWN, MID, UP

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
# What UNet2DModel can do and the search cannot.
UNSUPPORTED = ("class_embed_type",)
WIDTHS = [224, 448, 672, 896]  # of a UNet2DModel whose config says none


class UNet2DConfig:
    """The configs of diffusers' UNet2DModel."""

    levels_key = "down_block_types"

    def check(self, config: Config, path: Path) -> None:
        """Raise ValueError unless a config describes a UNet2DModel whose blocks can be searched."""
        for key in ("down_block_types", "up_block_types"):
            for kind in block_types(path, config, key):
                if kind not in BLOCK_TYPES:
                    known = ", ".join(sorted(BLOCK_TYPES))
                    raise ValueError(f"{path}: block type {kind} is not supported (supported are {known}); {TEACHER}")
        for key in UNSUPPORTED:
            if config.get(key) is not None:
                raise ValueError(
                    f"{path}: {key} is {config[key]!r}, but only classes given by num_class_embeds are supported; {TEACHER}"
                )
        check_levels(path, config)

    def sites(self, config: Config) -> SiteNames:
        """The names of the sites."""
        levels = range(len(config["down_block_types"]))
        middle = [] if config.get("mid_block_type", "UNetMidBlock2D") is None else [MID]
        return SiteNames([*(f"{DOWN}.{i}" for i in levels), *middle], [f"{UP}.{i}" for i in levels])

    def sides(self, config: Config, path: Path) -> Sides:
        """The sides that a UNet can draw.

        A UNet2DModel is convolutional and its sample_size a default, so where it has none, or one that its own levels cannot
        halve, any side that they can halve will do.
        """
        unit = 2 ** (len(config["down_block_types"]) - 1)
        size = sample_side(config, path)
        return Sides(unit, None if size is None or size % unit else size)

    def channels(self, config: Config) -> tuple[int, int]:
        """Channels of the input and of the output."""
        return config.get("in_channels", 3), config.get("out_channels", 3)

    def widths(self, config: Config) -> Sequence[int]:
        """Channels of the residual stream at each level."""
        widths: Sequence[int] = config.get("block_out_channels", WIDTHS)
        return widths

    def trained(self, settings: Teacher) -> dict[str, object]:
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


def block_types(path: Path, config: Config, key: str) -> list[str]:
    """The block types under one key of a UNet's config; ValueError when they are not there."""
    types = config.get(key)
    if not isinstance(types, list) or not types or not all(isinstance(name, str) for name in types):
        raise ValueError(f"{path}: {key} is no list of names; give a diffusers UNet2DModel")
    return types


def check_levels(path: Path, config: Config) -> None:
    """Raise ValueError when a UNet's levels are not as many of each kind, or do not halve and double the side."""
    levels = len(config["down_block_types"])
    for key in ("up_block_types", "block_out_channels"):
        values = config.get(key, WIDTHS)
        if not isinstance(values, list) or len(values) != levels:
            raise ValueError(f"{path}: {key} is {values!r} for {levels} levels of down_block_types; {TEACHER}")
    for key in ("downsample_type", "upsample_type"):
        if config.get(key, "conv") not in ("conv", "resnet", None):
            raise ValueError(f"{path}: {key} is {config[key]!r}, but only conv and resnet are supported; {TEACHER}")
    if config.get("downsample_padding", 1) not in (0, 1):
        raise ValueError(
            f"{path}: downsample_padding is {config['downsample_padding']!r}, with which no level halves the side; {TEACHER}"
        )
    check_groups(path, config, config.get("block_out_channels", WIDTHS), TEACHER)


def sample_side(config: Config, path: Path) -> int | None:
    """The one side that a UNet's sample_size says, as a number or a pair; None when it says none."""
    size = config.get("sample_size")
    pair = size if isinstance(size, list | tuple) else (size, size)
    if size is None:
        return None
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair):
        raise ValueError(f"{path}: sample_size is {size!r}, no side or pair of sides; {TEACHER}")
    if pair[0] != pair[1]:
        raise ValueError(f"{path}: sample_size is {size!r}, but only square images are supported; {TEACHER}")
    return int(pair[0])
