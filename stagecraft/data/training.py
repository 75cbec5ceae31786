"""The training set of a network: images or latents, with labels when there are any."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecraft.data.classes import Classes, check_trained
from stagecraft.data.condition import LABELS, Condition, class_condition
from stagecraft.data.pixels import to_network
from stagecraft.data.prepared import PreparedData
from stagecraft.data.prompts import Prompts, condition_of, load_prompts
from stagecraft.runtime.files import check_file, read_checked_json, sha256_content

STAGE = "encode_latents"


@dataclass(frozen=True)
class TrainingSet:
    """The training split in the space that the diffusion runs in.

    Args:
        x: images uint8 (N,H,W,C), or latents float32 (N,C,H,W).
        labels: classes int64 (N,), or None when they are unknown.
        sha256: hash of what it was read from.
        class_numbers: number of each class by its name, as images of a class may all be held out; None without labels.
        prompts: their prompts, or None when they have none.
    """

    x: torch.Tensor
    labels: torch.Tensor | None = None
    sha256: str = ""
    class_numbers: Classes | None = None
    prompts: Prompts | None = None

    @classmethod
    def of_images(
        cls, images_NHWC: Any, labels: Any = None, sha256: str = "", class_numbers: Classes | None = None
    ) -> TrainingSet:
        """Images in memory, uint8; the numbers of classes that are not given are those of the labels."""
        numbers = None if labels is None else torch.as_tensor(labels)
        if class_numbers is None and numbers is not None:
            class_numbers = {str(number): number for number in numbers.unique().tolist()}
        return cls(torch.as_tensor(images_NHWC), numbers, sha256, class_numbers)

    @classmethod
    def load(cls, data: Path, latents: Path, prompts: Path | None = None) -> TrainingSet:
        """The training split of a prepared folder, as latents and with prompts when the folders of these hold any.

        Raises:
            ValueError: a file is missing, not as it was written, or of another data set.
        """
        prepared = PreparedData.load(data)
        labels = None if prepared.labels is None else prepared.labels[prepared.train_index]
        index = read_checked_json(latents / "index.json", STAGE)
        if index["data"] != prepared.meta["sha256"]:
            raise ValueError(f"{latents}/index.json: of other images; run {STAGE} again (snakemake --forcerun {STAGE})")
        sha256 = index["sha256"] or prepared.meta["sha256"]
        x = prepared.train_images if index["sha256"] is None else load_latents(latents, sha256)
        images = cls.of_images(x, labels, sha256, prepared.classes)
        given = None if prompts is None else load_prompts(prompts, prepared.meta["sha256"])
        if given is None:
            return images
        both = sha256_content({"images": sha256, "prompts": given.sha256})
        return replace(images, prompts=given.of(torch.from_numpy(prepared.train_index)), sha256=both)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        if self.x.dtype == torch.uint8:
            _, height, width, channels = self.x.shape
            return channels, height, width
        _, channels, height, width = self.x.shape
        return channels, height, width

    @property
    def encoder(self) -> Path | None:
        """The folder with their text encoder or class embedding; None when they have no prompts."""
        return None if self.prompts is None else self.prompts.encoder

    @property
    def conditions(self) -> set[str]:
        """The names of what conditional networks may be given beside each of them."""
        return {*class_condition(self.labels).tensors, *(self.prompts.states.tensors if self.prompts else ())}

    def condition(self, rows: torch.Tensor, generator: torch.Generator | None = None) -> Condition:
        """The same of some of them; with a generator some prompts are left empty, as `Prompts.take` says."""
        return condition_of(self.labels, self.prompts, rows, generator)

    def only(self, names: Collection[str]) -> TrainingSet:
        """The same with no other conditions than those of these names."""
        labels = self.labels if LABELS in names else None
        return replace(self, labels=labels, prompts=self.prompts and self.prompts.only(names))

    def classes(self) -> int:
        """Embeddings of a class-conditional teacher trained on it; ValueError when none can be."""
        return check_trained(self.class_numbers)

    def x0(self, rows: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] or latents of these rows, float32 (N,C,H,W)."""
        x = self.x[rows]
        return to_network(x) if x.dtype == torch.uint8 else x.float()

    def flat(self, image_range: Sequence[float]) -> FlatRows:
        """All of it as (N, n), of which rows are float32: pixels scaled to a range, latents as they are."""
        low, high = image_range
        pixels = self.x.dtype == torch.uint8
        return FlatRows(self.x.flatten(1).numpy(), (high - low) / 255 if pixels else 1.0, low if pixels else 0.0)


def load_latents(folder: Path, sha256: str) -> np.ndarray:
    """Latents float32 (N,c,h,w); ValueError when the file is missing or not as it was written."""
    path = folder / "latents.npy"
    check_file(path, sha256, folder / "index.json", STAGE)
    latents: np.ndarray = np.load(path, allow_pickle=False)
    return latents


@dataclass(frozen=True)
class FlatRows:
    """An array (N, n) of bytes or floats of which rows are taken as float32, scaled and shifted."""

    values: np.ndarray
    scale: float
    shift: float

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, n)."""
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: int | slice | np.ndarray) -> np.ndarray:
        taken: np.ndarray = self.values[rows].astype(np.float32)
        return taken if (self.scale, self.shift) == (1, 0) else taken * np.float32(self.scale) + np.float32(self.shift)
