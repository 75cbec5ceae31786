"""From similarities to intervals: boundaries are the first timestep of each later interval."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from stagecraft.diffusion.process import Process

LARGEST_K = 8


def uniform_boundaries(process: Process, intervals: int) -> list[float]:
    """Intervals of equal length in t."""
    return [process.as_t(process.low + (process.high - process.low) * k / intervals) for k in range(1, intervals)]


def threshold_boundaries(t: np.ndarray, s0: np.ndarray, s1: np.ndarray, alpha: float) -> tuple[float, float]:
    """The two boundaries of arXiv 2312.09181, section 4.2, from draws at timesteps t ~ U.

    t1 = max{tau: mean over t <= tau of S0 >= alpha}, t2 = min{tau: mean over t >= tau of S1 >= alpha}.

    Returns:
        (the last t of the first interval, the first t of the third).

    Raises:
        ValueError: no such tau, or t1 >= t2, so that there are no three intervals.
    """
    order = np.argsort(t, kind="stable")
    t = t[order]
    s0 = s0[order]
    s1 = s1[order]
    counts = np.arange(1, len(t) + 1)
    low = np.flatnonzero(np.cumsum(s0) / counts >= alpha)
    high = np.flatnonzero((np.cumsum(s1[::-1]) / counts)[::-1] >= alpha)
    if not len(low) or not len(high):
        raise ValueError(
            f"cluster_timesteps.alpha {alpha}: no timestep is that similar to a limit; lower alpha or raise eta"
        )
    t1 = t[low[-1]].item()
    t2 = t[high[0]].item()
    if t1 >= t2:
        raise ValueError(no_middle_interval(alpha, t1, t2))
    return t1, t2


def no_middle_interval(alpha: float, t1: float, t2: float) -> str:
    """The message for two boundaries of `threshold` between which nothing is left."""
    return (
        f"cluster_timesteps.alpha {alpha}: boundaries {t1} and {t2} leave no middle interval; raise alpha or lower eta, "
        "or set method: dynamic_programming"
    )


def agglomerative_labels(similarity: np.ndarray, intervals: int) -> np.ndarray:
    """Contiguous clusters of noise levels by average linkage on 1 - similarity; (T,) of 0 .. K-1 in the order of t.

    scikit-learn's chain connectivity is not used: with it, average linkage sees the distances between neighbours only, and the
    boundaries crowd where the similarity falls fastest. Similarity falls monotonically along t, so clusters come out
    contiguous without it; that they are is checked.

    Raises:
        ValueError: the clusters are not contiguous, which too few draws can cause.
    """
    from sklearn.cluster import AgglomerativeClustering

    if intervals == 1:
        return np.zeros(len(similarity), dtype=int)
    clustering = AgglomerativeClustering(n_clusters=intervals, metric="precomputed", linkage="average")
    labels = clustering.fit_predict(1 - similarity)
    ordered = np.cumsum(np.concatenate([[False], labels[1:] != labels[:-1]]))
    if ordered[-1] != intervals - 1:
        raise ValueError(
            f"cluster_timesteps.method agglomerative: its {intervals} intervals are not contiguous in t; "
            "raise cluster_timesteps.draws, or set method: dynamic_programming"
        )
    return ordered


def dynamic_programming_labels(similarity: np.ndarray, intervals: int) -> np.ndarray:
    """The contiguous clusters with the greatest sum of mean within-interval similarities; (T,) of 0 .. K-1, O(K T^2)."""
    return cheapest_segments(-mean_within(similarity), intervals)


def interval_labels(distance: np.ndarray, intervals: int) -> np.ndarray:
    """Interval clustering (Go et al. 2023, arXiv 2306.00354): smallest sum of distances to the best centre of each interval.

    Args:
        distance: (T, T).

    Returns:
        (T,) of 0 .. K-1.
    """
    return cheapest_segments(centre_costs(distance), intervals)


def mean_within(similarity: np.ndarray) -> np.ndarray:
    """Mean of similarity[i:j, i:j] for all i < j as (T + 1, T + 1); zero elsewhere."""
    size = len(similarity)
    sums = np.zeros((size + 1, size + 1))
    sums[1:, 1:] = similarity.cumsum(axis=0).cumsum(axis=1)
    diagonal, i, j = np.diag(sums), *np.indices(sums.shape)
    blocks = diagonal[None, :] - sums - sums.T + diagonal[:, None]
    return np.where(i < j, blocks / np.maximum(j - i, 1) ** 2, 0)


def centre_costs(distance: np.ndarray) -> np.ndarray:
    """min over c in [i, j) of sum(distance[c, i:j]) for all i < j as (T + 1, T + 1); zero elsewhere."""
    size = len(distance)
    sums = np.concatenate([np.zeros((size, 1)), distance.cumsum(axis=1)], axis=1)
    costs = np.zeros((size + 1, size + 1))
    for i in range(size):
        for j in range(i + 1, size + 1):
            costs[i, j] = (sums[i:j, j] - sums[i:j, i]).min()
    return costs


def cheapest_segments(costs: np.ndarray, intervals: int) -> np.ndarray:
    """The division of 0 .. T-1 into K segments of smallest total cost; costs[i, j] is that of [i, j). Labels (T,)."""
    size = len(costs) - 1
    i, j = np.indices(costs.shape)
    steps = np.where(i < j, costs, np.inf)
    best = steps[0]
    chosen = []
    for _ in range(intervals - 1):
        totals = best[:, None] + steps
        chosen.append(totals.argmin(axis=0))
        best = totals.min(axis=0)
    ends = [size]
    for previous in reversed(chosen):
        ends.append(int(previous[ends[-1]]))
    return np.searchsorted(sorted(ends)[:-1], np.arange(size), side="right")


def boundaries_of(labels: np.ndarray, grid: np.ndarray, process: Process) -> list[float]:
    """Boundaries half way between the last grid point of an interval and the first of the next."""
    last = np.flatnonzero(labels[1:] != labels[:-1])
    return [process.as_t((grid[i].item() + grid[i + 1].item()) / 2) for i in last]


def silhouettes(
    distance: np.ndarray, label: Callable[[int], np.ndarray], missing: dict[str, str] | None = None
) -> dict[int, float | None]:
    """Silhouette (Rousseeuw 1987) over `distance` of the clusterings `label(K)` into K = 2 .. 8 intervals.

    Where it cannot be computed it is None, and `missing` gets the reason.
    """
    reasons = {} if missing is None else missing
    scores = {k: partial(silhouette, distance, label, k) for k in range(2, LARGEST_K + 1)}
    return {k: value_or_none(f"silhouette {k}", score, reasons) for k, score in scores.items()}


def silhouette(distance: np.ndarray, label: Callable[[int], np.ndarray], intervals: int) -> float:
    """The silhouette of a clustering; ValueError when its intervals are not as many, or none has two noise levels."""
    from sklearn.metrics import silhouette_score

    if intervals >= len(distance):
        raise ValueError(f"{len(distance)} noise levels are too few for a silhouette of {intervals} intervals")
    labels = label(intervals)
    if len(np.unique(labels)) != intervals:
        raise ValueError(f"the noise levels compared lie in {len(np.unique(labels))} of {intervals} intervals")
    return float(silhouette_score(distance, labels, metric="precomputed"))


def value_or_none(name: str, compute: Callable[[], Any], missing: dict[str, str]) -> Any:
    """The value of `compute`; None when it raises a ValueError, whose reason `missing` gets under `name`."""
    try:
        return compute()
    except ValueError as error:
        missing[name] = " ".join(str(error).split())
        return None
