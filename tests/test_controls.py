"""Choices without a search: uniform widths within a budget, and the teacher's own blocks."""

from dataclasses import replace

import pytest
from helpers import tiny_unet

from stagecraft.elastic.block import natural_orders
from stagecraft.elastic.kinds import identity_spec
from stagecraft.networks.costs import count_parameters
from stagecraft.networks.families import sites_of
from stagecraft.networks.jobs import Job
from stagecraft.search.architecture import costs_of
from stagecraft.search.controls import fit_within, narrowed, select_largest, select_uniform
from stagecraft.search.selection import Block, Budget, fits, totals
from stagecraft.training.student import build_student

STEPS = [12, 4, 9]


@pytest.fixture
def blocks(unet):
    found = []
    for site in sites_of(unet):
        spec = identity_spec(unet.get_submodule(site.name))
        identity = {"spec": spec, "macs": 0, "params": count_parameters(unet.get_submodule(site.name)), "nmse": 0.0}
        for interval in range(len(STEPS)) if site.per_range else [None]:
            name = site.name if interval is None else f"{site.name}.interval_{interval}"
            found.append(Block(name, None if interval is None else (interval,), identity, (identity,)))
    return found


@pytest.mark.parametrize("macs", [0.75, 0.6])
def test_uniform_widths_differ_by_one_group_at_most_and_use_the_budget_up(unet, blocks, macs):
    costs, budget = costs_of(unet, STEPS), Budget(macs, 10.0, 10.0)
    chosen = select_uniform(unet, blocks, costs, budget)
    total = totals(blocks, chosen, costs)
    assert fits(total, budget) and total["macs_ratio"] > macs - 0.05
    sizes = {b: unet.get_submodule(b.name).resnets[0].norm2 for b in sites_of(unet)}
    groups = set()
    for site, norm in sizes.items():
        job = site.name if not site.per_range else f"{site.name}.interval_1"
        spec = chosen[job]["spec"]
        assert None not in spec.values() and spec.keys() == identity_spec(unet.get_submodule(site.name)).keys()
        for layer in resnets(spec):
            groups.add(layer["width"] // (norm.num_channels // norm.num_groups))
            assert layer["kernels"] == [3, 3]
    assert max(groups) - min(groups) <= 1
    kept = {f"{b.name}.resnets.{i}": g for b in sizes for i, g in enumerate(groups_of(unet, chosen, b))}
    for name in (name for name, count in kept.items() if count == min(groups) < 4):
        assert fit_within(unet, blocks, costs, budget, kept | {name: kept[name] + 1}) is None


def test_uniform_widths_have_no_time_where_searched_layers_have_one(unet, blocks):
    costs = replace(costs_of(unet, STEPS), teacher_time=1.0, fixed_time=0.1)
    total = totals(blocks, select_uniform(unet, blocks, costs, Budget(0.7)), costs)
    assert total["macs_ratio"] <= 0.7 and "time_ratio" not in total


def groups_of(unet, chosen, site):
    """GroupNorm groups inside the layers of a block."""
    job = site.name if not site.per_range else f"{site.name}.interval_1"
    norm = unet.get_submodule(site.name).resnets[0].norm2
    return [layer["width"] // (norm.num_channels // norm.num_groups) for layer in resnets(chosen[job]["spec"])]


def resnets(spec):
    """The choices of a block's ResNet layers."""
    return [choice for name, choice in spec.items() if name.startswith("resnets")]


def test_all_intervals_get_the_same_uniform_decoder(unet, blocks):
    chosen = select_uniform(unet, blocks, costs_of(unet, STEPS), Budget(0.7, 10.0, 10.0))
    for site in (b for b in sites_of(unet) if b.per_range):
        assert chosen[f"{site.name}.interval_0"]["spec"] == chosen[f"{site.name}.interval_2"]["spec"]


def test_costs_of_narrowed_blocks_are_those_of_the_built_net(unet, blocks):
    groups = {f"{b.name}.resnets.{i}": 1 for b in sites_of(unet) for i in range(2)}
    jobs = {block.name.removesuffix(".interval_0"): block for block in map(with_parts, blocks)}
    specs = {site.name: narrowed(unet, jobs[site.name], groups) for site in sites_of(unet)}
    student = build_student(
        unet,
        {"blocks": {name: [{"range": [0], "spec": made["spec"]}] for name, made in specs.items()}},
        [],
        0,
    )
    assert sum(s["params"] for s in specs.values()) == sum(
        count_parameters(block) for block in [*student.down_blocks, student.mid_block, *student.decoders[0].blocks]
    )


def with_parts(block):
    """A block whose space has layers that read and write parts of the channels, the last groups being the most important."""
    spec = block.identity["spec"]
    some = {name: layer | {"reads": [0]} for name, layer in spec.items() if name.startswith("resnets")}
    part = block.identity | {"spec": spec | some}
    unet = tiny_unet()
    whole = unet.get_submodule(Job.parse(block.name).site)
    order = {
        name: {key: groups[::-1] for key, groups in parts.items()} for name, parts in natural_orders(whole).items()
    }
    return replace(block, candidates=(*block.candidates, part), order=order)


def test_uniform_layers_read_and_write_as_much_as_they_hold_where_the_space_has_that(unet, blocks):
    costs, budget = costs_of(unet, STEPS), Budget(0.5, 10.0, 10.0)
    chosen = select_uniform(unet, [*map(with_parts, blocks)], costs, budget)
    assert totals(blocks, chosen, costs)["macs_ratio"] > 0.45
    for site in sites_of(unet):
        job = site.name if not site.per_range else f"{site.name}.interval_1"
        for layer, resnet in zip(resnets(chosen[job]["spec"]), unet.get_submodule(site.name).resnets, strict=True):
            count = layer["width"] * 4 // resnet.conv1.out_channels
            whole = {"reads": [0, 1, 2, 3], "writes": [0, 1, 2, 3]}
            assert {key: layer.get(key, whole[key]) for key in whole} == dict.fromkeys(whole, [0, 1, 2, 3][4 - count :])
    assert min(layer["width"] // 8 for layer in resnets(chosen["up_blocks.0.interval_1"]["spec"])) < 4


def test_a_budget_below_one_group_everywhere_is_refused(unet, blocks):
    with pytest.raises(ValueError, match=r"assemble\.macs 0\.01"):
        select_uniform(unet, blocks, costs_of(unet, STEPS), Budget(0.01, 10.0, 10.0))


def test_the_largest_is_the_teacher(blocks):
    assert all(select_largest(blocks)[block.name] is block.identity for block in blocks)
