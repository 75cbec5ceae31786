"""Timesteps clustered into stages, by the method that the params name."""

import itertools
from typing import Any

import numpy as np
import torch

from stages.clustering.denoiser import OptimalDenoiser
from stages.clustering.partition import (
    agglomerative_labels,
    boundaries_of,
    silhouettes,
    threshold_boundaries,
    uniform_boundaries,
)
from stages.clustering.similarity import draw_pairs, limit_shares, similarity_matrix
from stages.diffusion.process import VPProcess
from stages.pieces import Pieces

CURVE_POINTS = 100


def cluster(
    images_NHWC: np.ndarray,
    process: VPProcess,
    settings: dict[str, Any],
    seed: int,
    pieces: Pieces | None = None,
) -> dict[str, Any]:
    """Cluster the timesteps of a process over a training set.

    Args:
        images_NHWC: uint8 training images.
        settings: the `cluster_timesteps` section of the params. `image_range` is the range that pixels are scaled to; the
            published boundaries hold for [0, 1].
        pieces: as in `similarity_matrix`.

    Returns:
        The content of results/clusters.json, without `params`.

    Raises:
        ValueError: `threshold` finds no three stages.
    """
    low, high = settings["image_range"]
    y = images_NHWC.reshape(len(images_NHWC), -1).astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)
    denoiser, rng = OptimalDenoiser(y), np.random.default_rng(seed)
    grid = np.unique(np.linspace(0, process.timesteps - 1, settings["grid"]).round().astype(int))
    x0, eps = draw_pairs(y, settings["draws"], rng)
    similarity = similarity_matrix(denoiser, x0, eps, sigmas_at(process, grid), pieces)
    shares = draw_shares(denoiser, y, process, settings, rng) if settings["method"] == "threshold" else None
    boundaries = choose_boundaries(process, settings, grid, similarity, shares)
    edges = [0, *boundaries, process.timesteps]
    return {
        "method": settings["method"],
        "process": "vp",
        "seed": seed,
        "boundaries": boundaries,
        "boundaries_sigma": sigmas_at(process, np.array(boundaries, dtype=int)).tolist(),
        "stages": [list(pair) for pair in itertools.pairwise(edges)],
        "grid": grid.tolist(),
        "similarity": similarity.round(6).tolist(),
        "silhouette": {str(k): score for k, score in silhouettes(similarity).items()},
        "curves": None if shares is None else mean_curves(*shares),
    }


def choose_boundaries(
    process: VPProcess,
    settings: dict[str, Any],
    grid: np.ndarray,
    similarity: np.ndarray,
    shares: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> list[int]:
    """Boundaries by the method in `settings`."""
    if shares is not None:
        return threshold_boundaries(*shares, settings["alpha"])
    if settings["method"] == "uniform":
        return uniform_boundaries(process.timesteps, settings["stages"])
    return boundaries_of(agglomerative_labels(similarity, settings["stages"]), grid)


def draw_shares(
    denoiser: OptimalDenoiser, y: np.ndarray, process: VPProcess, settings: dict[str, Any], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(t, S0, S1) of `draws` triples (x0, eps, t) with t uniform, each (draws,)."""
    x0, eps = draw_pairs(y, settings["draws"], rng)
    t = rng.integers(process.timesteps, size=len(x0))
    return t, *limit_shares(denoiser, x0, eps, sigmas_at(process, t), settings["eta"])


def mean_curves(t: np.ndarray, s0: np.ndarray, s1: np.ndarray) -> dict[str, list[float]]:
    """S0 and S1 averaged over stretches of t with equally many draws, for the report."""
    parts = np.array_split(np.argsort(t, kind="stable"), min(CURVE_POINTS, len(t)))
    curves = {
        name: [float(values[part].mean()) for part in parts] for name, values in (("t", t), ("s0", s0), ("s1", s1))
    }
    return curves


def sigmas_at(process: VPProcess, t: np.ndarray) -> np.ndarray:
    """Noise levels at timesteps, (T,) float64."""
    return process.sigma_of(torch.from_numpy(np.asarray(t, dtype=np.int64))).numpy()
