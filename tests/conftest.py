"""Small models and data that many tests share."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import pytest
from helpers import clone, run, tiny_unet


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


@pytest.fixture(scope="session")
def edm_settings() -> dict:
    return {
        "process": "edm",
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 0.5,
        "rho": 7.0,
        "p_mean": -1.2,
        "p_std": 1.2,
    }


@pytest.fixture(scope="session", params=["vp", "edm"])
def process(request, diffusion_settings, edm_settings):
    """A noise process of each kind."""
    from stages.diffusion.process import make_process

    return make_process({"vp": diffusion_settings, "edm": edm_settings}[request.param])


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """64 digits, uint8 N,H,W,C."""
    from sklearn.datasets import load_digits

    return (load_digits().images[:64, :, :, None] * 15.9375).round().astype(np.uint8)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which `make` has run the whole smoke preset; what it printed is in output.txt. Not to be changed."""
    folder = clone(tmp_path_factory.mktemp("smoke") / "one")
    result = run(folder, "bash", "-c", "make 2>&1")
    assert result.returncode == 0, result.stdout[-3000:]
    (folder / "output.txt").write_text(result.stdout)
    return folder
