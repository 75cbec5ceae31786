"""The residual stream of a UNet: its channels by level, and the modules that write it."""

from collections.abc import Iterator, Sequence
from typing import Any

from stagecraft.networks.family import Module, ResidualStream, Site
from stagecraft.networks.unet.names import DOWN, MID, UP
from stagecraft.networks.unet.student import stream_levels


def residual_stream(unet: Module, sites: Sequence[Site]) -> ResidualStream:
    """The residual stream of a UNet with these sites."""
    levels = {"skip.0": 0}
    for site in sites:
        levels |= dict.fromkeys(site.writes, level_of(unet, site))
    return ResidualStream(
        widths=tuple(unet.config["block_out_channels"]),
        groups=unet.config["norm_num_groups"],
        shared=tuple(stream_levels(unet)),
        levels=levels,
        writers=dict(stream_writers(unet, sites)),
    )


def stream_writers(unet: Module, sites: Sequence[Site]) -> Iterator[tuple[Module, int]]:
    """Every module whose output is the residual stream, with its level."""
    yield unet.conv_in, 0
    for site in sites:
        block: Any = unet.get_submodule(site.name)
        for name in ("resnets", "attentions", "downsamplers", "upsamplers"):
            for module in getattr(block, name, None) or ():
                if module is not None:
                    yield module, level_of(unet, site)


def level_of(net: Module, site: Site) -> int:
    """The resolution level of a site, 0 for the finest."""
    kind, _, index = site.name.partition(".")
    deepest = len(net.down_blocks) - 1
    return {DOWN: lambda: int(index), MID: lambda: deepest, UP: lambda: deepest - int(index)}[kind]()
