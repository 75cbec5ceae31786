"""Small models and data that many tests share."""

import itertools
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at once
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # and their jobs may have two threads, of which none should spin

import numpy as np
import pytest
from filelock import FileLock
from helpers import EDM, FLOW, ROOT, clone, prepare, run, tiny_unet

# Files whose tests take minutes. They go first, so that no process ends with one of them while the other has nothing left.
SLOWEST = (
    "test_handshake",
    "test_workflow",  # needs no finished run, which the first file is making
    "test_documentation",
    "test_walkthrough",
    "test_processes",
    "test_prompts",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the slowest files first, file by file."""
    order = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


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
    return dict(EDM)


@pytest.fixture(scope="session")
def settings_of_processes(diffusion_settings, edm_settings) -> dict[str, dict]:
    """A `diffusion` section of each process, by its name."""
    return {"vp": diffusion_settings, "edm": edm_settings, "flow": dict(FLOW)}


@pytest.fixture(scope="session", params=["vp", "edm", "flow"])
def process(request, settings_of_processes):
    """A noise process of each kind."""
    from stagecraft.diffusion.registry import make_process

    return make_process(settings_of_processes[request.param])


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """64 digits, uint8 N,H,W,C."""
    from sklearn.datasets import load_digits

    return (load_digits().images[:64, :, :, None] * 15.9375).round().astype(np.uint8)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A clone in which `make` has run the whole smoke preset; what it printed is in output.txt. Not to be changed.

    Test processes that run side by side share one.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent
    folder = shared / "smoke" / "one"
    with FileLock(shared / "smoke.lock"):
        if not (folder / "output.txt").exists():
            # Without set-up: an environment that `make` has not made would else be left with this clone installed in it.
            result = run(clone(folder), "bash", "-c", "make --old-file=.venv/.installed 2>&1")
            assert result.returncode == 0, result.stdout[-3000:]
            (folder / "output.txt").write_text(result.stdout)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with prepared images, in which stages can be run."""
    folder = tmp_path_factory.mktemp("stages")
    for package in ("stages", "stagecraft"):
        (folder / package).symlink_to(ROOT / package)
    prepare(folder)
    return folder


@pytest.fixture(scope="session")
def models_from_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a teacher and of an autoencoder; not to be changed."""
    from refusals import save_models

    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def scenes(models_from_elsewhere: Path, tmp_path: Path):
    """A function that makes a new scene of a refusal, in a folder of its own."""
    from refusals import Scene

    numbers = itertools.count()

    def make() -> Scene:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return Scene(models_from_elsewhere, folder)

    return make
