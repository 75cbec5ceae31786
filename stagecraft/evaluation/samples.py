"""Pictures kept for the report: samples of teacher and student from the same seeds, real images, the student's path."""

from pathlib import Path

import numpy as np

from stagecraft.evaluation.metrics import Metrics
from stagecraft.runtime.files import atomic_path, check_same_hash, run_again, sha256_content

NAMES = ("teacher", "student", "real")
PATH = ("path_t", "path_sample", "path_image")
KEPT = 256


def save_samples(path: Path, sets: dict[str, np.ndarray], metrics_sha256: str) -> None:
    """Write the first 256 images of each set, uint8 (N, H, W, C), and the student's path, as npz; the same bytes for the same.

    Args:
        metrics_sha256: hash of the content of metrics.json, which carries none, as DVC would list it among the metrics.
    """
    with atomic_path(path) as aside, open(aside, "wb") as file:
        kept = {name: sets[name][:KEPT] for name in (*NAMES, *PATH)}
        np.savez_compressed(file, allow_pickle=False, metrics_sha256=np.array(metrics_sha256), **kept)


def load_samples(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """The sets and the hash that `save_samples` wrote; ValueError when they are damaged, as the checksums of the npz tell."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in (*NAMES, *PATH)}, str(file["metrics_sha256"])
    except Exception as error:
        raise ValueError(f"{path}: damaged ({' '.join(str(error).split())}); {run_again('evaluate', path)}") from error


def check_metrics(path: Path, metrics: Metrics, sha256: str) -> None:
    """Raise ValueError unless metrics.json, at `path`, has the hash that is kept with the samples."""
    check_same_hash(path, sha256_content(metrics), sha256, "samples.npz", run_again("evaluate", path))
