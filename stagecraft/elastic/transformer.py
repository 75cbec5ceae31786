"""Transformers with cross-attention: layers that are kept x heads x inner width of the feed-forward parts, or dropped.

Heads and units are kept from the first on, which `sort` makes the most important ones of each layer. Layers keep their numbers;
a choice says which are kept.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from stagecraft.elastic.grid import GridChoices, counts
from stagecraft.elastic.resnet import descending
from stagecraft.elastic.searchable import Description, Order, Searchable, Seen, Settings
from stagecraft.networks.family import Module
from stagecraft.networks.unet2d_condition.multi_decoder_unet_condition import TransformerChoice

ATTENTIONS = ("attn1", "attn2")  # of a layer: over the pixels, and of the pixels over a prompt
GATED = "ff.net.0.proj"  # what makes a feed-forward part's units, and the gates of all of them after all units
LAST = "ff.net.2"  # what reads them
UNITS = "ff"  # their key in an order, after the number of the layer


class TransformerChoices(GridChoices[TransformerChoice]):
    """What may be chosen of one transformer; the last option of everything is the teacher's.

    Args:
        transformer: the teacher's.
        settings: `widths` (shares of the heads, of the inner width and, with `drop_layers`, of the layers), `channel_multiple`
            (what the channels of a share are a multiple of) and `drop_attention` count.
        order: its layers, the most important first.
    """

    def __init__(self, transformer: Module, settings: Settings, order: Order) -> None:
        super().__init__(settings.drop_attention)
        first = transformer.transformer_blocks[0]
        size = first.attn1.to_q.out_features // first.attn1.heads
        multiple = settings.channel_multiple
        total = len(order["layers"])
        kept = counts(settings.widths, 1, total, 1) if settings.drop_layers else [total]
        self.layers = [sorted(order["layers"][:number]) for number in kept]
        self.heads = counts(settings.widths, multiple, first.attn1.heads, size)
        self.feed_forward = counts(settings.widths, multiple, first.ff.net[2].in_features, 1)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of options of each dimension, in the order of `choice`."""
        return len(self.layers), len(self.heads), len(self.feed_forward)

    def choice(self, numbers: Sequence[int]) -> TransformerChoice:
        """The choice of the options with these numbers."""
        layers, heads, width = numbers
        return {"layers": self.layers[layers], "heads": self.heads[heads], "feed_forward": self.feed_forward[width]}

    def numbers(self, choice: TransformerChoice) -> list[int]:
        """The numbers of a choice's options, as `choice` takes them."""
        width = self.feed_forward.index(choice["feed_forward"])
        return [self.layers.index(choice["layers"]), self.heads.index(choice["heads"]), width]

    def plain_numbers(self) -> list[list[int]]:
        """The same share of layers, heads and inner width."""
        return [[max(0, size - 1 - less) for size in self.sizes] for less in range(max(self.sizes))]


class SearchableTransformer(Searchable[TransformerChoice]):
    """A Transformer2DModel between the ResNet layers of a block."""

    kind = "attentions"
    keys = frozenset(TransformerChoice.__annotations__)

    @property
    def units(self) -> int:
        """Heads of each attention."""
        heads: int = self.layer.transformer_blocks[0].attn1.heads
        return heads

    def identity(self) -> TransformerChoice:
        """The choice of all layers, heads and units."""
        layers = self.layer.transformer_blocks
        return {"layers": [*range(len(layers))], "heads": self.units, "feed_forward": layers[0].ff.net[2].in_features}

    def choices(self, settings: Settings, order: Order) -> TransformerChoices:
        """As `TransformerChoices`."""
        return TransformerChoices(self.layer, settings, order)

    def natural_order(self) -> Order:
        """Layers as they stand."""
        return {"layers": [*range(len(self.layer.transformer_blocks))]}

    def slice(self, weight: torch.Tensor, name: str, shape: torch.Size, built: nn.Module) -> torch.Tensor:
        """The first heads, or the first units of a feed-forward part with their gates."""
        if weight.shape == shape:
            return weight
        if GATED in name:
            units, gates = weight.chunk(2)
            return torch.cat([units[: shape[0] // 2], gates[: shape[0] // 2]])
        return weight[tuple(slice(size) for size in shape)]

    def sort(self, layer: Module, own: Mapping[str, torch.Tensor], seen: Seen) -> Order:
        """Put the heads and units that add most to each layer's output first; the transformer computes what it did before.

        The importance of a head or unit is the mean square of what it alone adds; that of a layer, of all that it adds.

        Returns:
            `layers`, and of each the heads of both attentions and the units: the most important first.
        """
        importance = []
        order = {}
        for index, part in enumerate(layer.transformer_blocks):
            place = f"{self.name}.transformer_blocks.{index}"
            added = [seen[f"{place}.{name}"][1] for name in (*(f"{name}.to_out.0" for name in ATTENTIONS), LAST)]
            importance.append(torch.stack(added).sum(0).square().mean())
            for name in ATTENTIONS:
                attention = getattr(part, name)
                inputs, _ = seen[f"{place}.{name}.to_out.0"]
                order[f"{index}.{name}"] = descending(added_by_head(attention, inputs))
                permute_heads(attention, order[f"{index}.{name}"])
            inputs, _ = seen[f"{place}.{LAST}"]
            squares = part.ff.net[2].weight.square().sum(0) * inputs.square().mean((0, 1))
            order[f"{index}.{UNITS}"] = descending(squares)
            permute_units(part.ff, order[f"{index}.{UNITS}"])
        return order | {"layers": descending(torch.stack(importance))}

    def moved(self) -> dict[str, int]:
        """Heads and units of each layer."""
        parts: dict[str, int] = {}
        for index, part in enumerate(self.layer.transformer_blocks):
            parts |= {f"{index}.{name}": getattr(part, name).heads for name in ATTENTIONS}
            parts[f"{index}.{UNITS}"] = part.ff.net[2].in_features
        return parts

    def restore(self, layer: Module, choice: TransformerChoice, order: Mapping[str, torch.Tensor]) -> None:
        """Put back the heads where all are kept, and the units where all are."""
        identity = self.identity()
        for index in choice["layers"]:
            part = layer.transformer_blocks[index]
            if choice["heads"] == identity["heads"]:
                for name in ATTENTIONS:
                    permute_heads(getattr(part, name), order[f"{index}.{name}"].argsort().tolist())
            if choice["feed_forward"] == identity["feed_forward"]:
                permute_units(part.ff, order[f"{index}.{UNITS}"].argsort().tolist())

    def with_units(
        self, count: int, order: Order, candidates: Sequence[TransformerChoice | None]
    ) -> TransformerChoice | None:
        """The choice with this many heads, the same share of the inner width, and all layers."""
        choice = self.identity()
        choice["feed_forward"] = max(1, round(count / self.units * choice["feed_forward"]))
        choice["heads"] = count
        return choice

    @staticmethod
    def describe_choice(choice: TransformerChoice | None, identity: TransformerChoice) -> Description:
        """Layers, heads and inner width."""
        if choice is None:
            return Description("no transformer", 0.0)
        layers = len(choice["layers"])
        text = f"{layers} layer(s) · {choice['heads']} heads · {choice['feed_forward']}"
        widths = choice["heads"] / identity["heads"] + choice["feed_forward"] / identity["feed_forward"]
        return Description(text, layers / len(identity["layers"]) * widths / 2)


def added_by_head(attention: Module, inputs: torch.Tensor) -> torch.Tensor:
    """Mean square of what each head of an attention adds to its output, (heads,); `inputs` are those of its last layer."""
    weight = attention.to_out[0].weight
    size = weight.shape[1] // attention.heads
    pairs: Iterator[tuple[torch.Tensor, torch.Tensor]] = zip(inputs.split(size, -1), weight.split(size, 1), strict=True)
    return torch.stack([F.linear(a, w).square().mean() for a, w in pairs])


def permute_heads(attention: Module, heads: list[int]) -> None:
    """Put the heads of an attention into another order, in place."""
    size = attention.to_out[0].in_features // attention.heads
    order = [head * size + i for head in heads for i in range(size)]
    for name in ("to_q", "to_k", "to_v"):
        for parameter in getattr(attention, name).parameters():
            parameter.copy_(parameter[order])
    weight = attention.to_out[0].weight
    weight.copy_(weight[:, order])


def permute_units(feed_forward: Module, order: list[int]) -> None:
    """Put the units of a feed-forward part into another order, in place."""
    for parameter in feed_forward.net[0].proj.parameters():
        parameter.copy_(parameter[[*order, *(len(order) + unit for unit in order)]])
    weight = feed_forward.net[2].weight
    weight.copy_(weight[:, order])
