"""What ends a stage from outside: no memory, no disk, no place to write. One line that says what to do, old files kept."""

import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TRAINED_ON, preset_params, run, tiny_unet
from safetensors.torch import save_file

from stagecraft.config.stages import STAGE_SECTIONS
from stagecraft.runtime.command import explain
from stagecraft.runtime.files import atomic_folder, atomic_path, write_json
from stagecraft.runtime.journal import Pieces, kept_array
from stagecraft.training.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[1]
LIMIT = 20_000  # bytes
BIG = torch.zeros(LIMIT)


@contextmanager
def full_disk():
    """Files of this process end at the limit, as on a full disk; so does the one that pytest may print to."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def safetensors_file(path):
    with atomic_path(path) as aside:
        save_file({"a": BIG}, aside)


def model_folder(path):
    with atomic_folder(path) as aside:
        tiny_unet().save_pretrained(aside / "unet")


def array(path):
    kept_array(Pieces(path.parent, {}), path.name, lambda: BIG.numpy())


WRITERS = {
    "checkpoint.pt": lambda path: save_checkpoint(path, {"weights": BIG}),
    "weights.safetensors": safetensors_file,
    "record.json": lambda path: write_json(path, list(range(LIMIT))),
    "piece.npy": array,
    "folder": model_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_with_the_path_and_the_old_file_stays(tmp_path, name):
    path = tmp_path / name
    old = path / "old.txt" if name == "folder" else path
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")
    with pytest.raises(OSError) as caught, full_disk():
        WRITERS[name](path)
    line = explain("retrain", caught.value)
    assert line.startswith(f"{path}: cannot be written (")
    assert "File too large" in line or "written)" in line  # numpy counts the items that were
    assert line.endswith("free space or allow writing, then run again")
    assert old.read_text() == "old" and {file.name for file in tmp_path.iterdir()} == {name}


@pytest.mark.parametrize("name", WRITERS)
def test_a_place_that_is_no_folder_is_named(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=str(tmp_path / "file")):
        WRITERS[name](tmp_path / "file" / name)


def test_a_mistake_of_the_program_is_not_taken_for_a_failure_to_write(tmp_path):
    with pytest.raises(RuntimeError, match="a defect"), atomic_path(tmp_path / "a"):
        raise RuntimeError("a defect")
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a"):
        (tmp_path / "elsewhere").read_bytes()
    assert caught.value.filename == str(tmp_path / "elsewhere")


def allocated_by_torch():
    torch.zeros(2**60)


def allocated_by_numpy():
    np.zeros(2**56)


def allocated_by_python():
    bytearray(2**62)


def refused_by_cuda():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 1 GiB")


@pytest.mark.parametrize("allocate", [allocated_by_torch, allocated_by_numpy, allocated_by_python, refused_by_cuda])
def test_a_lack_of_memory_says_what_to_lower(allocate):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    line = explain("retrain", caught.value)
    assert (
        line.startswith("out of memory; lower retrain.batch_size, or set its gradient_checkpointing: true (")
        and "\n" not in line
    )
    assert explain("report", caught.value).startswith("out of memory; give the job more (mem_mb)")


def test_defects_keep_their_traceback():
    assert explain("retrain", RuntimeError("shape mismatch")) is None
    assert explain("retrain", KeyError("x")) is None


def command(stage: str, changes: dict, *flags: str) -> list[str]:
    """A stage's command on the smoke preset, with changes to its own section."""
    params = preset_params("smoke") | {"device": "cpu"}
    params[stage] |= changes
    text = json.dumps({section: params[section] for section in STAGE_SECTIONS[stage]})
    return [sys.executable, "-m", f"stages.{stage}", "--params", text, "--threads", "1", *flags]


def teacher(**changes) -> list[str]:
    flags = [*TRAINED_ON, "--output", "results/teacher", "--log", "results/logs/train_teacher.json"]
    return command("train_teacher", changes, *flags)


def test_a_disk_that_fills_up_is_named_and_the_last_checkpoint_stays(folder):
    shutil.rmtree(folder / "results", ignore_errors=True)
    checkpoint = folder / "results" / "checkpoints" / "train_teacher.pt"
    program = teacher(steps=100_000, checkpoint_every=5)
    process = subprocess.Popen(program, cwd=folder, stderr=subprocess.DEVNULL)
    while not checkpoint.exists() and process.poll() is None:
        pass
    process.kill()
    process.wait()
    before = checkpoint.read_bytes()
    limited = ["bash", "-c", 'ulimit -f 50; exec "$@"', "bash", *program]
    result = run(folder, *limited)
    line = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert line.startswith(
        "error: train_teacher: results/checkpoints/train_teacher.pt: cannot be written (File too large)"
    )
    assert checkpoint.read_bytes() == before and len([*checkpoint.parent.iterdir()]) == 1


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_batch_that_does_not_fit_into_memory_ends_in_one_line(folder, processes):
    shutil.rmtree(folder / "results", ignore_errors=True)
    result = run(folder, *teacher(batch_size=10**14), "--processes", processes)
    assert result.returncode == 1 and "Traceback" not in result.stderr and result.stderr.count("error:") == 1
    assert result.stderr.splitlines()[-1].startswith(
        "error: train_teacher: out of memory; lower train_teacher.batch_size"
    )
    assert not [path for path in folder.glob("results/**/*") if path.is_file()]


def test_a_loss_that_explodes_ends_in_one_line_and_keeps_the_last_checkpoint(folder):
    shutil.rmtree(folder / "results", ignore_errors=True)
    result = run(folder, *teacher(learning_rate=1e20, warmup_steps=60, checkpoint_every=1))
    line = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert line.startswith("error: train_teacher: ") and " at step " in line and "lower learning_rate" in line
    state = torch.load(folder / "results" / "checkpoints" / "train_teacher.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["model"].values())
    assert not (folder / "results" / "teacher").exists()


def test_a_teacher_of_fewer_classes_than_the_images_have_is_refused(folder):
    shutil.rmtree(folder / "results", ignore_errors=True)
    tiny_unet(num_class_embeds=5).save_pretrained(folder / "given" / "unet")
    result = run(folder, *teacher(source="path", path="given"))
    line = (result.stderr.splitlines() or [""])[-1]
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert line.startswith("error: train_teacher: given/unet/config.json: num_class_embeds is 5"), line
    assert not (folder / "results" / "teacher").exists()


def test_what_cannot_be_written_is_named_by_a_stage(folder):
    shutil.rmtree(folder / "results", ignore_errors=True)
    (folder / "results").write_text("in the way")
    result = run(folder, *teacher(steps=2, warmup_steps=0))
    os.unlink(folder / "results")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "results" in result.stderr.splitlines()[-1] and result.stderr.splitlines()[-1].startswith("error: ")
