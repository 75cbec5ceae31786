"""Selection for native students: candidates say what their blocks must agree in, and the network's two ends are chosen too."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import cast

from stagecraft.elastic.native import choice_of, native_architecture
from stagecraft.elastic.searchable import Settings
from stagecraft.networks.families import family_of, site_named, sites_of
from stagecraft.networks.family import NATIVE, Architecture, Choice, Module, NativeChoice, Site, Spec
from stagecraft.networks.jobs import Job
from stagecraft.networks.layer import Layer
from stagecraft.search.latency import LatencyTable, layers_of, pairs_to_measure
from stagecraft.search.results import SearchResult
from stagecraft.search.selection import Block, Candidate, Costs
from stagecraft.search.space import native_specs

# In place of a job's name: the input side and the output head, which are as wide as the first block's input.
ENDS = "ends"


def with_ends(
    unet: Module, blocks: Sequence[Block], costs: Costs, latency: LatencyTable | None
) -> tuple[list[Block], Costs]:
    """Search results whose candidates say what they agree in, and the ends among them in place of fixed costs."""
    agreeing = [with_agreement(unet, block) for block in blocks]
    first = next(block for block in agreeing if block.place == sites_of(unet)[0].name)
    ends = ends_block(unet, first, len(costs.interval_weights), latency)
    fixed_time = None if costs.fixed_time is None else 0.0
    return [*agreeing, ends], replace(costs, fixed_macs=0, fixed_params=0, fixed_time=fixed_time)


def with_agreement(unet: Module, block: Block) -> Block:
    """A search result whose candidates say what they have in common with those of other blocks."""
    form = family_of(unet).native(unet)
    site = site_named(unet, block.place)

    def with_agrees(candidate: Candidate) -> Candidate:
        return {**candidate, "agrees": form.agreement(site, choice_of(candidate["spec"]))}

    candidates = tuple(map(with_agrees, block.candidates))
    return replace(block, identity=with_agrees(block.identity), candidates=candidates, head_params=0)


def ends_block(unet: Module, first: Block, intervals: int, latency: LatencyTable | None) -> Block:
    """The ends as one more block to choose: one candidate for each `agrees` of the first block, with errors of 0."""
    candidates: list[Candidate] = []
    for first_candidate in first.candidates:
        if all(first_candidate["agrees"] != candidate["agrees"] for candidate in candidates):
            ends = ends_candidate(unet, first_candidate["spec"], intervals, latency)
            candidates.append({**ends, "agrees": first_candidate["agrees"]})
    identity = next(candidate for candidate in candidates if candidate["agrees"] == first.identity["agrees"])
    return Block(ENDS, None, identity, tuple(candidates))


def ends_candidate(unet: Module, spec: Spec, intervals: int, latency: LatencyTable | None) -> Candidate:
    """The ends of the students whose first block is this one."""
    family = family_of(unet)
    net = family.native(unet).ends(choice_of(spec))
    fixed = family.fixed_costs(net)
    params = fixed.entrance_params + fixed.head_params
    ends: Candidate = {
        "spec": spec,
        "macs": fixed.macs,
        "params": params,
        "nmse": 0.0,
        "output": [0.0] * intervals,
    }
    if latency is not None:
        ends["time"] = latency.milliseconds(layers_of(net).fixed())
    return ends


def native_pairs_to_measure(unet: Module, settings: Settings) -> dict[str, tuple[Layer, Layer]]:
    """`pairs_to_measure` of native students.

    Args:
        settings: the keys of the `search_block` section that `native_choices` reads.
    """
    form = family_of(unet).native(unet)
    whole = layers_of(unet)
    specs = list(native_specs(unet, settings))
    pairs = pairs_to_measure(whole, whole, specs)
    first = sites_of(unet)[0]
    for choice in unique_by_widths(choice_of(spec) for name, spec in specs if name == first.name):
        for layer, own in zip(layers_of(form.ends(choice)).fixed(), whole.fixed(), strict=True):
            pairs.setdefault(layer.key, (layer, own))
    return pairs


def unique_by_widths(choices: Iterable[NativeChoice]) -> list[NativeChoice]:
    """One choice for each different set of channels."""
    return list({json.dumps(choice["widths"]): choice for choice in choices}.values())


def native_student(unet: Module, specs: Mapping[str, Spec], results: Mapping[str, SearchResult]) -> Architecture:
    """The architecture of the specs that are chosen, by job name."""
    by_site = {Job.parse(name).site: spec for name, spec in specs.items()}
    order = next(iter(results.values()))["order"][NATIVE]
    return native_architecture(family_of(unet).native(unet), by_site, order)


def native_identity(unet: Module, site: Site) -> Spec:
    """The spec that leaves the block at a site as it is."""
    form = family_of(unet).native(unet)
    widths = [[width] for width in form.widths]
    return {NATIVE: cast(Choice, form.choices(site, widths, drop_layers=False, drop_attention=False)[0])}
