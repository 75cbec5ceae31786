"""Supernet training of one block by imitation of the teacher's features, and the scoring of its sub-blocks."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from stages.device import autocast
from stages.diffusion.losses import nmse
from stages.models.elastic import ElasticBlock
from stages.models.specs import Spec, block_macs, parameter_count
from stages.pieces import Pieces, kept_record
from stages.search.features import Features
from stages.search.space import BlockSpace

SCORING_BATCH = 256
KEPT_SCORES = 50  # specs scored between two pieces
SORTING_TRIPLES = 256


class SandwichLoss:
    """NMSE of the smallest, the largest and two random sub-blocks to the teacher's block (sandwich rule, Yu & Huang 2019).

    Each batch depends on (seed, step) alone. The features hold a border's inputs first, then its outputs.
    """

    def __init__(
        self,
        supernet: ElasticBlock,
        space: BlockSpace,
        features: Features,
        inputs: int,
        batch_size: int,
        precision: str,
    ) -> None:
        self.supernet, self.space, self.features, self.inputs = supernet, space, features, inputs
        self.batch_size, self.precision = batch_size, precision
        self.rows = features.rows(held_out=False)
        self.device = next(supernet.parameters()).device

    def __call__(self, step: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
        rng = np.random.default_rng(generator.initial_seed())
        rows = self.rows[torch.randint(len(self.rows), (self.batch_size,), generator=generator)]
        tensors = self.features.take(rows, self.device)
        inputs, targets = tensors[: self.inputs], tensors[self.inputs :]
        paths = [("smallest", self.space.smallest()), ("largest", self.space.identity)]
        paths += [("random", self.space.draw(rng)) for _ in range(2)]
        for name, spec in paths:
            with autocast(self.device, self.precision):
                outputs = self.supernet(spec, inputs)
            yield name, nmse(outputs, targets)


def sort_channels(supernet: ElasticBlock, features: Features, inputs: int) -> None:
    """Order the channels of a fresh supernet by importance on the first training triples of every stage."""
    rows = features.rows(held_out=False)
    rows = rows[:: max(1, len(rows) // SORTING_TRIPLES)]
    supernet.sort_channels(features.take(rows, next(supernet.parameters()).device)[:inputs])


@torch.no_grad()
def score(
    supernet: ElasticBlock,
    specs: list[Spec],
    features: Features,
    inputs: int,
    resolution: int,
    pieces: Pieces | None = None,
) -> list[dict[str, Any]]:
    """NMSE on the held-out triples, MACs and parameters of every spec.

    Args:
        resolution: side in pixels at which the block's layers run.
        pieces: specs scored by a run that was killed, and where to keep those of this one.

    Returns:
        [{"spec", "nmse", "macs", "params"}, ...] in the order of `specs`.
    """
    device = next(supernet.parameters()).device
    batches = [features.take(rows, device) for rows in features.rows(held_out=True).split(SCORING_BATCH)]
    sizes = torch.tensor([float(len(batch[0])) for batch in batches])

    def score_one(spec: Spec) -> dict[str, Any]:
        errors = torch.stack([nmse(supernet(spec, batch[:inputs]), batch[inputs:]).cpu() for batch in batches])
        skeleton = supernet.skeleton(spec)
        return {
            "spec": spec,
            "nmse": float((errors * sizes).sum() / sizes.sum()),
            "macs": block_macs(skeleton, resolution),
            "params": parameter_count(skeleton),
        }

    def score_some(start: int) -> list[dict[str, Any]]:
        return [score_one(spec) for spec in specs[start : start + KEPT_SCORES]]

    starts = range(0, len(specs), KEPT_SCORES)
    scored = [kept_record(pieces, f"scores-{start:05}.json", partial(score_some, start)) for start in starts]
    return list(itertools.chain.from_iterable(scored))
