"""Selection of one candidate per block: exact under budgets, and honest when a budget is infeasible."""

import itertools
import re
import time
from dataclasses import replace

import numpy as np
import pytest

from stagecraft.search.selection import (
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
    fixed_params=12,
    interval_weights=(0.2, 0.5, 0.3),
)


def random_blocks(seed, candidates=5):
    rng = np.random.default_rng(seed)
    names = [("down", None), ("mid", None), ("up.interval_0", (0,)), ("up.interval_1", (1,)), ("up.interval_2", (2,))]
    blocks = []
    for name, interval in names:
        size = np.sort(rng.uniform(0.1, 1, candidates))[::-1]
        found = [
            {"spec": i, "nmse": float((1 - s) ** 2 + 0.01 * rng.random()), "macs": int(300 * s), "params": int(120 * s)}
            for i, s in enumerate([1.0, *size[1:]])
        ]
        blocks.append(Block(name, interval, found[0], tuple(found)))
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


def test_totals_weight_macs_by_steps_and_count_the_largest_interval():
    blocks = random_blocks(0)
    chosen = {block.name: block.candidates[0] for block in blocks}
    total = totals(blocks, chosen, COSTS)
    assert total["macs"] == pytest.approx(50 + 300 * 2 + 300)
    assert total["params"] == 12 + 5 * 120
    assert total["params_active"] == 12 + 3 * 120
    assert total["macs_ratio"] == pytest.approx(0.95)


@pytest.mark.parametrize("rule", ["budget", "local"])
def test_an_infeasible_budget_names_the_smallest_feasible_one(rule):
    blocks = random_blocks(1)

    def select(budget):
        return (
            select_budget(blocks, COSTS, budget)
            if rule == "budget"
            else select_local(blocks, COSTS, budget, "auto", 0.0)
        )

    with pytest.raises(ValueError, match=r"assemble.macs 0.01 \(smallest feasible: ") as error:
        select(Budget(0.01, 9, 9))
    smallest = float(re.search(r"smallest feasible: ([\d.]+)", str(error.value)).group(1))
    select(Budget(smallest, 9, 9))
    with pytest.raises(ValueError, match="is infeasible"):
        select(Budget(smallest - 0.002, 9, 9))


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
def test_auto_tau_is_the_smallest_that_meets_the_budget(seed):
    blocks, budget = random_blocks(seed, 20), Budget(0.5, 9, 9)
    chosen, tau = select_local(blocks, COSTS, budget, "auto", 0.0)
    assert fits(totals(blocks, chosen, COSTS), budget)
    less, _ = select_local(blocks, COSTS, budget, tau * 0.999, 0.0)
    assert not fits(totals(blocks, less, COSTS), budget)


def awkward_blocks(seed):
    """Blocks whose costs have nothing to do with each other or with the error, with values and errors that occur twice."""
    rng = np.random.default_rng(seed)
    blocks = []
    for name, interval in [("down", None), ("mid", None), ("up.interval_0", (0,)), ("up.interval_2", (2,))]:
        found = [
            {"spec": i, "nmse": float(n), "macs": int(m), "params": int(p)}
            for i, (n, m, p) in enumerate(
                zip(rng.integers(1, 30, 12) / 97, rng.integers(1, 20, 12), rng.integers(1, 120, 12), strict=True)
            )
        ]
        identity = {"spec": "identity", "nmse": float(rng.integers(1, 15) / 97), "macs": 300, "params": 120}
        blocks.append(Block(name, interval, identity, (*found, *[identity][: seed % 2])))
    return blocks


def local_by_definition(blocks, tau, tau_rel):
    """argmin MACs, then NMSE, subject to NMSE(a) <= (1 + tau_rel) NMSE(identity) + tau; the identity where there is none."""
    near = {b.name: [c for c in b.candidates if c["nmse"] - (1 + tau_rel) * b.identity["nmse"] <= tau] for b in blocks}
    return {b.name: min(near[b.name], key=lambda c: (c["macs"], c["nmse"]), default=b.identity) for b in blocks}


@pytest.mark.parametrize("tau_rel", [0.0, 0.3])
@pytest.mark.parametrize("limit", [0.45, 0.55, 0.65, 0.8])
@pytest.mark.parametrize("key", ["params", "params_active"])
def test_auto_tau_is_the_smallest_where_parameters_go_up_and_down(key, limit, tau_rel):
    budget, dips, refused = replace(Budget(9, 9, 9), **{key: limit}), 0, 0
    for seed in range(30):
        blocks = awkward_blocks(seed)
        bases = {b.name: (1 + tau_rel) * b.identity["nmse"] for b in blocks}
        taus = sorted({0.0} | {max(0.0, c["nmse"] - bases[b.name]) for b in blocks for c in b.candidates})
        right = [fits(totals(blocks, local_by_definition(blocks, tau, tau_rel), COSTS), budget) for tau in taus]
        dips += right != sorted(right)
        if not any(right):
            refused += 1
            with pytest.raises(ValueError, match=rf"assemble\.{key} {limit} \(smallest feasible: "):
                select_local(blocks, COSTS, budget, "auto", tau_rel)
            continue
        chosen, tau = select_local(blocks, COSTS, budget, "auto", tau_rel)
        assert tau == taus[right.index(True)]
        assert (
            chosen == local_by_definition(blocks, tau, tau_rel) == select_local(blocks, COSTS, budget, tau, tau_rel)[0]
        )
        assert fits(totals(blocks, chosen, COSTS), budget)
    assert dips and refused < 30


@pytest.mark.parametrize("budget", [Budget(9, 0.3, 9), Budget(9, 9, 0.2), Budget(0.1, 9, 9)])
def test_the_local_rule_meets_the_smallest_budget_that_it_names(budget):
    for seed in range(20):
        blocks = awkward_blocks(seed)
        try:
            select_local(blocks, COSTS, budget, "auto", 0.0)
        except ValueError as error:
            said = re.findall(r"assemble\.(\w+) \S+ \(smallest feasible: ([\d.]+)\)", str(error))
            key, smallest = next(
                (key, float(smallest)) for key, smallest in said if float(smallest) > getattr(budget, key)
            )
            select_local(blocks, COSTS, replace(budget, **{key: smallest}), "auto", 0.0)
            with pytest.raises(ValueError, match="raise what is below its smallest"):
                select_local(blocks, COSTS, replace(budget, **{key: smallest - 2e-4}), "auto", 0.0)


def test_budgets_that_can_be_met_but_not_together_are_said_to_be_so():
    found = [{"spec": i, "nmse": n, "macs": m, "params": p} for i, (n, m, p) in enumerate([(0.1, 9, 1), (0.2, 1, 9)])]
    blocks, costs = [Block("mid", None, found[0], tuple(found))], Costs(10, 10, 0, 0, (1.0,))
    for select in (
        lambda budget: select_local(blocks, costs, budget, "auto", 0.0)[0],
        lambda budget: select_budget(blocks, costs, budget),
    ):
        with pytest.raises(ValueError, match="each is feasible, but not all at once; raise one"):
            select(Budget(0.2, 0.2, 1))
        assert select(Budget(0.2, 0.9, 1))["mid"]["spec"] == 1 and select(Budget(0.9, 0.2, 1))["mid"]["spec"] == 0


def test_thousands_of_candidates_take_no_time():
    rng, blocks = np.random.default_rng(0), []
    for number in range(24):
        nmse, size = np.sort(rng.random(400)), 10**6 - 2 * np.arange(400)
        found = [
            {"spec": i, "nmse": float(n), "macs": int(m), "params": int(m)}
            for i, (n, m) in enumerate(zip(nmse, size, strict=True))
        ]
        blocks.append(Block(f"up.{number // 3}.interval_{number % 3}", (number % 3,), found[0], tuple(found)))
    began = time.perf_counter()
    with pytest.raises(ValueError, match="is infeasible"):
        select_local(blocks, COSTS, Budget(0.01, 9, 9), "auto", 0.0)
    assert time.perf_counter() - began < 5


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
        intervals = len(COSTS.interval_weights) if block.intervals is None else 1
        outputs = [rng.random(intervals).tolist() for _ in block.candidates[:-1]] + [None]
        candidates = [c | {"output": o} for c, o in zip(block.candidates, outputs, strict=True)]
        found.append(Block(block.name, block.intervals, candidates[0], tuple(candidates)))
    return found


@pytest.mark.parametrize("measure", ["output", "combined"])
@pytest.mark.parametrize("seed", range(4))
def test_the_effect_on_the_image_is_minimised_over_the_measured_candidates(seed, measure):
    blocks, budget = with_outputs(random_blocks(seed), seed), Budget(0.7, 1.0, 0.9)
    chosen = select_budget(blocks, COSTS, budget, measure)

    def score(choice):
        total = 0.0
        for block in blocks:
            weights = (
                COSTS.interval_weights
                if block.intervals is None
                else [COSTS.interval_weights[s] for s in block.intervals]
            )
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


TIMED = replace(COSTS, teacher_time=10.0, fixed_time=0.5)


def test_a_random_choice_that_cannot_spend_the_budget_says_so():
    with pytest.raises(ValueError, match=r"assemble\.rule random: no choice spends 98% of .*3.*; lower the budget"):
        select_random(random_blocks(0), COSTS, Budget(macs=3.0), 0)


def with_times(blocks, seed):
    """The blocks with times that follow MACs loosely."""
    rng = np.random.default_rng(seed)

    def timed(candidate):
        return candidate | {"time": candidate["macs"] / 100 * float(rng.uniform(0.5, 1.5))}

    found = [[timed(candidate) for candidate in block.candidates] for block in blocks]
    return [replace(b, identity=c[0], candidates=tuple(c)) for b, c in zip(blocks, found, strict=True)]


def every_choice(blocks):
    """All combinations of candidates."""
    names = [block.name for block in blocks]
    for combination in itertools.product(*(block.candidates for block in blocks)):
        yield dict(zip(names, combination, strict=True))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "budget", [Budget(time=0.5), Budget(macs=0.6, time=0.55), Budget(params=0.9, time=0.6), Budget()]
)
def test_a_budget_of_time_is_kept_exactly_alone_and_beside_others(seed, budget):
    blocks = with_times(random_blocks(seed), seed)

    def score(choice):
        return sum(weight_of(block, TIMED) * choice[block.name]["nmse"] for block in blocks)

    chosen = select_budget(blocks, TIMED, budget)
    assert fits(totals(blocks, chosen, TIMED), budget)
    best = min(score(choice) for choice in every_choice(blocks) if fits(totals(blocks, choice, TIMED), budget))
    assert score(chosen) == pytest.approx(best, rel=1e-5)


def test_the_fastest_is_kept_on_the_front_though_others_have_fewer_macs():
    fast = {"nmse": 0.2, "macs": 90, "params": 90, "time": 1.0}
    lean = {"nmse": 0.2, "macs": 10, "params": 10, "time": 5.0}
    assert pareto([fast, lean, fast | {"nmse": 0.3}]) == [lean, fast]


def test_an_infeasible_time_is_named_with_the_smallest_feasible_one():
    blocks = with_times(random_blocks(0), 0)
    smallest = min(totals(blocks, choice, TIMED)["time_ratio"] for choice in every_choice(blocks))
    with pytest.raises(ValueError, match=r"assemble\.time 0\.01 \(smallest feasible: ([\d.]+)\)") as error:
        select_budget(blocks, TIMED, Budget(time=0.01))
    said = float(re.search(r"feasible: ([\d.]+)", str(error.value))[1])
    assert smallest <= said <= smallest + 1e-4 and "macs" not in str(error.value)


def test_random_spends_the_time_where_that_is_the_only_budget():
    blocks = with_times(random_blocks(1, candidates=40), 1)
    found = totals(blocks, select_random(blocks, TIMED, Budget(time=0.5), 0), TIMED)
    assert 0.49 <= found["time_ratio"] <= 0.5


RANGES = [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)]


def shared_blocks(seed, candidates=3):
    """Blocks of which the one in the decoder was searched for every range of three intervals."""
    rng = np.random.default_rng(seed)
    names = [("mid", None), *((f"up.interval_{r[0]}-{r[-1]}", r) for r in RANGES)]
    blocks = []
    for name, intervals in names:
        found = []
        for spec in range(candidates):
            size = float(rng.uniform(0.2, 1))
            cost = {"macs": int(300 * size), "params": int(120 * size), "time": 3 * size}
            found.append({"spec": spec, "nmse": float((1 - size) ** 2 + 0.02 * rng.random())} | cost)
        blocks.append(Block(name, intervals, found[0], tuple(found)))
    return blocks


def every_tiled_choice(blocks):
    """Every choice of ranges that tile the intervals, and of candidates."""
    mid, up = blocks[0], blocks[1:]
    for cut in itertools.product([False, True], repeat=2):
        tiles = [[0]]
        for interval, own in enumerate(cut, 1):
            tiles = [*tiles, [interval]] if own else [*tiles[:-1], [*tiles[-1], interval]]
        chosen = [mid, *(block for block in up if list(block.intervals) in tiles)]
        yield from every_choice(chosen)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "budget",
    [Budget(0.5), Budget(0.5, 0.6), Budget(params=0.5, params_active=0.4), Budget(time=0.4, params=0.7), Budget()],
)
def test_ranges_that_share_a_block_tile_the_intervals_at_the_smallest_error(seed, budget):
    blocks, known = shared_blocks(seed), {block.name: block for block in shared_blocks(seed)}

    def score(choice):
        return sum(weight_of(known[name], TIMED) * candidate["nmse"] for name, candidate in choice.items())

    fitting = [c for c in every_tiled_choice(blocks) if fits(totals(blocks, c, TIMED), budget)]
    if not fitting:
        with pytest.raises(ValueError, match="the budget is infeasible"):
            select_budget(blocks, TIMED, budget)
        return
    chosen = select_budget(blocks, TIMED, budget)
    assert fits(totals(blocks, chosen, TIMED), budget)
    assert sorted(s for name in chosen for s in known[name].intervals or ()) == [0, 1, 2]
    assert score(chosen) == pytest.approx(min(map(score, fitting)), rel=1e-5)


def test_a_shared_block_counts_its_parameters_once_and_its_macs_by_its_steps():
    blocks = shared_blocks(0)
    shared, own = ({"mid": blocks[0].identity} for _ in range(2))
    shared |= {"up.interval_0-2": blocks[6].identity}
    own |= {b.name: b.identity | {"params": 50, "macs": 100} for b in blocks[1:4]}
    found = totals(blocks, shared, TIMED)
    assert found["params"] == TIMED.fixed_params + blocks[0].identity["params"] + blocks[6].identity["params"]
    assert found["macs"] == TIMED.fixed_macs + blocks[0].identity["macs"] + blocks[6].identity["macs"]
    found = totals(blocks, own, TIMED)
    assert found["params"] == TIMED.fixed_params + blocks[0].identity["params"] + 150
    assert found["macs"] == pytest.approx(TIMED.fixed_macs + blocks[0].identity["macs"] + 100)


def test_random_choices_take_every_way_to_share():
    blocks = shared_blocks(1, candidates=30)
    ways = {tuple(sorted(select_random(blocks, TIMED, Budget(0.6), seed))) for seed in range(40)}
    assert len(ways) == 4
