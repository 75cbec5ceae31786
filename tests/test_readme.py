"""Every command of the README is run, in order, in a clone in which `make` has run."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, readme_blocks, run

from stagecraft.config.overlay import lay_over
from stagecraft.config.sections import Everything

# `make` has run when the clone is finished; `make test` is what runs this file.
RUN_ELSEWHERE = {"make", "make test", "snakemake --workflow-profile workflow/profiles/slurm"}


def is_run_elsewhere(block: str) -> bool:
    """Whether another test runs a block: the finished clone, this test run itself, the tests of Slurm and of the queue."""
    return block in RUN_ELSEWHERE or "--queue" in block


@pytest.fixture(scope="module")
def workspace(finished) -> Iterator[Path]:
    """The finished clone, in a folder of its own."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(shutil.copytree(finished, Path(parent) / "clone", symlinks=True))
        for command in ("git config user.name t", "git config user.email t@example.org"):
            assert run(folder, *command.split()).returncode == 0
        yield folder


@pytest.fixture
def apart(finished, tmp_path) -> Path:
    """For a command after which the next ones would have much to do."""
    return Path(shutil.copytree(finished, tmp_path / "clone", symlinks=True))


def test_the_readme_shows_commands():
    assert set(readme_blocks("sh")) >= RUN_ELSEWHERE and len(readme_blocks("sh")) >= 6


@pytest.mark.parametrize("block", [block for block in readme_blocks("sh") if not is_run_elsewhere(block)])
def test_a_command_of_the_readme_runs(workspace, apart, block):
    result = run(apart if "--config " in block else workspace, "bash", "-euo", "pipefail", "-c", block)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


@pytest.mark.parametrize("block", readme_blocks("python"))
def test_a_program_of_the_readme_runs(finished, block):
    result = run(finished, "python", "-c", block)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("block", readme_blocks("yaml"))
def test_params_shown_in_the_readme_are_valid(block):
    import yaml

    known = yaml.safe_load((ROOT / "params.yaml").read_text())
    Everything.model_validate(lay_over(known, yaml.safe_load(block)))
