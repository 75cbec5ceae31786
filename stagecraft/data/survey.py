"""A survey of the source of images before any is decoded: names of files, headers, labels. Light."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stagecraft.config.sections import PrepareData
from stagecraft.data.classes import Classes, are_named
from stagecraft.data.sources import SOURCES
from stagecraft.data.splits import count_held_out


@dataclass(frozen=True)
class Survey:
    """Facts about the source of images without decoding them; None for what only decoding would tell.

    Args:
        train: images of the training split.
        held_out: images of the held-out split.
        height, width: pixels of the prepared images.
        channels: 1 (grey) or 3 (RGB).
        classes: number of each class by its name; None when the images have no labels.
        notes: what is done with the source that its owner may not expect, one line each.
        with_texts: whether the source says in words what each image shows.
    """

    train: int
    held_out: int
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    classes: Classes | None = None
    notes: tuple[str, ...] = ()
    with_texts: bool = False

    @property
    def named(self) -> bool:
        """Whether the classes have names, whose order alone gives their numbers."""
        return self.classes is not None and are_named(self.classes)


def survey(settings: PrepareData) -> Survey:
    """Look at the source of `settings` (params section `prepare_data`).

    Of a folder names are listed, and of the first image the header is read when `resolution` is null; of an npz archive
    headers and labels are read.

    Raises:
        ValueError: what `load_source` and the split would refuse, as far as it is seen so.
    """
    contents, side, channels = SOURCES[settings.source].look(settings)
    with explained(contents.notes):
        held_out = count_held_out(contents, settings.held_out)
    train = contents.count - held_out
    channels = settings.channels or channels
    with_texts = contents.texts is not None
    return Survey(train, held_out, side, side, channels, contents.classes, contents.notes, with_texts)


@contextmanager
def explained(notes: tuple[str, ...]) -> Iterator[None]:
    """Add the notes to what is said of a wrong number of images, as they tell which images were not counted."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} ({'; '.join(notes)})" if notes else str(error)) from error
