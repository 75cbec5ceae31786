"""Supernets of blocks whose sub-blocks are those of native students, of their teacher's own class, and what is chosen of them."""

import copy
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from torch import nn

from stagecraft.elastic.architecture import identity_architecture
from stagecraft.elastic.block import BlockRunner, ElasticBlock
from stagecraft.elastic.grid import counts
from stagecraft.elastic.searchable import Order, Settings
from stagecraft.elastic.whole import BlockChoices
from stagecraft.networks.family import NATIVE, Architecture, Family, Module, NativeChoice, NativeForm, Site, Spec

SOURCES_KEPT = 16  # of sub-blocks; each takes twice the room of its weights
Source = tuple[str, torch.Tensor | None]  # a parameter by name, and which of its entries, None for all as they stand


class NativeBlock(ElasticBlock):
    """A teacher's block that runs as the sub-block of the native choice given at each call.

    It is given all channels of the tensors at its site, of which a sub-block reads some. In what it writes the others are zeros,
    so that its error counts what is lost with them.

    Args:
        block: a block of the teacher; copied.
        family, site: of the teacher, and where the block stands.
        form: that of the teacher.
        order: for every level, as text, its channels, the most important first.
    """

    def __init__(self, block: Module, family: Family, site: Site, form: NativeForm, order: Order) -> None:
        super().__init__(block, family, site, Settings.model_construct(kernels=[]))
        self.form = form
        self.order = order
        self._sources: dict[str, dict[str, Source]] = {}

    def kept(self, choice: NativeChoice) -> dict[int, torch.Tensor]:
        """The channels that a choice keeps of each level, ascending."""
        return {int(level): kept_of(self.order[level], width) for level, width in choice["widths"].items()}

    def build(self, spec: Spec) -> nn.Module:
        """The sub-block, its parameters on the meta device."""
        choice = choice_of(spec)
        return self.form.narrow(copy.deepcopy(self._template[0]), self.site, choice, self.kept(choice))

    def weights(self, spec: Spec) -> dict[str, torch.Tensor]:
        """Entries of the elastic weights for a sub-block, by the names of its state dict."""
        return {name: self._take(*source) for name, source in self._sources_of(spec).items()}

    def _take(self, name: str, entries: torch.Tensor | None) -> torch.Tensor:
        weight = self.block.get_parameter(name)
        if entries is None:
            return weight
        weight = weight.flatten()
        return weight.index_select(0, entries.flatten().to(weight.device)).view(entries.shape)

    def _sources_of(self, spec: Spec) -> dict[str, Source]:
        key = json.dumps(spec, sort_keys=True)
        if key not in self._sources:
            if len(self._sources) >= SOURCES_KEPT:
                self._sources.clear()
            self._sources[key] = self._find_sources(choice_of(spec))
        return self._sources[key]

    def _find_sources(self, choice: NativeChoice) -> dict[str, Source]:
        """Where a sub-block's weights are in the block's, by the names of its state dict.

        A copy whose weights hold their own indices is narrowed, and the indices are read back. A sub-block that only keeps or
        drops whole parameters gets their names instead, since indices would take three times the block's memory.
        """
        copied = copy.deepcopy(self._template[0])
        whole = dict(copied.named_parameters())  # held, so that no other parameter gets the number of one of these
        names = {id(parameter): name for name, parameter in whole.items()}
        left = dict(self.form.narrow(copied, self.site, choice, self.kept(choice)).named_parameters())
        if all(id(parameter) in names for parameter in left.values()):
            return {name: (names[id(parameter)], None) for name, parameter in left.items()}
        own = dict(self._template[0].named_parameters())
        starts = list(accumulate((p.numel() for p in own.values()), initial=0))
        numbered: Any = copy.deepcopy(self._template[0]).double().to_empty(device="cpu")
        for start, parameter in zip(starts, numbered.parameters(), strict=False):
            parameter.data.copy_(torch.arange(start, start + parameter.numel()).view(parameter.shape))
        narrowed = self.form.narrow(numbered, self.site, choice, self.kept(choice))
        sources: dict[str, Source] = {}
        for name, parameter in narrowed.named_parameters():
            numbers = parameter.detach().long()
            at = bisect_right(starts, int(numbers.flatten()[0])) - 1
            sources[name] = ([*own][at], numbers - starts[at])
        return sources

    def forward(self, spec: Spec, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run the sub-block `spec` on what its site reads, of all channels; returns what it writes, likewise."""
        kept = self.kept(choice_of(spec))
        inputs = [self._kept_part(name, tensor, kept) for name, tensor in zip(self.site.reads, tensors, strict=True)]
        weights = {f"block.{name}": value for name, value in self.weights(spec).items()}
        outputs = torch.func.functional_call(
            BlockRunner(self.skeleton(spec), self.family, self.site), weights, (inputs,)
        )
        pairs = zip(self.site.writes, outputs, strict=True)
        return tuple(self._among_zeros(name, output, kept) for name, output in pairs)

    def _kept_part(self, name: str, tensor: torch.Tensor, kept: Mapping[int, torch.Tensor]) -> torch.Tensor:
        level = self.form.levels.get(name)
        return tensor if level is None else tensor.index_select(1, kept[level].to(tensor.device))

    def _among_zeros(self, name: str, output: torch.Tensor, kept: Mapping[int, torch.Tensor]) -> torch.Tensor:
        level = self.form.levels[name]
        count, _, *size = output.shape
        zeros = output.new_zeros(count, self.form.widths[level], *size)
        return zeros.index_copy(1, kept[level].to(output.device), output)

    @torch.no_grad()
    def sort(self, tensors: Sequence[torch.Tensor]) -> dict[str, Order]:
        """Put what matters most inside the block's layers first; the block computes what it did before.

        Returns:
            The order of the channels between layers, as it was given.
        """
        self.form.sort(self.block, self._inputs_and_outputs(tensors))
        return {NATIVE: self.order}


def kept_of(order: Sequence[int], width: int) -> torch.Tensor:
    """The first `width` channels of an order, ascending."""
    return torch.tensor(sorted(order[:width]))


def choice_of(spec: Spec) -> NativeChoice:
    """The choice that a spec for a whole block holds."""
    return cast(NativeChoice, spec[NATIVE])


def native_choices(form: NativeForm, site: Site, settings: Settings) -> BlockChoices:
    """What may be chosen of the block at a site.

    Args:
        settings: `widths` (here of the residual stream), `channel_multiple`, `drop_layers` and `drop_attention` count.
    """
    groups = form.groups
    multiple = settings.channel_multiple
    widths = [[groups * n for n in counts(settings.widths, multiple, w // groups, groups)] for w in form.widths]
    return BlockChoices(form.choices(site, widths, settings.drop_layers, settings.drop_attention))


def native_architecture(form: NativeForm, specs: Mapping[str, Spec], order: Order) -> Architecture:
    """The architecture of a native student.

    Args:
        specs: what is chosen of the blocks, by site.
        order: that of `NativeBlock`.
    """
    choices = {site: choice_of(spec) for site, spec in specs.items()}
    values = form.values(choices)
    kept = {level: width for choice in choices.values() for level, width in choice["widths"].items()}
    stream = [kept_of(order[level], kept[level]).tolist() for level in sorted(kept, key=int)]
    return {**identity_architecture(form.build(values)), "stream": stream, "native": values}
