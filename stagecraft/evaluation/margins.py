"""How much an FID depends on which images were drawn: margins by the bootstrap over images (Efron 1979).

A margin is 1.96 standard deviations, half of a 95 % interval. The spread of the resamples is used and not their level, as a
resample, drawn with replacement, has the bias of a smaller set. The spread is corrected where a set is near the reference: with
d the set's true distance in mean and covariance and e its error, an FID is about |d + e|^2 and a resample's |d + e + e*|^2. The
variance of the latter has two parts var |e*|^2 too many, which the resamples' distances from their own set show.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor

from stagecraft.evaluation.metrics import Margins
from stagecraft.runtime.seeds import generator_for

RESAMPLES = 100
HALF_INTERVAL = 1.96  # standard deviations


class FrechetReference:
    """The reference of an FID: mean and covariance of its features (N, F), in float64."""

    def __init__(self, features: Tensor) -> None:
        features = features.double()
        self.mean = features.mean(0)
        covariance = features.T.cov()
        values, vectors = torch.linalg.eigh(covariance)
        self.trace = covariance.trace()
        self.root = vectors * values.clamp(min=0).sqrt() @ vectors.T

    def distance(self, features: Tensor) -> Tensor:
        """Frechet distance (Heusel et al. 2017) of features (N, F) from the reference, a tensor without dimensions.

        The trace of (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S2^(1/2) S1 S2^(1/2), which is symmetric.
        """
        features = features.double()
        covariance = features.T.cov()
        cross = torch.linalg.eigvalsh(self.root @ covariance @ self.root).clamp(min=0).sqrt().sum()
        return (features.mean(0) - self.mean).square().sum() + covariance.trace() + self.trace - 2 * cross


def resampled_distances(features: Tensor, reference: FrechetReference, seed: int) -> Tensor:
    """Distances of every resample of a set's features (N, F) from the reference and from the set, (RESAMPLES, 2).

    Sets of one size are resampled alike.
    """
    own = FrechetReference(features)
    resamples = [features[resampled_rows(len(features), seed, number)] for number in range(RESAMPLES)]
    return torch.stack([torch.stack([reference.distance(found), own.distance(found)]) for found in resamples])


def resampled_rows(count: int, seed: int, number: int) -> Tensor:
    """The rows of one resample."""
    return torch.randint(count, (count,), generator=generator_for(seed, "bootstrap", number))


def margin_of(distances: Tensor) -> float:
    """Half of the 95 % interval of an FID, or of a difference of FIDs, from its resamples (RESAMPLES, 2)."""
    variance, own = distances.var(0).tolist()
    return HALF_INTERVAL * math.sqrt(max(variance - 2 * own, own))


def equal_margins(features: Tensor, reference: FrechetReference, count: int, seed: int) -> Margins:
    """Mean FID of a set's disjoint parts of `count` images, with its margin: that of one part over the root of their number."""
    parts = features[: len(features) // count * count].split(count)
    distances = torch.stack([reference.distance(part) for part in parts])
    margin = margin_of(resampled_distances(parts[0], reference, seed))
    return {"fid_equal": distances.mean().item(), "fid_equal_margin": margin / math.sqrt(len(parts))}


def measure_margins(
    sets: dict[str, Tensor],
    reference_features: Tensor,
    equal_count: int | None,
    seed: int,
    subject: str,
    others: Collection[str],
) -> tuple[dict[str, Margins], dict[str, float]]:
    """Margins of the FIDs of several sets of images, and those of the subject's FID minus that of each of the others.

    Args:
        sets: features (N, F) by name; those of subject and others belong together row by row, as samples do by seed.
        reference_features: those of the reference.
        equal_count: the number of images at which all sets are compared; None where they are not.
    """
    reference = FrechetReference(reference_features)
    resampled = {name: resampled_distances(features, reference, seed) for name, features in sets.items()}
    margins: dict[str, Margins] = {name: {"fid_margin": margin_of(found)} for name, found in resampled.items()}
    if equal_count is not None:
        for name, features in sets.items():
            margins[name] |= equal_margins(features, reference, equal_count, seed)
    return margins, {name: margin_of(resampled[subject] - resampled[name]) for name in others}
