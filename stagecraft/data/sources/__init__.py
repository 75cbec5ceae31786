"""The images a run starts from, by the source that the params name.

Importing this package and calling `source_fingerprint` loads neither NumPy nor Pillow, so that a Snakefile may do both.
"""

from typing import Any, Protocol

from stagecraft.config.sections import PrepareData
from stagecraft.data.images import Images, Look
from stagecraft.data.sources import digits, folder, npz


class Source(Protocol):
    """The interface of a source's module; `settings` are the params of section `prepare_data` for it."""

    def load(self, settings: Any, threads: int) -> Images:
        """The prepared images; ValueError, one line, for anything a user can mend."""

    def fingerprint(self, settings: Any) -> str:
        """A string that changes when the source does, from names, sizes and times of files, none of which is opened."""

    def look(self, settings: Any) -> Look:
        """Facts about the images before any is decoded."""


SOURCES: dict[str, Source] = {"digits": digits, "folder": folder, "npz": npz}


def load_source(settings: PrepareData, threads: int = 1) -> Images:
    """Load the images of `settings` (params section `prepare_data`), decoding files on `threads` threads.

    `resolution`, in pixels, brings every image to that side by the policy `resize`: `crop` scales the short side to it and
    cuts the centre, `squash` ignores the aspect ratio, `pad` puts the image, scaled down if its long side is longer, on the
    centre of a black square; LANCZOS when no side grows, BICUBIC otherwise. With `resolution` null the images keep their own
    size and must all be square and alike. `channels` null is what the images have: 1 if every image is grey (in a folder:
    also those stored as RGB with equal channels), otherwise 3. Raises ValueError, one line, for anything a user can mend.
    """
    return SOURCES[settings.source].load(settings, threads)


def source_fingerprint(settings: PrepareData) -> str:
    """Return a string that changes when the source does; ValueError when its path is missing or holds no images."""
    return SOURCES[settings.source].fingerprint(settings)
