"""What students of all families of diffusers' UNets have in common: blocks built from a spec, and decoders per interval.

A family's own file imports from here; in the file that travels with a student's weights this module stands in place of its
import (see `self_contained`), so torch and diffusers are all that it may need.

An architecture is JSON: {"blocks": {"down_blocks.0": [{"range": [0, 1], "spec": {...}}], "up_blocks.0": [{"range": [0], ...},
{"range": [1], ...}], ...}}, for every block of the UNet the ranges, contiguous intervals of timesteps, that have one there.

A spec says what is chosen of a block's layers: {"resnets.0": {"width": 32, "kernels": [3, 1]}, "resnets.1": null,
"attentions.0": {}}. null drops a layer; of a ResNet layer its shortcut stays. `width` is the number of channels between the two
convolutions of a ResNet layer, `kernels` are their sizes, "reads" and "writes" the groups of channels that its residual branch
reads and writes (see PartialLayer), all of them where they are not given.

A range of an up block may also have "channels", those of its output, more or fewer than those of the encoder's level. "stream",
where not all are kept, holds for every level the channels of the residual stream that are (see `Rebuilder.narrow_stream`).
"native" are values in place of those of the UNet's config, which say by themselves what "stream" leaves and which layers are.
"""

import ast
import copy
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NotRequired, TypedDict, cast

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

Module = Any  # a diffusers module: its layers are attributes that no type describes
Spec = Mapping[str, Mapping[str, object] | None]  # of a block: what is chosen of its layers, by name


class ResnetChoice(TypedDict):
    """What is chosen of a ResNet layer."""

    width: int
    kernels: list[int]
    reads: NotRequired[list[int]]
    writes: NotRequired[list[int]]


class Entry(TypedDict):
    """The block of a range of intervals."""

    range: list[int]
    spec: Spec
    channels: NotRequired[int]


class Architecture(TypedDict):
    """The entries of each block by its name, and the residual stream where some of it is dropped."""

    blocks: dict[str, list[Entry]]
    stream: NotRequired[list[list[int]]]
    native: NotRequired[dict[str, Any]]


def interval_of(timesteps: torch.Tensor, boundaries: list[float]) -> torch.Tensor:
    """The number of boundaries <= t for each timestep, same shape, int64."""
    edges = torch.tensor(list(boundaries), dtype=torch.float32, device=timesteps.device)
    return torch.bucketize(timesteps.float(), edges, right=True)


class Dropped(nn.Module):
    """Identity that replaces a dropped attention, or a dropped layer of a transformer."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return hidden_states


class ShortcutLayer(nn.Module):
    """The shortcut that replaces a dropped ResNet layer, N,C_in,H,W to N,C_out,H,W."""

    def __init__(self, resnet: Module) -> None:
        super().__init__()
        self.conv_shortcut = resnet.conv_shortcut
        self.output_scale_factor = resnet.output_scale_factor

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return divided(shortcut, self.output_scale_factor)


def divided(tensor: torch.Tensor, divisor: float) -> torch.Tensor:
    """tensor / divisor; the tensor itself, and not a copy, where that is 1."""
    return tensor if divisor == 1 else tensor / divisor


def convolution(inputs: int, outputs: int, kernel: int, **factory: Any) -> nn.Conv2d:
    """A convolution that keeps the image's size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **factory)


class PartialLayer(nn.Module):
    """A ResNet layer whose residual branch reads and writes some of the channels, N,C_in,H,W to N,C_out,H,W.

    What comes before and after the layer keeps its width: a shortcut without a convolution passes all channels on, one with a
    convolution writes them all.

    Args:
        resnet: the layer, its inner width and kernels as they are to be.
        reads: numbers of the groups of `norm1` that are read, ascending.
        writes: numbers of the groups of the output that are written, ascending; there are as many as in `norm1`.

    Raises:
        ValueError: there is no such group, or none, or one twice.
    """

    read: torch.Tensor
    written: torch.Tensor

    def __init__(self, resnet: Module, reads: list[int], writes: list[int]) -> None:
        super().__init__()
        inner = resnet.conv1
        outer = resnet.conv2
        factory = {"device": inner.weight.device, "dtype": inner.weight.dtype}
        read = channels_of("reads", reads, inner.in_channels, norm_size(resnet.norm1))
        write = channels_of("writes", writes, outer.out_channels, output_group_size(resnet))
        # Buffers that are no part of the state: the spec says all that they hold.
        self.register_buffer("read", torch.tensor(read), persistent=False)
        self.register_buffer("written", torch.tensor(write), persistent=False)
        self.reads_all = len(read) == inner.in_channels
        self.writes_all = len(write) == outer.out_channels
        self.norm1 = nn.GroupNorm(len(reads), len(read), eps=resnet.norm1.eps, **factory)
        self.conv1 = convolution(len(read), inner.out_channels, inner.kernel_size[0], **factory)
        self.conv2 = convolution(outer.in_channels, len(write), outer.kernel_size[0], **factory)
        self.time_emb_proj = resnet.time_emb_proj
        self.norm2 = resnet.norm2
        self.dropout = resnet.dropout
        self.nonlinearity = resnet.nonlinearity
        self.conv_shortcut = resnet.conv_shortcut
        self.output_scale_factor = resnet.output_scale_factor
        self.scale_shift = resnet.time_embedding_norm == "scale_shift"

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        read = input_tensor if self.reads_all else input_tensor.index_select(1, self.read)
        hidden = self.conv1(self.nonlinearity(self.norm1(read)))
        if self.time_emb_proj is None:
            hidden = self.norm2(hidden)
        else:
            shift = self.time_emb_proj(self.nonlinearity(temb))[:, :, None, None]
            if self.scale_shift:
                scale, shift = shift.chunk(2, dim=1)
                hidden = self.norm2(hidden) * (1 + scale) + shift
            else:
                hidden = self.norm2(hidden + shift)
        hidden = self.conv2(self.dropout(self.nonlinearity(hidden)))
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        hidden = hidden.to(shortcut.dtype)
        whole = shortcut + hidden if self.writes_all else shortcut.index_add(1, self.written, hidden)
        return divided(whole, self.output_scale_factor)


def is_plain(attention: Module) -> bool:
    """Whether an attention is over the pixels, without norms of its queries, with its residual added."""
    plain = isinstance(attention, Attention) and attention.residual_connection and not attention.only_cross_attention
    return plain and attention.spatial_norm is None and attention.norm_q is None and not attention.is_cross_attention


def norm_size(norm: Module) -> int:
    """Channels in one group of a GroupNorm."""
    return norm.num_channels // norm.num_groups


def channels_of(key: str, groups: list[int], channels: int, size: int) -> list[int]:
    """The channels of some groups of `size`; ValueError, naming the key of the spec, when the groups are not ascending ones."""
    if not groups or sorted(set(groups)) != groups or groups[0] < 0 or groups[-1] >= channels // size:
        raise ValueError(f"architecture: {key} {groups} are no ascending groups of 0 to {channels // size - 1}")
    return [group * size + i for group in groups for i in range(size)]


def group_size(resnet: Module) -> int:
    """Channels in one group of a ResNet layer's inner GroupNorm."""
    return norm_size(resnet.norm2)


def output_group_size(resnet: Module) -> int:
    """Channels in one of the groups in which a ResNet layer writes, as many as those in which it reads."""
    groups: int = resnet.norm1.num_groups
    return resnet.conv2.out_channels // groups


def build_resnet(resnet: Module, choice: ResnetChoice | None) -> Module:
    """What a choice makes of a ResNet layer, which is changed in place."""
    if choice is None:
        return ShortcutLayer(resnet)
    resnet = resize_layer(resnet, choice["width"], choice["kernels"])
    if not {"reads", "writes"} & choice.keys():
        return resnet
    all_groups = list(range(resnet.norm1.num_groups))
    return PartialLayer(resnet, choice.get("reads", all_groups), choice.get("writes", all_groups))


def build_attention(attention: Module, choice: Mapping[str, object] | None) -> Module:
    """What a choice makes of an attention."""
    return Dropped() if choice is None else attention


def resize_layer(resnet: Module, width: int, kernels: list[int]) -> Module:
    """Give a ResNet layer another inner width and other kernels, in place; untouched when all are as they were."""
    inner = resnet.conv1
    outer = resnet.conv2
    if width == inner.out_channels and kernels == [inner.kernel_size[0], outer.kernel_size[0]]:
        return resnet
    groups, remainder = divmod(width, group_size(resnet))
    if remainder or width <= 0:
        raise ValueError(f"architecture: width {width} is no multiple of the group size {group_size(resnet)}")
    factory = {"device": inner.weight.device, "dtype": inner.weight.dtype}
    resnet.conv1 = convolution(inner.in_channels, width, kernels[0], **factory)
    resnet.conv2 = convolution(width, outer.out_channels, kernels[1], **factory)
    resnet.norm2 = nn.GroupNorm(groups, width, eps=resnet.norm2.eps, **factory)
    if resnet.time_emb_proj is not None:
        halves = 2 if resnet.time_embedding_norm == "scale_shift" else 1
        resnet.time_emb_proj = nn.Linear(resnet.time_emb_proj.in_features, halves * width, **factory)
    resnet.out_channels = width
    return resnet


def with_channels(unet: Module, channels: list[int]) -> Module:
    """A UNet whose up blocks have these output channels, and read the skip tensors and the time embedding of `unet`.

    Only its up blocks and its output head are of use. Untouched when the channels are those of `unet`.
    """
    config = dict(unet.config)
    if channels == list(reversed(config["block_out_channels"])):
        return unet
    kind = type(unet)
    wide = kind(**arguments_of(kind, config | {"block_out_channels": tuple(reversed(channels))}))
    hidden = base_hidden = config["block_out_channels"][-1]
    for block, base in zip(wide.up_blocks, unet.up_blocks, strict=True):
        for index, (resnet, old) in enumerate(zip(block.resnets, base.resnets, strict=True)):
            inside = hidden + old.in_channels - base_hidden
            groups = old.norm1.num_groups
            block.resnets[index] = ResnetBlock2D(
                in_channels=inside,
                out_channels=resnet.out_channels,
                temb_channels=old.time_emb_proj.in_features,
                groups=math.gcd(groups, inside),
                groups_out=math.gcd(groups, resnet.out_channels),
                eps=old.norm1.eps,
                dropout=old.dropout.p,
                time_embedding_norm=old.time_embedding_norm,
                output_scale_factor=old.output_scale_factor,
            )
            block.resnets[index].nonlinearity = old.nonlinearity
            hidden = resnet.out_channels
            base_hidden = old.out_channels
        upsampler = block.upsamplers[0] if block.upsamplers else None
        if isinstance(upsampler, ResnetBlock2D):
            upsampler.time_emb_proj = nn.Linear(
                base.upsamplers[0].time_emb_proj.in_features, upsampler.time_emb_proj.out_features
            )
    return wide


def arguments_of(kind: Any, config: Mapping[str, object]) -> dict[str, object]:
    """What a class takes of a config."""
    known = inspect.signature(kind.__init__).parameters
    return {key: value for key, value in config.items() if key in known}


def stream_levels(unet: Module) -> list[int]:
    """Which levels of a UNet have the channels of their residual stream in common, as a number for each level.

    Neighbours of equal width do: layers between them may pass their input on as it is.
    """
    widths = unet.config["block_out_channels"]
    return list(itertools.accumulate((int(a != b) for a, b in itertools.pairwise(widths)), initial=0))


def check_stream(unet: Module, stream: list[list[int]]) -> None:
    """Raise the ValueErrors of `Rebuilder.narrow_stream`, but for those of blocks."""
    widths = unet.config["block_out_channels"]
    same = stream_levels(unet)
    if len(stream) != len(widths):
        raise ValueError(f"architecture: stream of {len(stream)} levels for a UNet of {len(widths)}")
    for level, (channels, width) in enumerate(zip(stream, widths, strict=True)):
        if channels != stream[same.index(same[level])]:
            raise ValueError(
                f"architecture: stream of level {level} is not that of the level before, as wide in the UNet"
            )
        channels_of("stream", channels, width, 1)


def narrow_attention(attention: Module, kept: torch.Tensor) -> None:
    """Keep the channels of the stream that an attention reads and writes; it keeps its heads."""
    if not is_plain(attention):
        raise ValueError("architecture: stream of a UNet that has an attention of another kind")
    if attention.group_norm is not None:
        narrow_norm(attention.group_norm, kept)
    for linear in (attention.to_q, attention.to_k, attention.to_v):
        select(linear, kept, None)
    select(attention.to_out[0], None, kept)
    attention.query_dim = attention.cross_attention_dim = attention.out_dim = len(kept)


def narrow_layers(
    block: Module,
    reads: list[torch.Tensor],
    writes: torch.Tensor,
    narrow_attention: Callable[[Module, torch.Tensor], None] = narrow_attention,
) -> None:
    """Keep some channels of the stream in a block: what its ResNet layers read, one for each, and what all of it writes."""
    for resnet, read in zip(block.resnets, reads, strict=True):
        narrow_layer(resnet, read, writes)
    for attention in getattr(block, "attentions", None) or []:
        if attention is not None:
            narrow_attention(attention, writes)
    for sampler in (*(getattr(block, "downsamplers", None) or ()), *(getattr(block, "upsamplers", None) or ())):
        if isinstance(sampler, ResnetBlock2D):
            narrow_layer(sampler, writes, writes)
            continue
        sampler.channels = len(writes)
        for convolution in sampler.modules():
            if isinstance(convolution, (nn.Conv2d, nn.ConvTranspose2d)):
                select(convolution, writes, writes)


def narrow_layer(resnet: Module, reads: torch.Tensor, writes: torch.Tensor) -> None:
    """Keep the channels of the stream that a ResNet layer reads and those that it writes."""
    narrow_norm(resnet.norm1, reads)
    select(resnet.conv1, reads, None)
    select(resnet.conv2, None, writes)
    if resnet.conv_shortcut is not None:
        select(resnet.conv_shortcut, reads, writes)
    resnet.in_channels = len(reads)
    for sampler in (resnet.upsample, resnet.downsample):
        if isinstance(sampler, nn.Module):
            cast(Any, sampler).channels = len(reads)  # which diffusers checks


def narrow_norm(norm: Module, kept: torch.Tensor) -> None:
    """Keep some channels of a GroupNorm, in as many groups."""
    if len(kept) % norm.num_groups:
        raise ValueError(f"architecture: stream of {len(kept)} channels, which make no {norm.num_groups} groups")
    norm.num_channels = len(kept)
    for name, parameter in list(norm.named_parameters()):
        setattr(norm, name, selected(parameter, kept, 0))


def select(layer: Module, reads: torch.Tensor | None, writes: torch.Tensor | None) -> None:
    """Keep some inputs and outputs of a convolution or a linear layer, in place; None for all."""
    inputs, outputs = (1, 0) if not isinstance(layer, nn.ConvTranspose2d) else (0, 1)
    weight = layer.weight
    if reads is not None:
        weight = selected(weight, reads, inputs)
    if writes is not None:
        weight = selected(weight, writes, outputs)
        if layer.bias is not None:
            layer.bias = selected(layer.bias, writes, 0)
    layer.weight = weight
    names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
    for name, dimension in zip(names, (inputs, outputs), strict=True):
        setattr(layer, name, weight.shape[dimension])


def selected(parameter: nn.Parameter, kept: torch.Tensor, dimension: int) -> nn.Parameter:
    """The entries of a parameter with these numbers along a dimension."""
    return nn.Parameter(parameter.detach().index_select(dimension, kept.to(parameter.device)).clone())


@dataclass(frozen=True)
class Rebuilder:
    """How the blocks of a family are rebuilt.

    Args:
        block_types: the types of blocks that can be.
        builders: what a choice makes of a layer, by the name of the list that holds such layers in a block.
        narrow_attention: keeps some channels of the stream that an attention reads and writes, in place.
    """

    block_types: set[str]
    builders: Mapping[str, Callable[[Module, Any], Module]]
    narrow_attention: Callable[[Module, torch.Tensor], None] = narrow_attention

    def check_type(self, block: Module) -> None:
        """Raise ValueError unless a diffusers block is of a type that can be rebuilt."""
        kind = type(block).__name__
        if kind not in self.block_types:
            raise ValueError(f"block type {kind} is not supported; supported are {', '.join(sorted(self.block_types))}")

    def apply_spec(self, block: Module, spec: Spec) -> Module:
        """Rebuild a diffusers block in place as its spec says; the weights of changed layers are left to the caller."""
        self.check_type(block)
        for name, choice in spec.items():
            kind, _, index = name.partition(".")
            layers = getattr(block, kind, None)
            if kind not in self.builders or not layers or not index.isdecimal() or int(index) >= len(layers):
                raise ValueError(f"architecture: {name} is no layer of a {type(block).__name__} that can be changed")
            layers[int(index)] = self.builders[kind](layers[int(index)], choice)
        return block

    def narrow_stream(self, unet: Module, stream: list[list[int]]) -> Module:
        """Keep some channels of the residual stream, in place, with the weights that belong to them.

        The residual stream is what passes from layer to layer, the skip tensors among it. The widths inside layers, the heads of
        attentions and the time embedding stay; GroupNorms keep their number of groups.

        Args:
            stream: for every level the numbers of its channels that are kept, ascending, as many as whole groups of the
                GroupNorms make.

        Raises:
            ValueError: there are no such channels, levels that have them in common differ, or a block is of another type.
        """
        check_stream(unet, stream)
        for block in (*unet.down_blocks, *unet.up_blocks):
            self.check_type(block)
        kept = [torch.tensor(channels) for channels in stream]
        widths = unet.config["block_out_channels"]
        skips = [kept[0]]
        hidden = kept[0]
        select(unet.conv_in, None, kept[0])
        for level, block in enumerate(unet.down_blocks):
            reads = [hidden, *[kept[level]] * (len(block.resnets) - 1)]
            narrow_layers(block, reads, kept[level], self.narrow_attention)
            skips += [kept[level]] * (len(block.resnets) + (block.downsamplers is not None))
            hidden = kept[level]
        if unet.mid_block is not None:
            reads = [hidden] * len(unet.mid_block.resnets)
            narrow_layers(unet.mid_block, reads, hidden, self.narrow_attention)
        width = widths[-1]
        for level, block in zip(reversed(range(len(widths))), unet.up_blocks, strict=True):
            reads = []
            for _ in block.resnets:
                reads.append(torch.cat([hidden, skips.pop() + width]))
                hidden = kept[level]
                width = widths[level]
            narrow_layers(block, reads, kept[level], self.narrow_attention)
        narrow_norm(unet.conv_norm_out, kept[0])
        select(unet.conv_out, kept[0], None)
        return unet


class Decoder(nn.Module):
    """The up path and the output head of one interval, some of them those of earlier intervals.

    Args:
        unet: whose up blocks are rebuilt.
        rebuilder: of its family.
        ranges: one entry of the architecture for each up block.
        lenders: for each up block the decoder that it is shared with, None for a block of its own. The head goes with the last.

    Its state holds what is its own; `blocks` and `head` are all that it runs.
    """

    blocks: tuple[Module, ...]
    head: tuple[Module, ...]

    def __init__(
        self, unet: Module, rebuilder: Rebuilder, ranges: list[Entry], lenders: "list[Decoder | None]"
    ) -> None:
        super().__init__()
        usual = reversed(unet.config["block_out_channels"])
        unet = with_channels(unet, [entry.get("channels", width) for entry, width in zip(ranges, usual, strict=True)])
        self.up_blocks = nn.ModuleDict()
        blocks = []
        for index, (block, entry, lender) in enumerate(zip(unet.up_blocks, ranges, lenders, strict=True)):
            if lender is None:
                self.up_blocks[str(index)] = rebuilder.apply_spec(block, entry["spec"])
            blocks.append(self.up_blocks[str(index)] if lender is None else lender.blocks[index])
        # Tuples, so that what is shared is a part of the state once, in the decoder that it is from.
        self.blocks = tuple(blocks)
        if lenders[-1] is None:
            self.conv_norm_out = unet.conv_norm_out
            self.conv_act = unet.conv_act
            self.conv_out = unet.conv_out
            self.head = (self.conv_norm_out, self.conv_act, self.conv_out)
        else:
            self.head = lenders[-1].head

    def forward(
        self,
        hidden: torch.Tensor,
        skips: tuple[torch.Tensor, ...],
        emb: torch.Tensor,
        prompt: torch.Tensor | None = None,
    ) -> torch.Tensor:
        for block in self.blocks:
            count = len(block.resnets)
            hidden = block(hidden, skips[-count:], emb, *read_by(block, prompt))
            skips = skips[:-count]
        for layer in self.head:
            hidden = layer(hidden)
        return hidden


def read_by(block: Module, prompt: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """What a block reads of a prompt (N, tokens, D): all of it, or nothing in a block without cross-attention."""
    return (prompt,) if prompt is not None and getattr(block, "has_cross_attention", False) else ()


def block_names(unet: Module) -> list[str]:
    """The names of a UNet's blocks, in the order in which they run."""
    down = [f"down_blocks.{i}" for i in range(len(unet.down_blocks))]
    middle = [] if unet.mid_block is None else ["mid_block"]
    return [*down, *middle, *(f"up_blocks.{i}" for i in range(len(unet.up_blocks)))]


def check_architecture(architecture: Architecture, names: list[str], intervals: int) -> None:
    """Raise ValueError unless each of these blocks has ranges that tile the intervals, in the encoder a single one."""
    blocks = architecture["blocks"]
    if blocks.keys() != set(names):
        raise ValueError(f"architecture: blocks {', '.join(blocks)} for a UNet with {', '.join(names)}")
    for name, entries in blocks.items():
        ranges = [entry["range"] for entry in entries]
        if [interval for part in ranges for interval in part] != list(range(intervals)) or not all(ranges):
            raise ValueError(f"architecture: ranges {ranges} of {name} do not tile {intervals} intervals")
        if len(ranges) > 1 and not name.startswith("up_blocks"):
            raise ValueError(f"architecture: {name} has ranges {ranges}, but only up blocks can have several")


def entry_of(entries: list[Entry], interval: int) -> Entry:
    """The entry of a block whose range has an interval."""
    return next(entry for entry in entries if interval in entry["range"])


def paths_of(firsts: list[list[int]]) -> list[int]:
    """For each interval the first one that runs the very same up blocks.

    Args:
        firsts: for each interval the first interval of the range of each of its up blocks.
    """
    return [firsts.index(first) for first in firsts]


def self_contained(file: Path) -> bytes:
    """The code of a file, with modules of this package in place of their imports."""
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stagecraft."):
            module = inspect.getfile(sys.modules[node.module])
            lines[node.lineno - 1 : node.end_lineno] = [Path(module).read_text(encoding="utf-8")]
    return "".join(lines).encode()


class SelfContainedModel(ModelMixin, ConfigMixin):
    """A model that is saved with its code, and that pipelines name by that file, so that a new process can load it again.

    Args:
        file: where the class stands.
        code: what is saved under that name; as imported, since diffusers overwrites its copy of the file with the next model's.
    """

    _auto_class = "AutoModel"  # whose entry `auto_map` diffusers writes into config.json
    file: ClassVar[Path]
    code: ClassVar[bytes]

    def __init__(self) -> None:
        super().__init__()
        # What diffusers writes into model_index.json, of the instance: that of the class is where it was imported from.
        self.__module__ = self.file.stem

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json and, first, as an upload may follow at once, the code; `save_pretrained` calls it."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.file.name).write_bytes(self.code)
        super().save_config(save_directory, push_to_hub, **kwargs)

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict[str, Any], ...]:
        """As in diffusers, which would warn of the entry that it wrote for AutoModel."""
        own = {key: value for key, value in config_dict.items() if key != "auto_map"}
        return super().extract_init_dict(own, **kwargs)


class MultiDecoderModel(SelfContainedModel):
    """Shared encoder and mid block, one decoder per interval; each sample goes to the decoder of its own timestep.

    Method: multi-stage framework with a shared encoder (arXiv 2312.09181, section 4), blocks as found by a block-wise search
    (arXiv 2311.04950).

    Args:
        teacher_class: the class whose blocks are rebuilt.
        rebuilder: of its family.
        repeated: what a student's config repeats of its teacher's, where pipelines look for it.
    """

    _supports_gradient_checkpointing = True  # its blocks do
    teacher_class: ClassVar[Any]
    rebuilder: ClassVar[Rebuilder]
    repeated: ClassVar[tuple[str, ...]]

    def build(self, unet: Mapping[str, object], architecture: Architecture, boundaries: list[float]) -> Module:
        """Make the modules of a student; returns the UNet that they are from.

        Args:
            unet: config of the teacher whose blocks are rebuilt.
            architecture: what is made of each block, as at the head of `stagecraft/networks/unet/student.py`.
            boundaries: K-1 ascending timesteps; the interval of t is the number of boundaries <= t.

        Raises:
            ValueError: the architecture does not fit the blocks or the intervals.
        """
        native = architecture.get("native")
        base = self.teacher_class(**arguments_of(self.teacher_class, {**unet, **(native or {})}))
        check_architecture(architecture, block_names(base), len(boundaries) + 1)
        if architecture.get("stream") and not native:
            self.rebuilder.narrow_stream(base, architecture["stream"])
        self.base_config = base.config
        self.conv_in = base.conv_in
        self.time_proj = base.time_proj
        self.time_embedding = base.time_embedding
        self.class_embedding = base.class_embedding
        self.build_decoders(base, architecture, len(boundaries) + 1)
        blocks = architecture["blocks"]
        self.down_blocks = nn.ModuleList(
            self.rebuilder.apply_spec(block, blocks[f"down_blocks.{i}"][0]["spec"])
            for i, block in enumerate(base.down_blocks)
        )
        middle = base.mid_block
        self.mid_block = None if middle is None else self.rebuilder.apply_spec(middle, blocks["mid_block"][0]["spec"])
        return base

    def build_decoders(self, base: Module, architecture: Architecture, intervals: int) -> None:
        """Make the decoders of all intervals from a UNet whose blocks are as they were."""
        up = [architecture["blocks"][f"up_blocks.{i}"] for i in range(len(base.up_blocks))]
        ranges = [[entry_of(entries, interval) for entries in up] for interval in range(intervals)]
        firsts = [[entry["range"][0] for entry in entries] for entries in ranges]
        decoders: list[Decoder] = []
        for interval, entries in enumerate(ranges):
            lenders = [None if first == interval else decoders[first] for first in firsts[interval]]
            decoders.append(Decoder(copy.deepcopy(base), self.rebuilder, entries, lenders))
        self.decoders = nn.ModuleList(decoders)
        self.paths = paths_of(firsts)

    @property
    def num_intervals(self) -> int:
        """Number of intervals K."""
        return len(self.decoders)

    def interval_of(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Interval index of each timestep, same shape, int64."""
        return interval_of(timesteps, self.config.boundaries)

    def embed(self, timesteps: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """Time embedding (N, D), plus the class embedding of a class-conditional model."""
        # Not `self.dtype`, which looks through all modules: a twentieth of the time of a small model.
        dtype = self.conv_in.weight.dtype
        emb = self.time_embedding(self.time_proj(timesteps).to(dtype))
        if (self.class_embedding is None) != (class_labels is None):
            raise ValueError("class_labels must be given to a class-conditional model, and to no other")
        if self.class_embedding is None:
            return emb
        if self.base_config.class_embed_type == "timestep":
            class_labels = self.time_proj(class_labels)
        return emb + self.class_embedding(class_labels).to(dtype)

    def encode(
        self, sample: torch.Tensor, emb: torch.Tensor, prompt: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The shared part: x_t (N,C,H,W) to the mid block's output and all skip tensors."""
        hidden = self.conv_in(2 * sample - 1 if self.base_config.center_input_sample else sample)
        skips: tuple[torch.Tensor, ...] = (hidden,)
        for block in self.down_blocks:
            hidden, states = block(hidden, emb, *read_by(block, prompt))
            skips += states
        if self.mid_block is not None:
            hidden = self.mid_block(hidden, emb, *read_by(self.mid_block, prompt))
        return hidden, skips

    def decode(
        self,
        hidden: torch.Tensor,
        skips: tuple[torch.Tensor, ...],
        emb: torch.Tensor,
        interval: torch.Tensor,
        prompt: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Each sample through the decoder of its own interval; `interval` is (N,) or holds the one interval of all samples."""
        interval = torch.tensor(self.paths, device=interval.device)[interval]
        present = interval.unique().tolist()
        if len(present) == 1:
            return self.decoders[present[0]](hidden, skips, emb, prompt)
        parts = []
        rows = []
        for index in present:
            row = (interval == index).nonzero().flatten()
            own = tuple(skip[row] for skip in skips)
            parts.append(self.decoders[index](hidden[row], own, emb[row], None if prompt is None else prompt[row]))
            rows.append(row)
        return torch.cat(parts)[torch.cat(rows).argsort()]
