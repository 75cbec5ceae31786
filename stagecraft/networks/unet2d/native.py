"""Which students a stock UNet2DModel expresses: channels by level, layers a block, attention or not by block, mid block or none.

A choice is of a whole block, {"widths": {"0": 16, "1": 48}, "layers": 1, "attention": true}: the channels of all levels that the
block reads or writes, which are also the inner ones of its layers, in as many GroupNorm groups as the teacher's and in heads of
the teacher's size; its ResNet layers, none for a mid block that is dropped; and whether it attends. The choices of a network's
blocks have to agree, as `agreement` says.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from stagecraft.networks.family import Architecture, Module, NativeChoice, Seen, Site
from stagecraft.networks.unet.names import DOWN, MID, UP
from stagecraft.networks.unet.native import Place, UNetNative, keep_layers
from stagecraft.networks.unet.student import Dropped, narrow_layers, narrow_norm, norm_size, select

# Types of blocks without attention, whose samplers are convolutions or, by the config, ResNet layers.
WITHOUT_ATTENTION = {
    DOWN: ("DownBlock2D", "ResnetDownsampleBlock2D"),
    UP: ("UpBlock2D", "ResnetUpsampleBlock2D"),
}
SAMPLER_TYPES = {DOWN: "downsample_type", UP: "upsample_type"}
GRID = 1000  # timesteps that a narrower time embedding is fitted on


class UNet2DNative(UNetNative):
    """The students of a UNet2DModel that are such a model themselves."""

    teacher_class = UNet2DModel
    narrows = True
    plain: ClassVar = {kind: types[0] for kind, types in WITHOUT_ATTENTION.items()}

    def __init__(self, unet: Module, sites: Sequence[Site], levels: Mapping[str, int]) -> None:
        super().__init__(unet, sites, levels)
        self.config["time_embedding_dim"] = unet.time_embedding.linear_2.out_features

    def choices(
        self, site: Site, widths: Sequence[Sequence[int]], drop_layers: bool, drop_attention: bool
    ) -> list[NativeChoice]:
        """The choices for the block at a site, the teacher's own first."""
        place = self.places[site.name]
        layers = self.layers_of(place, drop_layers)
        attends = [True, *[False] * drop_attention] if place.attends else [False]
        choices: list[NativeChoice] = []
        for chosen in self.widths_of(place, widths):
            texts = {str(level): width for level, width in chosen.items()}
            for count, attending in itertools.product(layers, attends):
                attending = attending and count > 0
                choice: NativeChoice = {"widths": texts, "layers": count, "attention": attending}
                if choice not in choices and (not attending or self.can_attend(place, chosen[place.level])):
                    choices.append(choice)
        return choices

    def widths_of(self, place: Place, widths: Sequence[Sequence[int]]) -> Iterator[dict[int, int]]:
        """Channels of the levels of a block, the most first; levels that have them in common are as wide as each other."""
        numbers = sorted({self.shared[level] for level in place.levels})
        columns = [sorted(widths[self.shared.index(number)], reverse=True) for number in numbers]
        for row in itertools.product(*columns):
            yield {level: row[numbers.index(self.shared[level])] for level in place.levels}

    def can_attend(self, place: Place, width: int) -> bool:
        """Whether so many channels make at least one head and whole groups of the attention's GroupNorm."""
        own_groups = self.config["attn_norm_num_groups"] if place.kind == MID else None
        return width >= (self.config["attention_head_dim"] or 1) and width % (own_groups or self.groups) == 0

    def agreement(self, site: Site, choice: NativeChoice) -> dict[str, int]:
        """The part of this block's choice that all blocks of a network share: channels, and layers a block."""
        place = self.places[site.name]
        common = {f"width {self.shared[int(level)]}": width for level, width in choice["widths"].items()}
        return common if place.kind == MID else common | {"layers": choice["layers"] - (place.kind == UP)}

    def narrow(self, block: Module, site: Site, choice: NativeChoice, kept: Mapping[int, torch.Tensor]) -> Module:
        """A block of the teacher, changed in place as a choice says; see `UNetNative`."""
        place = self.places[site.name]
        if choice["layers"] == 0:
            return Dropped()
        keep_layers(block, place.kept_layers(choice["layers"]))
        reads = [self.channels_of(levels, kept) for levels in place.reads(choice["layers"])]
        narrow_layers(block, reads, kept[place.level])
        for resnet in block.resnets:
            if resnet.in_channels == len(kept[place.level]):  # where a stock layer's shortcut has no convolution
                resnet.conv_shortcut = None
        if place.attends and not choice["attention"]:
            block.attentions = nn.ModuleList(Dropped() for _ in block.attentions)
        width = len(kept[place.level])
        for module in [*block.modules()]:
            if isinstance(module, ResnetBlock2D):
                narrow_inside(module, width)
            elif isinstance(module, Attention):
                narrow_heads(module, width, self.config["attention_head_dim"])
        return block

    def channels_of(self, levels: Sequence[int], kept: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """The channels that are kept of tensors of these levels, side by side."""
        starts = itertools.accumulate((self.widths[level] for level in levels), initial=0)
        return torch.cat([kept[level] + start for level, start in zip(levels, starts, strict=False)])

    def sort(self, block: Module, seen: Seen) -> None:
        """Put what matters most first inside the layers of a block, which computes what it did before.

        Inside ResNet layers channels change places within their group, in attentions whole heads, by the mean square of what each
        adds to the output of the last convolution or linear layer.
        """
        for name, module in block.named_modules():
            if isinstance(module, ResnetBlock2D):
                inner, _ = seen[f"{name}.conv2"]
                weight = module.conv2.weight.square().sum((0, 2, 3))
                permute_inside(module, inner.square().mean((0, 2, 3)) * weight)
            elif isinstance(module, Attention):
                inner, _ = seen[f"{name}.to_out.0"]
                weight = module.to_out[0].weight.square().sum(0)
                permute_heads(module, inner.square().flatten(0, -2).mean(0) * weight)

    def values(self, choices: Mapping[str, NativeChoice]) -> dict[str, Any]:
        """The values of the config that make the network of these choices, by site."""
        widths = {int(level): width for choice in choices.values() for level, width in choice["widths"].items()}
        middle = choices.get(MID, {"widths": {}, "layers": 0, "attention": False})
        types = {kind: [self.block_type(f"{kind}.{i}", choices) for i in range(len(widths))] for kind in (DOWN, UP)}
        return {
            "block_out_channels": [widths[level] for level in sorted(widths)],
            "layers_per_block": choices[f"{DOWN}.0"]["layers"],
            "down_block_types": types[DOWN],
            "up_block_types": types[UP],
            "mid_block_type": self.config["mid_block_type"] if middle["layers"] else None,
            "add_attention": middle["attention"],
            "time_embedding_dim": self.config["time_embedding_dim"],
        }

    def block_type(self, name: str, choices: Mapping[str, NativeChoice]) -> str:
        """The type of a block of the encoder or the decoder: the teacher's own, or that without its attention."""
        kind, _, index = name.partition(".")
        own: str = self.config[f"{kind.removesuffix('s')}_types"][int(index)]
        if choices[name]["attention"] or not self.places[name].attends:
            return own
        return WITHOUT_ATTENTION[kind][self.config[SAMPLER_TYPES[kind]] == "resnet"]

    def start(self, teacher: Module, architecture: Architecture, span: tuple[float, float]) -> Module:
        """The network of an architecture, with the teacher's weights of all but the blocks, which are random.

        Where the finest level is narrower, so is the input of the time embedding, which a stock model makes of as many sinusoids.
        Its first layer is then fitted to the teacher's over the timesteps of `span`, by least squares.
        """
        net: Any = self.build(architecture["native"])
        kept = torch.tensor(architecture["stream"][0])
        for name in ("conv_in", "conv_norm_out", "conv_out", "time_embedding", "class_embedding"):
            setattr(net, name, copy.deepcopy(getattr(teacher, name)))
        select(net.conv_in, None, kept)
        narrow_norm(net.conv_norm_out, kept)
        select(net.conv_out, kept, None)
        narrow_projection(net.time_proj, teacher.time_proj)
        if len(kept) != self.widths[0]:
            net.time_embedding.linear_1 = fit_linear(teacher, net.time_proj, span)
        return net.eval()


def narrow_inside(resnet: Module, width: int) -> None:
    """Leave a ResNet layer, in place, so many inner channels, the first of each group."""
    size = norm_size(resnet.norm2)
    channels = torch.arange(resnet.norm2.num_channels)
    kept = channels[channels % size < width // resnet.norm2.num_groups]
    select(resnet.conv1, None, kept)
    select_halves(resnet, kept)
    narrow_norm(resnet.norm2, kept)
    select(resnet.conv2, kept, None)
    resnet.out_channels = width


def select_halves(resnet: Module, channels: torch.Tensor) -> None:
    """Take some inner channels of what a ResNet layer makes of the time embedding: a shift, or a scale and a shift."""
    linear = resnet.time_emb_proj
    if linear is not None:
        width = resnet.norm2.num_channels
        select(linear, None, torch.cat([channels + start for start in range(0, linear.out_features, width)]))


def narrow_heads(attention: Module, width: int, head: int | None) -> None:
    """Leave an attention, in place, the first heads, as a stock one of this width has: of `head` channels, or a single one."""
    size = attention.inner_dim // attention.heads
    head = head or width
    heads = width // head
    channels = torch.arange(attention.inner_dim)
    kept = channels[(channels // size < heads) & (channels % size < head)]
    for linear in (attention.to_q, attention.to_k, attention.to_v):
        select(linear, None, kept)
    select(attention.to_out[0], kept, None)
    attention.heads = attention.sliceable_head_dim = heads
    attention.inner_dim = attention.inner_kv_dim = len(kept)
    attention.scale = head**-0.5


def permute_inside(resnet: Module, importance: torch.Tensor) -> None:
    """Put the inner channels of a ResNet layer into the order of their importance within each group."""
    order = order_within(importance, norm_size(resnet.norm2))
    select_halves(resnet, order)
    select(resnet.conv1, None, order)
    narrow_norm(resnet.norm2, order)
    select(resnet.conv2, order, None)


def permute_heads(attention: Module, importance: torch.Tensor) -> None:
    """Put the heads of an attention into the order of their importance, and the channels of each head as well."""
    size = attention.inner_dim // attention.heads
    heads = importance.view(-1, size).sum(1).argsort(descending=True, stable=True)
    order = order_within(importance, size).view(-1, size)[heads].flatten()
    for linear in (attention.to_q, attention.to_k, attention.to_v):
        select(linear, None, order)
    select(attention.to_out[0], order, None)


def order_within(importance: torch.Tensor, size: int) -> torch.Tensor:
    """The numbers of channels with those of each group of `size` in descending order of importance."""
    grouped = importance.view(-1, size)
    starts = torch.arange(len(grouped), device=importance.device)[:, None] * size
    return (grouped.argsort(dim=1, descending=True, stable=True) + starts).flatten()


def narrow_projection(projection: Module, own: Module) -> None:
    """Give a projection of timesteps that has weights the first of the teacher's."""
    for narrow, wide in zip(projection.parameters(), own.parameters(), strict=True):
        narrow.data.copy_(wide.detach()[..., : narrow.shape[-1]])


@torch.no_grad()
def fit_linear(teacher: Module, projection: Module, span: tuple[float, float]) -> nn.Linear:
    """The linear layer on another projection of timesteps that is nearest to the teacher's first one on its own."""
    own = teacher.time_embedding.linear_1
    low, high = span
    t = low + (high - low) * (torch.arange(GRID) + 0.5) / GRID
    t = t.long().unique() if isinstance(projection, nn.Embedding) else t
    wanted = own(teacher.time_proj(t).to(own.weight.dtype)).double()
    given = torch.cat([projection(t).double(), torch.ones(len(t), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(given, wanted, driver="gelsd").solution.float()
    linear = nn.Linear(given.shape[1] - 1, wanted.shape[1])
    linear.weight.copy_(solution[:-1].T)
    linear.bias.copy_(solution[-1])
    return linear
