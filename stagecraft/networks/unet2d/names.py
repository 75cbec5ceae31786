"""What a config tells of a UNet2DModel's sites, before there is a network. Light: no torch."""

from collections.abc import Mapping
from typing import Any

DOWN = "down_blocks"
MID = "mid_block"
UP = "up_blocks"


def encoder_names(levels: int, has_mid: bool) -> list[str]:
    """The names of the sites that all intervals share."""
    return [*(f"{DOWN}.{i}" for i in range(levels)), *([MID] if has_mid else [])]


def decoder_names(levels: int) -> list[str]:
    """The names of the sites where ranges of intervals may have blocks of their own."""
    return [f"{UP}.{i}" for i in range(levels)]


def shape_of(config: Mapping[str, Any]) -> tuple[int, bool]:
    """Number of resolution levels, and whether there is a mid block."""
    return len(config["down_block_types"]), config.get("mid_block_type", "UNetMidBlock2D") is not None
