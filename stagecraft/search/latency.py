"""Latency of a UNet's layers, each distinct shape measured alone: what a budget of time is counted in.

A block takes the sum of its layers (a ResNet layer with the concatenation before it, an attention, a downsampler, an upsampler),
a student that of its blocks, its input side and its output head, all in milliseconds an image.
"""

import copy
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from stagecraft.networks.borders import borders_of
from stagecraft.networks.multi_decoder_unet import (
    Dropped,
    Module,
    PartialLayer,
    ShortcutLayer,
    rebuilt_attention,
    rebuilt_layer,
)
from stagecraft.networks.specs import Spec, identity_spec
from stagecraft.runtime.device import autocast
from stagecraft.runtime.files import read_checked_json, read_json
from stagecraft.runtime.progress import Progress

WARM_UP = 2
SHORTEST = 0.002  # seconds of one sample; faster layers are called several times for it
OTHER_DATA = 8 * 2**20  # bytes read and written between two calls on a CPU
CLOCK_WARM_UP = 1.0  # seconds of work before the first sample on CUDA
WITH_EMBEDDING = (ResnetBlock2D, PartialLayer, ShortcutLayer)  # called with the time embedding
DESCRIPTION = ("device", "threads", "batch", "precision", "versions")
WHOLE = "the whole teacher"
RESNETS, ATTENTIONS = "resnets.", "attentions."


@dataclass(frozen=True)
class Layer:
    """A layer as it runs in a UNet.

    Args:
        module: the layer, on any device.
        reads: C, H, W of its input.
        embedding: channels of the time embedding, None where it reads none.
        joined: whether its input is a concatenation, which its time includes.
    """

    module: Module
    reads: tuple[int, int, int]
    embedding: int | None = None
    joined: bool = False

    @property
    def key(self) -> str:
        """Text that layers of one shape have in common: type, input, and what its weights and index lists look like."""
        if isinstance(self.module, Whole):
            return WHOLE
        shapes = {name: tuple(p.shape) for name, p in self.module.named_parameters() if p.ndim > 1}
        shapes |= {name: tuple(b.shape) for name, b in self.module.named_buffers() if b is not None}
        sizes = [f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()]
        heads = [f"heads {m.heads}" for m in self.module.modules() if hasattr(m, "heads")]
        size = "x".join(map(str, self.reads))
        kind = f"{type(self.module).__name__} of {size}{' joined' if self.joined else ''}"
        return ", ".join([kind, *heads, *sizes])

    def call(self, batch: int, device: torch.device) -> "Call":
        """A call of the layer with random weights and inputs on a device."""
        module = copy.deepcopy(self.module).to_empty(device=device).eval()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
        restore_buffers(self.module, module)
        channels, *size = self.reads
        halves = (channels - channels // 2, channels // 2) if self.joined else (channels,)
        tensors = [torch.randn(batch, half, *size, device=device) for half in halves]
        rest = [torch.randn(batch, self.embedding, device=device)] if self.embedding else []
        return Call(module, tensors, rest)


def restore_buffers(source: nn.Module, target: nn.Module) -> None:
    """Give a copy the index lists of its source, which `to_empty` left without values."""
    for name, values in source.named_buffers():
        parent, _, last = name.rpartition(".")
        places = values if values.device.type != "meta" else torch.arange(len(values))
        setattr(target.get_submodule(parent), last, places.to(target.get_buffer(name).device))


@dataclass(frozen=True)
class Call:
    """A layer with what it is called with.

    Args:
        parts: tensors that make its input, side by side when there are two.
        rest: its other arguments.
    """

    module: Module
    parts: list[torch.Tensor]
    rest: list[torch.Tensor]

    def __call__(self) -> Any:
        """Run the layer."""
        hidden = torch.cat(self.parts, dim=1) if len(self.parts) > 1 else self.parts[0]
        return self.module(hidden, *self.rest)

    def write_inputs(self) -> None:
        """Write the tensors of the input anew, as the layers before would have."""
        for part in self.parts:
            part.mul_(1.0)


class Whole(nn.Module):
    """A whole UNet, as one layer."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        labels = None if self.unet.config["num_class_embeds"] is None else torch.zeros(len(sample), dtype=torch.int64)
        timesteps = torch.zeros(len(sample), device=sample.device)
        output: torch.Tensor = self.unet(sample, timesteps, None if labels is None else labels.to(sample.device)).sample
        return output


class Entrance(nn.Module):
    """conv_in and the time embedding of a UNet, as one layer."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.conv_in, self.time_proj, self.time_embedding = unet.conv_in, unet.time_proj, unet.time_embedding

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = torch.zeros(len(sample), device=sample.device)
        return self.conv_in(sample), self.time_embedding(self.time_proj(timesteps))


class Head(nn.Module):
    """The output head of a UNet, as one layer."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.norm, self.act, self.conv = unet.conv_norm_out, unet.conv_act, unet.conv_out

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(self.act(self.norm(hidden_states)))


class LayersOf:
    """The layers of a UNet and of what specs make of its blocks.

    Args:
        unet: the teacher, or the teacher with the student's hidden channels.
    """

    def __init__(self, unet: UNet2DModel) -> None:
        self.unet: Module = copy.deepcopy(unet).to("meta")
        self.reads = input_shapes(self.unet)
        self._known: dict[str, Layer | None] = {}

    def fixed(self) -> list[Layer]:
        """What every student has: the input side, and one output head."""
        config = self.unet.config
        side = config["sample_size"]
        channels = self.unet.conv_out.in_channels
        entrance = Layer(Entrance(self.unet), (config["in_channels"], side, side))
        return [entrance, Layer(Head(self.unet), (channels, side, side))]

    def together(self) -> Layer:
        """The whole UNet, whose time is more than the sum of its layers': what lies between them takes some as well."""
        side = self.unet.config["sample_size"]
        return Layer(Whole(self.unet), (self.unet.config["in_channels"], side, side))

    def block(self, name: str, spec: Spec) -> list[Layer]:
        """The layers of a block (`down_blocks.0`) as a spec makes it, without those that compute nothing."""
        block = self.unet.get_submodule(name)
        parts = parts_of(spec)
        fixed = ((part, None) for part in samplers_of(block))
        found = [self._part(name, part, option) for part, option in [*parts.items(), *fixed]]
        return [layer for layer in found if layer is not None]

    def whole(self) -> list[Layer]:
        """All layers of the UNet itself."""
        blocks = [border.block for border in borders_of(self.unet)]
        inside = [self.block(name, identity_spec(self.unet.get_submodule(name))) for name in blocks]
        return [*self.fixed(), *(layer for layers in inside for layer in layers)]

    def counterpart(self, name: str, part: str) -> Layer:
        """The UNet's own layer at a place, for a comparison in turn."""
        return self._layer(name, part, self.unet.get_submodule(f"{name}.{part}"))

    def _part(self, name: str, part: str, option: Any) -> Layer | None:
        known = f"{name}.{part} {json.dumps(option, sort_keys=True)}"
        if known not in self._known:
            module = rebuilt_part(self.unet.get_submodule(name), part, option)
            self._known[known] = None if is_free(module) else self._layer(name, part, module)
        return self._known[known]

    def _layer(self, name: str, part: str, module: Module) -> Layer:
        embedding = self.unet.time_embedding.linear_2.out_features if isinstance(module, WITH_EMBEDDING) else None
        joined = name.startswith("up_blocks") and part.startswith(RESNETS)
        return Layer(module, self.reads[f"{name}.{part}"], embedding, joined)


def parts_of(spec: Spec) -> dict[str, Any]:
    """A block's spec by layer: what is chosen of each by the layer's name in the block."""
    layers = {f"{RESNETS}{i}": layer for i, layer in enumerate(spec["layers"])}
    attentions = {f"{ATTENTIONS}{i}": kept for i, kept in enumerate(spec["attentions"])}
    return layers | attentions


def samplers_of(block: Module) -> list[str]:
    """The names of a block's downsamplers and upsamplers."""
    return [
        f"{kind}.{i}" for kind in ("downsamplers", "upsamplers") for i, _ in enumerate(getattr(block, kind, None) or ())
    ]


def rebuilt_part(block: Module, part: str, option: Any) -> Module:
    """What an option of a spec makes of one layer of a block, which stays as it is."""
    if part.startswith(RESNETS):
        return rebuilt_layer(copy.deepcopy(block.get_submodule(part)), option)
    if part.startswith(ATTENTIONS):
        attention = block.attentions[int(part.removeprefix(ATTENTIONS))]
        return rebuilt_attention(copy.deepcopy(attention), attention is not None and option)
    return block.get_submodule(part)


def is_free(module: nn.Module) -> bool:
    """Whether a layer only passes its input on."""
    return isinstance(module, Dropped | ShortcutLayer) and not any(True for _ in module.parameters())


@torch.no_grad()
def input_shapes(unet: Module) -> dict[str, tuple[int, int, int]]:
    """C, H, W of what each layer of a UNet's blocks reads, by the layer's name; `unet` is on the meta device."""
    seen: dict[str, tuple[int, int, int]] = {}
    handles = []
    for border in borders_of(unet):
        block = unet.get_submodule(border.block)
        kinds = [("resnets", block.resnets), ("attentions", getattr(block, "attentions", None) or ())]
        kinds += [(kind, getattr(block, kind, None) or ()) for kind in ("downsamplers", "upsamplers")]
        for kind, modules in kinds:
            for index, module in enumerate(modules):
                name = f"{border.block}.{kind}.{index}"
                if module is not None:
                    handles.append(module.register_forward_pre_hook(remember_shape(seen, name)))
    config = unet.config
    labels = None if config["num_class_embeds"] is None else torch.zeros(1, dtype=torch.int64, device="meta")
    side = config["sample_size"]
    unet(torch.empty(1, config["in_channels"], side, side, device="meta"), torch.zeros(1, device="meta"), labels)
    for handle in handles:
        handle.remove()
    return seen


def remember_shape(seen: dict[str, tuple[int, int, int]], name: str) -> Callable[..., None]:
    """A hook that notes the shape of a module's input."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen[name] = tuple(args[0].shape[1:])

    return hook


# --- Measuring ---


@dataclass(frozen=True)
class Stopwatch:
    """Measures calls on one device.

    Args:
        batch: images in a call.
        repeats: samples of each layer; the median counts.
        precision: fp32 or bf16 (autocast).
    """

    device: torch.device
    batch: int
    repeats: int
    precision: str

    def measure(self, pairs: dict[str, tuple[Layer, Layer]]) -> dict[str, float]:
        """Milliseconds an image of layers by key.

        Args:
            pairs: each layer and the teacher's own in its place. The two take turns, and a layer's time is its median multiple
                of the teacher's, whose own time is the median over the whole run, so that a change of the clock reaches both.
        """
        progress = Progress("measure_latency", len(pairs))
        self.warm_up()
        multiples: dict[str, float] = {}
        references: dict[str, list[float]] = {}
        with torch.no_grad(), autocast(self.device, self.precision):
            for number, (key, (layer, own)) in enumerate(pairs.items(), 1):
                samples = self.in_turn(own.call(self.batch, self.device), layer.call(self.batch, self.device))
                references.setdefault(own.key, []).extend(theirs for theirs, _ in samples)
                multiples[key] = median(ours / theirs for theirs, ours in samples)
                progress.update(number)
        scale = 1000 / self.batch
        return {key: scale * multiples[key] * median(references[own.key]) for key, (_, own) in pairs.items()}

    def in_turn(self, first: Call, second: Call) -> list[tuple[float, float]]:
        """Seconds of a call of each, one after the other, as often as `repeats` says."""
        calls = [(call, self.calls_of(call)) for call in (first, second)]
        return [tuple(self.seconds(*call) for call in calls) for _ in range(self.repeats)]  # type: ignore[misc]

    def calls_of(self, call: Call) -> int:
        """How many calls make a sample that is long enough; warms up as well."""
        fastest = min(self.seconds(call, 1) for _ in range(1 + WARM_UP))
        return max(1, round(SHORTEST / fastest))

    def seconds(self, call: Call, calls: int) -> float:
        """Mean seconds of a call: by events on CUDA, by the clock elsewhere.

        On a CPU the caches are before each call as they are within a network: with the layer's input, but not its weights.
        """
        if self.device.type != "cuda":
            taken = 0.0
            for _ in range(calls):
                self.evict()
                call.write_inputs()
                begun = time.perf_counter()
                call()
                taken += time.perf_counter() - begun
            return taken / calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / calls

    @cached_property
    def other_data(self) -> torch.Tensor:
        """What else a network works on, larger than the caches of one core."""
        return torch.ones(OTHER_DATA // 4)

    def evict(self) -> None:
        """Push a layer's weights out of the caches of this core."""
        self.other_data.add_(0.0)

    def warm_up(self) -> None:
        """Let a CUDA device reach the clock that it has under load."""
        if self.device.type == "cuda":
            square = torch.randn(4096, 4096, device=self.device)
            ends = time.monotonic() + CLOCK_WARM_UP
            while time.monotonic() < ends:
                square @ square
                torch.cuda.synchronize(self.device)

    def describe(self) -> dict[str, Any]:
        """What the times depend on beside the layers."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else processor_name(),
            "threads": torch.get_num_threads(),
            "batch": self.batch,
            "precision": self.precision,
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        }


def processor_name() -> str:
    """The model of this machine's processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def overhead_of(layers: dict[str, float], teacher: LayersOf) -> float:
    """Milliseconds an image that each layer takes more within the teacher than alone, taken as the same for all layers."""
    whole = teacher.whole()
    return (layers[WHOLE] - sum(layers[layer.key] for layer in whole)) / len(whole)


def pairs_to_measure(
    teacher: LayersOf, student: LayersOf, specs: Iterable[tuple[str, Spec]]
) -> dict[str, tuple[Layer, Layer]]:
    """Every distinct layer of the teacher, of what all students share and of specs, by key, with the teacher's in its place.

    Args:
        specs: names of blocks, and specs of each.
    """
    pairs = {layer.key: (layer, layer) for layer in [teacher.together(), *teacher.whole()]}
    for layer, own in zip(student.fixed(), teacher.fixed(), strict=True):
        pairs.setdefault(layer.key, (layer, own))
    for name, part, layer in distinct_parts(student, specs):
        pairs.setdefault(layer.key, (layer, teacher.counterpart(name, part)))
    return pairs


def distinct_parts(student: LayersOf, specs: Iterable[tuple[str, Spec]]) -> Iterator[tuple[str, str, Layer]]:
    """The block, the place in it and the layer of each different option of specs."""
    seen: set[str] = set()
    for name, spec in specs:
        block = student.unet.get_submodule(name)
        parts = dict.fromkeys(samplers_of(block)) | parts_of(spec)
        for part, option in parts.items():
            known = f"{name}.{part} {json.dumps(option, sort_keys=True)}"
            if known not in seen:
                seen.add(known)
                layer = student._part(name, part, option)
                if layer is not None:
                    yield name, part, layer


# --- Using a table ---


class LatencyTable:
    """Milliseconds an image by layer.

    Args:
        content: what `results/latency.json` holds: `layers` by key, `overhead` that each takes within a network, and what they
            were measured with.
        origin: where it is from, for messages.
    """

    def __init__(self, content: dict[str, Any], origin: str) -> None:
        self.layers: dict[str, float] = content["layers"]
        self.overhead: float = content.get("overhead", 0.0)
        self.content, self.origin = content, origin

    @classmethod
    def of_stage(cls, path: Path) -> "LatencyTable | None":
        """What the stage measure_latency wrote; None when it was told to measure nothing."""
        content = read_checked_json(path, "measure_latency")
        return None if content["source"] == "none" else cls(content, str(path))

    @classmethod
    def read(cls, path: Path) -> "LatencyTable":
        """The table of a file from elsewhere; ValueError when it holds none."""
        content = read_json(path, "give another measure_latency.path, or source: measure")
        layers = content.get("layers")
        if not isinstance(layers, dict) or not all(isinstance(value, float) for value in layers.values()):
            raise ValueError(f"{path}: holds no `layers` with milliseconds; set measure_latency.source: measure")
        return cls(content, str(path))

    def of_teacher(self) -> float:
        """Milliseconds an image of the whole teacher; ValueError where the table lacks it."""
        self.check([WHOLE])
        return self.layers[WHOLE]

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of some layers that the table lacks."""
        return [key for key in keys if key not in self.layers]

    def latency_of(self, unet: UNet2DModel, name: str) -> Callable[[Spec], float]:
        """What gives the milliseconds an image of a block of a UNet as a spec makes it."""
        layers = LayersOf(unet)
        return lambda spec: self.milliseconds(layers.block(name, spec))

    def milliseconds(self, layers: Iterable[Layer]) -> float:
        """The sum of some layers within a network, per image; ValueError where the table lacks one."""
        keys = [layer.key for layer in layers]
        self.check(keys)
        return sum(self.layers[key] for key in keys) + self.overhead * len(keys)

    def check(self, keys: Iterable[str]) -> None:
        """Raise ValueError unless the table has some layers."""
        if missing := self.missing(keys):
            raise ValueError(
                f"{self.origin}: lacks the layer {missing[0]}; measure it: set measure_latency.source: measure"
            )
