"""Choices without a search, which a search has to beat: uniform widths, and the teacher's own blocks."""

import copy
from collections.abc import Sequence

from stagecraft.elastic.kinds import searchables_of
from stagecraft.networks.costs import count_parameters
from stagecraft.networks.families import family_of, site_named, sites_of
from stagecraft.networks.family import Choice, Module
from stagecraft.search.selection import Block, Budget, Candidate, Costs, SubBlock, fits, infeasible, totals

KeptUnits = dict[str, int]  # how much of each layer is kept, by site and name: `down_blocks.0.resnets.1`


def select_largest(blocks: Sequence[Block]) -> dict[str, Candidate]:
    """The teacher's own shape everywhere, whatever the budget."""
    return {block.name: block.identity for block in blocks}


def select_uniform(unet: Module, blocks: Sequence[Block], costs: Costs, budget: Budget) -> dict[str, SubBlock]:
    """The same share of every layer that can be narrowed evenly, nothing dropped.

    Of a ResNet layer it is the share of the inner width in whole GroupNorm groups, with the teacher's kernels, and, where the
    space has that, of the channels that are read and of those written, the most important ones. What the budget leaves over one
    width that fits everywhere goes to the layers one by one, in the order in which they run and in all intervals alike; layers
    that it has no room for are passed over.

    Raises:
        ValueError: not even one group per layer meets the budget.
    """
    largest = teacher_units(unet)
    units = dict.fromkeys(largest, 1)
    fitting = fit_within(unet, blocks, costs, budget, units)
    if fitting is None:
        raise ValueError(infeasible(blocks, costs, budget))
    for count in range(2, max(largest.values()) + 1):
        wider = [name for name in largest if count <= largest[name]]
        for name in wider:
            chosen = fit_within(unet, blocks, costs, budget, units | {name: count})
            if chosen is not None:
                fitting = chosen
                units = units | {name: count}
        if any(units[name] < count for name in wider):
            break
    return fitting


def teacher_units(unet: Module) -> KeptUnits:
    """The teacher's own count of every layer that can be narrowed evenly."""
    return {
        f"{site.name}.{name}": layer.units
        for site in sites_of(unet)
        for name, layer in searchables_of(unet.get_submodule(site.name)).items()
        if layer.units > 1
    }


def fit_within(
    unet: Module, blocks: Sequence[Block], costs: Costs, budget: Budget, units: KeptUnits
) -> dict[str, SubBlock] | None:
    """The blocks of these units, or None where they exceed the budget."""
    chosen = {block.name: narrowed(unet, block, units) for block in blocks}
    return chosen if fits(totals(blocks, chosen, costs), budget) else None


def narrowed(unet: Module, job: Block, units: KeptUnits) -> SubBlock:
    """The block of a search job with layers of these units, and its costs."""
    site = site_named(unet, job.place)
    block = unet.get_submodule(site.name)
    spec: dict[str, Choice] = {}
    for name, layer in searchables_of(block).items():
        candidates = [candidate["spec"][name] for candidate in job.candidates]
        count = units.get(f"{site.name}.{name}", layer.units)
        spec[name] = layer.with_units(count, job.order.get(name, {}), candidates)
    family = family_of(unet)
    skeleton = family.rebuild(copy.deepcopy(block).to("meta"), spec)
    return {"spec": spec, "macs": family.block_macs(skeleton, site), "params": count_parameters(skeleton)}
