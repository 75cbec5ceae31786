"""Selection: one candidate per block, by the local rule of DiffNAS or by an integer programme under budgets.

A candidate is a dict with `spec`, `macs`, `params`, and two scores: `nmse` of the block's own outputs, and `output`, the error of
the teacher's denoised image for every stage in which the block runs (None when it was not measured).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Candidate = dict[str, Any]
BUDGETS = ("macs", "params", "params_active")
MACS_TOLERANCE = 0.02  # how far below the budget a control may stay


@dataclass(frozen=True)
class Budget:
    """Shares of the teacher's costs: NFE-weighted MACs, parameters in total, parameters active at any one step."""

    macs: float
    params: float
    params_active: float


@dataclass(frozen=True)
class Costs:
    """What is not searched, and the teacher's totals that budgets are shares of.

    `stage_weights` are the shares of the sampler's steps in each stage; `fixed_*` are costs that every student has, the output
    heads of all stages in `fixed_params` and of one in `fixed_params_active`.
    """

    teacher_macs: int
    teacher_params: int
    fixed_macs: int
    fixed_params: int
    fixed_params_active: int
    stage_weights: tuple[float, ...]


@dataclass(frozen=True)
class Block:
    """One search job's result: `stage` is None for blocks of all stages; `order` is that of `ElasticBlock.sort_channels`."""

    name: str
    stage: int | None
    identity: Candidate
    candidates: tuple[Candidate, ...]
    order: dict[str, list[list[int]]] = field(default_factory=dict)


def pareto(candidates: Sequence[Candidate], values: Sequence[float] | None = None) -> list[Candidate]:
    """Candidates that no other beats in value, MACs and parameters at once, by ascending value; values default to NMSE."""
    front: list[Candidate] = []
    values = [c["nmse"] for c in candidates] if values is None else values
    pairs = sorted(zip(values, candidates, strict=True), key=lambda p: (p[0], p[1]["macs"], p[1]["params"]))
    for _, one in pairs:
        if not any(other["macs"] <= one["macs"] and other["params"] <= one["params"] for other in front):
            front.append(one)
    return front


def weight_of(block: Block, costs: Costs) -> float:
    """Share of the sampler's steps in which a block runs."""
    return 1.0 if block.stage is None else costs.stage_weights[block.stage]


def totals(blocks: Sequence[Block], chosen: dict[str, Candidate], costs: Costs) -> dict[str, float]:
    """Costs of a whole student and their ratios to the teacher's; `params_active` is that of the largest stage."""
    macs = costs.fixed_macs + sum(weight_of(block, costs) * chosen[block.name]["macs"] for block in blocks)
    params = costs.fixed_params + sum(chosen[block.name]["params"] for block in blocks)
    active = [
        costs.fixed_params_active + sum(chosen[b.name]["params"] for b in blocks if b.stage in (None, stage))
        for stage in range(len(costs.stage_weights))
    ]
    return {
        "macs": macs,
        "params": params,
        "params_active": max(active),
        "macs_ratio": macs / costs.teacher_macs,
        "params_ratio": params / costs.teacher_params,
        "params_active_ratio": max(active) / costs.teacher_params,
    }


def fits(total: dict[str, float], budget: Budget) -> bool:
    """Whether a student's ratios keep to the budget."""
    return (
        total["macs_ratio"] <= budget.macs
        and total["params_ratio"] <= budget.params
        and total["params_active_ratio"] <= budget.params_active
    )


def select_local(
    blocks: Sequence[Block], costs: Costs, budget: Budget, tau: float | str, tau_rel: float
) -> tuple[dict[str, Candidate], float]:
    """DiffNAS (arXiv 2311.04950, section 3.2): per block the fewest MACs at an error near that of the teacher-shaped path.

    argmin MACs(a) subject to NMSE(a) <= (1 + tau_rel) NMSE(identity) + tau. With tau `auto` it is the least for all blocks that
    meets the budget: 0, or a value at which a block's choice changes. All are tried in turn, as a choice with fewer MACs may have
    more parameters, so that a larger tau may meet the budget less.

    Returns:
        (the chosen candidate by block name, tau).

    Raises:
        ValueError: no tau meets the budget; the message has the least that can be met.
    """
    if tau != "auto":
        return _local_choices(blocks, tau_rel, float(tau)), float(tau)
    least: dict[str, float] = {}
    for value, chosen in _local_sweep(blocks, tau_rel):
        total = totals(blocks, chosen, costs)
        if fits(total, budget):
            return chosen, value
        least = {key: min(total[f"{key}_ratio"], least.get(key, math.inf)) for key in BUDGETS}
    raise ValueError(infeasible(blocks, costs, budget, least))


def _local_sweep(blocks: Sequence[Block], tau_rel: float) -> Iterator[tuple[float, dict[str, Candidate]]]:
    """(tau, the choice from it on) for 0 and every larger tau at which the choice changes, ascending."""
    changes = [(tau, block.name, candidate) for block in blocks for tau, candidate in _changes(block, tau_rel)]
    chosen = {block.name: block.identity for block in blocks}
    for tau, some in itertools.groupby(sorted(changes, key=lambda change: change[0]), key=lambda change: change[0]):
        chosen = chosen | {name: candidate for _, name, candidate in some}
        yield tau, chosen


def _local_choices(blocks: Sequence[Block], tau_rel: float, tau: float) -> dict[str, Candidate]:
    return {block.name: [c for least, c in _changes(block, tau_rel) if least <= tau][-1] for block in blocks}


def _changes(block: Block, tau_rel: float) -> list[tuple[float, Candidate]]:
    """(tau, candidate) for 0 and every tau from which on a block's choice is another one, ascending."""
    base = (1 + tau_rel) * block.identity["nmse"]
    changes, fewest = [(0.0, block.identity)], math.inf
    for candidate in sorted(block.candidates, key=lambda c: (c["nmse"], c["macs"])):
        if candidate["macs"] < fewest:
            fewest = candidate["macs"]
            changes.append((max(0.0, candidate["nmse"] - base), candidate))
    return changes


def select_budget(blocks: Sequence[Block], costs: Costs, budget: Budget, score: str = "local") -> dict[str, Candidate]:
    """Minimise the sum of the blocks' scores, one candidate per block, under the budgets, exactly (integer programme).

    Args:
        score: `local`, `output` or `combined`, as `value_of` takes them.

    Raises:
        ValueError: no choice meets the budgets; the message has the least that can be met. Or the score was not measured.
    """
    blocks = blocks if score == "local" else measured(blocks, score)
    values = [[value_of(block, candidate, costs, score) for candidate in block.candidates] for block in blocks]
    options = [pareto(block.candidates, column) for block, column in zip(blocks, values, strict=True)]
    kept = [[value_of(block, c, costs, score) for c in front] for block, front in zip(blocks, options, strict=True)]
    picked = _Programme(options, blocks, costs, budget).solve(kept)
    if picked is None:
        raise ValueError(infeasible(blocks, costs, budget))
    return {block.name: candidate for block, candidate in zip(blocks, picked, strict=True)}


def select_random(blocks: Sequence[Block], costs: Costs, budget: Budget, seed: int) -> dict[str, Candidate]:
    """A random choice that spends the MACs budget to within 2 %: every candidate gets a random value, the least sum wins.

    Raises:
        ValueError: no choice meets the budgets.
    """
    rng = np.random.default_rng(seed)
    options = [list(block.candidates) for block in blocks]
    values = [rng.random(len(column)).tolist() for column in options]
    picked = _Programme(options, blocks, costs, budget, least_macs=1 - MACS_TOLERANCE).solve(values)
    if picked is None:
        raise ValueError(infeasible(blocks, costs, budget))
    return {block.name: candidate for block, candidate in zip(blocks, picked, strict=True)}


def measured(blocks: Sequence[Block], score: str) -> list[Block]:
    """The blocks with those candidates alone whose `output` was measured; ValueError when a block has none."""
    found = [replace(b, candidates=tuple(c for c in b.candidates if c["output"] is not None)) for b in blocks]
    for block in found:
        if not block.candidates:
            raise ValueError(
                f"params.yaml: assemble.score {score}, but {block.name} was searched without its effect on the image; "
                "set search_block.output_candidates to 2 or more"
            )
    return found


def value_of(block: Block, candidate: Candidate, costs: Costs, score: str) -> float:
    """What a candidate adds to the objective.

    `local` is its `nmse`, `output` its `output`, and `combined` the geometric mean of the two, each by the share of the sampler's
    steps in a stage. The block's own error says what it can still do, that of the image how much it matters. Alone the one spends
    too much where little depends on it, the other where retraining soon makes good an error, in the last block.
    """
    if score == "local":
        return weight_of(block, costs) * float(candidate["nmse"])
    weights = costs.stage_weights if block.stage is None else [costs.stage_weights[block.stage]]
    values = candidate["output"]
    if score == "combined":
        values = [math.sqrt(candidate["nmse"] * value) for value in values]
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def infeasible(blocks: Sequence[Block], costs: Costs, budget: Budget, least: dict[str, float] | None = None) -> str:
    """The message for a budget that cannot be met: every budget with the least that could be, alone.

    Args:
        least: the least ratios that a rule reaches; None for those of the cheapest candidates.
    """
    if least is None:
        cheapest = [totals(blocks, _cheapest(blocks, cost), costs) for cost in ("macs", "params")]
        least = {key: min(total[f"{key}_ratio"] for total in cheapest) for key in BUDGETS}
    asked = {key: getattr(budget, key) for key in BUDGETS}
    parts = [f"assemble.{key} {asked[key]:g} (least that can be met: {round_up(least[key]):.4f})" for key in BUDGETS]
    below = any(asked[key] < least[key] for key in BUDGETS)
    advice = "raise what is below its least" if below else "each can be met, but not all at once; raise one"
    return f"params.yaml: the budget cannot be met: {', '.join(parts)}; {advice}, or widen the space of search_block"


def round_up(value: float, digits: int = 4) -> float:
    """`value` rounded up, so that a budget of the printed number can be met."""
    return float(np.ceil(value * 10**digits) / 10**digits)


def _cheapest(blocks: Sequence[Block], cost: str) -> dict[str, Candidate]:
    return {block.name: min(block.candidates, key=lambda c: c[cost]) for block in blocks}


class _Programme:
    """The integer programme: a 0/1 variable per block and candidate.

    Args:
        least_macs: the share of the MACs budget that must be spent.
    """

    def __init__(
        self,
        options: list[list[Candidate]],
        blocks: Sequence[Block],
        costs: Costs,
        budget: Budget,
        least_macs: float | None = None,
    ) -> None:
        self.options, self.blocks = options, blocks
        weights = [weight_of(block, costs) for block in blocks]
        rows = [(self.row("macs", weights), budget.macs * costs.teacher_macs - costs.fixed_macs)]
        rows.append(
            (self.row("params", [1.0] * len(blocks)), budget.params * costs.teacher_params - costs.fixed_params)
        )
        for stage in range(len(costs.stage_weights)):
            present = [float(block.stage in (None, stage)) for block in blocks]
            rows.append(
                (self.row("params", present), budget.params_active * costs.teacher_params - costs.fixed_params_active)
            )
        if least_macs is not None:
            rows.append((-rows[0][0], costs.fixed_macs - least_macs * budget.macs * costs.teacher_macs))
        self.rows = rows

    def row(self, key: str, weights: Sequence[float]) -> np.ndarray:
        """Coefficients of one linear form over all variables."""
        return np.array([w * c[key] for w, options in zip(weights, self.options, strict=True) for c in options])

    def solve(self, values: Sequence[Sequence[float]]) -> list[Candidate] | None:
        """The choice with the least sum of values, which are given per block and option, or None when there is none."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        sizes = [len(options) for options in self.options]
        one_each = np.zeros((len(sizes), sum(sizes)))
        starts = np.cumsum([0, *sizes])
        for i, (start, stop) in enumerate(itertools.pairwise(starts)):
            one_each[i, start:stop] = 1
        # Rows are scaled to a right-hand side of one, since the solver's tolerances are absolute.
        scaled = [(row / abs(limit), np.sign(limit)) for row, limit in self.rows if limit]
        if len(scaled) < len(self.rows):
            return None
        limits = LinearConstraint(np.array([row for row, _ in scaled]), ub=np.array([limit for _, limit in scaled]))
        choice = milp(
            np.concatenate([np.asarray(column, dtype=float) for column in values]),
            constraints=[LinearConstraint(one_each, 1, 1), limits],
            integrality=np.ones(sum(sizes)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 1e-6},
        )
        if choice.x is None:
            return None
        return [
            options[int(np.argmax(choice.x[start:][: len(options)]))]
            for options, start in zip(self.options, starts, strict=False)
        ]
