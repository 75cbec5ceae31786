"""The search space of one block: for each of its layers the choices that its kind admits (stagecraft/elastic)."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping

import numpy as np

from stagecraft.elastic.block import natural_orders
from stagecraft.elastic.kinds import searchables_of
from stagecraft.elastic.native import native_choices
from stagecraft.elastic.searchable import Choices, Order, Settings
from stagecraft.elastic.whole import BlockChoices
from stagecraft.networks.families import family_of, sites_of
from stagecraft.networks.family import NATIVE, Choice, Module, Site, Spec

ATTEMPTS = 20  # children tried for each that is wanted


class BlockSpace:
    """All sub-blocks of a teacher's block that the params admit; the teacher's own shape is always among them.

    Args:
        block: the teacher's block.
        settings: the `search_block` section of the params.
        orders: the parts of each layer by importance, as `ElasticBlock.sort` gives them.
    """

    def __init__(self, block: Module, settings: Settings, orders: Mapping[str, Order]) -> None:
        layers = searchables_of(block)
        self.orders = orders
        self.identity: Spec = {name: layer.identity() for name, layer in layers.items()}
        self.choices: dict[str, Choices] = {
            name: layer.choices(settings, orders.get(name, {})) for name, layer in layers.items()
        }

    def __len__(self) -> int:
        return math.prod(len(choices) for choices in self.choices.values())

    def smallest(self) -> Spec:
        """Every layer at its smallest."""
        return {name: choices.smallest() for name, choices in self.choices.items()}

    def draw(self, rng: np.random.Generator) -> Spec:
        """A random spec."""
        return {name: choices.draw(rng) for name, choices in self.choices.items()}

    def all(self) -> list[Spec]:
        """Every spec of the space."""
        columns = [choices.all() for choices in self.choices.values()]
        return [dict(zip(self.choices, row, strict=True)) for row in itertools.product(*columns)]

    def covering(self) -> list[Spec]:
        """The teacher's shape and specs in which, between them, every option of every layer occurs."""
        columns = {name: choices.all() for name, choices in self.choices.items()}
        longest = max(map(len, columns.values()))
        specs = [{name: column[i % len(column)] for name, column in columns.items()} for i in range(longest)]
        return [self.identity, *specs]

    def plain(self) -> list[Spec]:
        """Specs that treat all layers of a kind alike: the choices that a sample must not miss."""
        kinds: dict[str, list[str]] = {}
        for name in self.choices:
            kinds.setdefault(name.partition(".")[0], []).append(name)
        alike = [self._alike(names) for names in kinds.values()]
        return [
            {name: choice for part in parts for name, choice in part.items()} for parts in itertools.product(*alike)
        ]

    def _alike(self, names: list[str]) -> list[Spec]:
        """The plain choices of some layers, side by side; a layer with fewer of them stays at its last."""
        columns = {name: self.choices[name].plain() for name in names}
        longest = max(map(len, columns.values()))
        return [{name: column[min(i, len(column) - 1)] for name, column in columns.items()} for i in range(longest)]

    def first(self, most: int, rng: np.random.Generator) -> list[Spec]:
        """The whole space when it has at most `most` specs; else identity, smallest and plain specs, then random ones."""
        if len(self) <= most:
            return unique([self.identity, *self.all()])
        chosen = unique([self.identity, self.smallest(), *self.plain()])
        while len(chosen) < most:
            chosen = unique([*chosen, *(self.draw(rng) for _ in range(most - len(chosen)))])
        return chosen

    def children(self, parents: list[Spec], count: int, known: list[Spec], rng: np.random.Generator) -> list[Spec]:
        """New specs, each a cross of two parents with one choice exchanged; draws where the parents give nothing new."""
        children: list[Spec] = []
        seen = {key_of(spec) for spec in known}
        attempts = 0
        while len(children) < count:
            attempts += 1
            spec = self._child(parents, rng) if attempts <= ATTEMPTS * count else self.draw(rng)
            if key_of(spec) not in seen:
                seen.add(key_of(spec))
                children.append(spec)
        return children

    def _child(self, parents: list[Spec], rng: np.random.Generator) -> Spec:
        pair = [parents[rng.integers(len(parents))] for _ in range(2)]
        spec: dict[str, Choice] = {name: pair[rng.integers(2)][name] for name in self.choices}
        name = [*self.choices][int(rng.integers(len(self.choices)))]
        spec[name] = self.choices[name].changed(spec[name], rng)
        return spec


class NativeSpace(BlockSpace):
    """All sub-blocks for a native student; the teacher's own shape is always among them.

    Args:
        choices: as `native_choices` gives them.
        orders: as `NativeBlock.sort` gives them.
    """

    def __init__(self, choices: BlockChoices, orders: Mapping[str, Order]) -> None:
        self.orders = orders
        self.identity = {NATIVE: choices.all()[0]}
        self.choices = {NATIVE: choices}


def native_space(net: Module, site: Site, settings: Settings, orders: Mapping[str, Order]) -> NativeSpace:
    """The space of the block at a site of a teacher, for a native student."""
    return NativeSpace(native_choices(family_of(net).native(net), site, settings), orders)


def native_specs(teacher: Module, settings: Settings) -> Iterator[tuple[str, Spec]]:
    """Names of blocks, and every spec of each for a native student."""
    for site in sites_of(teacher):
        yield from ((site.name, spec) for spec in native_space(teacher, site, settings, {}).all())


def covering_specs(student: Module, settings: Settings) -> Iterator[tuple[str, Spec]]:
    """Names of blocks, and specs of each in which all layer shapes of the search space occur.

    Args:
        student: the teacher with the student's hidden channels.
        settings: the keys of the `search_block` section that `BlockSpace` reads.
    """
    for site in sites_of(student):
        block = student.get_submodule(site.name)
        # Shapes depend on how many groups are kept, not on which.
        for spec in BlockSpace(block, settings, natural_orders(block)).covering():
            yield site.name, spec


def key_of(spec: Spec) -> str:
    """The same text for the same spec."""
    return json.dumps(spec, sort_keys=True)


def unique(specs: list[Spec]) -> list[Spec]:
    """The specs without repetition, in their order."""
    return list({key_of(spec): spec for spec in specs}.values())
