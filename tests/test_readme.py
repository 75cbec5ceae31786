"""Every command of the README is run, in order, in a clone; the pipeline under DVC gives the bytes it gives without."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, clone, readme_blocks, run

from stages.config import schema_problems

# `make` has run when the clone is finished; `make test` is what runs this file.
RUN_ELSEWHERE = {"make", "make test", "snakemake --workflow-profile workflow/profiles/slurm"}


def is_run_elsewhere(block: str) -> bool:
    """Whether another test runs a block: the finished clone, this test run itself, the tests of Slurm and of the queue."""
    return block in RUN_ELSEWHERE or "--queue" in block


SAME_BYTES = (
    "results/student/unet/diffusion_pytorch_model.safetensors",
    "results/clusters.json",
    "results/architecture.json",
    "results/search/mid_block.json",
    "results/features/index.json",
    "results/extractor.safetensors",
)


@pytest.fixture(scope="module")
def workspace() -> Iterator[Path]:
    """A clone in which `dvc repro` has run everything; what it printed is in ../output.txt."""
    with tempfile.TemporaryDirectory() as parent:
        folder = clone(Path(parent) / "clone")
        for command in ("git config user.name t", "git config user.email t@example.org", "dvc repro"):
            result = run(folder, *command.split())
            assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        (Path(parent) / "output.txt").write_text(result.stdout + result.stderr)
        yield folder


def test_dvc_repro_gives_the_bytes_that_snakemake_gives_in_another_folder(workspace, finished):
    for name in SAME_BYTES:
        assert (workspace / name).read_bytes() == (finished / name).read_bytes(), name


def side_by_side(printed: str) -> int:
    """The most block searches that Snakemake had running at once."""
    most = running = 0
    for line in printed.splitlines():
        running += line.startswith(("rule search_block:", "localrule search_block:"))
        running -= bool(re.match(r"Finished jobid: \d+ \(Rule: search_block\)", line))
        most = max(most, running)
    return most


def test_dvc_repro_searches_blocks_side_by_side(workspace):
    assert side_by_side((workspace.parent / "output.txt").read_text()) >= 2


def test_the_readme_shows_commands():
    assert set(readme_blocks("sh")) >= RUN_ELSEWHERE and len(readme_blocks("sh")) >= 6


@pytest.mark.parametrize("block", [block for block in readme_blocks("sh") if not is_run_elsewhere(block)])
def test_a_command_of_the_readme_runs(workspace, block):
    result = run(workspace, "bash", "-euo", "pipefail", "-c", block)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


@pytest.mark.parametrize("block", readme_blocks("python"))
def test_a_program_of_the_readme_runs(finished, block):
    result = run(finished, "python", "-c", block)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("block", readme_blocks("yaml"))
def test_params_shown_in_the_readme_are_valid(block):
    import yaml

    shown, known = yaml.safe_load(block), yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, value in shown.items():
        known[section] = known[section] | value if isinstance(value, dict) else value
    assert [*schema_problems(known)] == []
