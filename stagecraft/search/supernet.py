"""Supernet training of one block by imitation of the teacher's features, and the two scores of its sub-blocks."""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from stagecraft.diffusion.losses import nmse
from stagecraft.elastic.block import ElasticBlock
from stagecraft.elastic.searchable import Order
from stagecraft.networks.costs import count_parameters
from stagecraft.networks.families import family_of
from stagecraft.networks.family import Module, Site, Spec
from stagecraft.networks.stream import kept_part, with_part
from stagecraft.runtime.device import autocast
from stagecraft.runtime.journal import Pieces, kept_record
from stagecraft.search.features import Features
from stagecraft.search.selection import COSTS_OF_CANDIDATES, Candidate, pareto
from stagecraft.search.space import BlockSpace, key_of

SCORING_BATCH = 256
KEPT_SCORES = 50  # specs scored between two pieces, and in a generation
SAMPLED = 0.25  # share of the candidates that are drawn, not bred
SORTING_TRIPLES = 256
SORTING_BYTES = 2**30  # of the inputs that a block's channels are sorted on
RANDOM_PATHS = 2  # of a step, beside the smallest and the largest
FLOOR = 1e-3  # the NMSE below which it does not matter how small it is


class SandwichLoss:
    """NMSE of the smallest, the largest and two random sub-blocks to the teacher's block (sandwich rule, Yu & Huang 2019).

    Each path has the gradient of the logarithm of its NMSE. In a plain sum the smallest sub-block, with many times the
    error of the wide ones, dominates the gradient of the shared weights, and the wide ones score worse than they could.

    Each batch depends on (seed, step) alone. The features hold a site's inputs first, then its outputs. A mid block of which
    everything is dropped has no weights, and is passed over.
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
        self.supernet = supernet
        self.space = space
        self.features = features
        self.inputs = inputs
        self.batch_size = batch_size
        self.precision = precision
        self.rows = features.rows(held_out=False)
        self.device = next(supernet.parameters()).device

    def __call__(self, step: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
        rng = np.random.default_rng(generator.initial_seed())
        rows = self.rows[torch.randint(len(self.rows), (self.batch_size,), generator=generator)]
        tensors = self.features.take(rows, self.device)
        inputs = tensors[: self.inputs]
        targets = tensors[self.inputs :]
        paths = [("smallest", self.space.smallest()), ("largest", self.space.identity)]
        paths += [("random", self.space.draw(rng)) for _ in range(RANDOM_PATHS)]
        for name, spec in paths:
            with autocast(self.device, self.precision):
                outputs = self.supernet(spec, inputs)
            if any(output.requires_grad for output in outputs):
                yield name, with_relative_gradient(nmse(outputs, targets))


def with_relative_gradient(loss: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """The loss, with the gradient of log(loss + floor), so that relative improvements count."""
    value = loss.detach()
    return value + (loss - value) / (value + floor)


def sort_supernet(supernet: ElasticBlock, features: Features, inputs: int) -> dict[str, Order]:
    """Order the parts of a fresh supernet's layers by importance on training triples of every interval.

    Returns:
        As `ElasticBlock.sort`.
    """
    rows = features.rows(held_out=False)
    device = next(supernet.parameters()).device
    bytes_each = sum(tensor.nbytes for tensor in features.take(rows[:1], device)[:inputs])
    rows = rows[:: max(1, len(rows) // max(1, min(SORTING_TRIPLES, SORTING_BYTES // (2 * bytes_each))))]
    return supernet.sort(features.take(rows, device)[:inputs])


class BlockScore:
    """NMSE on the first held-out triples of every interval, MACs, parameters and latency of sub-blocks.

    Args:
        triples: triples of each interval to measure on.
        latency_of: gives the milliseconds an image of a spec; None where layers were not measured.
    """

    def __init__(
        self,
        supernet: ElasticBlock,
        features: Features,
        inputs: int,
        triples: int,
        latency_of: Callable[[Spec], float] | None = None,
    ) -> None:
        self.supernet = supernet
        self.inputs = inputs
        self.latency_of = latency_of
        device = next(supernet.parameters()).device
        rows = features.rows(held_out=True).view(len(features.intervals), -1)[:, :triples].flatten()
        # No batch holds triples of two intervals, so that each interval's error is measured by its own variance.
        self.batches = [features.take(part, device) for part in rows.split(min(SCORING_BATCH, triples))]
        self.sizes = torch.tensor([float(len(batch[0])) for batch in self.batches])

    @torch.no_grad()
    def __call__(self, specs: list[Spec]) -> list[Candidate]:
        """Candidates in the order of `specs`, without `output`."""
        return [self._one(spec) for spec in specs]

    def _one(self, spec: Spec) -> Candidate:
        inputs = self.inputs
        losses = [nmse(self.supernet(spec, batch[:inputs]), batch[inputs:]).cpu() for batch in self.batches]
        skeleton = self.supernet.skeleton(spec)
        candidate: Candidate = {
            "spec": spec,
            "nmse": float((torch.stack(losses) * self.sizes).sum() / self.sizes.sum()),
            "macs": self.supernet.family.block_macs(skeleton, self.supernet.site),
            "params": count_parameters(skeleton),
        }
        if self.latency_of is not None:
            candidate["time"] = self.latency_of(spec)
        return candidate


def explore(
    space: BlockSpace,
    measure: Callable[[list[Spec]], list[Candidate]],
    most: int,
    seed: int,
    pieces: Pieces | None,
) -> list[Candidate]:
    """About `most` scored candidates: identity and plain specs, a seeded sample, then children of the best, a few at a time.

    Crosses and single changes of what is on a front (`best_of`) find better sub-blocks than draws do (evolutionary search, as in
    Once-for-All, arXiv 1908.09791). A space that is not larger is scored whole.

    Args:
        measure: a `BlockScore`.
        pieces: candidates scored by a run that was killed, and where to keep those of this one.
    """
    scored: list[Candidate] = []
    exhaustive = len(space) <= most
    waiting = space.first(most if exhaustive else math.ceil(most * SAMPLED), np.random.default_rng(seed))
    while waiting:
        batch = waiting[:KEPT_SCORES]
        waiting = waiting[KEPT_SCORES:]
        scored += kept_record(pieces, f"scores-{len(scored):05}.json", partial(measure, batch))
        if not waiting and not exhaustive and len(scored) < most:
            parents, known = ([c["spec"] for c in candidates] for candidates in (best_of(scored), scored))
            count = min(KEPT_SCORES, most - len(scored))
            rng = np.random.default_rng([seed, len(scored)])
            waiting = space.children(parents, count, known, rng)
    return scored


def best_of(scored: list[Candidate]) -> list[Candidate]:
    """The candidates on a Pareto front: of NMSE and all costs at once; with latencies, of NMSE and any one cost.

    A budget may limit one cost alone. The front over MACs, parameters and latency at once holds most candidates, so children of
    it come near the front of none.
    """
    if any("time" not in candidate for candidate in scored):
        return pareto(scored)
    fronts = [pareto(scored, costs=[cost]) for cost in COSTS_OF_CANDIDATES]
    return list({key_of(c["spec"]): c for front in fronts for c in front}.values())


class OutputScore:
    """How much a sub-block changes the image that the teacher predicts when it stands in for the teacher's block.

    Mean square error of the denoised image over the last held-out triples of every interval; the blocks after the exchanged one
    are the teacher's. The error of the prediction itself would weigh noise levels by the parametrisation: with v most of it lies
    where there is hardly any noise left and the image no longer depends on it.

    Args:
        features: the cache, opened with `names` of this site.
        triples: triples of each interval to measure on.
        kept: the channels that the sub-blocks have of each tensor (see `kept_channels`); the others stay the teacher's.
    """

    def __init__(
        self,
        teacher: Module,
        site: Site,
        features: Features,
        triples: int,
        kept: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.teacher = teacher
        self.site = site
        self.kept = kept or {}
        device = next(teacher.parameters()).device
        rows = features.rows(held_out=True).view(len(features.intervals), -1)[:, -triples:]
        self.batches = [dict(zip(features.names, features.take(r, device), strict=True)) for r in rows]

    @staticmethod
    def names(teacher: Module, site: Site, kept: dict[str, torch.Tensor]) -> list[str]:
        """The tensors that it needs of the feature cache; the block's own outputs where some of their channels stay."""
        outputs = [name for name in site.writes if name in kept]
        needed = [*site.reads, *outputs, *family_of(teacher).tail_reads(teacher, site), "output", "image_factor"]
        return list(dict.fromkeys(needed))

    @torch.no_grad()
    def __call__(self, supernet: ElasticBlock, spec: Spec) -> list[float]:
        """One number for each interval."""
        errors = []
        for seen in self.batches:
            inputs = [kept_part(name, seen[name], self.kept) for name in self.site.reads]
            given = zip(self.site.writes, supernet(spec, inputs), strict=True)
            outputs = [with_part(name, seen.get(name, output), output, self.kept) for name, output in given]
            predicted = family_of(self.teacher).tail(self.teacher, self.site, outputs, seen)
            error = predicted.float() - seen["output"]
            errors.append(float((error * seen["image_factor"][:, None, None, None]).square().mean()))
        return errors


def score_outputs(
    supernet: ElasticBlock,
    scored: list[Candidate],
    measure: OutputScore,
    most: int | None,
    pieces: Pieces | None = None,
) -> list[Candidate]:
    """The scored candidates, the best of them with `output`, their `OutputScore` per interval; the others with None.

    Args:
        scored: candidates of `explore`, the teacher's shape first.
        most: candidates to measure, as `front_of` takes it; None for all.
    """
    best = scored if most is None else front_of(scored, most)

    def measure_some(start: int) -> list[list[float]]:
        return [measure(supernet, candidate["spec"]) for candidate in best[start : start + KEPT_SCORES]]

    starts = range(0, len(best), KEPT_SCORES)
    parts = [kept_record(pieces, f"outputs-{start:05}.json", partial(measure_some, start)) for start in starts]
    outputs = itertools.chain.from_iterable(parts)
    known = {key_of(c["spec"]): output for c, output in zip(best, outputs, strict=True)}
    return [candidate | {"output": known.get(key_of(candidate["spec"]))} for candidate in scored]


def front_of(scored: list[Candidate], most: int) -> list[Candidate]:
    """The first candidate and at most `most` - 1 others of `best_of`, evenly by latency, by MACs where that was not measured."""
    best = [c for c in best_of(scored) if c is not scored[0]]
    front = sorted(best, key=lambda c: c["time"] if "time" in c else c["macs"])
    places = np.linspace(0, len(front) - 1, min(most - 1, len(front))).round().astype(int)
    return [scored[0], *(front[i] for i in places)]
