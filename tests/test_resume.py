"""Stages that are killed in the middle, with SIGKILL, continue from what they had and end with the same bytes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import run

from stagecraft.config.stages import stage_params
from stagecraft.evaluation.samples import load_samples

FLAGS = {
    "cluster_timesteps": "--latents data/latents --prompts data/prompts --teacher results/teacher --output results/clusters.json",
    "cache_features": "--latents data/latents --prompts data/prompts --teacher results/teacher --clusters results/clusters.json "
    "--output results/features",
    "rank_channels": "--latents data/latents --prompts data/prompts --teacher results/teacher --output results/importance.json",
    "evaluate": "--prompts data/prompts --autoencoder results/autoencoder --teacher results/teacher --student results/student "
    "--architecture results/architecture.json --extractor results/extractor.safetensors "
    "--output results/metrics.json --samples results/samples.npz",
}


def command(folder: Path, stage: str) -> list[str]:
    """A stage's command as its rule gives it."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    text = json.dumps(stage_params(params, stage))
    threads = str(min(8, len(os.sched_getaffinity(0))))
    flags = ["--params", text, "--threads", threads, "--data", "data/prepared", *FLAGS[stage].split()]
    return [sys.executable, "-m", f"stages.{stage}", *flags]


def kill_when(folder: Path, program: list[str], pattern: str) -> None:
    """Start a command and send SIGKILL once a file that matches the pattern is there."""
    process = subprocess.Popen(program, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(folder.glob(pattern)) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9, "the run ended before it could be killed"


def results(folder: Path, *patterns: str) -> dict[str, object]:
    """The bytes of files by name; of what depends on the clock the rest: the FIDs of metrics.json, the images of samples.npz."""
    found: dict[str, object] = {}
    for path in (path for pattern in patterns for path in (folder / "results").glob(pattern)):
        found[path.name] = path.read_bytes()
        if path.name == "metrics.json":
            found[path.name] = [json.loads(path.read_text())[model]["fid"] for model in ("teacher", "student")]
        if path.name == "samples.npz":
            found[path.name] = [images.tobytes() for images in load_samples(path)[0].values()]
    return found


@pytest.mark.parametrize(
    ("stage", "piece", "outputs"),
    [
        ("cluster_timesteps", "seed-0-level-0003.npy", ["clusters.json"]),
        ("cache_features", "interval_0-shard_1.safetensors", ["features/*"]),
        ("rank_channels", "batch-003.npy", ["importance.json"]),
        ("evaluate", "teacher-00001.npy", ["metrics.json", "samples.npz"]),
    ],
)
def test_a_killed_job_continues_and_ends_with_the_same_bytes(finished, tmp_path, stage, piece, outputs):
    folder = Path(shutil.copytree(finished, tmp_path / "killed", symlinks=True))
    for path in (path for pattern in outputs for path in (folder / "results").glob(pattern)):
        path.unlink()
    pieces = folder / "results" / "checkpoints" / stage
    kill_when(folder, command(folder, stage), f"results/checkpoints/{stage}/{piece}")
    assert not results(folder, *outputs)
    shard = pieces / "interval_0-shard_0.safetensors"
    made_at = shard.stat().st_mtime_ns if shard.exists() else None
    result = run(folder, *command(folder, stage))
    assert result.returncode == 0, result.stderr
    assert "not used" not in result.stderr and not pieces.exists()
    assert results(folder, *outputs) == results(finished, *outputs)
    if made_at:
        assert (folder / "results" / "features" / shard.name).stat().st_mtime_ns == made_at
