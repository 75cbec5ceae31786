"""Which students a stock UNet2DConditionModel expresses: ResNet layers and depth of the transformers by level, mid block or none.

Blocks may have transformers or not; channels stay.

A choice is of a whole block, {"widths": {"0": 320}, "layers": 1, "attention": true, "depth": 1}: its channels, which are the
teacher's, its ResNet layers, whether it has transformers, and how many layers each of these has, 0 without. Of a transformer the
first layers are kept; of the ResNet layers those that `networks/unet/native.py` says.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from stagecraft.networks.family import Architecture, Module, NativeChoice, Seen, Site
from stagecraft.networks.unet.names import DOWN, MID, UP
from stagecraft.networks.unet.native import UNetNative, keep_layers
from stagecraft.networks.unet.student import Dropped
from stagecraft.networks.unet2d_condition.multi_decoder_unet_condition import DroppedTransformer

WITHOUT_ATTENTION = {DOWN: "DownBlock2D", UP: "UpBlock2D"}
DEPTHS = "transformer_layers_per_block"
REVERSE = f"reverse_{DEPTHS}"  # of the decoder, where it is another than the encoder's
ENDS = ("conv_in", "conv_norm_out", "conv_out", "time_embedding", "class_embedding", "add_embedding")


class UNet2DConditionNative(UNetNative):
    """The students of a UNet2DConditionModel that are such a model themselves."""

    teacher_class = UNet2DConditionModel
    narrows = False
    plain = WITHOUT_ATTENTION

    def __init__(self, unet: Module, sites: Sequence[Site], levels: Mapping[str, int]) -> None:
        super().__init__(unet, sites, levels)
        self.depths = {site.name: depth_of(unet.get_submodule(site.name)) for site in sites}

    def choices(
        self, site: Site, widths: Sequence[Sequence[int]], drop_layers: bool, drop_attention: bool
    ) -> list[NativeChoice]:
        """The choices for the block at a site, the teacher's own first; its channels stay."""
        place = self.places[site.name]
        own = {str(level): self.widths[level] for level in place.levels}
        most = self.depths[site.name]
        fewest = 1 if drop_layers and self.by_level else most
        depths = [*range(most, fewest - 1, -1), *[0] * (drop_attention and place.kind != MID)] if most else [0]
        choices: list[NativeChoice] = []
        counts = self.layers_of(place, drop_layers and (place.kind == MID or not self.nested))
        for layers, depth in itertools.product(counts, depths):
            kept = depth if layers else 0
            choice: NativeChoice = {"widths": own, "layers": layers, "attention": kept > 0, "depth": kept}
            if choice not in choices:
                choices.append(choice)
        return choices

    @property
    def nested(self) -> bool:
        """Whether the config gives the transformers of one block several depths."""
        given = as_list(self.config[DEPTHS]) + as_list(self.config[REVERSE])
        return any(isinstance(depth, list | tuple) for depth in given)

    @property
    def by_level(self) -> bool:
        """Whether transformers are as deep in the decoder as in the encoder, so that a level has one depth to choose."""
        return self.config[REVERSE] is None and not self.nested

    def agreement(self, site: Site, choice: NativeChoice) -> dict[str, int]:
        """The choice that the blocks of a level share: ResNet layers, and the depth of transformers, where they have some."""
        place = self.places[site.name]
        common = {} if place.kind == MID else {f"layers {place.level}": choice["layers"] - (place.kind == UP)}
        return common | ({f"depth {place.level}": choice["depth"]} if choice["attention"] and self.by_level else {})

    def narrow(self, block: Module, site: Site, choice: NativeChoice, kept: Mapping[int, torch.Tensor]) -> Module:
        """A block of the teacher, changed in place as a choice says; see `UNetNative`."""
        place = self.places[site.name]
        if choice["layers"] == 0:
            return Dropped()
        keep_layers(block, place.kept_layers(choice["layers"]))
        if place.attends and not choice["attention"]:
            block.attentions = nn.ModuleList(DroppedTransformer() for _ in block.attentions)
        elif place.attends:
            for transformer in block.attentions:
                transformer.transformer_blocks = transformer.transformer_blocks[: choice["depth"]]
        return block

    def sort(self, block: Module, seen: Seen) -> None:
        """Nothing, as no channels are left out."""

    def values(self, choices: Mapping[str, NativeChoice]) -> dict[str, Any]:
        """The values of the config that make the network of these choices, by site."""
        levels = range(len(self.widths))
        depths = dict(enumerate(as_list(self.config[DEPTHS], len(self.widths))))
        for site, choice in choices.items():
            if choice["attention"] and self.by_level:
                depths[self.places[site].level] = choice["depth"]
        middle = choices.get(MID)
        return {
            "layers_per_block": [choices[f"{DOWN}.{level}"]["layers"] for level in levels],
            DEPTHS: [depths[level] for level in levels],
            "down_block_types": [self.block_type(DOWN, index, choices) for index in levels],
            "up_block_types": [self.block_type(UP, index, choices) for index in levels],
            "mid_block_type": self.config["mid_block_type"] if middle and middle["layers"] else None,
        }

    def block_type(self, kind: str, index: int, choices: Mapping[str, NativeChoice]) -> str:
        """The type of a block of the encoder or the decoder: the teacher's own, or that without transformers."""
        name = f"{kind}.{index}"
        own: str = self.config[f"{kind.removesuffix('s')}_types"][index]
        return own if choices[name]["attention"] or not self.places[name].attends else WITHOUT_ATTENTION[kind]

    def start(self, teacher: Module, architecture: Architecture, span: tuple[float, float]) -> Module:
        """The network of an architecture, with the teacher's weights of all but the blocks, which are random."""
        net: Any = self.build(architecture["native"])
        for name in ENDS:
            if getattr(teacher, name, None) is not None:
                setattr(net, name, copy.deepcopy(getattr(teacher, name)))
        return net.eval()


def depth_of(block: Module) -> int:
    """The layers of each transformer of a block; 0 without."""
    transformers = getattr(block, "attentions", None) or ()
    return max((len(transformer.transformer_blocks) for transformer in transformers), default=0)


def as_list(value: Any, count: int = 1) -> list[Any]:
    """A value of the config for each level, where it may be one for all."""
    return list(value) if isinstance(value, list | tuple) else [value] * count
