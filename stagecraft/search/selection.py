"""Selection: one candidate per block, by the local rule of DiffNAS or by an integer programme under budgets.

A candidate is a sub-block with two scores: `nmse` of the block's own outputs, and `output`, the error of the teacher's denoised
image for every interval in which the block runs (None when it was not measured).
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal, NotRequired, Self, TypedDict, TypeVar

import numpy as np

from stagecraft.config.sections import Assemble
from stagecraft.elastic.searchable import Order
from stagecraft.networks.family import Spec
from stagecraft.networks.jobs import Job

Cost = Literal["macs", "time", "params"]
TOLERANCE = 0.02  # how far below the budget a control may stay
COSTS_OF_CANDIDATES: tuple[Cost, ...] = ("macs", "time", "params")
# The cost of a candidate that each budget limits.
LIMITED: dict[str, Cost] = {"macs": "macs", "time": "time", "params": "params", "params_active": "params"}


class SubBlock(TypedDict):
    """What a spec makes of a block, and what it costs; `time` is in milliseconds an image, where that was measured."""

    spec: Spec
    macs: int
    params: int
    time: NotRequired[float]


class Candidate(SubBlock):
    """A sub-block with its scores; `agrees` is what it has in common with the others of a student, where they have to agree."""

    nmse: float
    output: NotRequired[list[float] | None]
    agrees: NotRequired[dict[str, int]]


Chosen = Mapping[str, SubBlock]  # by the name of the search job


@dataclass(frozen=True)
class Budget:
    """Shares of the teacher's costs, None for no limit: MACs and time by the sampler's steps, parameters in all and active."""

    macs: float | None = None
    params: float | None = None
    params_active: float | None = None
    time: float | None = None

    @classmethod
    def of(cls, settings: Assemble) -> Self:
        """The budgets among the keys of the `assemble` section of the params."""
        return cls(**{item.name: getattr(settings, item.name) for item in fields(cls)})

    def limits(self) -> dict[str, float]:
        """The budgets that are given, by name."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Costs:
    """What is not searched, and the teacher's totals that budgets are shares of.

    `interval_weights` are the shares of the sampler's steps in each interval; `fixed_*` are costs that every student has, without
    the parameters of output heads, which go with the blocks before them. Times are in milliseconds an image, None where
    latencies were not measured.
    """

    teacher_macs: int
    teacher_params: int
    fixed_macs: int
    fixed_params: int
    interval_weights: tuple[float, ...]
    teacher_time: float | None = None
    fixed_time: float | None = None

    def beside_teacher(self, macs: float, params: float, params_active: float) -> dict[str, float]:
        """The costs of a student, and their ratios to the teacher's."""
        return {
            "macs": macs,
            "params": params,
            "params_active": params_active,
            "macs_ratio": macs / self.teacher_macs,
            "params_ratio": params / self.teacher_params,
            "params_active_ratio": params_active / self.teacher_params,
        }


@dataclass(frozen=True)
class PlacedBlock:
    """Where the block of a search job stands; `intervals` are those in which it runs, None for all."""

    name: str
    intervals: tuple[int, ...] | None

    @property
    def place(self) -> str:
        """The teacher's block that this one stands for."""
        return Job.parse(self.name).site

    def runs_in(self, interval: int) -> bool:
        """Whether it runs in an interval."""
        return self.intervals is None or interval in self.intervals


@dataclass(frozen=True)
class Block(PlacedBlock):
    """A searched block with its candidates: one search job's result.

    Args:
        order: that of `ElasticBlock.sort`.
        head_params: parameters of the output head that stands behind it.
    """

    identity: Candidate
    candidates: tuple[Candidate, ...]
    order: Mapping[str, Order] = field(default_factory=dict)
    head_params: int = 0

    def params_of(self, candidate: SubBlock) -> int:
        """Parameters of a candidate, with those of the head behind it."""
        return int(candidate["params"]) + self.head_params


P = TypeVar("P", bound=PlacedBlock)


def pareto(
    candidates: Sequence[Candidate], values: Sequence[float] | None = None, costs: Sequence[Cost] = COSTS_OF_CANDIDATES
) -> list[Candidate]:
    """Candidates that no other beats in value and in every cost at once, by ascending value; values default to NMSE.

    Costs that not all candidates have do not count.
    """
    front: list[Candidate] = []
    values = [c["nmse"] for c in candidates] if values is None else values
    costs = [key for key in costs if all(key in c for c in candidates)]
    pairs = sorted(zip(values, candidates, strict=True), key=lambda p: (p[0], *(p[1][key] for key in costs)))
    for _, one in pairs:
        if not any(all(other[key] <= one[key] for key in costs) for other in front):
            front.append(one)
    return front


def fronts_by_agreement(candidates: Sequence[Candidate], values: Sequence[float]) -> list[Candidate]:
    """Pareto fronts of each group of candidates with the same `agrees`, concatenated."""
    alike: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        alike.setdefault(json.dumps(candidate.get("agrees"), sort_keys=True), []).append(index)
    parts = [pareto([candidates[i] for i in indices], [values[i] for i in indices]) for indices in alike.values()]
    return list(itertools.chain.from_iterable(parts))


def weight_of(block: PlacedBlock, costs: Costs) -> float:
    """Share of the sampler's steps in which a block runs."""
    return 1.0 if block.intervals is None else sum(costs.interval_weights[interval] for interval in block.intervals)


def by_place(blocks: Sequence[P]) -> dict[str, list[P]]:
    """The blocks that stand for each of the teacher's, of which those chosen have to tile the intervals."""
    places: dict[str, list[P]] = {}
    for block in blocks:
        places.setdefault(block.place, []).append(block)
    return places


def tilings(blocks: Sequence[P], intervals: int) -> list[list[P]]:
    """All choices of blocks of one place that run in every interval once."""
    if blocks[0].intervals is None:
        return [list(blocks)]

    def from_interval(first: int) -> list[list[P]]:
        if first == intervals:
            return [[]]
        starting = [block for block in blocks if block.intervals and block.intervals[0] == first]
        return [[block, *rest] for block in starting for rest in from_interval(first + len(block.intervals or ()))]

    return from_interval(0)


def fewest_blocks(blocks: Sequence[Block], intervals: int) -> list[Block]:
    """Of every place the tiling with the fewest blocks, for rules that choose none: an ordinary UNet where that was searched."""
    return [block for searched in by_place(blocks).values() for block in min(tilings(searched, intervals), key=len)]


def totals(blocks: Sequence[Block], chosen: Chosen, costs: Costs) -> dict[str, float]:
    """Costs of a whole student and their ratios to the teacher's; `params_active` is that of the largest interval.

    Args:
        chosen: candidates by name of those blocks that the student has.
    """
    blocks = [block for block in blocks if block.name in chosen]
    macs = costs.fixed_macs + weighted_sum(blocks, chosen, costs, "macs")
    params = costs.fixed_params + sum(block.params_of(chosen[block.name]) for block in blocks)
    active = [
        costs.fixed_params + sum(block.params_of(chosen[block.name]) for block in blocks if block.runs_in(interval))
        for interval in range(len(costs.interval_weights))
    ]
    total = costs.beside_teacher(macs, params, max(active))
    timed = all("time" in chosen[block.name] for block in blocks)  # blocks of one width for all are not
    if costs.teacher_time is None or costs.fixed_time is None or not timed:
        return total
    time = costs.fixed_time + weighted_sum(blocks, chosen, costs, "time")
    return total | {"time": time, "time_ratio": time / costs.teacher_time}


def weighted_sum(blocks: Sequence[PlacedBlock], chosen: Chosen, costs: Costs, key: Cost) -> float:
    """Sum of one cost of the chosen candidates, each by the share of the sampler's steps in which it runs."""
    return sum(weight_of(block, costs) * chosen[block.name][key] for block in blocks)


def fits(total: dict[str, float], budget: Budget) -> bool:
    """Whether a student's ratios keep to every budget that is given."""
    return all(total[f"{key}_ratio"] <= limit for key, limit in budget.limits().items())


def select_local(
    blocks: Sequence[Block], costs: Costs, budget: Budget, tau: float | str, tau_rel: float
) -> tuple[dict[str, Candidate], float]:
    """DiffNAS (arXiv 2311.04950, section 3.2): per block the fewest MACs at an error near that of the teacher-shaped path.

    argmin MACs(a) subject to NMSE(a) <= (1 + tau_rel) NMSE(identity) + tau. With tau `auto` it is the smallest for all blocks
    that meets the budget: 0, or a value at which a block's choice changes. All are tried in turn, as a choice with fewer MACs may
    have more parameters, so that a larger tau may meet the budget less.

    Returns:
        (the chosen candidate by block name, tau).

    Raises:
        ValueError: no tau meets the budget; the message has the smallest feasible ones.
    """
    if tau != "auto":
        return _local_choices(blocks, tau_rel, float(tau)), float(tau)
    smallest: dict[str, float] = {}
    for value, chosen in _local_sweep(blocks, tau_rel):
        total = totals(blocks, chosen, costs)
        if fits(total, budget):
            return chosen, value
        smallest = {key: min(total[f"{key}_ratio"], smallest.get(key, math.inf)) for key in budget.limits()}
    raise ValueError(infeasible(blocks, costs, budget, smallest))


def _local_sweep(blocks: Sequence[Block], tau_rel: float) -> Iterator[tuple[float, dict[str, Candidate]]]:
    """(tau, the choice from it on) for 0 and every larger tau at which the choice changes, ascending."""
    changes = [(tau, block.name, candidate) for block in blocks for tau, candidate in _changes(block, tau_rel)]
    chosen = {block.name: block.identity for block in blocks}
    for tau, changed in itertools.groupby(sorted(changes, key=lambda change: change[0]), key=lambda change: change[0]):
        chosen = chosen | {name: candidate for _, name, candidate in changed}
        yield tau, chosen


def _local_choices(blocks: Sequence[Block], tau_rel: float, tau: float) -> dict[str, Candidate]:
    return {block.name: [c for start, c in _changes(block, tau_rel) if start <= tau][-1] for block in blocks}


def _changes(block: Block, tau_rel: float) -> list[tuple[float, Candidate]]:
    """(tau, candidate) for 0 and every tau from which on a block's choice is another one, ascending."""
    base = (1 + tau_rel) * block.identity["nmse"]
    changes = [(0.0, block.identity)]
    fewest = math.inf
    for candidate in sorted(block.candidates, key=lambda c: (c["nmse"], c["macs"])):
        if candidate["macs"] < fewest:
            fewest = candidate["macs"]
            changes.append((max(0.0, candidate["nmse"] - base), candidate))
    return changes


def select_budget(blocks: Sequence[Block], costs: Costs, budget: Budget, score: str = "local") -> dict[str, Candidate]:
    """Minimise the sum of the blocks' scores under the budgets, exactly (integer programme).

    For each of the teacher's blocks some of those searched are chosen that tile the intervals, and one candidate for each.

    Args:
        score: `local` or one of `SCORES`.

    Raises:
        ValueError: no choice meets the budgets; the message has the smallest feasible ones. Or the score was not measured.
    """
    blocks = blocks if score == "local" else measured(blocks, score)
    values = [[value_of(block, candidate, costs, score) for candidate in block.candidates] for block in blocks]
    options = [fronts_by_agreement(block.candidates, column) for block, column in zip(blocks, values, strict=True)]
    kept = [[value_of(block, c, costs, score) for c in front] for block, front in zip(blocks, options, strict=True)]
    picked = _Programme(options, blocks, costs, budget).solve(kept)
    if picked is None:
        raise ValueError(infeasible(blocks, costs, budget))
    return picked


def select_random(blocks: Sequence[Block], costs: Costs, budget: Budget, seed: int) -> dict[str, Candidate]:
    """A random choice that spends the budget of MACs, or else of time, to within 2 %: the smallest sum of random values.

    Raises:
        ValueError: no choice meets the budgets, or none spends as much.
    """
    rng = np.random.default_rng(seed)
    choices = [tilings(searched, len(costs.interval_weights)) for searched in by_place(blocks).values()]
    blocks = [
        block
        for searched in choices
        for block in searched[int(rng.integers(len(searched))) if len(searched) > 1 else 0]
    ]
    options = [list(block.candidates) for block in blocks]
    values = [rng.random(len(column)).tolist() for column in options]
    picked = _Programme(options, blocks, costs, budget, min_spent=1 - TOLERANCE).solve(values)
    if picked is None and _Programme(options, blocks, costs, budget).solve(values) is not None:
        raise ValueError(
            f"params.yaml: assemble.rule random: no choice spends {1 - TOLERANCE:.0%} of {budget.limits()}; lower the budget"
        )
    if picked is None:
        raise ValueError(infeasible(blocks, costs, budget))
    return picked


def measured(blocks: Sequence[Block], score: str) -> list[Block]:
    """The blocks with those candidates alone whose `output` was measured; ValueError when a block has none."""
    kept = [replace(b, candidates=tuple(c for c in b.candidates if c["output"] is not None)) for b in blocks]
    for block in kept:
        if not block.candidates:
            raise ValueError(
                f"params.yaml: assemble.score {score}, but {block.name} was searched without its effect on the image; "
                "set search_block.output_candidates to 2 or more"
            )
    return kept


def effect_on_image(own: float, output: float) -> float:
    """The error of the teacher's denoised image with the candidate in it."""
    return output


def geometric_mean(own: float, output: float) -> float:
    """Geometric mean of both errors.

    The block's own error alone overspends where little depends on the block; the image's error alone overspends on the last
    block, whose errors retraining soon corrects.
    """
    return math.sqrt(own * output)


# Scores besides `local`, of a candidate's own error and the error of the image in one interval.
SCORES: dict[str, Callable[[float, float], float]] = {"output": effect_on_image, "combined": geometric_mean}


def value_of(block: PlacedBlock, candidate: Candidate, costs: Costs, score: str) -> float:
    """What a candidate adds to the objective: its score by the share of the sampler's steps in each interval.

    The score is `local`, its own error, or one of `SCORES`.
    """
    if score == "local":
        return weight_of(block, costs) * float(candidate["nmse"])
    weights = (
        costs.interval_weights
        if block.intervals is None
        else [costs.interval_weights[interval] for interval in block.intervals]
    )
    values = candidate["output"]
    assert values is not None, "candidates that were not measured have been left out"
    value = SCORES[score]
    return sum(weight * value(candidate["nmse"], output) for weight, output in zip(weights, values, strict=True))


def infeasible(blocks: Sequence[Block], costs: Costs, budget: Budget, smallest: dict[str, float] | None = None) -> str:
    """The message for an infeasible budget: every budget with the smallest that is feasible alone.

    Args:
        smallest: the smallest ratios that a rule reaches; None for those of the cheapest candidates.
    """
    asked = budget.limits()
    if smallest is None:
        smallest = {key: totals(blocks, _cheapest(blocks, costs, key), costs)[f"{key}_ratio"] for key in asked}
    parts = [
        f"assemble.{key} {limit:g} (smallest feasible: {round_up(smallest[key]):.4f})" for key, limit in asked.items()
    ]
    below = any(limit < smallest[key] for key, limit in asked.items())
    advice = "raise what is below its smallest" if below else "each is feasible, but not all at once; raise one"
    return f"params.yaml: the budget is infeasible: {', '.join(parts)}; {advice}, or widen the space of search_block"


def round_up(value: float, digits: int = 4) -> float:
    """`value` rounded up, so that a budget of the printed number is feasible."""
    return float(np.ceil(value * 10**digits) / 10**digits)


def _cheapest(blocks: Sequence[Block], costs: Costs, key: str) -> dict[str, Candidate]:
    """The cheapest choice by `macs`, `time`, `params` or `params_active`."""
    cost = LIMITED[key]
    if any("agrees" in candidate for block in blocks for candidate in block.candidates):
        return _cheapest_agreeing(blocks, costs, cost)
    cheapest = {block.name: min(block.candidates, key=lambda candidate: candidate[cost]) for block in blocks}

    def cost_of(tiling: list[Block]) -> float:
        if key == "params_active":
            return max(block.params_of(cheapest[block.name]) for block in tiling)
        if key == "params":
            return sum(block.params_of(cheapest[block.name]) for block in tiling)
        return weighted_sum(tiling, cheapest, costs, cost)

    intervals = len(costs.interval_weights)
    best = [min(tilings(searched, intervals), key=cost_of) for searched in by_place(blocks).values()]
    return {block.name: cheapest[block.name] for tiling in best for block in tiling}


def _cheapest_agreeing(blocks: Sequence[Block], costs: Costs, cost: Cost) -> dict[str, Candidate]:
    """The cheapest choice, as `_cheapest` returns it, of candidates that have to agree."""
    options = [list(block.candidates) for block in blocks]
    picked = _Programme(options, blocks, costs, Budget()).solve([[c[cost] for c in column] for column in options])
    assert picked is not None, "the teacher's own blocks agree"
    return picked


class _Programme:
    """The integer programme: a 0/1 variable per block and candidate.

    Args:
        min_spent: the share that must be spent of the budget of MACs, or of time where there is none of MACs.
    """

    def __init__(
        self,
        options: list[list[Candidate]],
        blocks: Sequence[Block],
        costs: Costs,
        budget: Budget,
        min_spent: float | None = None,
    ) -> None:
        self.options = options
        self.blocks = blocks
        weighted = [*self.weighted_rows(costs, budget.limits())]
        self.rows = [(row, limit - fixed) for row, limit, fixed in weighted]
        self.rows += self.params_rows(costs, budget.limits())
        if min_spent is not None and weighted:
            row, limit, fixed = weighted[0]
            self.rows.append((-row, fixed - min_spent * limit))

    def weighted_rows(self, costs: Costs, limits: dict[str, float]) -> Iterator[tuple[np.ndarray, float, float]]:
        """Coefficients, limit and fixed part of the costs that count by the sampler's steps."""
        weights = [weight_of(block, costs) for block in self.blocks]
        if "macs" in limits:
            yield self.row("macs", weights), limits["macs"] * costs.teacher_macs, costs.fixed_macs
        if "time" in limits and costs.teacher_time is not None and costs.fixed_time is not None:
            yield self.row("time", weights), limits["time"] * costs.teacher_time, costs.fixed_time

    def params_rows(self, costs: Costs, limits: dict[str, float]) -> Iterator[tuple[np.ndarray, float]]:
        """Coefficients and limits of the parameters, in all and in every interval."""
        if "params" in limits:
            yield (
                self.params_row([True] * len(self.blocks)),
                limits["params"] * costs.teacher_params - costs.fixed_params,
            )
        if "params_active" in limits:
            limit = limits["params_active"] * costs.teacher_params - costs.fixed_params
            for interval in range(len(costs.interval_weights)):
                yield self.params_row([block.runs_in(interval) for block in self.blocks]), limit

    def params_row(self, counted: Sequence[bool]) -> np.ndarray:
        """Coefficients of the parameters of some blocks."""
        blocks = zip(self.blocks, counted, self.options, strict=True)
        return np.array([counts * block.params_of(c) for block, counts, options in blocks for c in options], float)

    def row(self, key: Cost, weights: Sequence[float]) -> np.ndarray:
        """Coefficients of one linear form over all variables."""
        return np.array([w * c[key] for w, options in zip(weights, self.options, strict=True) for c in options])

    def tiling_rows(self) -> np.ndarray:
        """Rows that are 1 where an option runs at a place in an interval, of which one is chosen."""
        rows = []
        for searched in by_place(self.blocks).values():
            intervals = sorted({interval for block in searched for interval in block.intervals or ()}) or [0]
            for interval in intervals:
                here = [float(block in searched and block.runs_in(interval)) for block in self.blocks]
                rows.append(np.repeat(here, [len(options) for options in self.options]))
        return np.array(rows)

    def agreements(self) -> Iterator[tuple[np.ndarray, float, float]]:
        """Rows with the lower and upper limits of their sums, within which the chosen options agree.

        Of two blocks that say a value both choose it, or one chooses an option that says nothing.
        """
        owners = np.repeat(np.arange(len(self.options)), [len(options) for options in self.options])
        said = [candidate.get("agrees", {}) for options in self.options for candidate in options]
        for key in sorted({key for one in said for key in one}):
            values = np.array([one.get(key, -1) for one in said])
            speakers = np.unique(owners[values >= 0])
            sometimes = [owner for owner in speakers if (values[owners == owner] < 0).any()]
            always = [owner for owner in speakers if owner not in sometimes]
            for first, second in itertools.pairwise(always):
                for value in np.unique(values[values >= 0]):
                    sides = 1.0 * (owners == first) - 1.0 * (owners == second)
                    yield sides * (values == value), 0, 0
            for first, second in [*itertools.product(sometimes, always[:1]), *itertools.combinations(sometimes, 2)]:
                for value in np.unique(values[values >= 0]):
                    other = (owners == second) & (values >= 0) & (values != value)
                    yield 1.0 * ((owners == first) & (values == value)) + other, 0, 1

    def solve(self, values: Sequence[Sequence[float]]) -> dict[str, Candidate] | None:
        """The choice with the smallest sum of values, which are given per block and option, by block; None when there is none."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        # Rows are scaled to a right-hand side of one, since the solver's tolerances are absolute.
        scaled = [(row / abs(limit), np.sign(limit)) for row, limit in self.rows if limit]
        if len(scaled) < len(self.rows):
            return None  # a limit of 0 leaves nothing for the blocks
        limits = [LinearConstraint(row, ub=limit) for row, limit in scaled]
        limits += [LinearConstraint(row, lower, upper) for row, lower, upper in self.agreements()]
        sizes = [len(options) for options in self.options]
        choice = milp(
            np.concatenate([np.asarray(column, dtype=float) for column in values]),
            constraints=[LinearConstraint(self.tiling_rows(), 1, 1), *limits],
            integrality=np.ones(sum(sizes)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 1e-6},
        )
        if choice.x is None:
            return None
        picked = np.split(choice.x, np.cumsum(sizes)[:-1])
        return {
            block.name: options[int(np.argmax(taken))]
            for block, options, taken in zip(self.blocks, self.options, picked, strict=True)
            if taken.max() > 0.5
        }
