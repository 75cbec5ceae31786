"""Render results/report.html: python -m stages.report --params JSON --threads N --metrics PATH ... --output PATH."""

from pathlib import Path

from stagecraft.config.stages import Report
from stagecraft.evaluation.samples import check_metrics, load_samples
from stagecraft.report.page import render_report
from stagecraft.runtime.command import run_command
from stagecraft.runtime.files import atomic_path, read_checked_json, read_json, run_again
from stagecraft.search.results import read_results


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
) -> None:
    """Write the page."""
    measured = read_json(metrics, run_again("evaluate", metrics))
    (images, sha256) = load_samples(samples)
    check_metrics(metrics, measured, sha256)
    page = render_report(
        measured,
        images,
        read_checked_json(clusters, "cluster_timesteps"),
        read_checked_json(architecture, "assemble"),
        {name: dict(result) for name, result in read_results(search).items()},
        {path.stem: read_checked_json(path, path.stem) for path in logs},
        params,
    )
    with atomic_path(output) as aside:
        aside.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run_command(report)
