"""A family that is not in the library: a chain of blocks, with one decoder block for every range of noise levels."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from stagecraft.data.condition import UNCONDITIONAL, Condition
from stagecraft.networks.costs import count_parameters
from stagecraft.networks.family import (
    Architecture,
    Choice,
    FixedCosts,
    Layers,
    Module,
    ResidualStream,
    Site,
    Spec,
    Stream,
    StudentBlock,
)
from stagecraft.networks.given import Config, Sides, SiteNames
from stagecraft.networks.layer import WHOLE, Layer
from stagecraft.networks.unet import student


class Block(nn.Module):
    """Two ResNet layers."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(in_channels=16, temb_channels=8, groups=4) for _ in range(2))

    def forward(self, hidden: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        for resnet in self.resnets:
            hidden = resnet(hidden, emb)
        return hidden


class Chain(ModelMixin, ConfigMixin):
    """An input layer, a block, and for each interval a block and an output layer that all share."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 8,
        num_class_embeds: int | None = None,
        in_channels: int = 1,
        out_channels: int = 1,
        boundaries: Sequence[float] = (),
        architecture: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(1, 16, 3, padding=1)
        self.time = nn.Linear(1, 8)
        self.first = Block()
        self.last = nn.ModuleList(Block() for _ in range(1 + len(boundaries)))
        self.conv_out = nn.Conv2d(16, 1, 3, padding=1)
        if architecture is not None:
            self.rebuild(architecture)

    def rebuild(self, architecture: dict[str, Any]) -> None:
        if architecture.get("stream"):
            narrow(self, *architecture["stream"])
        for name, entries in architecture["blocks"].items():
            for entry in entries:
                rebuild(self.first if name == "first" else self.last[entry["range"][0]], entry["spec"])

    def interval_of(self, t: torch.Tensor) -> torch.Tensor:
        return student.interval_of(t, self.config["boundaries"])

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        return self.time(t.float()[:, None] / 1000)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> UNet2DOutput:
        emb = self.embed(t.reshape(-1).expand(len(x_t)))
        hidden = self.first(self.conv_in(x_t), emb)
        if len(self.last) == 1:
            return UNet2DOutput(sample=self.conv_out(self.last[0](hidden, emb)))
        parts = zip(hidden.split(1), emb.split(1), self.interval_of(t).tolist(), strict=True)
        return UNet2DOutput(sample=self.conv_out(torch.cat([self.last[interval](h, e) for h, e, interval in parts])))


class ChainStudent(Chain):
    """A chain that was rebuilt."""


def rebuild(block: Module, spec: Spec) -> Module:
    """A block as a spec says, changed in place."""
    for name, choice in spec.items():
        index = int(name.partition(".")[2])
        block.resnets[index] = student.build_resnet(block.resnets[index], choice)
    return block


def narrow(net: Chain, channels: list[int]) -> Chain:
    """Keep some channels between layers, in place."""
    kept = torch.tensor(channels)
    student.select(net.conv_in, None, kept)
    for block in (net.first, *net.last):
        student.narrow_layers(block, [kept, kept], kept)
    student.select(net.conv_out, kept, None)
    return net


def conv_macs(module: Module) -> int:
    """MACs of convolutions over 8 x 8 pixels."""
    return sum(m.weight.numel() * 8**2 for m in module.modules() if isinstance(m, nn.Conv2d))


class Whole(nn.Module):
    """A whole Chain, as one layer."""

    def __init__(self, net: Chain) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_t: torch.Tensor) -> torch.Tensor:
        return self.net(x_t, torch.zeros(len(x_t))).sample


class ChainLayers(Layers):
    """The layers of a Chain."""

    def fixed(self) -> list[Layer]:
        return [Layer(self.net.conv_in, (1, 8, 8)), Layer(self.net.conv_out, (self.net.conv_out.in_channels, 8, 8))]

    def together(self) -> Layer:
        return Layer(Whole(self.net), (1, 8, 8), name=WHOLE)

    def build(self, name: str, part: str, choice: Choice) -> Module | None:
        return student.build_resnet(copy.deepcopy(self.net.get_submodule(f"{name}.{part}")), choice)

    def place(self, name: str, part: str, module: Module) -> Layer:
        return Layer(module, (self.net.conv_out.in_channels, 8, 8), embedding=8)


class ChainFamily:
    """What the library is told of a Chain."""

    teacher_class = Chain
    student_class = ChainStudent

    def adapt(self, teacher: Module, side: int) -> Module:
        teacher.register_to_config(sample_size=side)
        return teacher

    def example_condition(self, net: Module, count: int) -> Condition:
        return UNCONDITIONAL

    def sites(self, net: Module) -> list[Site]:
        return [
            Site("first", ("emb", "in"), ("middle",), False, 8),
            Site("last.0", ("emb", "middle"), ("out",), True, 8),
        ]

    def run(self, site: Site, block: Module, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        emb, hidden = tensors
        return (block(hidden, emb),)

    def trace(
        self, net: Module, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> dict[str, torch.Tensor]:
        seen = {"emb": net.embed(t), "in": net.conv_in(x_t)}
        seen["middle"] = net.first(seen["in"], seen["emb"])
        seen["out"] = net.last[0](seen["middle"], seen["emb"])
        return seen | {"output": net.conv_out(seen["out"])}

    def tail_reads(self, net: Module, site: Site) -> tuple[str, ...]:
        return () if site.per_range else ("emb",)

    def tail(self, net: Module, site: Site, outputs: Sequence[torch.Tensor], seen: dict[str, Any]) -> torch.Tensor:
        (hidden,) = outputs
        return net.conv_out(hidden if site.per_range else net.last[0](hidden, seen["emb"]))

    def blocks(self, student: Module, site: Site) -> list[StudentBlock]:
        entries = student.config["architecture"]["blocks"][site.name]
        modules = [student.last[entry["range"][0]] if site.per_range else student.first for entry in entries]
        return [
            StudentBlock(block, entry["spec"], entry["range"]) for block, entry in zip(modules, entries, strict=True)
        ]

    def rebuild(self, block: Module, spec: Spec) -> Module:
        return rebuild(block, spec)

    def block_macs(self, block: Module, site: Site) -> int:
        return conv_macs(block)

    def fixed_costs(self, net: Module) -> FixedCosts:
        ends = (net.conv_in, net.conv_out)
        return FixedCosts(*map(conv_macs, ends), *map(count_parameters, ends))

    def layers(self, net: Module, identities: Mapping[str, Spec]) -> ChainLayers:
        return ChainLayers(net, identities)

    def residual_stream(self, net: Module) -> ResidualStream:
        resnets = (resnet for block in (net.first, *net.last) for resnet in block.resnets)
        levels = dict.fromkeys(("in", "middle", "out"), 0)
        return ResidualStream((16,), 4, (0,), levels, dict.fromkeys((net.conv_in, *resnets), 0))

    def narrow(self, net: Module, stream: Stream) -> Module:
        return narrow(copy.deepcopy(net), *stream)

    def widen_decoders(self, net: Module, identity: Architecture, widths: Sequence[float]) -> Architecture:
        for entry, share in zip(identity["blocks"]["last.0"], widths, strict=True):
            entry["spec"] = {
                name: {**(choice or {}), "width": int(16 * share)} for name, choice in entry["spec"].items()
            }
        return identity

    def decoder_costs(self, net: Module, architecture: Architecture) -> list[tuple[int, int]]:
        specs = [entry["spec"] for entry in architecture["blocks"]["last.0"]]
        parts = [(rebuild(copy.deepcopy(net.last[0]), spec), net.conv_out) for spec in specs]
        return [(sum(map(conv_macs, both)), sum(map(count_parameters, both))) for both in parts]

    def build_student(self, teacher: Module, architecture: Architecture, boundaries: Sequence[float]) -> Module:
        return ChainStudent(boundaries=list(boundaries), architecture=architecture)

    def copy_fixed(self, student: Module, teacher: Module) -> None:
        for name in ("conv_in", "time", "conv_out"):
            getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())

    def copy_all(self, student: Module, teacher: Module) -> None:
        self.copy_fixed(student, teacher)
        for block, source in [(student.first, teacher.first), *((block, teacher.last[0]) for block in student.last)]:
            block.load_state_dict(source.state_dict())


class ChainConfig:
    """What the library is told of a Chain's config."""

    levels_key = "none"
    prompted = False

    def check(self, config: Config, path: Path) -> None:
        assert config["_class_name"] == "Chain"

    def sites(self, config: Config) -> SiteNames:
        return SiteNames(["first"], ["last.0"])

    def sides(self, config: Config, path: Path) -> Sides:
        return Sides(1)

    def channels(self, config: Config) -> tuple[int, int]:
        return config["in_channels"], config["out_channels"]

    def widths(self, config: Config) -> list[int]:
        return [16]

    def trained(self, settings: Any, prompt_width: int | None = None) -> dict[str, object]:
        raise NotImplementedError
