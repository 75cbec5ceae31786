"""Which channels of a teacher's residual stream matter for the image that it predicts."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from stagecraft.config.sections import Everything
from stagecraft.config.stages import RankChannels
from stagecraft.data.condition import Condition
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import Batch, NoisyBatches
from stagecraft.diffusion.losses import predict
from stagecraft.diffusion.process import Process
from stagecraft.elastic.searchable import Order
from stagecraft.networks.activations import bounded_activations
from stagecraft.networks.families import condition_names, family_of
from stagecraft.networks.family import Module, ResidualStream, Stream
from stagecraft.networks.given import check_shares
from stagecraft.runtime.journal import Pieces, kept_array
from stagecraft.runtime.progress import Progress
from stagecraft.runtime.seeds import generator_for

BATCHES, BATCH = 64, 16  # noised images from which the importance of channels comes


def choose_stream(
    teacher: Module,
    share: float | Sequence[float],
    importance: Sequence[Sequence[float]] | None,
    multiple: int = 1,
) -> Stream | None:
    """The most important channels of every GroupNorm group, as many of each as the share says, at least one; None for all.

    Args:
        share: of the channels of every level, or one for each.
        importance: one number per channel for every level, as `stream_importance` gives them; None where all shares are 1.
        multiple: the number of a level's channels is a multiple of this, where the level has more and its share is below 1.

    Raises:
        ValueError: a wrong number of shares, or different shares for levels that share their channels.
    """
    if share == 1:
        return None
    residual = family_of(teacher).residual_stream(teacher)
    groups = residual.groups
    shares = [share] * len(residual.widths) if isinstance(share, int | float) else share
    check_shares(shares, residual.widths)
    if all(share == 1 for share in shares):
        return None
    assert importance is not None, "shares below 1 need the importance of channels"
    stream = []
    for order, share in zip(order_channels(residual, importance), shares, strict=True):
        size = len(order) // groups
        step = math.lcm(groups, multiple) // groups
        count = size if share == 1 else min(size, step * max(1, round(share * size / step)))
        stream.append(sorted(order[: count * groups]))
    return None if all(len(kept) == len(one) for kept, one in zip(stream, importance, strict=True)) else stream


def order_channels(residual: ResidualStream, importance: Sequence[Sequence[float]]) -> list[list[int]]:
    """The channels of each level: the most important of every GroupNorm group, the second of every group, and so on.

    Args:
        importance: as in `choose_stream`.
    """
    orders = []
    for number in residual.shared:
        parts = [one for one, other in zip(importance, residual.shared, strict=True) if other == number]
        grouped = torch.tensor(parts, dtype=torch.float64).sum(0).view(residual.groups, -1)
        starts = torch.arange(residual.groups)[:, None] * grouped.shape[1]
        order = grouped.argsort(dim=1, descending=True, stable=True) + starts
        orders.append(order.T.flatten().tolist())
    return orders


def chooses_channels(params: RankChannels | Everything, read_teacher: Callable[[], Module]) -> bool:
    """Whether a student of these params may have some channels of the residual stream only."""
    if params.architecture == "given":
        return False
    if params.assemble.native:
        teacher = read_teacher()
        narrows: bool = family_of(teacher).native(teacher).narrows
        return narrows
    shares = params.search_block.channels
    return any(share != 1 for share in (shares if isinstance(shares, list) else [shares]))


def native_order(teacher: Module, importance: Sequence[Sequence[float]] | None) -> Order:
    """Channels of each level by importance, by the level as text; in their natural order where they were not ranked."""
    if importance is None:
        return {str(level): [*range(width)] for level, width in enumerate(family_of(teacher).native(teacher).widths)}
    orders = order_channels(family_of(teacher).residual_stream(teacher), importance)
    return {str(level): order for level, order in enumerate(orders)}


def measure_importance(
    teacher: Module,
    process: Process,
    data: TrainingSet,
    seed: int,
    device: torch.device,
    pieces: Pieces | None = None,
) -> list[list[float]]:
    """Importance of each channel of the residual stream, by level, over images noised by the process's own density of t.

    Args:
        teacher: on the device.
        pieces: as in `stream_importance`.
    """
    names = condition_names(teacher)
    batches = NoisyBatches(data.only(names), process, BATCH, device, conditional=bool(names))
    drawn, again = itertools.tee(batches(generator_for(seed, "stream", step)) for step in range(BATCHES))
    factors = (process.image_factor(batch.t.cpu()) for batch in again)
    signs = generator_for(seed, "stream signs", 0)
    progress = Progress("rank_channels", BATCHES)
    with bounded_activations(teacher, data.shape, BATCH, masked_prediction) as at_once:
        levels = stream_importance(teacher, drawn, factors, signs, at_once=at_once, pieces=pieces, done=progress.update)
    return [level.tolist() for level in levels]


def stream_importance(
    teacher: Module,
    batches: Iterable[Batch],
    factors: Iterable[torch.Tensor],
    generator: torch.Generator,
    *,
    at_once: int = BATCH,
    pieces: Pieces | None = None,
    done: Callable[[int], None] = lambda number: None,
) -> list[torch.Tensor]:
    """How much the image that the teacher predicts depends on each channel of its residual stream, one vector per level.

    A channel is as important as the expected square of the change of the denoised image when it is taken out of every tensor of
    its level, to first order: E ||d x0_hat / d m_c||^2 for a factor m_c on it. Random signs v give it without the whole Jacobian,
    as E (v . d x0_hat / d m_c)^2 (Hutchinson).

    Args:
        batches: noised images.
        factors: the process's `image_factor` at their t, (N,) each.
        generator: of the signs, on the CPU.
        at_once: images in one pass; the sum over images is the same but for rounding.
        pieces: sums over batches of a run that was killed, and where to keep those of this one.
        done: called with the number of batches that are done.
    """
    widths = family_of(teacher).residual_stream(teacher).widths
    total = torch.zeros(sum(widths), dtype=torch.float64)
    with masked_stream(teacher) as masks:
        for number, (batch, factor) in enumerate(zip(batches, factors, strict=True)):
            signs = torch.randint(2, batch.x_t.shape, generator=generator).mul(2).sub(1)
            measure = partial(batch_importance, teacher, masks, batch, signs * factor[:, None, None, None], at_once)
            total += torch.from_numpy(kept_array(pieces, f"batch-{number:03}.npy", measure))
            done(number + 1)
    return list(total.split(widths))


def batch_importance(
    teacher: Module, masks: list[torch.Tensor], batch: Batch, weights: torch.Tensor, at_once: int
) -> np.ndarray:
    """Sum over a batch of the squared gradients of the weighted prediction by the masks; all levels in a row, float64."""
    total = torch.zeros(sum(family_of(teacher).residual_stream(teacher).widths), dtype=torch.float64)
    for start in range(0, len(batch.x_t), at_once):
        rows = slice(start, start + at_once)
        part = batch.rows(rows)
        masks[:] = ones_for(teacher, part.x_t)
        prediction = predict(teacher, part.x_t, part.t, part.condition)
        gradients = torch.autograd.grad((prediction * weights[rows].to(prediction)).sum(), masks)
        total += torch.cat([gradient.double().square().sum(0).cpu() for gradient in gradients])
    return total.numpy()


def masked_prediction(unet: Module, x_t: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
    """The output of a UNet whose residual stream is multiplied by masks of ones."""
    with masked_stream(unet) as masks:
        masks[:] = ones_for(unet, x_t)
        return predict(unet, x_t, t, condition)


def ones_for(unet: Module, x_t: torch.Tensor) -> list[torch.Tensor]:
    """Masks of ones, (N, channels) for each level, that get gradients."""
    widths = family_of(unet).residual_stream(unet).widths
    return [torch.ones(len(x_t), width, device=x_t.device, requires_grad=True) for width in widths]


@contextmanager
def masked_stream(teacher: Module) -> Iterator[list[torch.Tensor]]:
    """Multiply the residual stream by masks, one (N, channels) for each level, that are put into the list given."""
    masks: list[torch.Tensor] = []
    levels = family_of(teacher).residual_stream(teacher).writers

    def hook(module: Module, args: object, output: Any) -> Any:
        mask = masks[levels[module]][:, :, None, None]
        return (output[0] * mask,) if isinstance(output, tuple) else output * mask

    handles = [module.register_forward_hook(hook) for module in levels]
    try:
        yield masks
    finally:
        for handle in handles:
            handle.remove()
