"""The prepared data set on disk: `images.npy`, `labels.npy` and `meta.json` in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from stagecraft.config.stages import PrepareData
from stagecraft.data.images import Images
from stagecraft.runtime.files import atomic_path, check_file, read_checked_json, sha256_file, write_checked_json

STAGE = "prepare_data"


class Texts(TypedDict, total=False):
    """What each image shows, in words, where the source says so."""

    texts: list[str]


class Meta(Texts):
    """The content of meta.json: the images in numbers, the split as indices, the hashes of the arrays."""

    source: str
    description: str
    count: int
    resolution: int
    channels: int
    class_names: list[str] | None
    classes: dict[str, int] | None
    train: list[int]
    held_out: list[int]
    sha256: str
    labels_sha256: str
    params: Mapping[str, object]


@dataclass(frozen=True)
class PreparedData:
    """Images uint8 (N, H, W, C), memory-mapped, class numbers int64 (N,) or None, and the split, int64 indices ascending."""

    path: Path
    images: np.ndarray
    labels: np.ndarray | None
    train_index: np.ndarray
    held_out_index: np.ndarray
    meta: Meta

    @classmethod
    def load(cls, path: Path) -> PreparedData:
        """Open a prepared folder; ValueError when a file is missing or not as it was written."""
        meta = cast(Meta, read_checked_json(path / "meta.json", STAGE))
        check_file(path / "images.npy", meta["sha256"], path / "meta.json", STAGE)
        check_file(path / "labels.npy", meta["labels_sha256"], path / "meta.json", STAGE)
        images = np.load(path / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(path / "labels.npy", allow_pickle=False)
        train = np.array(meta["train"], np.int64)
        held_out = np.array(meta["held_out"], np.int64)
        return cls(path, images, labels if len(labels) else None, train, held_out, meta)

    @property
    def resolution(self) -> int:
        """Pixels a side."""
        return int(self.images.shape[1])

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return int(self.images.shape[3])

    @property
    def classes(self) -> dict[str, int] | None:
        """Class number of each class by its name, None when the images have no labels."""
        return self.meta["classes"]

    @property
    def train_labels(self) -> np.ndarray | None:
        """Class numbers of the training split, int64 (N,), or None."""
        labels: np.ndarray | None = None if self.labels is None else self.labels[self.train_index]
        return labels

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


def save(path: Path, images: Images, split: tuple[np.ndarray, np.ndarray], params: PrepareData) -> None:
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
        hashes = sha256_file(images_file), sha256_file(labels_file)
        write_checked_json(meta_file, describe(images, split, params, hashes))


def describe(
    images: Images, split: tuple[np.ndarray, np.ndarray], params: PrepareData, hashes: tuple[str, str]
) -> Meta:
    """The contents of meta.json; `hashes` are those of images and labels."""
    count, resolution, _, channels = images.images.shape
    meta: Meta = {
        "source": params.prepare_data.source,
        "description": images.description,
        "count": count,
        "resolution": resolution,
        "channels": channels,
        "class_names": images.class_names,
        "classes": images.classes,
        "train": split[0].tolist(),
        "held_out": split[1].tolist(),
        "sha256": hashes[0],
        "labels_sha256": hashes[1],
        "params": params.as_given(),
    }
    if images.contents.texts is not None:
        meta["texts"] = images.contents.texts
    return meta


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an npy file, its bytes given by the array alone; through a handle, or numpy.save would change the name."""
    with open(path, "wb") as file:
        np.save(file, np.ascontiguousarray(array), allow_pickle=False)
