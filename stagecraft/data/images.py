"""Images in memory, and what is known of them before they are decoded. Light: loads no NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Contents:
    """The content of a source of images, as its names and headers tell.

    Args:
        count: number of images.
        labels: class number of each image, or None when the images have no labels.
        classes: class number of each class by its name, ascending, classes without images among them; None without labels.
        held_out: positions of the images of a split that the source holds out itself, ascending; None when it has no splits.
        notes: what is done with the source that its owner may not expect, one line each.
        texts: what each image shows, in words; None when the source does not say.
    """

    count: int
    labels: Sequence[int] | np.ndarray | None = None
    classes: dict[str, int] | None = None
    held_out: range | None = None
    notes: tuple[str, ...] = ()
    texts: list[str] | None = None


@dataclass(frozen=True)
class Images:
    """Decoded `images` uint8 (N, H, W, C) with their `contents`, and a few words that say where they are from."""

    images: np.ndarray
    contents: Contents
    description: str

    @property
    def labels(self) -> np.ndarray | None:
        """Class numbers int64 (N,), or None."""
        import numpy as np

        return None if self.contents.labels is None else np.asarray(self.contents.labels, np.int64)

    @property
    def classes(self) -> dict[str, int] | None:
        """Class number of each class by its name."""
        return self.contents.classes

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of their numbers."""
        return None if self.classes is None else list(self.classes)


class Look(NamedTuple):
    """Facts about a source before its images are decoded; None for what only decoding would tell."""

    contents: Contents
    side: int | None
    channels: int | None
