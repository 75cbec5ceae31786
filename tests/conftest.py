"""Small models and data that many tests share."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def diffusion_settings() -> dict:
    return {
        "process": "vp",
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
    }


def tiny_unet(**changes):
    """A UNet2DModel of two levels with attention, random weights that are not at their initial zeros."""
    import torch
    from diffusers import UNet2DModel

    settings = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    torch.manual_seed(0)
    unet = UNet2DModel(**settings | changes).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """64 digits, uint8 N,H,W,C."""
    from sklearn.datasets import load_digits

    return (load_digits().images[:64, :, :, None] * 15.9375).round().astype(np.uint8)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, with the environment active and without this process's thread settings."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_"))}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def clone(folder: Path) -> Path:
    """A clone of the repository as it is in the working tree, with the smoke preset as its params and this environment."""
    listed = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shutil.copy(folder / "presets" / "smoke.yaml", folder / "params.yaml")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "dvc.lock").unlink(missing_ok=True)
    for command in ("init -q", "add -A", "-c user.name=t -c user.email=t@example.org commit -qm smoke"):
        assert run(folder, "git", *command.split()).returncode == 0
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which `make` has run the whole smoke preset; what it printed is in output.txt. Not to be changed."""
    folder = clone(tmp_path_factory.mktemp("smoke") / "one")
    result = run(folder, "bash", "-c", "make 2>&1")
    assert result.returncode == 0, result.stdout[-3000:]
    (folder / "output.txt").write_text(result.stdout)
    return folder
