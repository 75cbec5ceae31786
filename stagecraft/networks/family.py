"""What the library asks of a kind of network: where its blocks stand, what passes between them, and how to run one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, Protocol, TypedDict

import torch

from stagecraft.data.condition import UNCONDITIONAL, Condition

Module = Any  # a diffusers module: its layers are attributes that no type describes
Choice = Mapping[str, object] | None  # what is chosen of a layer, with keys of its kind's own; None for a dropped one
Spec = Mapping[str, Choice]  # of a block: the choices of its layers, by name
Stream = list[list[int]]  # for every level the channels of the residual stream that are kept, ascending


class Entry(TypedDict):
    """The block of a range of intervals; `channels` are those of its output, where they are not the teacher's."""

    range: list[int]
    spec: Spec
    channels: NotRequired[int]


class Architecture(TypedDict):
    """The entries of each site by its name, and the channels of the residual stream by level, where some are dropped."""

    blocks: dict[str, list[Entry]]
    stream: NotRequired[Stream]


@dataclass(frozen=True)
class Site:
    """A place in a network where a block stands.

    Args:
        name: the block's module in the teacher.
        reads: the tensors that the block takes, by name.
        writes: those that it gives.
        per_range: whether ranges of noise levels may have a block each; otherwise all share one.
        side: pixels a side at which the block's layers run; 0 where the network does not say its own.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    per_range: bool
    side: int


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


class Family(Protocol):
    """All knowledge of one kind of network. Tensors between blocks go by names; a site's `reads` and `writes` are such."""

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
        """What a network costs beside its blocks."""

    def residual_stream(self, net: Module) -> ResidualStream:
        """What passes from layer to layer of a network."""

    def narrow(self, net: Module, stream: Stream) -> Module:
        """A copy of a network with these channels of its residual stream alone, and the weights that belong to them."""

    def build_student(self, teacher: Module, architecture: Architecture, boundaries: Sequence[float]) -> Module:
        """A student of a teacher, with random weights."""

    def copy_fixed(self, student: Module, teacher: Module) -> None:
        """Copy into a student, in place, the teacher's weights of all that is not searched."""

    def copy_all(self, student: Module, teacher: Module) -> None:
        """Copy into a student, in place, all of the teacher's weights, of other shapes what both have in common."""
