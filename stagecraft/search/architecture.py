"""Build the architecture that architecture.json holds from the search results."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import cast

from stagecraft.config.sections import Assemble
from stagecraft.elastic.architecture import chosen_architecture, identity_architecture
from stagecraft.elastic.kinds import identity_spec
from stagecraft.networks.costs import count_network_macs, count_parameters
from stagecraft.networks.families import family_of, sites_of
from stagecraft.networks.family import Architecture, Module, Site, Spec, Stream
from stagecraft.networks.jobs import Job
from stagecraft.networks.stream import narrowed_teacher
from stagecraft.search.controls import select_largest, select_uniform
from stagecraft.search.latency import LatencyTable, layers_of
from stagecraft.search.native import native_identity, native_student, with_ends
from stagecraft.search.results import AGAIN, SearchResult, stream_of
from stagecraft.search.selection import (
    Block,
    Budget,
    Chosen,
    Costs,
    PlacedBlock,
    by_place,
    fewest_blocks,
    select_budget,
    select_local,
    select_random,
    tilings,
    totals,
)
from stagecraft.training.assembled import Assembled, ChosenBlock


def costs_of(
    unet: Module, steps: Sequence[int], narrowed: Module | None = None, latency: LatencyTable | None = None
) -> Costs:
    """The teacher's costs and the shared ones.

    Args:
        steps: the sampler's steps in each interval.
        narrowed: the teacher with the student's residual stream, where that is another.
        latency: measured times of layers, where time is budgeted.
    """
    student = unet if narrowed is None else narrowed
    fixed = family_of(student).fixed_costs(student)
    weights = tuple(count / sum(steps) for count in steps)
    costs = Costs(count_network_macs(unet), count_parameters(unet), fixed.macs, fixed.entrance_params, weights)
    if latency is None:
        return costs
    fixed_time = latency.milliseconds(layers_of(student).fixed())
    return replace(costs, teacher_time=latency.of_teacher(), fixed_time=fixed_time)


def block_of(unet: Module, name: str, result: SearchResult) -> Block:
    """A search result (results/search/<name>.json) as selection takes it; `unet` has the student's residual stream."""
    identity = next(c for c in result["candidates"] if c["spec"] == result["identity"])
    intervals = None if result["intervals"] is None else tuple(result["intervals"])
    is_last = result["block"] == sites_of(unet)[-1].name
    head = family_of(unet).fixed_costs(unet).head_params if is_last else 0
    return Block(name, intervals, identity, tuple(result["candidates"]), result["order"], head)


def named_block(name: str) -> PlacedBlock:
    """The block of a search job as far as its name tells."""
    return PlacedBlock(name, Job.parse(name).intervals)


def assemble_architecture(
    unet: Module,
    results: Mapping[str, SearchResult],
    steps: Sequence[int],
    settings: Assemble,
    seed: int,
    latency: LatencyTable | None = None,
) -> Assembled:
    """Choose a spec per block and interval.

    Args:
        results: contents of results/search/*.json by job name.
        settings: the `assemble` section of the params.
        seed: of the rule `random`.
        latency: measured times of layers, where the candidates have one.

    Raises:
        ValueError: the budget is infeasible, the results are those of other blocks or intervals, or they lack the times.
    """
    check_results(unet, results, len(steps), settings.native)
    stream = stream_of(results)
    narrowed = narrowed_teacher(unet, stream)
    blocks, costs = choices_of(unet, narrowed, results, steps, settings, latency)
    chosen, tau = select(narrowed, blocks, costs, settings, seed)
    searched = {name: candidate for name, candidate in chosen.items() if name in results}
    specs = {name: candidate["spec"] for name, candidate in searched.items()}
    native = native_student(unet, specs, results) if settings.native else None
    return {
        "rule": settings.rule,
        "score": settings.score if settings.rule == "budget" else None,
        "tau": tau,
        "budget": asdict(Budget.of(settings)),
        "unet": native or architecture_of(specs, len(steps), stream),
        "identity": identity_architecture(unet),
        "chosen": cast(Mapping[str, ChosenBlock], searched),
        "supernets": {name: result["weights_sha256"] for name, result in results.items()},
        "expected": totals(blocks, chosen, costs),
        "teacher": {"macs": costs.teacher_macs, "params": costs.teacher_params, "time": costs.teacher_time},
    }


def choices_of(
    unet: Module,
    narrowed: Module,
    results: Mapping[str, SearchResult],
    steps: Sequence[int],
    settings: Assemble,
    latency: LatencyTable | None,
) -> tuple[list[Block], Costs]:
    """What a rule chooses from, and what is not searched; of a native student its two ends are chosen as well."""
    if latency is not None or settings.time is not None:
        check_times(results)
    blocks = [block_of(narrowed, name, result) for name, result in sorted(results.items())]
    costs = costs_of(unet, steps, narrowed, latency)
    return with_ends(unet, blocks, costs, latency) if settings.native else (blocks, costs)


def select(
    narrowed: Module, blocks: Sequence[Block], costs: Costs, settings: Assemble, seed: int
) -> tuple[Chosen, float | None]:
    """The candidate that `assemble.rule` chooses of each block, by name, and the tau of the local rule.

    Args:
        narrowed: the teacher with the student's residual stream.
        seed: of the rule `random`.
    """
    budget = Budget.of(settings)
    few = fewest_blocks(blocks, len(costs.interval_weights))
    match settings.rule:
        case "local":
            return select_local(few, costs, budget, settings.tau, settings.tau_rel)
        case "random":
            return select_random(blocks, costs, budget, seed), None
        case "uniform":
            return select_uniform(narrowed, few, costs, budget), None
        case "largest":
            return select_largest(few), None
    return select_budget(blocks, costs, budget, settings.score), None


def given_architecture(unet: Module, steps: Sequence[int], widths: Sequence[float]) -> Assembled:
    """Decoders of given widths without a search: the multi-stage method as published (arXiv 2312.09181, section 4.3).

    The encoder and the mid block are the teacher's. A decoder's channels are the teacher's at every level times its entry of
    `widths`, in whole GroupNorm groups and attention heads.

    Args:
        widths: `assemble.decoder_widths`, one for each interval.

    Returns:
        As `assemble_architecture`, with nothing chosen.

    Raises:
        ValueError: not one width per interval.
    """
    if len(widths) != len(steps):
        raise ValueError(f"assemble.decoder_widths: {widths} for {len(steps)} intervals; give one share for each")
    architecture = family_of(unet).widen_decoders(unet, identity_architecture(unet, len(steps)), widths)
    costs = costs_of(unet, steps)
    return {
        "rule": "given",
        "score": None,
        "tau": None,
        "budget": None,
        "unet": architecture,
        "identity": identity_architecture(unet),
        "chosen": {},
        "supernets": {},
        "expected": given_costs(unet, architecture, costs),
        "teacher": {"macs": costs.teacher_macs, "params": costs.teacher_params},
    }


def given_costs(unet: Module, architecture: Architecture, costs: Costs) -> dict[str, float]:
    """Costs and ratios, as `totals` returns them, of decoders with other channel counts."""
    family = family_of(unet)
    fixed = family.fixed_costs(unet)
    encoder = [(site, unet.get_submodule(site.name)) for site in sites_of(unet) if not site.per_range]
    encoder_macs = fixed.entrance_macs + sum(family.block_macs(block, site) for site, block in encoder)
    encoder_params = fixed.entrance_params + sum(count_parameters(block) for _, block in encoder)
    decoders = family.decoder_costs(unet, architecture)
    macs = encoder_macs + sum(w * own for w, (own, _) in zip(costs.interval_weights, decoders, strict=True))
    params = [own for _, own in decoders]
    return costs.beside_teacher(macs, sum(params) + encoder_params, max(params) + encoder_params)


def check_results(unet: Module, results: Mapping[str, SearchResult], intervals: int, native: bool = False) -> None:
    """Raise ValueError unless there is one result per block of the teacher, and per interval in the decoder."""
    missing = f"as the teacher and {intervals} interval(s) go; {AGAIN}"
    sites = {site.name: site for site in sites_of(unet)}
    identities = {name: identity_of(unet, site, native) for name, site in sites.items()}
    places = by_place([named_block(name) for name in results])
    if places.keys() != identities.keys():
        place = min(places.keys() ^ identities.keys())
        problem = "missing" if place in identities else "names no block"
        raise ValueError(f"{place}: {problem}, {missing}")
    for place, blocks in places.items():
        beyond = any(interval >= intervals for block in blocks for interval in block.intervals or ())
        if sites[place].per_range == (blocks[0].intervals is None) or beyond or not tilings(blocks, intervals):
            raise ValueError(f"index.json: the searches of {place} do not cover every interval once, {missing}")
    for name, result in results.items():
        if result["identity"] != identities[Job.parse(name).site]:
            raise ValueError(f"{name}.json: describes another teacher's block; {AGAIN}")


def identity_of(unet: Module, site: Site, native: bool) -> Spec:
    """The spec that leaves the block at a site as it is, that of a native student where it is for one."""
    return native_identity(unet, site) if native else identity_spec(unet.get_submodule(site.name))


def check_times(results: Mapping[str, SearchResult]) -> None:
    """Raise ValueError unless every candidate has a `time`."""
    for name, result in results.items():
        if any("time" not in candidate for candidate in result["candidates"]):
            raise ValueError(
                f"{name}.json: holds candidates without a time; set measure_latency.source to measure or path and {AGAIN}"
            )


def architecture_of(specs: Mapping[str, Spec], intervals: int, stream: Stream | None = None) -> Architecture:
    """The architecture of the specs that are chosen, by job name, and the channels of the residual stream that it keeps."""
    jobs = [(Job.parse(name), spec) for name, spec in specs.items()]
    everywhere = list(range(intervals))
    architecture = chosen_architecture(
        (job.site, everywhere if job.intervals is None else job.intervals, spec) for job, spec in jobs
    )
    if stream is not None:
        architecture["stream"] = stream
    return architecture
