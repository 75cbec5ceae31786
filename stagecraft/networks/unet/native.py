"""The students that a stock UNet of diffusers can express: the part that all kinds of UNets share.

Fewer ResNet layers in a block are those that a UNet of fewer has: of a down block the first; of an up block the first, which
reads the hidden state and its level's last skip tensor, and the last, which read the skip tensors of the layers that are left.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from stagecraft.networks.family import Module, NativeChoice, Site
from stagecraft.networks.unet.names import DOWN, MID, UP
from stagecraft.networks.unet.stream import level_of
from stagecraft.networks.unet.student import arguments_of, stream_levels


@dataclass(frozen=True)
class Place:
    """Where a block stands: its list, its level, that of the hidden state it reads, and what the teacher's has."""

    kind: str
    level: int
    hidden: int
    layers: int
    attends: bool

    def reads(self, layers: int) -> list[list[int]]:
        """For each of so many ResNet layers the levels of the tensors that make its input, side by side."""
        level = self.level
        if self.kind != UP:
            return [[self.hidden], *[[level]] * (layers - 1)][:layers]
        skips = [level] * (layers - 1) + [max(level - 1, 0)]
        return [[hidden, skip] for hidden, skip in zip([self.hidden, *[level] * (layers - 1)], skips, strict=True)]

    @property
    def levels(self) -> list[int]:
        """The levels that the block reads or writes."""
        return sorted({self.level, *itertools.chain.from_iterable(self.reads(self.layers))})

    def kept_layers(self, layers: int) -> list[int]:
        """The numbers of the teacher's layers that stand for so many; see the head of this file."""
        if self.kind != UP or layers == self.layers:
            return list(range(layers))
        return [0, *range(self.layers - layers + 1, self.layers)]


class UNetNative(ABC):
    """The students of a UNet that are of its own class.

    Args:
        teacher_class: that class.
        narrows: whether channels are chosen.
        plain: the types of blocks without attention, of the encoder and of the decoder.
        levels: the level of each tensor between blocks, by name.
    """

    teacher_class: ClassVar[Any]
    narrows: ClassVar[bool]
    plain: ClassVar[Mapping[str, str]]

    def __init__(self, unet: Module, sites: Sequence[Site], levels: Mapping[str, int]) -> None:
        self.config: dict[str, Any] = {**arguments_of(self.teacher_class, unet.config)}
        self.widths: tuple[int, ...] = tuple(self.config["block_out_channels"])
        self.groups: int = self.config["norm_num_groups"]
        self.levels = levels
        self.shared: Sequence[int] = stream_levels(unet)
        self.sites = {site.name: site for site in sites}
        self.places = {site.name: place_of(unet, site) for site in sites}

    @abstractmethod
    def narrow(self, block: Module, site: Site, choice: NativeChoice, kept: Mapping[int, torch.Tensor]) -> Module:
        """A block of the teacher, changed in place as a choice says; what is left are weights of the teacher's.

        Args:
            kept: the channels that stay of the levels that it reads and writes, ascending.
        """

    def layers_of(self, place: Place, drop_layers: bool) -> list[int]:
        """Numbers of ResNet layers, the teacher's first: in the mid block all or none, elsewhere one at least."""
        if place.kind == MID:
            return [place.layers, *[0] * drop_layers]
        fewest = (1 + (place.kind == UP)) if drop_layers else place.layers
        return list(range(place.layers, fewest - 1, -1))

    def ends(self, first: NativeChoice) -> Module:
        """A plain UNet on the meta device with the input side and the output head of students of this first block."""
        levels = len(self.widths)
        plain = {f"{kind.removesuffix('s')}_types": [name] * levels for kind, name in self.plain.items()}
        widths = {"block_out_channels": (first["widths"]["0"], *self.widths[1:]), "mid_block_type": None}
        with torch.device("meta"):
            return self.teacher_class(**self.config | plain | widths)

    def build(self, values: Mapping[str, Any]) -> Module:
        """The network of `values`, with random weights."""
        return self.teacher_class(**self.config | dict(values))


def stock_model(kind: Any, student: Module) -> Module:
    """The network of a stock class that a student with one decoder of the UNet's own shape is, with its weights."""
    net: Any = kind(**arguments_of(kind, student.base_config))
    state = {name.removeprefix("decoders.0."): value for name, value in student.state_dict().items()}
    net.load_state_dict(state)
    return net.eval()


def place_of(unet: Module, site: Site) -> Place:
    """The place of the block at a site of a UNet."""
    block: Any = unet.get_submodule(site.name)
    kind = site.name.partition(".")[0]
    level = level_of(unet, site)
    deepest = len(unet.down_blocks) - 1
    hidden = {DOWN: max(level - 1, 0), MID: level, UP: min(level + 1, deepest)}[kind]
    attends = any(layer is not None for layer in getattr(block, "attentions", None) or ())
    return Place(kind, level, hidden, len(block.resnets), attends)


def keep_layers(block: Module, layers: Sequence[int]) -> None:
    """Leave a block, in place, the ResNet layers of these numbers, and their attentions."""
    block.resnets = nn.ModuleList(block.resnets[i] for i in layers)
    attentions = getattr(block, "attentions", None)
    if attentions is not None:
        block.attentions = nn.ModuleList(attentions[i] for i in layers if i < len(attentions))
