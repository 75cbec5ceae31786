"""ResNet layers: inner width x kernels x the groups of channels that are read and written, or dropped.

Inner channels are kept in whole GroupNorm groups: the first k, which `sort` makes the k most important. The channels that a layer
reads and writes keep their places; a choice says which it takes. A kernel size that the teacher has not has weights of its own,
which start from the centre of the teacher's kernel.
"""

from collections.abc import Mapping, Sequence, Sized
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from stagecraft.elastic.grid import GridChoices, counts
from stagecraft.elastic.searchable import Description, Order, Searchable, Seen, Settings
from stagecraft.networks.family import Module
from stagecraft.networks.unet.student import (
    PartialLayer,
    ResnetChoice,
    group_size,
    norm_size,
    output_group_size,
)

PARTS: tuple[Literal["reads", "writes"], ...] = ("reads", "writes")


class ResnetChoices(GridChoices[ResnetChoice]):
    """What may be chosen of one ResNet layer; the last option of everything is the teacher's.

    Args:
        resnet: the teacher's layer.
        settings: `widths` (shares of the inner width), `stream` (shares of what is read, and of what is written), `kernels`,
            `channel_multiple` (what the channels of a share are a multiple of) and `drop_layers` count.
        order: its groups of input (`reads`) and output channels (`writes`), the most important first.
    """

    def __init__(self, resnet: Module, settings: Settings, order: Order) -> None:
        super().__init__(settings.drop_layers)
        size = group_size(resnet)
        self.widths = [
            size * count for count in counts(settings.widths, settings.channel_multiple, resnet.norm2.num_groups, size)
        ]
        convolutions = (resnet.conv1, resnet.conv2)
        self.kernels = [sorted({*settings.kernels, conv.kernel_size[0]}) for conv in convolutions]
        self.own_kernels = [
            options.index(conv.kernel_size[0]) for options, conv in zip(self.kernels, convolutions, strict=True)
        ]
        self.reads = parts(settings, order["reads"], norm_size(resnet.norm1))
        self.writes = parts(settings, order["writes"], output_group_size(resnet))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of options of each dimension, in the order of `choice`."""
        dimensions: tuple[Sized, ...] = (self.widths, *self.kernels, self.reads, self.writes)
        return tuple(map(len, dimensions))

    def choice(self, numbers: Sequence[int]) -> ResnetChoice:
        """The choice of the options with these numbers."""
        width, first, second, read, write = numbers
        kernels = [self.kernels[0][first], self.kernels[1][second]]
        choice: ResnetChoice = {"width": self.widths[width], "kernels": kernels}
        if read < len(self.reads) - 1:
            choice["reads"] = self.reads[read]
        if write < len(self.writes) - 1:
            choice["writes"] = self.writes[write]
        return choice

    def numbers(self, choice: ResnetChoice) -> list[int]:
        """The numbers of a choice's options, as `choice` takes them."""
        kernels = [options.index(kernel) for options, kernel in zip(self.kernels, choice["kernels"], strict=True)]
        read = self.reads.index(choice.get("reads", self.reads[-1]))
        write = self.writes.index(choice.get("writes", self.writes[-1]))
        return [self.widths.index(choice["width"]), *kernels, read, write]

    def plain_numbers(self) -> list[list[int]]:
        """The same share of all that is read, held and written, with the teacher's kernels."""
        shares = (self.widths, self.reads, self.writes)
        rows = []
        for less in range(max(len(options) for options in shares)):
            width, read, write = (max(0, len(options) - 1 - less) for options in shares)
            rows.append([width, *self.own_kernels, read, write])
        return rows


class SearchableResnet(Searchable[ResnetChoice]):
    """A ResnetBlock2D between the samplers of a block."""

    kind = "resnets"

    @property
    def units(self) -> int:
        """GroupNorm groups inside the layer."""
        groups: int = self.layer.norm2.num_groups
        return groups

    def identity(self) -> ResnetChoice:
        """The teacher's width and kernels."""
        resnet = self.layer
        kernels = [resnet.conv1.kernel_size[0], resnet.conv2.kernel_size[0]]
        return {"width": resnet.conv1.out_channels, "kernels": kernels}

    def choices(self, settings: Settings, order: Order) -> ResnetChoices:
        """As `ResnetChoices`."""
        return ResnetChoices(self.layer, settings, order)

    def natural_order(self) -> Order:
        """Groups as they stand."""
        groups = list(range(self.layer.norm1.num_groups))
        return {"reads": groups, "writes": groups}

    def own_weights(self, settings: Settings) -> dict[str, torch.Tensor]:
        """Kernels of the sizes that the teacher's convolutions have not."""
        own = {}
        for name in ("conv1", "conv2"):
            weight = getattr(self.layer, name).weight.detach()
            for size in settings.kernels:
                if size != weight.shape[-1]:
                    own[f"{self.name}.{name}.weight-{size}"] = resize_kernel(weight, size)
        return own

    def source(self, name: str, shape: torch.Size) -> str:
        """The kernel of the size that is asked for."""
        convolution = name.removeprefix(f"{self.name}.").removesuffix(".weight")
        if convolution not in ("conv1", "conv2") or not name.endswith(".weight"):
            return name
        own = getattr(self.layer, convolution).weight.shape[-1]
        return name if shape[-1] == own else f"{name}-{shape[-1]}"

    def slice(self, weight: torch.Tensor, name: str, shape: torch.Size, built: nn.Module) -> torch.Tensor:
        """The channels that are read and written, and the first inner ones."""
        if isinstance(built, PartialLayer):
            weight = part_of(weight, name.removeprefix(f"{self.name}."), built)
        if weight.shape == shape:
            return weight
        if "time_emb_proj" in name and self.layer.time_embedding_norm == "scale_shift":
            half = weight.shape[0] // 2
            width = shape[0] // 2
            return torch.cat([weight[:width], weight[half : half + width]])
        return weight[tuple(slice(size) for size in shape)]

    def sort(self, layer: Module, own: Mapping[str, torch.Tensor], seen: Seen) -> Order:
        """Put the inner groups that add most to the layer's output first; it computes what it did before.

        The importance of a group is the mean square of what it alone adds: ||conv2[:, g] * a_g||^2, where a is the input of the
        second convolution; that of a group that is read is ||conv1[:, g] * a_g||^2, and that of one that is written is the mean
        square of conv2's output in it.

        Returns:
            `reads` and `writes`: the groups, the most important first.
        """
        read, _ = seen[f"{self.name}.conv1"]
        inner, written = seen[f"{self.name}.conv2"]
        order = {
            "reads": descending(added_by_group(layer.conv1, read, layer.norm1.num_groups)),
            "writes": descending(written.unflatten(1, (-1, output_group_size(layer))).square().mean((0, 2, 3, 4))),
        }
        self.permute(layer, own, descending(added_by_group(layer.conv2, inner, layer.norm2.num_groups)))
        return order

    def permute(self, layer: Module, own: Mapping[str, torch.Tensor], groups: list[int]) -> None:
        """Put the inner groups into another order."""
        size = group_size(layer)
        order = torch.tensor([g * size + i for g in groups for i in range(size)], device=layer.conv1.weight.device)
        for name, parameter in layer.named_parameters():
            if name.startswith(("conv1", "norm2")):
                parameter.copy_(parameter[order])
            elif name.startswith("time_emb_proj"):
                halves = 2 if layer.time_embedding_norm == "scale_shift" else 1
                parameter.copy_(parameter[torch.cat([order + half * len(order) for half in range(halves)])])
            elif name == "conv2.weight":
                parameter.copy_(parameter[:, order])
        for name, kernel in own.items():
            kernel.copy_(kernel[order] if name.startswith(f"{self.name}.conv1") else kernel[:, order])

    def with_units(self, count: int, order: Order, candidates: Sequence[ResnetChoice | None]) -> ResnetChoice | None:
        """So many inner groups, and, where candidates have parts of them, that share of the groups read and written."""
        choice = self.identity()
        choice["width"] = count * group_size(self.layer)
        if any(set(PARTS) & candidate.keys() for candidate in candidates if candidate):
            for key in PARTS:
                groups = order[key]
                kept = max(1, round(count / self.units * len(groups)))
                if kept < len(groups):
                    choice[key] = sorted(groups[:kept])
        return choice

    @staticmethod
    def describe_choice(choice: ResnetChoice | None, identity: ResnetChoice) -> Description:
        """Inner width, kernels, and what is read and written where that is not all."""
        if choice is None:
            return Description("dropped", 0.0)
        kernels = " ".join(f"{k}×{k}" for k in choice["kernels"])
        partial = [f"{key} {len(choice[key])} groups" for key in PARTS if key in choice]
        share = min(1.0, choice["width"] / identity["width"])
        return Description(" · ".join([str(choice["width"]), kernels, *partial]), share)


def parts(settings: Settings, order: list[int], size: int) -> list[list[int]]:
    """The most important groups, as many as the shares of `stream` say, ascending."""
    numbers = counts(settings.stream, settings.channel_multiple, len(order), size)
    return [sorted(order[:number]) for number in numbers]


def part_of(weight: torch.Tensor, name: str, layer: PartialLayer) -> torch.Tensor:
    """A parameter of a whole layer with the channels that a partial one reads or writes."""
    match name.split("."):
        case ["norm1", _]:
            return weight.index_select(0, layer.read)
        case ["conv1", "weight"]:
            return weight.index_select(1, layer.read)
        case ["conv2", _]:
            return weight.index_select(0, layer.written)
    return weight


def added_by_group(conv: nn.Conv2d, inputs: torch.Tensor, groups: int) -> torch.Tensor:
    """Mean square of what each group of a convolution's input channels adds to its output, (groups,)."""
    size = inputs.shape[1] // groups
    pairs = zip(inputs.split(size, 1), conv.weight.split(size, 1), strict=True)
    return torch.stack([F.conv2d(a, w, padding=conv.padding).square().mean() for a, w in pairs])


def descending(importance: torch.Tensor) -> list[int]:
    """The numbers of the entries, the largest first."""
    return importance.argsort(descending=True, stable=True).tolist()


def resize_kernel(weight: torch.Tensor, size: int) -> torch.Tensor:
    """The centre of a kernel (out, in, k, k), as (out, in, size, size)."""
    margin = (size - weight.shape[-1]) // 2
    return F.pad(weight, (margin,) * 4).clone()
