"""Choices without a search, which a search has to beat: uniform widths, and the teacher's own blocks."""

import copy
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
    """The same share of every ResNet layer, with the teacher's kernels, nothing dropped.

    It is the share of the inner width, and, where the space has that, of the channels that are read and of those written, the
    most important ones. Widths come in whole GroupNorm groups. What the budget leaves over one width that fits
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


def reads_parts(block: Block) -> bool:
    """Whether the space of a block has layers that read or write a part of the channels."""
    layers = (layer for candidate in block.candidates for layer in candidate["spec"]["layers"] if layer)
    return any({"reads", "writes"} & layer.keys() for layer in layers)


def narrowed(unet: UNet2DModel, job: Block, groups: dict[str, int]) -> dict[str, Any]:
    """The block of a search job with these groups per layer, and its costs."""
    border, _ = border_of_job(unet, job.name)
    block: Module = unet.get_submodule(border.block)
    spec: Spec = identity_spec(block)
    partial, kept = reads_parts(job), [groups[f"{border.block}.resnets.{i}"] for i in range(len(block.resnets))]
    for index, (layer, count) in enumerate(zip(spec["layers"], kept, strict=True)):
        layer["width"] = count * group_size(block.resnets[index])
        if partial:
            order = {key: job.order[key][index] for key in ("reads", "writes")}
            layer |= some(order, count, len(order["writes"]))
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
