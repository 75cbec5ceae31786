"""The content of clusters.json. Light: no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from stagecraft.runtime.files import read_checked_json


class Spread(TypedDict):
    """Boundaries by seed, None where they could not be computed, and their standard deviation."""

    seeds: list[int]
    boundaries: list[list[float] | None]
    std: list[float]


class Curves(TypedDict):
    """S0 and S1 at every t."""

    t: list[float]
    s0: list[float]
    s1: list[float]


class Clusters(TypedDict):
    """The content of clusters.json; what could not be computed is None, or has a None, and a reason in `missing`."""

    method: str
    process: str
    seed: int
    boundaries: list[float]
    boundaries_sigma: list[float | None]
    intervals: list[list[float]]
    spread: Spread
    grid: list[float]
    similarity: list[list[float]] | None
    silhouette: dict[str, float | None]
    curves: Curves | None
    missing: NotRequired[dict[str, str]]
    params: NotRequired[Mapping[str, object]]


def read_clusters(path: Path) -> Clusters:
    """The content of clusters.json; ValueError unless it is as it was written."""
    return cast(Clusters, read_checked_json(path, "cluster_timesteps"))
