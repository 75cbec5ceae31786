"""Render results/report.html and its plots for DVC: python -m stages.report --params JSON --threads N --metrics PATH ..."""

from pathlib import Path
from typing import cast

from stagecraft.clustering.record import read_clusters
from stagecraft.config.stages import Report
from stagecraft.evaluation.metrics import read_metrics
from stagecraft.evaluation.samples import check_metrics, load_samples
from stagecraft.report.page import Searches, render_report
from stagecraft.report.plots import write_plots
from stagecraft.runtime.command import run_command
from stagecraft.runtime.files import atomic_path
from stagecraft.search.results import read_results
from stagecraft.training.assembled import read_architecture
from stagecraft.training.log import read_log


def report(
    params: Report,
    *,
    threads: int,
    metrics: Path,
    samples: Path,
    clusters: Path,
    architecture: Path,
    search: Path,
    logs: list[Path],
    output: Path,
    plots: Path,
) -> None:
    """Write the page, and the files that DVC draws."""
    measured = read_metrics(metrics)
    images, sha256 = load_samples(samples)
    check_metrics(metrics, measured, sha256)
    clustering = read_clusters(clusters)
    assembled = read_architecture(architecture)
    searches = cast(Searches, read_results(search))
    histories = {path.stem: read_log(path) for path in logs}
    page = render_report(measured, images, clustering, assembled, searches, histories, params)
    write_plots(plots, clustering, assembled, searches)
    with atomic_path(output) as aside:
        aside.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run_command(report)
