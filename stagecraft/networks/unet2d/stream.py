"""A teacher with some channels of its residual stream, and those channels of what passes between its blocks."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DModel

from stagecraft.networks.family import Module
from stagecraft.networks.unet2d.family import UNet2DFamily, level_of
from stagecraft.networks.unet2d.multi_decoder_unet import narrow_stream

Stream = list[list[int]]  # for every level the channels that are kept, ascending


def narrowed_teacher(teacher: UNet2DModel, stream: Stream | None) -> UNet2DModel:
    """A copy of the teacher with these channels of its residual stream alone, untrained; the teacher itself for None."""
    return teacher if stream is None else narrow_stream(copy.deepcopy(teacher), stream)


def kept_channels(teacher: UNet2DModel, stream: Stream | None) -> dict[str, torch.Tensor]:
    """The channels that are kept of each tensor at a site, by name; empty for None."""
    if stream is None:
        return {}
    levels = {"skip.0": 0}
    for site in UNet2DFamily().sites(teacher):
        levels |= dict.fromkeys(site.writes, level_of(teacher, site))
    return {name: torch.tensor(stream[level]) for name, level in levels.items()}


def kept_part(name: str, tensor: torch.Tensor, kept: dict[str, torch.Tensor]) -> torch.Tensor:
    """The channels that are kept of a tensor N,C,... at a site; all of one that `kept_channels` does not name."""
    return tensor.index_select(1, kept[name].to(tensor.device)) if name in kept else tensor


def with_part(name: str, tensor: torch.Tensor, part: torch.Tensor, kept: dict[str, torch.Tensor]) -> torch.Tensor:
    """A tensor N,C,... at a site with `part` in place of the channels that are kept of it."""
    return tensor.index_copy(1, kept[name].to(tensor.device), part.to(tensor.dtype)) if name in kept else part


def stream_writers(unet: UNet2DModel) -> Iterator[tuple[int, Module]]:
    """Every module whose output is the residual stream, with its level."""
    yield 0, unet.conv_in
    for site in UNet2DFamily().sites(unet):
        block: Any = unet.get_submodule(site.name)
        for name in ("resnets", "attentions", "downsamplers", "upsamplers"):
            for module in getattr(block, name, None) or ():
                if module is not None:
                    yield level_of(unet, site), module
