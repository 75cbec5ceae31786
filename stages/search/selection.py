"""Selection: one candidate per block, by the local rule of DiffNAS or by an integer programme under budgets."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Candidate = dict[str, Any]
BISECTIONS = 60


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
    """One search job's result: `stage` is None for blocks that all stages share."""

    name: str
    stage: int | None
    identity: Candidate
    candidates: tuple[Candidate, ...]


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates that no other beats in NMSE, MACs and parameters at once, by ascending NMSE."""
    front: list[Candidate] = []
    for one in sorted(candidates, key=lambda c: (c["nmse"], c["macs"], c["params"])):
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

    argmin MACs(a) subject to NMSE(a) <= (1 + tau_rel) NMSE(identity) + tau. With tau `auto` the least tau for all blocks
    that meets the budget is found by bisection.

    Returns:
        (the chosen candidate by block name, tau).

    Raises:
        ValueError: no tau meets the budget; the message has the least that can be met.
    """
    if tau != "auto":
        return _local_choice(blocks, float(tau), tau_rel), float(tau)
    low, high = 0.0, max(c["nmse"] for block in blocks for c in block.candidates)
    if not fits(totals(blocks, _local_choice(blocks, high, tau_rel), costs), budget):
        raise ValueError(infeasible(blocks, costs, budget))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if fits(totals(blocks, _local_choice(blocks, middle, tau_rel), costs), budget):
            high = middle
        else:
            low = middle
    return _local_choice(blocks, high, tau_rel), high


def _local_choice(blocks: Sequence[Block], tau: float, tau_rel: float) -> dict[str, Candidate]:
    chosen = {}
    for block in blocks:
        limit = (1 + tau_rel) * block.identity["nmse"] + tau
        near = [c for c in block.candidates if c["nmse"] <= limit]
        chosen[block.name] = min(near, key=lambda c: (c["macs"], c["nmse"]), default=block.identity)
    return chosen


def select_budget(blocks: Sequence[Block], costs: Costs, budget: Budget) -> dict[str, Candidate]:
    """Minimise the sum of block NMSEs, one candidate per block, under the budgets, exactly (integer programme).

    A decoder block's NMSE counts by the share of the sampler's steps in its stage, as its MACs do.

    Raises:
        ValueError: no choice meets the budgets; the message has the least that can be met.
    """
    programme = _Programme([pareto(block.candidates) for block in blocks], blocks, costs, budget)
    picked = programme.solve([weight_of(block, costs) for block in blocks], "nmse")
    if picked is None:
        raise ValueError(infeasible(blocks, costs, budget))
    return {block.name: candidate for block, candidate in zip(blocks, picked, strict=True)}


def infeasible(blocks: Sequence[Block], costs: Costs, budget: Budget) -> str:
    """The message for a budget that cannot be met: every budget with the least that could be, alone."""
    least = {
        key: min(totals(blocks, _cheapest(blocks, cost), costs)[f"{key}_ratio"] for cost in ("macs", "params"))
        for key in ("macs", "params", "params_active")
    }
    asked = {"macs": budget.macs, "params": budget.params, "params_active": budget.params_active}
    parts = [f"assemble.{key} {asked[key]:g} (least that can be met: {round_up(least[key]):.4f})" for key in asked]
    advice = "raise what is below its least, or widen the space of search_block"
    return f"params.yaml: the budget cannot be met: {', '.join(parts)}; {advice}"


def round_up(value: float, digits: int = 4) -> float:
    """`value` rounded up, so that a budget of the printed number can be met."""
    return float(np.ceil(value * 10**digits) / 10**digits)


def _cheapest(blocks: Sequence[Block], cost: str) -> dict[str, Candidate]:
    return {block.name: min(block.candidates, key=lambda c: c[cost]) for block in blocks}


class _Programme:
    """The integer programme: a 0/1 variable per block and candidate."""

    def __init__(self, options: list[list[Candidate]], blocks: Sequence[Block], costs: Costs, budget: Budget) -> None:
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
        self.rows = rows

    def row(self, key: str, weights: Sequence[float]) -> np.ndarray:
        """Coefficients of one linear form over all variables."""
        return np.array([w * c[key] for w, options in zip(weights, self.options, strict=True) for c in options])

    def solve(self, weights: Sequence[float], key: str) -> list[Candidate] | None:
        """The cheapest choice by `key`, or None when there is none."""
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
            self.row(key, weights),
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
