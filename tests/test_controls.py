"""Choices without a search: uniform widths within a budget, and the teacher's own blocks."""

from dataclasses import replace

import pytest
from helpers import tiny_unet

from stagecraft.elastic.block import natural_order
from stagecraft.networks.borders import border_of_job, borders_of
from stagecraft.networks.specs import identity_spec, parameter_count
from stagecraft.search.architecture import costs_of
from stagecraft.search.controls import narrowed, select_largest, select_uniform, within
from stagecraft.search.selection import Block, Budget, fits, totals
from stagecraft.training.student import build_student

STEPS = [12, 4, 9]


@pytest.fixture
def blocks(unet):
    found = []
    for border in borders_of(unet):
        spec = identity_spec(unet.get_submodule(border.block))
        identity = {"spec": spec, "macs": 0, "params": parameter_count(unet.get_submodule(border.block)), "nmse": 0.0}
        for stage in range(len(STEPS)) if border.kind == "up" else [None]:
            name = border.block if stage is None else f"{border.block}.stage_{stage}"
            found.append(Block(name, None if stage is None else (stage,), identity, (identity,)))
    return found


@pytest.mark.parametrize("macs", [0.75, 0.6])
def test_uniform_widths_differ_by_one_group_at_most_and_use_the_budget_up(unet, blocks, macs):
    costs, budget = costs_of(unet, STEPS), Budget(macs, 10.0, 10.0)
    chosen = select_uniform(unet, blocks, costs, budget)
    total = totals(blocks, chosen, costs)
    assert fits(total, budget) and total["macs_ratio"] > macs - 0.05
    sizes = {b: unet.get_submodule(b.block).resnets[0].norm2 for b in borders_of(unet)}
    groups = set()
    for border, norm in sizes.items():
        job = border.block if border.kind != "up" else f"{border.block}.stage_1"
        spec = chosen[job]["spec"]
        assert spec["attentions"] == identity_spec(unet.get_submodule(border.block))["attentions"]
        for layer in spec["layers"]:
            groups.add(layer["width"] // (norm.num_channels // norm.num_groups))
            assert layer["kernels"] == [3, 3]
    assert max(groups) - min(groups) <= 1
    kept = {f"{b.block}.resnets.{i}": g for b in sizes for i, g in enumerate(groups_of(unet, chosen, b))}
    for name in (name for name, count in kept.items() if count == min(groups) < 4):
        assert within(unet, blocks, costs, budget, kept | {name: kept[name] + 1}) is None


def groups_of(unet, chosen, border):
    """GroupNorm groups inside the layers of a block."""
    job = border.block if border.kind != "up" else f"{border.block}.stage_1"
    norm = unet.get_submodule(border.block).resnets[0].norm2
    return [layer["width"] // (norm.num_channels // norm.num_groups) for layer in chosen[job]["spec"]["layers"]]


def test_all_stages_get_the_same_uniform_decoder(unet, blocks):
    chosen = select_uniform(unet, blocks, costs_of(unet, STEPS), Budget(0.7, 10.0, 10.0))
    for border in (b for b in borders_of(unet) if b.kind == "up"):
        assert chosen[f"{border.block}.stage_0"]["spec"] == chosen[f"{border.block}.stage_2"]["spec"]


def test_costs_of_narrowed_blocks_are_those_of_the_built_net(unet, blocks):
    groups = {f"{b.block}.resnets.{i}": 1 for b in borders_of(unet) for i in range(2)}
    jobs = {block.name.removesuffix(".stage_0"): block for block in map(with_parts, blocks)}
    specs = {border.block: narrowed(unet, jobs[border.block], groups) for border in borders_of(unet)}
    student = build_student(
        unet,
        {
            "down_blocks": [specs[f"down_blocks.{i}"]["spec"] for i in range(2)],
            "mid_block": specs["mid_block"]["spec"],
            "decoders": [[specs[f"up_blocks.{i}"]["spec"] for i in range(2)]],
        },
        [],
        0,
    )
    assert sum(s["params"] for s in specs.values()) == sum(
        parameter_count(block) for block in [*student.down_blocks, student.mid_block, *student.decoders[0].blocks]
    )


def with_parts(block):
    """A block whose space has layers that read and write parts of the channels, the last groups being the most important."""
    spec = block.identity["spec"]
    part = block.identity | {"spec": spec | {"layers": [layer | {"reads": [0]} for layer in spec["layers"]]}}
    unet = tiny_unet()
    whole = unet.get_submodule(border_of_job(unet, block.name)[0].block)
    order = {key: [groups[::-1] for groups in some] for key, some in natural_order(whole).items()}
    return replace(block, candidates=(*block.candidates, part), order=order)


def test_uniform_layers_read_and_write_as_much_as_they_hold_where_the_space_has_that(unet, blocks):
    costs, budget = costs_of(unet, STEPS), Budget(0.5, 10.0, 10.0)
    chosen = select_uniform(unet, [*map(with_parts, blocks)], costs, budget)
    assert totals(blocks, chosen, costs)["macs_ratio"] > 0.45
    for border in borders_of(unet):
        job = border.block if border.kind != "up" else f"{border.block}.stage_1"
        for layer, resnet in zip(chosen[job]["spec"]["layers"], unet.get_submodule(border.block).resnets, strict=True):
            count = layer["width"] * 4 // resnet.conv1.out_channels
            whole = {"reads": [0, 1, 2, 3], "writes": [0, 1, 2, 3]}
            assert {key: layer.get(key, whole[key]) for key in whole} == dict.fromkeys(whole, [0, 1, 2, 3][4 - count :])
    assert min(layer["width"] // 8 for layer in chosen["up_blocks.0.stage_1"]["spec"]["layers"]) < 4


def test_a_budget_below_one_group_everywhere_is_refused(unet, blocks):
    with pytest.raises(ValueError, match=r"assemble\.macs 0\.01"):
        select_uniform(unet, blocks, costs_of(unet, STEPS), Budget(0.01, 10.0, 10.0))


def test_the_largest_is_the_teacher(blocks):
    assert all(select_largest(blocks)[block.name] is block.identity for block in blocks)
