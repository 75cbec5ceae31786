"""Decoders of given widths, without a search: the multi-stage method as published (arXiv 2312.09181, section 4.3)."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from stagecraft.networks.family import Architecture, Choice, Entry, Module, Site
from stagecraft.networks.unet.costs import block_macs, count
from stagecraft.networks.unet.stream import level_of
from stagecraft.networks.unet.student import Decoder, Rebuilder

INNER_WIDTHS = ("width", "feed_forward")  # of a ResNet layer, of a transformer


def widen_decoders(
    unet: Module, sites: Sequence[Site], units: Mapping[str, int], identity: Architecture, widths: Sequence[float]
) -> Architecture:
    """The identity with decoders whose channels are shares of the teacher's, in whole GroupNorm groups and attention heads.

    Args:
        sites: those of the decoder.
        units: what the channels of each are multiples of, for whole heads.
        identity: of as many intervals as there are shares.
    """
    blocks = dict(identity["blocks"])
    for site in sites:
        blocks[site.name] = [
            widened(unet, site, units[site.name], entry, share)
            for entry, share in zip(blocks[site.name], widths, strict=True)
        ]
    return {"blocks": blocks}


def widened(unet: Module, site: Site, unit: int, entry: Entry, share: float) -> Entry:
    """The entry of an up block with a share of the teacher's channels."""
    usual = unet.config["block_out_channels"][level_of(unet, site)]
    unit = math.lcm(unet.config["norm_num_groups"], unit)
    channels = max(unit, round(share * usual / unit) * unit)
    if channels == usual:
        return entry
    spec = {layer: widened_choice(choice, usual, channels) for layer, choice in entry["spec"].items()}
    return {"range": entry["range"], "spec": spec, "channels": channels}


def widened_choice(choice: Choice, usual: int, channels: int) -> Choice:
    """An identity choice of a layer, its inner width in proportion to the channels of its level."""
    if choice is None:
        return None
    return {key: value * channels // usual if key in INNER_WIDTHS else value for key, value in choice.items()}  # type: ignore[operator]


def decoder_costs(
    unet: Module, rebuilder: Rebuilder, sites: Sequence[Site], architecture: Architecture
) -> list[tuple[int, int]]:
    """MACs for one sample and parameters of every interval's decoder, of blocks at these sites and an output head."""
    costs = []
    for entries in zip(*(architecture["blocks"][site.name] for site in sites), strict=True):
        decoder = Decoder(copy.deepcopy(unet).to("meta"), rebuilder, list(entries), [None] * len(entries))
        inside = sum(
            block_macs(block, site.side, site.tokens) for site, block in zip(sites, decoder.blocks, strict=True)
        )
        head: Any = decoder.conv_out
        costs.append((inside + head.weight.numel() * unet.config["sample_size"] ** 2, count([decoder])))
    return costs
