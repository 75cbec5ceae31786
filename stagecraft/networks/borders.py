"""What passes between the blocks of a UNet: names, capture, and running one block on it.

The tensors at the borders, each named once: `emb` (N, D); `skip.0` (conv_in's output), `skip.1`, ... (every state that a down
block emits, the last of a block being its output); `mid`; `up.0`, `up.1`, ... (each up block's output), all N,C,H,W.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel

from stagecraft.data.condition import UNCONDITIONAL, Condition
from stagecraft.diffusion.losses import predict
from stagecraft.networks.multi_decoder_unet import Module
from stagecraft.networks.ranges import range_of_name


@dataclass(frozen=True)
class Border:
    """The tensors around one block, by name.

    `block` is the module's name in UNet2DModel, `kind` one of down, mid, up; `level` halves the resolution that many times.
    """

    block: str
    kind: str
    level: int
    hidden: str
    skips: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """All tensors that the block reads, the time embedding first."""
        return ("emb", self.hidden, *self.skips)


def borders_of(unet: Module) -> list[Border]:
    """The borders of all blocks of a UNet2DModel, in the order in which they run."""
    borders, emitted = [], ["skip.0"]
    for i, block in enumerate(unet.down_blocks):
        count = len(block.resnets) + (block.downsamplers is not None)
        states = [f"skip.{len(emitted) + j}" for j in range(count)]
        borders.append(Border(f"down_blocks.{i}", "down", i, emitted[-1], (), tuple(states)))
        emitted += states
    last, deepest = emitted[-1], len(unet.down_blocks) - 1
    if unet.mid_block is not None:
        borders.append(Border("mid_block", "mid", deepest, last, (), ("mid",)))
        last = "mid"
    for i, block in enumerate(unet.up_blocks):
        count = len(block.resnets)
        borders.append(Border(f"up_blocks.{i}", "up", deepest - i, last, tuple(emitted[-count:]), (f"up.{i}",)))
        emitted, last = emitted[:-count], f"up.{i}"
    return borders


def run_block(kind: str, block: Module, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Run a block on its `Border.inputs`; returns its `Border.outputs`."""
    emb, hidden, *skips = tensors
    if kind == "down":
        return block(hidden, emb)[1]
    return (block(hidden, emb) if kind == "mid" else block(hidden, tuple(skips), emb),)


def tail_inputs(unet: Module, border: Border) -> tuple[str, ...]:
    """The border tensors that `run_tail` needs beside the block's own outputs."""
    known, needed = set(border.outputs), []
    for later in after(unet, border):
        needed += [name for name in later.inputs if name not in known]
        known |= {*later.inputs, *later.outputs}
    return tuple(needed)


def run_tail(
    unet: Module, border: Border, outputs: Sequence[torch.Tensor], seen: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The prediction (N,C,H,W) of a UNet whose block at `border` gave these outputs; `seen` holds its `tail_inputs`."""
    seen = seen | dict(zip(border.outputs, outputs, strict=True))
    hidden = outputs[-1]
    for later in after(unet, border):
        found = run_block(later.kind, unet.get_submodule(later.block), [seen[name] for name in later.inputs])
        seen.update(zip(later.outputs, found, strict=True))
        hidden = found[-1]
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


def after(unet: Module, border: Border) -> list[Border]:
    """The borders of the blocks that run after one."""
    borders = borders_of(unet)
    return borders[borders.index(border) + 1 :]


def trace(
    unet: UNet2DModel, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = UNCONDITIONAL
) -> dict[str, torch.Tensor]:
    """All border tensors of one forward pass, and the prediction as `output`; x_t is N,C,H,W, t is (N,)."""
    seen: dict[str, torch.Tensor] = {}

    def keep(border: Border) -> Callable[..., None]:
        def hook(module: Module, args: tuple, kwargs: dict, output: Any) -> None:
            states = output[1] if border.kind == "down" else (output,)
            # Attention leaves channels-last strides; torch 2.12's CPU GroupNorm crashes in the backward pass on such an input
            # when the input itself needs no gradient, as a block's input here. At 1 x 1 pixels contiguous() would keep them.
            seen.update(zip(border.outputs, (state.flatten().view(state.shape) for state in states), strict=True))
            if border.kind == "down":
                seen["emb"] = kwargs["temb"]

        return hook

    handles = [
        unet.get_submodule(border.block).register_forward_hook(keep(border), with_kwargs=True)
        for border in borders_of(unet)
    ]
    handles.append(unet.conv_in.register_forward_hook(lambda module, args, output: seen.update({"skip.0": output})))
    try:
        seen["output"] = predict(unet, x_t, t, condition)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def border_of_job(unet: Module, name: str) -> tuple[Border, list[int] | None]:
    """The border and the stages of a search job: `down_blocks.0`, `mid_block`, `up_blocks.0.stage_2`, `up_blocks.0.stage_0-1`.

    Raises:
        ValueError: the teacher has no such block.
    """
    block, _, stages = name.partition(".stage_")
    for border in borders_of(unet):
        if border.block == block and (border.kind == "up") == bool(stages):
            return border, range_of_name(stages) if stages else None
    raise ValueError(f"block '{name}': the teacher has {', '.join(border.block for border in borders_of(unet))}")
