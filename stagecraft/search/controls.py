"""Choices without a search, which a search has to beat: uniform widths, uniform ranks, and the teacher's own blocks."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

from diffusers import UNet2DModel

from stagecraft.networks.borders import border_of_job, borders_of
from stagecraft.networks.multi_decoder_unet import Module, apply_spec, group_size
from stagecraft.networks.specs import Spec, block_macs, identity_spec, parameter_count
from stagecraft.search.selection import Block, Budget, Candidate, Costs, fits, infeasible, totals


def select_largest(blocks: Sequence[Block]) -> dict[str, Candidate]:
    """The teacher's own shape everywhere, whatever the budget."""
    return {block.name: block.identity for block in blocks}


def select_uniform(unet: UNet2DModel, blocks: Sequence[Block], costs: Costs, budget: Budget) -> dict[str, Candidate]:
    """The same share of every ResNet layer and attention, with the teacher's kernels, nothing dropped.

    It is the share of the inner width, and, where the space has that, of the heads, of the channels that are read and of those
    written, the most important ones. Widths come in whole GroupNorm groups. What the budget leaves over one width that fits
    everywhere goes to the layers one by one, as they run and in all stages alike, past those that it has no room for.

    Raises:
        ValueError: not even one group per layer meets the budget.
    """
    layers = [
        f"{b.block}.resnets.{i}" for b in borders_of(unet) for i in range(len(unet.get_submodule(b.block).resnets))
    ]
    groups, most = dict.fromkeys(layers, 1), {name: whole(unet.get_submodule(name)) for name in layers}
    fitting = within(unet, blocks, costs, budget, groups)
    if fitting is None:
        raise ValueError(infeasible(blocks, costs, budget))
    for count in range(2, max(most.values()) + 1):
        wider = [name for name in layers if count <= most[name]]
        for name in wider:
            chosen = within(unet, blocks, costs, budget, groups | {name: count})
            if chosen is not None:
                fitting, groups = chosen, groups | {name: count}
        if any(groups[name] < count for name in wider):
            break
    return fitting


def select_uniform_rank(
    unet: UNet2DModel, blocks: Sequence[Block], costs: Costs, budget: Budget
) -> dict[str, Candidate]:
    """All convolutions of the ResNet layers of low rank, each of the same share of its largest in the space; nothing dropped.

    Widths and upsamplers are the teacher's. The share is the largest within the budget.

    Raises:
        ValueError: the space has no ranks, or not even ranks of 1 meet the budget.
    """
    most = {block.name: space_ranks(block) for block in blocks}
    largest = max((rank for layers in most.values() for pair in layers for rank in pair), default=0)
    if not largest:
        raise ValueError(
            "params.yaml: assemble.rule uniform_rank, but the blocks were searched without low ranks; give "
            "search_block.ranks shares below 1"
        )
    found, low, high = None, 1, largest
    while low <= high:
        middle = (low + high) // 2
        chosen = {block.name: low_rank(unet, block, most[block.name], middle / largest) for block in blocks}
        if fits(totals(blocks, chosen, costs), budget):
            found, low = chosen, middle + 1
        else:
            high = middle - 1
    if found is None:
        raise ValueError(infeasible(blocks, costs, budget))
    return found


def space_ranks(block: Block) -> list[list[int]]:
    """The largest low rank of both convolutions of each layer among a block's candidates, 0 where there is none."""
    layers = zip(*(candidate["spec"]["layers"] for candidate in block.candidates), strict=True)
    ranks = [[layer.get("ranks", [0, 0]) for layer in options if layer] for options in layers]
    return [[max(rank or 0 for rank in column) for column in zip(*pairs, strict=True)] for pairs in ranks]


def low_rank(unet: UNet2DModel, job: Block, most: list[list[int]], share: float) -> dict[str, Any]:
    """The block of a search job with this share of the largest ranks, at least 1, and its costs."""
    spec: Spec = copy.deepcopy(job.identity["spec"])
    for layer, pair in zip(spec["layers"], most, strict=True):
        layer["ranks"] = [max(1, round(share * rank)) if rank else None for rank in pair]
    return costed(unet, job, spec)


def within(
    unet: UNet2DModel, blocks: Sequence[Block], costs: Costs, budget: Budget, groups: dict[str, int]
) -> dict[str, Candidate] | None:
    """The blocks with these GroupNorm groups per ResNet layer, or None where they exceed the budget."""
    chosen = {block.name: narrowed(unet, block, groups) for block in blocks}
    return chosen if fits(totals(blocks, chosen, costs), budget) else None


def whole(resnet: Module) -> int:
    """GroupNorm groups inside a ResNet layer."""
    groups: int = resnet.norm2.num_groups
    return groups


def drops_heads(block: Block) -> bool:
    """Whether the space of a block has attentions with a part of the heads."""
    attentions = itertools.chain.from_iterable(candidate["spec"]["attentions"] for candidate in block.candidates)
    return any(isinstance(attention, dict) and "heads" in attention for attention in attentions)


def reads_parts(block: Block) -> bool:
    """Whether the space of a block has layers that read or write a part of the channels."""
    layers = (layer for candidate in block.candidates for layer in candidate["spec"]["layers"] if layer)
    return any({"reads", "writes"} & layer.keys() for layer in layers)


def narrowed(unet: UNet2DModel, job: Block, groups: dict[str, int]) -> dict[str, Any]:
    """The block of a search job with these groups per layer, and its costs. An attention is narrowed as the layer before it."""
    border, _ = border_of_job(unet, job.name)
    block: Module = unet.get_submodule(border.block)
    spec: Spec = identity_spec(block)
    partial, kept = reads_parts(job), [groups[f"{border.block}.resnets.{i}"] for i in range(len(block.resnets))]
    for index, (layer, count) in enumerate(zip(spec["layers"], kept, strict=True)):
        layer["width"] = count * group_size(block.resnets[index])
        if partial:
            order = {key: job.order[key][index] for key in ("reads", "writes")}
            layer |= some(order, count, len(order["writes"]))
    for index, present in enumerate(spec["attentions"]):
        order = {"heads": job.order["heads"][index]} if drops_heads(job) else {}
        spec["attentions"][index] = present and (some(order, kept[index], whole(block.resnets[index])) or True)
    return costed(unet, job, spec)


def costed(unet: UNet2DModel, job: Block, spec: Spec) -> dict[str, Any]:
    """What a search job's block of this spec costs."""
    border, _ = border_of_job(unet, job.name)
    skeleton = apply_spec(copy.deepcopy(unet.get_submodule(border.block)).to("meta"), spec)
    resolution = unet.config["sample_size"] >> border.level
    return {"spec": spec, "macs": block_macs(skeleton, resolution), "params": parameter_count(skeleton)}


def some(orders: dict[str, list[int]], count: int, whole: int) -> dict[str, list[int]]:
    """The most important of each order, the share count / whole of them, where that is not all."""
    numbers = {key: max(1, round(count / whole * len(order))) for key, order in orders.items()}
    return {key: sorted(order[: numbers[key]]) for key, order in orders.items() if numbers[key] < len(order)}
