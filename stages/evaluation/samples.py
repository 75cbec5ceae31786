"""Pictures kept for the report: samples of teacher and student from the same seeds, and real images."""

from pathlib import Path

import numpy as np

from stages.files import atomic_path

NAMES = ("teacher", "student", "real")
KEPT = 256


def save_samples(path: Path, sets: dict[str, np.ndarray]) -> None:
    """Write the first 256 images of each set, uint8 (N, H, W, C), as npz; the same bytes for the same images."""
    with atomic_path(path) as aside, open(aside, "wb") as file:
        teacher, student, real = (sets[name][:KEPT] for name in NAMES)
        np.savez_compressed(file, teacher=teacher, student=student, real=real)


def load_samples(path: Path) -> dict[str, np.ndarray]:
    """Read the sets of `save_samples`."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in NAMES}
