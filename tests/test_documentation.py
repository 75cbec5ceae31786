"""Every command of the README and the docs is run, in order, in a clone in which `make` has run."""

import argparse
import importlib
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, blocks_of, documentation, documented_blocks, run, without_blocks

from stagecraft.config.overlay import lay_over
from stagecraft.config.sections import Everything

# `make` has run when the clone is finished; `make test` is what runs this file, and a part of it `make quick`;
# continuous integration runs `make docs` after it.
RUN_ELSEWHERE = {"make", "make test", "make quick", "make docs", "snakemake --workflow-profile workflow/profiles/slurm"}


def is_run_elsewhere(block: str) -> bool:
    """Whether another test runs a block: the finished clone, this run itself, the tests of Slurm, queue and walk-through."""
    return block in RUN_ELSEWHERE or "--queue" in block or block in blocks_of(ROOT / "docs" / "walkthrough.md", "sh")


def inline_commands(start: str) -> list[str]:
    """The commands within the text of all pages that begin with some words, perhaps after variables, each once."""
    command = re.compile(rf"`((?:[A-Z_]+=\S+ )*{start}[^`<]+)`")
    found = [one for page in documentation() for one in command.findall(without_blocks(page))]
    return list(dict.fromkeys(one for one in found if one not in documented_blocks("sh")))


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


def run_command(folder: Path, command: str) -> None:
    """Run a command as a user's shell would; it has to succeed."""
    result = run(folder, "bash", "-euo", "pipefail", "-c", command)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


def test_the_pages_show_commands():
    assert set(documented_blocks("sh")) >= RUN_ELSEWHERE and len(documented_blocks("sh")) >= 14
    assert len(inline_commands("snakemake ")) >= 3 and len(inline_commands("python benchmarks/")) >= 9


@pytest.mark.parametrize("block", [block for block in documented_blocks("sh") if not is_run_elsewhere(block)])
def test_a_command_of_the_docs_runs(workspace, request, block):
    changes_params = "--config " in block or "-m stagecraft." in block
    run_command(request.getfixturevalue("apart") if changes_params else workspace, block)


@pytest.mark.parametrize("command", [one for one in inline_commands("snakemake ") if one not in RUN_ELSEWHERE])
def test_snakemake_takes_a_command_within_the_text(workspace, command):
    run_command(workspace, command if "--unlock" in command else f"{command} --dry-run")


class Parsed(Exception):
    """A program has taken its options."""


@pytest.mark.parametrize("command", inline_commands("python benchmarks/"))
def test_a_benchmark_takes_the_options_that_the_docs_name(monkeypatch, capsys, command):
    program, *options = shlex.split(command.removeprefix("python "))
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser) -> None:
        parse(parser, options)
        raise Parsed

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit if "--help" in options else Parsed) as ended:
        importlib.import_module(Path(program).stem).main()
    assert getattr(ended.value, "code", 0) == 0, capsys.readouterr().err


# Those about ONNX files need an export; tests/test_export.py runs them.
@pytest.mark.parametrize("block", [block for block in documented_blocks("python") if "onnxruntime" not in block])
def test_a_program_of_the_docs_runs(finished, block):
    result = run(finished, "python", "-c", block)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("block", documented_blocks("yaml"))
def test_params_shown_in_the_docs_are_valid(block):
    import yaml

    known = yaml.safe_load((ROOT / "params.yaml").read_text())
    Everything.model_validate(lay_over(known, yaml.safe_load(block)))
