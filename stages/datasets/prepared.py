"""The prepared data set on disk: `images.npy`, `labels.npy` and `meta.json` in one folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.datasets.sources import Images
from stages.files import atomic_path, read_json, sha256_file, write_json

META_KEYS = ("source", "count", "resolution", "channels", "sha256", "class_names", "train", "held_out", "params")
REMEDY = "run prepare_data again"


@dataclass(frozen=True)
class PreparedData:
    """Images uint8 (N, H, W, C), memory-mapped, labels int64 (N,) or None, and the split, int64 indices ascending."""

    path: Path
    images: np.ndarray
    labels: np.ndarray | None
    train_index: np.ndarray
    held_out_index: np.ndarray
    meta: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> PreparedData:
        """Open a prepared folder; ValueError when a file is missing or the files contradict each other."""
        meta = load_meta(path / "meta.json")
        images, labels = load_array(path / "images.npy"), load_array(path / "labels.npy")
        check_images(path / "images.npy", images, meta)
        check_labels(path / "labels.npy", labels, meta)
        train, held_out = load_split(path / "meta.json", meta)
        return cls(path, images, np.array(labels) if len(labels) else None, train, held_out, meta)

    @property
    def resolution(self) -> int:
        """Pixels a side."""
        return int(self.images.shape[1])

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return int(self.images.shape[3])

    @property
    def train_images(self) -> np.ndarray:
        """The training split, copied into memory, uint8 (N, H, W, C)."""
        images: np.ndarray = self.images[self.train_index]
        return images

    @property
    def held_out_images(self) -> np.ndarray:
        """The held-out split, copied into memory, uint8 (N, H, W, C)."""
        images: np.ndarray = self.images[self.held_out_index]
        return images

    def verify(self) -> None:
        """Raise ValueError unless the bytes of images.npy are those that meta.json was written for."""
        found = sha256_file(self.path / "images.npy")
        if found != self.meta["sha256"]:
            raise ValueError(
                f"{self.path / 'images.npy'}: sha256 {found[:12]}..., "
                f"but meta.json says {self.meta['sha256'][:12]}...; {REMEDY}"
            )


def save(path: Path, images: Images, split: tuple[np.ndarray, np.ndarray], params: dict[str, Any]) -> None:
    """Write images, labels (shape (0,) when unknown) and meta.json of a (train, held out) split made with `params`.

    All three are written aside and renamed when complete, meta.json last.
    """
    labels = np.zeros(0, np.int64) if images.labels is None else images.labels
    # Leaving goes from the last name to the first, so meta.json appears after the arrays it describes.
    with (
        atomic_path(path / "meta.json") as meta_file,
        atomic_path(path / "labels.npy") as labels_file,
        atomic_path(path / "images.npy") as images_file,
    ):
        save_array(images_file, images.images)
        save_array(labels_file, labels)
        write_json(meta_file, describe(images, split, params, sha256_file(images_file)))


def describe(
    images: Images, split: tuple[np.ndarray, np.ndarray], params: dict[str, Any], sha256: str
) -> dict[str, Any]:
    """Return the contents of meta.json."""
    count, resolution, _, channels = images.images.shape
    return {
        "source": params["prepare_data"]["source"],
        "description": images.description,
        "count": count,
        "resolution": resolution,
        "channels": channels,
        "sha256": sha256,
        "class_names": images.class_names,
        "train": split[0].tolist(),
        "held_out": split[1].tolist(),
        "params": params,
    }


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an npy file, its bytes given by the array alone; through a handle, or numpy.save would change the name."""
    with open(path, "wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)


def load_meta(path: Path) -> dict[str, Any]:
    """Read meta.json and check that its keys are there."""
    if not path.is_file():
        raise ValueError(f"{path}: missing; {REMEDY}")
    meta = read_json(path)
    absent = [key for key in META_KEYS if not isinstance(meta, dict) or key not in meta]
    if absent:
        raise ValueError(f"{path}: lacks {', '.join(absent)}; {REMEDY}")
    return dict(meta)


def load_array(path: Path) -> np.ndarray:
    """Memory-map an npy file."""
    if not path.is_file():
        raise ValueError(f"{path}: missing; {REMEDY}")
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: damaged ({str(error).splitlines()[0]}); {REMEDY}") from error
    return array


def check_images(path: Path, images: np.ndarray, meta: dict[str, Any]) -> None:
    """Compare images.npy with meta.json."""
    wanted = (meta["count"], meta["resolution"], meta["resolution"], meta["channels"])
    if images.shape != wanted or images.dtype != np.uint8:
        raise ValueError(f"{path}: {images.dtype} {images.shape}, but meta.json says uint8 {wanted}; {REMEDY}")


def check_labels(path: Path, labels: np.ndarray, meta: dict[str, Any]) -> None:
    """Compare labels.npy with meta.json."""
    names = meta["class_names"] or []
    wanted = (meta["count"] if names else 0,)
    if labels.shape != wanted or labels.dtype != np.int64:
        raise ValueError(f"{path}: {labels.dtype} {labels.shape}, but meta.json says int64 {wanted}; {REMEDY}")
    if names and (labels.min() < 0 or labels.max() >= len(names)):
        raise ValueError(f"{path}: labels {labels.min()}..{labels.max()}, but there are {len(names)} classes; {REMEDY}")


def load_split(path: Path, meta: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return (train, held out) indices; together they must name every image once."""
    train, held_out = (np.array(meta[name], np.int64) for name in ("train", "held_out"))
    both = np.sort(np.concatenate([train, held_out]))
    if not len(train) or not len(held_out) or not np.array_equal(both, np.arange(meta["count"])):
        raise ValueError(f"{path}: train and held_out do not split the {meta['count']} images; {REMEDY}")
    return train, held_out
