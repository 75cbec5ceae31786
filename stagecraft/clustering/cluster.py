"""Timesteps clustered into intervals, by the method that the params name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from stagecraft.clustering.denoiser import OptimalDenoiser, Rows
from stagecraft.clustering.partition import (
    LARGEST_K,
    agglomerative_labels,
    boundaries_of,
    dynamic_programming_labels,
    interval_labels,
    no_middle_interval,
    silhouettes,
    threshold_boundaries,
    uniform_boundaries,
    value_or_none,
)
from stagecraft.clustering.record import Clusters, Curves, Spread
from stagecraft.clustering.similarity import draw_pairs, limit_shares, optimal_means, similarity_matrix
from stagecraft.config.sections import ClusterTimesteps
from stagecraft.diffusion.boundaries import check_ascending
from stagecraft.diffusion.process import Process
from stagecraft.runtime.journal import Pieces, kept_array

Gradients = Callable[[np.ndarray, int], np.ndarray]
# Methods whose boundaries do not depend on draws.
FIXED = ("uniform", "snr", "given")


@dataclass(frozen=True)
class Clustering:
    """The clustering of a training set by one method and one seed.

    Args:
        denoiser: the optimal denoiser of the training set.
        settings: the `cluster_timesteps` section of the params.
        gradients: for the method `gradient`: from (values of t, seed) the mean gradients of a network's loss at each, (T, p).
        pieces: as in `optimal_means`.
    """

    denoiser: OptimalDenoiser
    y: Rows
    process: Process
    settings: ClusterTimesteps
    seed: int
    gradients: Gradients | None = None
    pieces: Pieces | None = field(default=None, repr=False)

    @cached_property
    def grid(self) -> np.ndarray:
        """The values of t that are compared, (T,)."""
        return self.process.grid(self.settings.grid)

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(x0, eps) used at every t of the grid."""
        return draw_pairs(self.y, self.settings.draws, np.random.default_rng(self.seed))

    @cached_property
    def means(self) -> np.ndarray:
        """The optimal denoiser on the grid, (T, D, n); ValueError when it is not finite."""
        sigmas = sigmas_at(self.process, self.grid)
        m = optimal_means(self.denoiser, *self.pairs, sigmas, self.pieces, f"seed-{self.seed}-")
        self._check_finite("the optimal denoiser", self.grid, m)
        return m

    def _check_finite(self, what: str, t: np.ndarray, values: np.ndarray) -> None:
        """Raise ValueError, with the smallest t, unless the values (T, ...) at each t are finite."""
        bad = [float(level) for level, row in zip(t, values, strict=True) if not np.isfinite(row).all()]
        if bad:
            raise ValueError(
                f"{what} is not finite at {len(bad)} of {len(t)} noise levels, the smallest t = {min(bad):g} "
                f"(sigma {sigmas_at(self.process, np.array([min(bad)]))[0]:g}); cluster_timesteps.method: uniform does without it"
            )

    @cached_property
    def similarity(self) -> np.ndarray:
        """Similarity of the optimal denoisers at each two noise levels of the grid, (T, T)."""
        return similarity_matrix(self.means, self.pairs[0], self.denoiser.mean)

    @property
    def last_sigma(self) -> float | None:
        """The sigma_1 of the printed equation 7, or None for what was run."""
        return sigmas_at(self.process, self.grid)[-1] if self.settings.literal else None

    def curves(self) -> Curves:
        """S0 and S1 on the grid."""
        shares = [
            limit_shares(m, self.pairs[0], self.denoiser.mean, sigma, self.settings.eta, self.last_sigma)
            for m, sigma in zip(self.means, sigmas_at(self.process, self.grid), strict=True)
        ]
        s0, s1 = ([float(share.mean()) for share in column] for column in zip(*shares, strict=True))
        return {"t": self.grid.tolist(), "s0": s0, "s1": s1}

    def threshold(self) -> list[float]:
        """Boundaries by the published rule, from triples (x0, eps, t) of their own with t uniform."""
        rng = np.random.default_rng([self.seed, 1])
        x0, eps = draw_pairs(self.y, self.settings.draws, rng)
        t = np.array([self.process.at_share(share) for share in rng.random(len(x0))])
        sigmas = sigmas_at(self.process, t)
        m = kept_array(
            self.pieces,
            f"seed-{self.seed}-draws.npy",
            lambda: self.denoiser(x0 + sigmas[:, None].astype(np.float32) * eps, sigmas),
        )
        self._check_finite("the optimal denoiser", t, m)
        shares = limit_shares(m, x0, self.denoiser.mean, sigmas, self.settings.eta, self.last_sigma)
        t1, t2 = threshold_boundaries(t, *shares, self.settings.alpha)
        boundaries = [self.process.above(t1), t2]
        if boundaries[0] >= boundaries[1]:
            raise ValueError(no_middle_interval(self.settings.alpha, t1, t2))
        return boundaries

    def labels(self, intervals: int) -> np.ndarray:
        """Interval of every t of the grid by the method, or by `agglomerative` for methods that take no K; (T,).

        Raises:
            ValueError: there are fewer t than intervals, what the method compares is not finite, or it finds no such intervals.
        """
        method = self.settings.method
        if intervals > len(self.grid):
            raise ValueError(
                f"cluster_timesteps.intervals: {intervals} is more than the grid of {len(self.grid)} noise levels; "
                "lower it or raise grid"
            )
        if method == "uniform":
            return np.searchsorted(uniform_boundaries(self.process, intervals), self.grid, side="right")
        if method == "snr":
            sigmas = sigmas_at(self.process, self.grid)
            # Pure noise, at no finite distance from the rest, counts as the level before it.
            log_snr = -2 * np.log(sigmas.clip(max=sigmas[np.isfinite(sigmas)].max()))
            self._check_finite("the signal-to-noise ratio", self.grid, log_snr)
            return interval_labels(np.abs(log_snr[:, None] - log_snr), intervals)
        if method == "gradient":
            return interval_labels(1 - self.gradient_cosines, intervals)
        if method == "dynamic_programming":
            return dynamic_programming_labels(self.similarity, intervals)
        return agglomerative_labels(self.similarity, intervals)

    def silhouettes(self, missing: dict[str, str]) -> dict[int, float | None]:
        """Silhouettes of the method's clusterings into K = 2 .. 8 intervals, over 1 - similarity."""
        if (similarity := value_or_none("similarity", lambda: self.similarity, missing)) is None:
            missing |= {f"silhouette {k}": missing["similarity"] for k in range(2, LARGEST_K + 1)}
            return dict.fromkeys(range(2, LARGEST_K + 1))
        return silhouettes(1 - similarity, self.labels, missing)

    @cached_property
    def gradient_cosines(self) -> np.ndarray:
        """Cosines between the mean gradients at two values of t, (T, T)."""
        assert self.gradients is not None, "the method gradient needs a network"
        g = self.gradients(self.grid, self.seed).astype(np.float64)
        self._check_finite("the gradient of the loss", self.grid, g)
        g /= np.maximum(np.linalg.norm(g, axis=1, keepdims=True), np.finfo(float).tiny)
        return (g @ g.T).clip(-1, 1)

    def boundaries(self) -> list[float]:
        """The K - 1 boundaries, ascending."""
        method = self.settings.method
        intervals = self.settings.intervals
        if method == "given":
            return given_boundaries(self.process, self.settings)
        if method == "threshold":
            return self.threshold()
        if method == "uniform":
            return uniform_boundaries(self.process, intervals)
        return boundaries_of(self.labels(intervals), self.grid, self.process)


def cluster(
    y: Rows,
    process: Process,
    settings: ClusterTimesteps,
    seed: int,
    gradients: Gradients | None = None,
    pieces: Pieces | None = None,
) -> Clusters:
    """Cluster the timesteps of a process over a training set.

    Args:
        y: images or latents, (N, n) float32. The published boundaries hold for pixels in [0, 1].
        settings: the `cluster_timesteps` section of the params. With `seeds` above 1 the clustering is done as often, with
            seeds that follow `seed`, to see how far the boundaries depend on the draws; the first one counts.
        gradients, pieces: as in `Clustering`.

    Returns:
        The content of results/clusters.json, without `params`.

    Raises:
        ValueError: the method finds no such intervals, or given boundaries are not those of K intervals. What is only shown
            (similarity, silhouettes, curves, the boundaries of further seeds) is None instead, with its reason in `missing`.
    """
    denoiser = OptimalDenoiser(y)
    count = 1 if settings.method in FIXED else settings.seeds
    runs = [Clustering(denoiser, y, process, settings, seed + i, gradients, pieces) for i in range(count)]
    return describe(runs)


def describe(runs: list[Clustering]) -> Clusters:
    """What `cluster` returns of clusterings that differ in their seeds only."""
    first = runs[0]
    boundaries = first.boundaries()
    missing: dict[str, str] = {}
    result: Clusters = {
        "method": first.settings.method,
        "process": first.process.name,
        "seed": first.seed,
        "boundaries": boundaries,
        "boundaries_sigma": first.process.noise_levels(boundaries),
        "intervals": first.process.edges(boundaries),
        "spread": spread_of(runs, boundaries, missing),
        "grid": first.grid.tolist(),
        "similarity": value_or_none("similarity", lambda: first.similarity.round(6).tolist(), missing),
        "silhouette": {str(k): score for k, score in first.silhouettes(missing).items()},
        "curves": value_or_none("curves", first.curves, missing),
    }
    if missing:
        result["missing"] = missing
    return result


def spread_of(runs: list[Clustering], first: list[float], missing: dict[str, str]) -> Spread:
    """How far boundaries depend on the draws: those of every run, `first` among them, and their standard deviation."""
    boundaries = [
        first,
        *(value_or_none(f"boundaries of seed {run.seed}", run.boundaries, missing) for run in runs[1:]),
    ]
    known = [one for one in boundaries if one is not None]
    return {
        "seeds": [run.seed for run in runs],
        "boundaries": boundaries,
        "std": np.std(known, axis=0, ddof=min(1, len(known) - 1)).tolist(),
    }


def given_boundaries(process: Process, settings: ClusterTimesteps) -> list[float]:
    """Boundaries by hand, in t or in sigma; ValueError unless they ascend within the process's range."""
    given = settings.boundaries
    assert given is not None, "the params of the method given hold boundaries"
    t = process.t_of(torch.tensor(given, dtype=torch.float64)) if settings.boundaries_in == "sigma" else given
    boundaries = [process.as_t(float(value)) for value in t]
    check_ascending(settings.as_dict(), boundaries, process.low, process.high)
    return boundaries


def sigmas_at(process: Process, t: np.ndarray) -> np.ndarray:
    """Noise levels at timesteps, (T,) float64."""
    return process.noise_level(torch.from_numpy(np.asarray(t))).numpy()
