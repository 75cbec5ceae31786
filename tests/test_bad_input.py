"""What a user can get wrong ends in one line, an exit code that is not 0, and nothing half-written; through Snakemake."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import activated, clone, run, tiny_unet
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    folder = clone(tmp_path / "clone")
    images = folder / "data" / "raw" / "mine"
    images.mkdir(parents=True)
    for i in range(90):  # as many as the preset's figures need
        Image.fromarray(np.full((16, 16, 3), (2 * i, 0, 255), dtype=np.uint8)).save(images / f"{i:02}.png")
    edit(folder, "source: digits\n  path: null", "source: folder\n  path: data/raw/mine")
    return folder


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def refused(folder: Path, message: str, *targets: str) -> None:
    """Snakemake fails, the message stands on one line, no traceback, nothing half-written."""
    result = run(folder, "snakemake", *targets)
    output = result.stdout + result.stderr
    assert result.returncode != 0, output
    assert re.search(rf"^error: .*{message}.*$", output, flags=re.MULTILINE), output[-3000:]
    assert "Traceback" not in output
    made = [p for p in (*folder.glob("results/**/*"), *folder.glob("data/prepared/*")) if p.is_file()]
    assert not [p for p in made if p.suffix == ".tmp" or p.name.startswith(".")]


def test_a_truncated_image_is_named(folder):
    image = folder / "data" / "raw" / "mine" / "03.png"
    image.write_bytes(image.read_bytes()[:-30])
    refused(folder, r"03\.png.*truncated", "prepare_data")
    assert not list((folder / "data" / "prepared").glob("*"))


def test_a_text_file_named_png_is_named(folder):
    (folder / "data" / "raw" / "mine" / "04.png").write_text("no picture")
    refused(folder, r"04\.png", "prepare_data")


def test_an_empty_folder_is_named(folder):
    shutil.rmtree(folder / "data" / "raw" / "mine")
    (folder / "data" / "raw" / "mine").mkdir()
    refused(folder, "data/raw/mine", "prepare_data")


def test_one_pixel_images_are_refused(folder):
    for path in (folder / "data" / "raw" / "mine").iterdir():
        Image.new("L", (1, 1)).save(path)
    refused(folder, "1x1|1 pixel", "prepare_data")


def test_too_few_images_for_the_figures_are_refused_before_any_job(folder):
    for image in sorted((folder / "data" / "raw" / "mine").iterdir())[40:]:
        image.unlink()
    refused(
        folder, r"prepare_data: 32 training images are too few for evaluate\.kid_subset_size 64; at least 64 are needed"
    )
    assert not (folder / "logs").exists()


def test_more_intervals_than_noise_levels_are_refused_before_any_job(folder):
    edit(folder, "  intervals: 2", "  intervals: 3")
    edit(folder, "  grid: 20", "  grid: 2")
    refused(folder, r"cluster_timesteps\.intervals: 3 is more than the grid of 2 noise levels")
    assert not (folder / "logs").exists()


def test_a_misspelt_key_is_refused_before_any_job(folder):
    edit(folder, "retrain:\n  init", "retrain:\n  setps: 4\n  init")
    refused(folder, r"params\.yaml: retrain\.setps: unknown key, did you mean steps\?")
    assert not (folder / "logs").exists()


def test_a_teacher_without_weights_is_refused_before_any_job(folder):
    tiny_unet().save_pretrained(folder / "teacher" / "unet")
    (folder / "teacher" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    edit(folder, "source: train\n  path: null", "source: path\n  path: teacher")
    refused(folder, r"teacher/unet/diffusion_pytorch_model\.safetensors")


@pytest.mark.parametrize(
    ("changes", "key"), [({"sample_size": 16}, "in_channels"), ({"in_channels": 3, "out_channels": 3}, "sample_size")]
)
def test_a_teacher_of_another_shape_than_the_images_is_refused(folder, changes, key):
    tiny_unet(**changes).save_pretrained(folder / "teacher" / "unet")
    config = json.loads((folder / "teacher" / "unet" / "config.json").read_text())
    edit(folder, "source: train\n  path: null", "source: path\n  path: teacher")
    refused(folder, f"teacher/unet/config.json: {key} is {config[key]}", "train_teacher")
    assert not (folder / "results" / "teacher").exists() or not list((folder / "results" / "teacher").glob("*"))


def test_too_few_images_to_compare_with_stop_only_what_would_compare(folder):
    for path in sorted((folder / "data" / "raw" / "mine").iterdir())[40:]:
        path.unlink()
    for targets in (["prepare_data"], ["retrain"]):
        assert run(folder, "snakemake", "--dry-run", *targets).returncode == 0
    refused(folder, "training images are too few for evaluate.kid_subset_size", "--dry-run")
    refused(folder, "training images are too few for evaluate.kid_subset_size", "--dry-run", "evaluate")
    versioned = {**activated(), "DVC_STAGE": "prepare_data"}
    command = ["snakemake", "prepare_data", "--allowed-rules", "prepare_data", "--dry-run"]
    result = subprocess.run(command, cwd=folder, env=versioned, capture_output=True, text=True, check=False)
    assert result.returncode != 0 and "are too few for evaluate.kid_subset_size" in result.stderr
    assert not (folder / "logs").exists()
