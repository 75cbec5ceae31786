"""The interface of a kind of network: where its blocks stand, what passes between them, and how to run one."""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict

import torch

from stagecraft.data.condition import UNCONDITIONAL, Condition
from stagecraft.networks.layer import Layer

Module = Any  # a diffusers module: its layers are attributes that no type describes
Choice = Mapping[str, object] | None  # what is chosen of a layer, with keys of its kind's own; None for a dropped one
Spec = Mapping[str, Choice]  # of a block: the choices of its layers, by name
NATIVE = "native.0"  # the name of a choice for a whole block in a spec that holds no other
Seen = Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # input and output of each convolution and linear layer, by name
Stream = list[list[int]]  # for every level the channels of the residual stream that are kept, ascending


class Entry(TypedDict):
    """The block of a range of intervals; `channels` are those of its output, where they are not the teacher's."""

    range: list[int]
    spec: Spec
    channels: NotRequired[int]


class Architecture(TypedDict):
    """The entries of each site by its name, and the channels of the residual stream by level, where some are dropped.

    `native` are the values of the config that make a native student of the teacher's.
    """

    blocks: dict[str, list[Entry]]
    stream: NotRequired[Stream]
    native: NotRequired[dict[str, Any]]


class NativeChoice(TypedDict):
    """The choice for a block of a native student: channels by the levels it reads or writes, layers, attention.

    With transformers also how many layers each of these has.
    """

    widths: dict[str, int]
    layers: int
    attention: bool
    depth: NotRequired[int]


@dataclass(frozen=True)
class Site:
    """A place in a network where a block stands.

    Args:
        name: the block's module in the teacher.
        reads: the tensors that the block takes, by name.
        writes: those that it gives.
        per_range: whether ranges of noise levels may have a block each; otherwise all share one.
        side: pixels a side at which the block's layers run; 0 where the network does not say its own.
        tokens: how many hidden states of an encoder its cross-attentions read; 0 where it has none.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    per_range: bool
    side: int
    tokens: int = 0


class StudentBlock(NamedTuple):
    """A block of a student: the module, its spec, and the intervals in which it runs."""

    module: Module
    spec: Spec
    intervals: list[int]


@dataclass(frozen=True)
class FixedCosts:
    """MACs for one sample and parameters of what is not searched: the input side, and the output head of one interval."""

    entrance_macs: int
    head_macs: int
    entrance_params: int
    head_params: int

    @property
    def macs(self) -> int:
        """MACs of both."""
        return self.entrance_macs + self.head_macs


@dataclass(frozen=True)
class ResidualStream:
    """The residual stream of a network, which passes from layer to layer, by levels of as many channels.

    Args:
        widths: channels of each level.
        groups: in how many groups GroupNorms take the channels of a level.
        shared: a number for each level, the same for levels that have their channels in common.
        levels: the level of each tensor between blocks, by name; others are no part of the stream.
        writers: the modules whose output is the stream, and their levels.
    """

    widths: tuple[int, ...]
    groups: int
    shared: tuple[int, ...]
    levels: Mapping[str, int]
    writers: Mapping[Module, int]


class Layers(ABC):
    """The layers of a network one by one, and those that specs make of its blocks.

    Args:
        net: the teacher, or the teacher with the student's hidden channels.
        identities: the spec of each of its blocks as it is, by site, in the order in which they run.
    """

    def __init__(self, net: Module, identities: Mapping[str, Spec]) -> None:
        self.identities = identities
        self.net: Module = copy.deepcopy(net).to("meta")
        self._known: dict[str, Layer | None] = {}

    @abstractmethod
    def fixed(self) -> list[Layer]:
        """Costs that every student has: the input side, and one output head."""

    @abstractmethod
    def together(self) -> Layer:
        """The whole network, whose time is more than the sum of its layers': what lies between them takes some as well."""

    @abstractmethod
    def build(self, name: str, part: str, choice: Choice) -> Module | None:
        """A copy of a layer of a block with a choice applied; None where that computes nothing."""

    @abstractmethod
    def place(self, name: str, part: str, module: Module) -> Layer:
        """A module that stands in place of a layer of a block."""

    def parts(self, name: str, spec: Spec) -> Spec:
        """The choice for each layer of a block, by its name there; None of those that cannot be searched."""
        return spec

    def block(self, name: str, spec: Spec) -> list[Layer]:
        """The layers of a block (`down_blocks.0`) as a spec makes it, without those that compute nothing."""
        return list(self.placed(name, spec).values())

    def placed(self, name: str, spec: Spec) -> dict[str, Layer]:
        """The layers of a block as a spec makes it, by the names of the teacher's layers in whose place they stand."""
        layers = {part: self.layer(name, part, choice) for part, choice in self.parts(name, spec).items()}
        return {part: layer for part, layer in layers.items() if layer is not None}

    def own(self) -> list[Layer]:
        """All layers of the network itself."""
        inside = [self.block(name, identity) for name, identity in self.identities.items()]
        return [*self.fixed(), *(layer for layers in inside for layer in layers)]

    def counterpart(self, name: str, part: str) -> Layer:
        """The network's own layer at a place, for a comparison in turn."""
        return self.place(name, part, self.net.get_submodule(f"{name}.{part}"))

    def layer(self, name: str, part: str, choice: Choice) -> Layer | None:
        """A layer of a block with a choice applied; None where that computes nothing."""
        known = f"{name}.{part} {json.dumps(choice, sort_keys=True)}"
        if known not in self._known:
            module = self.build(name, part, choice)
            self._known[known] = None if module is None else self.place(name, part, module)
        return self._known[known]


class NativeForm(Protocol):
    """The students of a teacher that its own class can express.

    Args:
        widths: channels of each level of the residual stream.
        groups: in how many groups GroupNorms take them.
        shared: a number for each level, as in `ResidualStream`.
        levels: the level of each tensor between blocks, by name.
        narrows: whether channels are chosen.
    """

    narrows: bool
    widths: tuple[int, ...]
    groups: int
    shared: Sequence[int]
    levels: Mapping[str, int]

    def choices(
        self, site: Site, widths: Sequence[Sequence[int]], drop_layers: bool, drop_attention: bool
    ) -> list[NativeChoice]:
        """The choices for the block at a site, the teacher's own first; `widths` are the numbers of channels by level."""

    def agreement(self, site: Site, choice: NativeChoice) -> dict[str, int]:
        """The part of this choice that a network's blocks must have in common."""

    def ends(self, first: NativeChoice) -> Module:
        """A network on the meta device with the input side and the output head of students of this first block."""

    def narrow(self, block: Module, site: Site, choice: NativeChoice, kept: Mapping[int, torch.Tensor]) -> Module:
        """A block of the teacher, changed in place as a choice says; `kept` are the channels of the levels it touches."""

    def sort(self, block: Module, seen: Seen) -> None:
        """Put what matters most first inside the layers of a block, in place; it computes what it did before."""

    def values(self, choices: Mapping[str, NativeChoice]) -> dict[str, Any]:
        """The values of the config that make the network of these choices, by site."""

    def build(self, values: Mapping[str, Any]) -> Module:
        """The network of `values`, with random weights."""

    def start(self, teacher: Module, architecture: Architecture, span: tuple[float, float]) -> Module:
        """The network of an architecture, with the teacher's weights of all but the blocks; `span` are its timesteps."""


class Family(Protocol):
    """All knowledge of one kind of network. Tensors between blocks go by names; a site's `reads` and `writes` are such.

    Args:
        teacher_class: the diffusers class of its teachers.
        student_class: the class of its students, in a self-contained file that is saved with them.
    """

    teacher_class: Any
    student_class: Any

    def adapt(self, teacher: Module, side: int) -> Module:
        """Make a given teacher, in place, one of this side that predicts the mean alone, also if it has learned a variance."""

    def example_condition(self, net: Module, count: int) -> Condition:
        """The arguments beside `count` samples for measurements of a teacher or student; empty where there are none."""

    def sites(self, net: Module) -> list[Site]:
        """The places of a network's blocks, in the order in which they run."""

    def run(self, site: Site, block: Module, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run a block on what its site reads; returns what it writes."""

    def trace(
        self, net: Module, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> dict[str, torch.Tensor]:
        """All tensors between blocks in one forward pass, and the prediction as `output`; x_t is N,C,H,W, t is (N,)."""

    def tail_reads(self, net: Module, site: Site) -> tuple[str, ...]:
        """The tensors that `tail` needs beside what the site writes."""

    def tail(
        self, net: Module, site: Site, outputs: Sequence[torch.Tensor], seen: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """The prediction (N,C,H,W) of a network whose block at a site gave these outputs; `seen` holds its `tail_reads`."""

    def blocks(self, student: Module, site: Site) -> list[StudentBlock]:
        """A student's blocks at one of the teacher's sites, one for each range of intervals."""

    def rebuild(self, block: Module, spec: Spec) -> Module:
        """A block of the teacher, changed in place as a spec says; weights of changed layers are left to the caller."""

    def block_macs(self, block: Module, site: Site) -> int:
        """MACs of a block at a site for one sample, as thop counts them (convolutions and linear layers)."""

    def fixed_costs(self, net: Module) -> FixedCosts:
        """Costs of a network beside its blocks."""

    def layers(self, net: Module, identities: Mapping[str, Spec]) -> Layers:
        """The layers of a network, to be measured one by one; `identities` as in `Layers`."""

    def residual_stream(self, net: Module) -> ResidualStream:
        """The residual stream of a network."""

    def narrow(self, net: Module, stream: Stream) -> Module:
        """A copy of a network with these channels of its residual stream alone, and the weights that belong to them."""

    def widen_decoders(self, net: Module, identity: Architecture, widths: Sequence[float]) -> Architecture:
        """An identity architecture with other channels in its decoders, shares of the teacher's for each interval."""

    def decoder_costs(self, net: Module, architecture: Architecture) -> list[tuple[int, int]]:
        """MACs for one sample and parameters of every interval's decoder, its output head included."""

    def build_student(self, teacher: Module, architecture: Architecture, boundaries: Sequence[float]) -> Module:
        """A student of a teacher, with random weights."""

    def copy_fixed(self, student: Module, teacher: Module) -> None:
        """Copy into a student, in place, the teacher's weights of all that is not searched."""

    def copy_all(self, student: Module, teacher: Module) -> None:
        """Copy into a student, in place, all of the teacher's weights, of other shapes what both have in common."""

    def native(self, net: Module) -> NativeForm:
        """The students of a teacher that its own class can express."""

    def stock(self, student: Module) -> Module:
        """The network of the teacher's own class that a native student is."""
