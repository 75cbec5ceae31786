"""Decoders of given widths, without a search: the multi-stage method as published (arXiv 2312.09181, section 4.3)."""

import copy
import math
from collections.abc import Sequence
from typing import Any

from stagecraft.networks.family import Architecture, Entry, Module, Site
from stagecraft.networks.unet2d.costs import block_macs, count
from stagecraft.networks.unet2d.multi_decoder_unet import Decoder
from stagecraft.networks.unet2d.stream import level_of


def widen_decoders(
    unet: Module, sites: Sequence[Site], identity: Architecture, widths: Sequence[float]
) -> Architecture:
    """The identity with decoders whose channels are shares of the teacher's, in whole GroupNorm groups and attention heads.

    Args:
        sites: those of the decoder.
        identity: of as many intervals as there are shares.
    """
    blocks = dict(identity["blocks"])
    for site in sites:
        blocks[site.name] = [
            widened(unet, site, entry, share) for entry, share in zip(blocks[site.name], widths, strict=True)
        ]
    return {"blocks": blocks}


def widened(unet: Module, site: Site, entry: Entry, share: float) -> Entry:
    """What a share of the teacher's channels makes of the entry of an up block."""
    usual = unet.config["block_out_channels"][level_of(unet, site)]
    unit = math.lcm(unet.config["norm_num_groups"], unet.config["attention_head_dim"] or 1)
    channels = max(unit, round(share * usual / unit) * unit)
    if channels == usual:
        return entry
    spec = entry["spec"]
    wide = {layer: {**choice, "width": channels} if choice else choice for layer, choice in spec.items()}
    return {"range": entry["range"], "spec": wide, "channels": channels}


def decoder_costs(unet: Module, sites: Sequence[Site], architecture: Architecture) -> list[tuple[int, int]]:
    """MACs for one sample and parameters of every interval's decoder, of blocks at these sites and an output head."""
    costs = []
    for entries in zip(*(architecture["blocks"][site.name] for site in sites), strict=True):
        decoder = Decoder(copy.deepcopy(unet).to("meta"), list(entries), [None] * len(entries))
        inside = sum(block_macs(block, site.side) for site, block in zip(sites, decoder.blocks, strict=True))
        head: Any = decoder.conv_out
        costs.append((inside + head.weight.numel() * unet.config["sample_size"] ** 2, count([decoder])))
    return costs
