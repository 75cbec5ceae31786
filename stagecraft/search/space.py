"""The search space of one block, per ResNet layer: inner width x kernels x what is read x what is written, or none of it.

Besides, each attention is kept or dropped.
"""

import itertools
import json
import math
from collections.abc import Iterator, Sized
from typing import Any

import numpy as np

from stagecraft.elastic.block import ChannelOrder, natural_order
from stagecraft.networks.borders import borders_of
from stagecraft.networks.multi_decoder_unet import Module, group_size, norm_size, output_group_size
from stagecraft.networks.specs import Spec, identity_spec

Layer = dict[str, Any] | None
ATTEMPTS = 20  # children tried for each that is wanted
DROPPED = 1 / 8  # share of random draws in which a layer that may be dropped is


class LayerChoices:
    """What may be chosen of one ResNet layer; the last option of everything is the teacher's.

    Args:
        resnet: the teacher's layer.
        reads, writes: its groups of input and of output channels, the most important first.
    """

    def __init__(self, resnet: Module, settings: dict[str, Any], reads: list[int], writes: list[int]) -> None:
        groups, size = resnet.norm2.num_groups, group_size(resnet)
        self.widths = [size * count for count in counts(settings, "widths", groups, size)]
        self.kernels = [kernel_options(settings, conv) for conv in (resnet.conv1, resnet.conv2)]
        self.own_kernels = [
            options.index(conv.kernel_size[0])
            for options, conv in zip(self.kernels, (resnet.conv1, resnet.conv2), strict=True)
        ]
        self.reads = parts(settings, reads, norm_size(resnet.norm1))
        self.writes = parts(settings, writes, output_group_size(resnet))
        self.may_drop: bool = settings["drop_layers"]

    def __len__(self) -> int:
        return math.prod(self.sizes) + self.may_drop

    def layer(self, width: int, first: int, second: int, read: int, write: int) -> Layer:
        """The spec of the options with these numbers."""
        kernels = [options[at] for options, at in zip(self.kernels, (first, second), strict=True)]
        layer: dict[str, Any] = {"width": self.widths[width], "kernels": kernels}
        chosen = {"reads": (self.reads, read), "writes": (self.writes, write)}
        return layer | {
            key: options[at] for key, (options, at) in chosen.items() if len(options[at]) < len(options[-1])
        }

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of options of each choice, in the order of `layer`."""
        first, second = self.kernels
        choices: tuple[Sized, ...] = (self.widths, first, second, self.reads, self.writes)
        return tuple(map(len, choices))

    def smallest(self) -> Layer:
        """The least of everything, not dropped."""
        return self.layer(0, 0, 0, 0, 0)

    def all(self) -> list[Layer]:
        """Every option, the dropped layer last."""
        kept = [self.layer(*numbers) for numbers in itertools.product(*map(range, self.sizes))]
        return [*kept, None] if self.may_drop else kept

    def plain(self) -> list[Layer]:
        """The same share of all that is read, held and written, from the teacher's down; the dropped layer."""
        kept = []
        for less in range(max(len(self.widths), len(self.reads))):
            shares = (self.widths, self.reads, self.writes)
            width, *others = (max(0, len(options) - 1 - less) for options in shares)
            kept.append(self.layer(width, *self.own_kernels, *others))
        return [*kept, None] if self.may_drop else kept

    def draw(self, rng: np.random.Generator) -> Layer:
        """Each choice uniform over its options, dropped once in eight."""
        if self.may_drop and rng.random() < DROPPED:
            return None
        return self.layer(*(int(rng.integers(size)) for size in self.sizes))

    def changed(self, layer: Layer, rng: np.random.Generator) -> Layer:
        """A layer that differs in one choice; any at all for a dropped one."""
        if layer is None or (self.may_drop and rng.random() < DROPPED):
            return self.draw(rng) if layer is None else None
        numbers = self.numbers(layer)
        free = [i for i, size in enumerate(self.sizes) if size > 1]
        if not free:
            return layer
        at = free[rng.integers(len(free))]
        numbers[at] = (numbers[at] + 1 + int(rng.integers(self.sizes[at] - 1))) % self.sizes[at]
        return self.layer(*numbers)

    def numbers(self, layer: dict[str, Any]) -> list[int]:
        """The numbers of a layer's options, as `layer` takes them."""
        kernels = [options.index(kernel) for options, kernel in zip(self.kernels, layer["kernels"], strict=True)]
        chosen = {"reads": self.reads, "writes": self.writes}
        others = [options.index(layer.get(key, options[-1])) for key, options in chosen.items()]
        return [self.widths.index(layer["width"]), *kernels, *others]


class BlockSpace:
    """All sub-blocks of a teacher's block that the params admit; the teacher's own shape is always among them.

    Args:
        block: the teacher's block.
        settings: the `search_block` section: `widths` (shares of the teacher's inner width, rounded to whole GroupNorm groups),
            `stream` (shares of the channels that a layer reads, and that it writes), `channel_multiple` (of which the channels
            of a share are a multiple), `kernels`, `drop_layers`, `drop_attention`.
        order: groups by importance, as `ElasticBlock.sort_channels` gives them.
    """

    def __init__(self, block: Module, settings: dict[str, Any], order: ChannelOrder) -> None:
        self.identity = identity_spec(block)
        self.order = order
        orders = zip(block.resnets, order["reads"], order["writes"], strict=True)
        self.layers = [LayerChoices(resnet, settings, *of_layer) for resnet, *of_layer in orders]
        kept = [True, False] if settings["drop_attention"] else [True]
        self.attentions = [kept if present else [False] for present in self.identity["attentions"]]

    def __len__(self) -> int:
        layers = math.prod(len(choices) for choices in self.layers)
        return layers * math.prod(len(options) for options in self.attentions)

    def smallest(self) -> Spec:
        """Every layer at its least, every attention dropped that may be."""
        return {
            "layers": [choices.smallest() for choices in self.layers],
            "attentions": [options[-1] for options in self.attentions],
        }

    def draw(self, rng: np.random.Generator) -> Spec:
        """One spec, each choice uniform over its options."""
        return {
            "layers": [choices.draw(rng) for choices in self.layers],
            "attentions": [options[rng.integers(len(options))] for options in self.attentions],
        }

    def all(self) -> list[Spec]:
        """Every spec of the space."""
        return [
            {"layers": list(layers), "attentions": list(attentions)}
            for layers in itertools.product(*(choices.all() for choices in self.layers))
            for attentions in itertools.product(*self.attentions)
        ]

    def covering(self) -> list[Spec]:
        """The teacher's shape and specs in which, between them, every option of every place in the block occurs."""
        layers = [choices.all() for choices in self.layers]
        longest = max([*map(len, layers), *map(len, self.attentions)])
        specs = [
            {
                "layers": [options[i % len(options)] for options in layers],
                "attentions": [options[i % len(options)] for options in self.attentions],
            }
            for i in range(longest)
        ]
        return [self.identity, *specs]

    def plain(self) -> list[Spec]:
        """Specs that treat all layers alike, and all else at its most or its least: the choices that a sample must not miss."""
        options = [choices.plain() for choices in self.layers]
        layers = [[some[min(i, len(some) - 1)] for some in options] for i in range(max(map(len, options)))]
        most = {"attentions": [options[0] for options in self.attentions]}
        least = {"attentions": [options[-1] for options in self.attentions]}
        return [{"layers": one} | end for one in layers for end in (most, least)]

    def first(self, most: int, rng: np.random.Generator) -> list[Spec]:
        """The whole space when it has at most `most` specs; else the identity, the plain specs and a seeded sample."""
        if len(self) <= most:
            return unique([self.identity, *self.all()])
        chosen = unique([self.identity, self.smallest(), *self.plain()])
        while len(chosen) < most:
            chosen = unique([*chosen, *(self.draw(rng) for _ in range(most - len(chosen)))])
        return chosen

    def children(self, parents: list[Spec], count: int, known: list[Spec], rng: np.random.Generator) -> list[Spec]:
        """New specs, each a cross of two parents with one choice exchanged; draws where the parents give nothing new."""
        found: list[Spec] = []
        seen, attempts = {key_of(spec) for spec in known}, 0
        while len(found) < count:
            attempts += 1
            spec = self._child(parents, rng) if attempts <= ATTEMPTS * count else self.draw(rng)
            if key_of(spec) not in seen:
                seen.add(key_of(spec))
                found.append(spec)
        return found

    def _child(self, parents: list[Spec], rng: np.random.Generator) -> Spec:
        pair = [parents[rng.integers(len(parents))] for _ in range(2)]
        spec: Spec = {
            "layers": [pair[rng.integers(2)]["layers"][i] for i in range(len(self.layers))],
            "attentions": [pair[rng.integers(2)]["attentions"][i] for i in range(len(self.attentions))],
        }
        at = int(rng.integers(len(self.layers) + len(self.attentions)))
        if at < len(self.layers):
            spec["layers"][at] = self.layers[at].changed(spec["layers"][at], rng)
        else:
            options = self.attentions[at - len(self.layers)]
            spec["attentions"][at - len(self.layers)] = options[rng.integers(len(options))]
        return spec


def covering_specs(student: Module, settings: dict[str, Any]) -> Iterator[tuple[str, Spec]]:
    """Names of blocks, and specs of each in which all layer shapes of the search space occur.

    Args:
        student: the teacher with the student's hidden channels.
        settings: the keys of the `search_block` section that `BlockSpace` reads.
    """
    for border in borders_of(student):
        block = student.get_submodule(border.block)
        # Shapes depend on how many groups are kept, not on which.
        for spec in BlockSpace(block, settings, natural_order(block)).covering():
            yield border.block, spec


def counts(settings: dict[str, Any], key: str, groups: int, size: int) -> list[int]:
    """The shares under `key` as numbers of whole groups of `size` channels, ascending; all of them is always among them.

    The channels of the others are multiples of `channel_multiple`, at least one.
    """
    step = math.lcm(size, settings["channel_multiple"]) // size
    found = {step * max(1, round(share * groups / step)) for share in settings[key]}
    return sorted({count for count in found if count < groups} | {groups})


def kernel_options(settings: dict[str, Any], conv: Module) -> list[int]:
    """Kernels of a convolution of the teacher, ascending; its own is always among them."""
    return sorted({*settings["kernels"], conv.kernel_size[0]})


def parts(settings: dict[str, Any], order: list[int], size: int) -> list[list[int]]:
    """The most important groups, as many as the shares of `stream` say, ascending."""
    return [sorted(order[:count]) for count in counts(settings, "stream", len(order), size)]


def key_of(spec: Spec) -> str:
    """The same text for the same spec."""
    return json.dumps(spec, sort_keys=True)


def unique(specs: list[Spec]) -> list[Spec]:
    """The specs without repetition, in their order."""
    return list({key_of(spec): spec for spec in specs}.values())
