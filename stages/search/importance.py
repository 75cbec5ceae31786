"""Which channels of a teacher's residual stream matter for the image that it predicts."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel

from stages.diffusion.losses import Batch, predict
from stages.models.borders import borders_of
from stages.models.given import check_shares
from stages.models.multi_decoder_unet import Module, stream_levels
from stages.models.stream import Stream


def choose_stream(
    teacher: UNet2DModel,
    share: float | Sequence[float],
    importance: Sequence[Sequence[float]],
    multiple: int = 1,
) -> Stream | None:
    """The most important channels of every GroupNorm group, as many of each as the share says, at least one; None for all.

    Args:
        share: of the channels of every level, or one for each.
        multiple: what the number of a level's channels is a multiple of, where the level has more than that.
        importance: one number per channel for every level, as `stream_importance` gives them.

    Raises:
        ValueError: not one share for each level, or two for levels that have their channels in common.
    """
    groups, same = teacher.config["norm_num_groups"], stream_levels(teacher)
    shares = [share] * len(same) if isinstance(share, int | float) else share
    check_shares(shares, teacher.config["block_out_channels"])
    stream = []
    for number, share in zip(same, shares, strict=True):
        parts = [one for one, other in zip(importance, same, strict=True) if other == number]
        grouped = torch.tensor(parts, dtype=torch.float64).sum(0).view(groups, -1)
        size, step = grouped.shape[1], math.lcm(groups, multiple) // groups
        count = min(size, step * max(1, round(share * size / step)))
        order = grouped.argsort(dim=1, descending=True, stable=True)[:, :count]
        stream.append((order + torch.arange(groups)[:, None] * size).flatten().sort().values.tolist())
    return None if all(len(kept) == len(one) for kept, one in zip(stream, importance, strict=True)) else stream


def stream_importance(
    teacher: UNet2DModel, batches: list[Batch], factors: list[torch.Tensor], generator: torch.Generator
) -> list[torch.Tensor]:
    """How much the image that the teacher predicts depends on each channel of its residual stream, one vector per level.

    A channel is as important as the expected square of the change of the denoised image when it is taken out of every tensor of
    its level, to first order: E ||d x0_hat / d m_c||^2 for a factor m_c on it. Random signs v give it without the whole Jacobian,
    as E (v . d x0_hat / d m_c)^2 (Hutchinson).

    Args:
        batches: noised images.
        factors: the process's `image_factor` at their t, (N,) each.
        generator: of the signs, on the CPU.
    """
    levels = {module: level for level, module in stream_writers(teacher)}
    widths = teacher.config["block_out_channels"]
    found = [torch.zeros(width, dtype=torch.float64) for width in widths]
    masks: list[torch.Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, args, output: output * masks[levels[module]][:, :, None, None])
        for module in levels
    ]
    try:
        for batch, factor in zip(batches, factors, strict=True):
            x_t = batch.x_t
            masks = [torch.ones(len(x_t), width, device=x_t.device, requires_grad=True) for width in widths]
            prediction = predict(teacher, x_t, batch.t, batch.labels)
            signs = torch.randint(2, prediction.shape, generator=generator).mul(2).sub(1).to(prediction)
            weighted = (signs * prediction * factor.to(prediction)[:, None, None, None]).sum()
            for total, gradient in zip(found, torch.autograd.grad(weighted, masks), strict=True):
                total += gradient.double().square().sum(0).cpu()
    finally:
        for handle in handles:
            handle.remove()
    return found


def stream_writers(unet: UNet2DModel) -> Iterator[tuple[int, Module]]:
    """Every module whose output is the residual stream, with its level."""
    yield 0, unet.conv_in
    for border in borders_of(unet):
        block: Any = unet.get_submodule(border.block)
        for name in ("resnets", "attentions", "downsamplers", "upsamplers"):
            for module in getattr(block, name, None) or ():
                if module is not None:
                    yield border.level, module
