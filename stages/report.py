"""Render results/report.html: python -m stages.report --params JSON --threads N --metrics PATH ... --output PATH."""

from pathlib import Path
from typing import Any

from stages.command import run_command


def report(
    params: dict[str, Any],
    *,
    threads: int,
    metrics: Path,
    samples: Path,
    clusters: Path,
    architecture: Path,
    search: list[Path],
    logs: list[Path],
    output: Path,
) -> None:
    """Write the page."""
    from stages.evaluation.report import render_report
    from stages.evaluation.samples import load_samples
    from stages.files import atomic_path, read_json

    page = render_report(
        read_json(metrics),
        load_samples(samples),
        read_json(clusters),
        read_json(architecture),
        {path.stem: read_json(path) for path in search},
        {path.stem: read_json(path) for path in logs},
        params,
    )
    with atomic_path(output) as aside:
        aside.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run_command(report)
