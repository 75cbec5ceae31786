"""Architectures as data: for every site of a teacher the ranges of intervals that have a block there, and its spec."""

from collections.abc import Iterable, Sequence

from stagecraft.elastic.kinds import identity_spec
from stagecraft.networks.families import sites_of
from stagecraft.networks.family import Architecture, Entry, Module, Spec


def identity_architecture(teacher: Module, intervals: int = 1) -> Architecture:
    """The architecture that rebuilds a teacher, with a block of its own for every interval where there may be one."""
    blocks = {}
    for site in sites_of(teacher):
        ranges = [[interval] for interval in range(intervals)] if site.per_range else [list(range(intervals))]
        blocks[site.name] = [entry(part, identity_spec(teacher.get_submodule(site.name))) for part in ranges]
    return {"blocks": blocks}


def entry(intervals: Iterable[int], spec: Spec) -> Entry:
    """The block of a range of intervals, as an architecture holds it."""
    return {"range": list(intervals), "spec": spec}


def chosen_architecture(chosen: Iterable[tuple[str, Sequence[int], Spec]]) -> Architecture:
    """The architecture of blocks given by site, intervals and spec."""
    blocks: dict[str, list[Entry]] = {}
    for site, intervals, spec in sorted(chosen, key=lambda item: (item[0], list(item[1]))):
        blocks.setdefault(site, []).append(entry(intervals, spec))
    return {"blocks": blocks}
