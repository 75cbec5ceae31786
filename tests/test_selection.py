"""Selection of one candidate per block: exact under budgets, and honest when a budget cannot be met."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from stages.search.selection import (
    Block,
    Budget,
    Costs,
    fits,
    pareto,
    select_budget,
    select_local,
    select_random,
    totals,
    weight_of,
)

COSTS = Costs(
    teacher_macs=1000,
    teacher_params=400,
    fixed_macs=50,
    fixed_params=20,
    fixed_params_active=12,
    stage_weights=(0.2, 0.5, 0.3),
)


def random_blocks(seed, candidates=5):
    rng = np.random.default_rng(seed)
    names = [("down", None), ("mid", None), ("up.stage_0", 0), ("up.stage_1", 1), ("up.stage_2", 2)]
    blocks = []
    for name, stage in names:
        size = np.sort(rng.uniform(0.1, 1, candidates))[::-1]
        found = [
            {"spec": i, "nmse": float((1 - s) ** 2 + 0.01 * rng.random()), "macs": int(300 * s), "params": int(120 * s)}
            for i, s in enumerate([1.0, *size[1:]])
        ]
        blocks.append(Block(name, stage, found[0], tuple(found)))
    return blocks


@pytest.mark.parametrize("seed", range(8))
def test_the_integer_programme_finds_the_best_choice_there_is(seed):
    blocks, budget = random_blocks(seed), Budget(0.5, 1.0, 0.6)
    chosen = select_budget(blocks, COSTS, budget)
    assert fits(totals(blocks, chosen, COSTS), budget)

    def score(choice):
        return sum(weight_of(block, COSTS) * choice[block.name]["nmse"] for block in blocks)

    everything = (
        dict(zip([b.name for b in blocks], combination, strict=True))
        for combination in itertools.product(*(b.candidates for b in blocks))
    )
    best = min(score(choice) for choice in everything if fits(totals(blocks, choice, COSTS), budget))
    assert score(chosen) == pytest.approx(best, rel=1e-6)


def test_totals_weight_macs_by_steps_and_count_the_largest_stage():
    blocks = random_blocks(0)
    chosen = {block.name: block.candidates[0] for block in blocks}
    total = totals(blocks, chosen, COSTS)
    assert total["macs"] == pytest.approx(50 + 300 * 2 + 300)
    assert total["params"] == 20 + 5 * 120
    assert total["params_active"] == 12 + 3 * 120
    assert total["macs_ratio"] == pytest.approx(0.95)


@pytest.mark.parametrize("rule", ["budget", "local"])
def test_a_budget_that_cannot_be_met_names_the_least_that_can(rule):
    blocks = random_blocks(1)

    def select(budget):
        return (
            select_budget(blocks, COSTS, budget)
            if rule == "budget"
            else select_local(blocks, COSTS, budget, "auto", 0.0)
        )

    with pytest.raises(ValueError, match=r"assemble.macs 0.01 \(least that can be met: ") as error:
        select(Budget(0.01, 9, 9))
    least = float(re.search(r"least that can be met: ([\d.]+)", str(error.value)).group(1))
    select(Budget(least, 9, 9))
    with pytest.raises(ValueError, match="cannot be met"):
        select(Budget(least - 0.002, 9, 9))


def test_local_rule_takes_the_fewest_macs_within_the_tolerance():
    candidates = [
        {"spec": i, "nmse": n, "macs": m, "params": m} for i, (n, m) in enumerate([(0.1, 9), (0.15, 5), (0.3, 2)])
    ]
    block = [Block("down", None, candidates[0], tuple(candidates))]
    anything = Budget(9, 9, 9)
    assert select_local(block, COSTS, anything, 0.0, 0.0)[0]["down"]["macs"] == 9
    assert select_local(block, COSTS, anything, 0.05, 0.0)[0]["down"]["macs"] == 5
    assert select_local(block, COSTS, anything, 0.0, 0.6)[0]["down"]["macs"] == 5
    assert select_local(block, COSTS, anything, 1.0, 0.0)[0]["down"]["macs"] == 2


@pytest.mark.parametrize("seed", range(4))
def test_auto_tau_is_the_least_that_meets_the_budget(seed):
    blocks, budget = random_blocks(seed, 20), Budget(0.5, 9, 9)
    chosen, tau = select_local(blocks, COSTS, budget, "auto", 0.0)
    assert fits(totals(blocks, chosen, COSTS), budget)
    less, _ = select_local(blocks, COSTS, budget, tau * 0.999, 0.0)
    assert not fits(totals(blocks, less, COSTS), budget)


def test_the_pareto_front_drops_only_what_another_beats():
    cs = [
        {"nmse": n, "macs": m, "params": p}
        for n, m, p in [(0.1, 9, 9), (0.2, 9, 9), (0.2, 5, 9), (0.3, 9, 4), (0.4, 6, 9)]
    ]
    assert pareto(cs) == [cs[0], cs[2], cs[3]]


def with_outputs(blocks, seed):
    """The blocks with an `output` for every candidate but the last."""
    rng = np.random.default_rng(seed)
    found = []
    for block in blocks:
        stages = len(COSTS.stage_weights) if block.stage is None else 1
        outputs = [rng.random(stages).tolist() for _ in block.candidates[:-1]] + [None]
        candidates = [c | {"output": o} for c, o in zip(block.candidates, outputs, strict=True)]
        found.append(Block(block.name, block.stage, candidates[0], tuple(candidates)))
    return found


@pytest.mark.parametrize("measure", ["output", "combined"])
@pytest.mark.parametrize("seed", range(4))
def test_the_effect_on_the_image_is_minimised_over_the_measured_candidates(seed, measure):
    blocks, budget = with_outputs(random_blocks(seed), seed), Budget(0.7, 1.0, 0.9)
    chosen = select_budget(blocks, COSTS, budget, measure)

    def score(choice):
        total = 0.0
        for block in blocks:
            weights = COSTS.stage_weights if block.stage is None else [COSTS.stage_weights[block.stage]]
            power = 1 if measure == "output" else 0.5
            own = 1 if measure == "output" else choice[block.name]["nmse"] ** 0.5
            total += own * sum(w * o**power for w, o in zip(weights, choice[block.name]["output"], strict=True))
        return total

    options = [[c for c in block.candidates if c["output"] is not None] for block in blocks]
    names = [block.name for block in blocks]
    every = (dict(zip(names, picked, strict=True)) for picked in itertools.product(*options))
    best = min(score(choice) for choice in every if fits(totals(blocks, choice, COSTS), budget))
    assert score(chosen) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("score", ["output", "combined"])
def test_a_score_that_was_not_measured_is_named(score):
    blocks = [replace(b, candidates=tuple(c | {"output": None} for c in b.candidates)) for b in random_blocks(0)]
    with pytest.raises(ValueError, match=rf"assemble\.score {score}, but down was searched without its effect"):
        select_budget(blocks, COSTS, Budget(0.7, 1.0, 0.9), score)


def test_random_choices_spend_the_budget_and_differ_by_seed():
    blocks, budget = random_blocks(2, candidates=40), Budget(0.5, 1.0, 0.6)
    ratios, choices = [], set()
    for seed in range(6):
        chosen = select_random(blocks, COSTS, budget, seed)
        total = totals(blocks, chosen, COSTS)
        assert fits(total, budget)
        ratios.append(total["macs_ratio"])
        choices.add(tuple(chosen[block.name]["spec"] for block in blocks))
    assert min(ratios) >= 0.49 and len(choices) == 6
    again = select_random(blocks, COSTS, budget, 5)
    assert tuple(again[block.name]["spec"] for block in blocks) in choices
