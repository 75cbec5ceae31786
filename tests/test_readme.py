"""Every command of the README is run, in order, in a clone; the pipeline under DVC gives the bytes it gives without."""

import re
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, run

# `make` has run when the clone is finished; `make test` is what runs this file.
RUN_ELSEWHERE = {"make", "make test"}
SAME_BYTES = (
    "results/student/unet/diffusion_pytorch_model.safetensors",
    "results/clusters.json",
    "results/architecture.json",
    "results/search/mid_block.json",
    "results/features/index.json",
    "results/extractor.safetensors",
)


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language."""
    text = (ROOT / "README.md").read_text()
    return [block.strip() for block in re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)]


@pytest.fixture(scope="module")
def workspace(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("readme") / "clone", symlinks=True))


def test_the_readme_shows_commands():
    assert set(blocks("sh")) >= RUN_ELSEWHERE and len(blocks("sh")) >= 6


@pytest.mark.parametrize("block", [block for block in blocks("sh") if block not in RUN_ELSEWHERE])
def test_a_command_of_the_readme_runs(workspace, block):
    result = run(workspace, "bash", "-euo", "pipefail", "-c", block)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


@pytest.mark.parametrize("block", blocks("python"))
def test_a_program_of_the_readme_runs(finished, block):
    result = run(finished, "python", "-c", block)
    assert result.returncode == 0, result.stderr[-2000:]


def test_dvc_repro_gave_the_same_bytes_in_another_folder(workspace, finished):
    assert (workspace / "dvc.lock").is_file()
    for name in SAME_BYTES:
        assert (workspace / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.parametrize("block", blocks("yaml"))
def test_params_shown_in_the_readme_are_valid_keys(block):
    import yaml

    shown, known = yaml.safe_load(block), yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, keys in shown.items():
        assert set(keys) <= set(known[section])
