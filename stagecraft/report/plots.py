"""results/plots: the charts of the report as DVC draws them, data points in JSON and one picture; see `plots` in dvc.yaml."""

from pathlib import Path

import numpy as np

from stagecraft.clustering.record import Clusters
from stagecraft.report import charts
from stagecraft.report.page import Searches, candidate_point, cost_kind, teacher_costs
from stagecraft.runtime.files import atomic_path, write_json
from stagecraft.training.assembled import AssembledStudent

Points = list[dict[str, float | str | bool | None]]
CELL = 6  # pixels of a cell of the heat map
PICTURE = "similarity.png"


def write_plots(folder: Path, clusters: Clusters, architecture: AssembledStudent, searches: Searches) -> None:
    """Write all files; one whose chart the run has no data for holds no points, or an empty picture."""
    points = {
        "silhouette": silhouette_points(clusters),
        "curves": curve_points(clusters),
        "candidates": candidate_points(architecture, searches),
        "supernets": loss_points(searches),
    }
    for name, found in points.items():
        write_json(folder / f"{name}.json", {"points": found})
    with atomic_path(folder / PICTURE) as aside:
        aside.write_bytes(charts.encode_png(heat_map(clusters)))


def silhouette_points(clusters: Clusters) -> Points:
    """The silhouette over K."""
    values = {int(k): value for k, value in clusters["silhouette"].items() if value is not None}
    return [{"K": k, "silhouette": value} for k, value in sorted(values.items())]


def curve_points(clusters: Clusters) -> Points:
    """S0 and S1 over t."""
    curves = clusters["curves"]
    if curves is None:
        return []
    return [{"t": t, "S0": s0, "S1": s1} for t, s0, s1 in zip(curves["t"], curves["s0"], curves["s1"], strict=True)]


def candidate_points(architecture: AssembledStudent, searches: Searches) -> Points:
    """Error and cost of every candidate, time where layers were timed and MACs otherwise, as a share of the teacher's block."""
    points: Points = []
    for name, search in sorted(searches.items()):
        whole = teacher_costs(search)
        kind = cost_kind(whole)
        chosen = architecture["chosen"].get(name)
        for candidate in search["candidates"]:
            cost, nmse = candidate_point(candidate, whole, kind)
            is_chosen = chosen is not None and candidate["spec"] == chosen["spec"]
            points.append({"block": name, "cost": cost, "NMSE": nmse, "counted in": kind, "chosen": is_chosen})
    return points


def loss_points(searches: Searches) -> Points:
    """Losses of the supernets over their steps."""
    return [
        {"block": name, "step": entry["step"], "loss": entry["loss"]}
        for name, search in sorted(searches.items())
        for entry in search["log"]
    ]


def heat_map(clusters: Clusters) -> np.ndarray:
    """The similarity of the optimal denoisers, uint8 (H, W, 3), with white lines at the boundaries."""
    matrix = clusters["similarity"]
    if not matrix:
        return np.full((CELL, CELL, 3), 255, np.uint8)
    pixels = charts.ramp_colours(np.asarray(matrix, dtype=float)).repeat(CELL, axis=0).repeat(CELL, axis=1)
    for edge in CELL * np.searchsorted(clusters["grid"], clusters["boundaries"]):
        pixels[edge, :] = 255
        pixels[:, edge] = 255
    return pixels
