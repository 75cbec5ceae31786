"""The charts of the report as DVC draws them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import ROOT, run
from PIL import Image
from test_report import BLOCKS, SMALLER, make_architecture, make_clusters, make_search

from stagecraft.report.plots import PICTURE, write_plots
from stagecraft.runtime.files import read_json

PLOTS: list[Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with results/plots, in which three candidates of one block are known."""
    write_plots(tmp_path / "results" / "plots", make_clusters(), make_architecture(), make_searches())
    return tmp_path


def make_searches() -> dict[str, Any]:
    searches = {name: make_search() for name in BLOCKS}
    mid = searches["mid_block"]
    whole = {"spec": mid["identity"], "macs": 220, "params": 80, "nmse": 0.001, "time": 0.5}
    half = {"spec": SMALLER, "macs": 100, "params": 30, "nmse": 0.02, "time": 0.2}
    none = {"spec": {}, "macs": 0, "params": 0, "nmse": 0.9, "time": 0.0}
    mid["candidates"] = [whole, half, none]
    return searches


def points(folder: Path, name: str) -> list[dict[str, Any]]:
    return read_json(folder / "results" / "plots" / f"{name}.json")["points"]


def test_candidates_are_drawn_over_time_where_layers_were_timed(folder: Path) -> None:
    mid = [point for point in points(folder, "candidates") if point["block"] == "mid_block"]
    assert [(point["cost"], point["counted in"], point["chosen"]) for point in mid] == [
        (1.0, "time", False),
        (0.4, "time", True),
        (0.0, "time", False),
    ]
    others = [point for point in points(folder, "candidates") if point["block"] != "mid_block"]
    assert {point["counted in"] for point in others} == {"macs"}
    assert others[-1]["cost"] == pytest.approx(100 / 220)


def test_the_heat_map_has_a_line_at_every_boundary(folder: Path) -> None:
    with Image.open(folder / "results" / "plots" / PICTURE) as picture:
        pixels = np.asarray(picture)
    white = [row for row in range(len(pixels)) if (pixels[row] == 255).all()]
    assert len(white) == len(make_clusters()["boundaries"])


def test_dvc_has_every_file_with_the_columns_that_it_draws(folder: Path) -> None:
    drawn = {plot for plot in PLOTS if isinstance(plot, str)}
    for plot in (plot for plot in PLOTS if isinstance(plot, dict)):
        ((_, settings),) = plot.items()
        for path, names in settings["y"].items():
            drawn.add(path)
            if path.startswith("results/plots/"):
                columns = points(folder, Path(path).stem)[0]
                assert {settings["x"], *([names] if isinstance(names, str) else names)} <= columns.keys()
    made = {path.relative_to(folder).as_posix() for path in (folder / "results" / "plots").iterdir()}
    assert made == {path for path in drawn if path.startswith("results/plots/")}


def test_dvc_draws_them(folder: Path) -> None:
    for command in ("git init --quiet", "dvc init --quiet"):
        assert run(folder, *command.split()).returncode == 0
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    shutil.copy(ROOT / "dvc.yaml", folder)
    shown = run(folder, "dvc", "plots", "show", "--out", "drawn")
    assert shown.returncode == 0, shown.stderr
    page = (folder / "drawn" / "index.html").read_text()
    titles = {
        "Losses of the supernets",
        "Candidates of all blocks",
        "Silhouette over the number of intervals",
        "S0 and S1",
    }
    assert {title for title in titles if title not in page} == set()
    assert "mid_block" in page and "<DVC_METRIC" not in page and "similarity.png" in page


def test_what_the_clustering_did_not_compute_leaves_files_without_points(tmp_path: Path) -> None:
    clusters = make_clusters() | {"similarity": None, "silhouette": {"2": None}, "curves": None}
    write_plots(tmp_path / "results" / "plots", clusters, make_architecture(), {})
    assert [points(tmp_path, name) for name in ("silhouette", "curves", "candidates", "supernets")] == [[]] * 4
    assert (tmp_path / "results" / "plots" / PICTURE).is_file()
