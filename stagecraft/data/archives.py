"""An npz archive of images: which of its arrays are read, their headers, labels and splits. Nothing in it is unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from stagecraft.data.classes import MAX_NUMBER, brief, describe_missing
from stagecraft.data.images import Contents

if TYPE_CHECKING:
    import numpy as np

# Names of images and labels: ours, guided-diffusion's; with splits Keras's and MedMNIST's.
WHOLE = (("images", ("labels",)), ("arr_0", ("labels", "arr_1")))
SPLIT = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
HELD_OUT = ("test", "val", "valid")  # the first of these that is there is held out


@dataclass(frozen=True)
class Header:
    """Shape and type of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Part:
    """Names of the array of images and of that of their labels, None when there is none."""

    images: str
    labels: str | None


@dataclass(frozen=True)
class ArchiveLayout:
    """The arrays of an archive that are used, one to train on and perhaps one held out.

    Args:
        headers: of the images of each part, uint8 (N, H, W) or (N, H, W, C).
    """

    parts: list[Part]
    headers: list[Header]
    contents: Contents

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images in pixels."""
        return self.headers[0].shape[2], self.headers[0].shape[1]

    @property
    def channels(self) -> int:
        """1 or 3."""
        return channels_of(self.headers[0])


def read_layout(path: Path) -> ArchiveLayout:
    """Find the images, labels and splits of an archive, without reading the images.

    Raises:
        ValueError: the archive is damaged, or its arrays are not images with labels.
    """
    names = member_names(path)
    parts = find_parts(path, names)
    headers = [read_header(path, part.images) for part in parts]
    for part, header in zip(parts, headers, strict=True):
        check_pixels(path, part.images, header)
    check_alike(path, parts, headers)
    parts = [without_other_labels(path, part, header) for part, header in zip(parts, headers, strict=True)]
    contents = describe(path, parts, [header.shape[0] for header in headers])
    used = {name for part in parts for name in (part.images, part.labels)}
    ignored = [" ".join(name.split()) for name in names if name not in used]
    if ignored:
        contents = replace(contents, notes=(*contents.notes, f"not read of {path.name}: {brief(ignored)}"))
    return ArchiveLayout(parts, headers, contents)


# --- The archive ---


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; whatever fails while it is open becomes a ValueError that names it."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an npz archive, or a damaged one; write it with numpy.savez")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except Exception as error:  # damaged archives raise OSError, BadZipFile, zlib.error, ValueError, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: cannot be read ({reason}); write it anew with numpy.savez") from error


def member_names(path: Path) -> list[str]:
    """Names of the arrays in an archive, each once."""
    with opened(path) as archive:
        return list(dict.fromkeys(name.removesuffix(".npy") for name in archive.namelist()))


@contextmanager
def opened_array(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Open one array's file in an archive."""
    member = f"{name}.npy"
    with opened(path) as archive:
        if archive.namelist().count(member) > 1:
            raise ValueError(f"{member} is there more than once")
        with archive.open(member) as file:
            yield file


def read_header(path: Path, name: str) -> Header:
    """Read the header of an array, and none of its values."""
    import numpy as np

    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with opened_array(path, name) as file:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"{name}.npy has the version {version}")
        shape, _, dtype = readers[version](file)
        if dtype.hasobject:
            raise ValueError("Object arrays cannot be loaded")
        return Header(shape, dtype)


def read_array(path: Path, name: str) -> np.ndarray:
    """Read an array that fills its file."""
    import numpy as np

    with opened_array(path, name) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{name}.npy holds more than the {array.shape} that its header says")
    return array


# --- Images ---


def find_parts(path: Path, names: list[str]) -> list[Part]:
    """Choose the arrays of the images to train on and, when the archive has splits, of those to hold out."""

    def part(images: str, *labels: str) -> Part:
        return Part(images, next((name for name in labels if name in names), None))

    for images, labels in WHOLE:
        if images in names:
            return [part(images, *labels)]
    for pattern, pattern_of_labels in SPLIT:
        if pattern.format("train") in names:
            held_out = [split for split in HELD_OUT if pattern.format(split) in names][:1]
            return [part(pattern.format(split), pattern_of_labels.format(split)) for split in ("train", *held_out)]
    raise ValueError(
        f"{path}: holds no array called images or arr_0, nor x_train or train_images; save the images under one of these names"
    )


def check_pixels(path: Path, name: str, header: Header) -> None:
    """Raise ValueError unless an array holds images."""
    if header.dtype.name != "uint8":
        raise ValueError(f"{path}: {name} is {header.dtype}; save the pixels as uint8, 0..255")
    if len(header.shape) not in (3, 4) or channels_of(header) not in (1, 3):
        raise ValueError(f"{path}: {name} has the shape {header.shape}; wanted is N,H,W or N,H,W,C with C 1 or 3")


def channels_of(header: Header) -> int:
    """Channels of images (N, H, W), grey, or (N, H, W, C)."""
    return header.shape[3] if len(header.shape) == 4 else 1


def check_alike(path: Path, parts: list[Part], headers: list[Header]) -> None:
    """Raise ValueError unless the images of all parts have one shape."""
    first = headers[0]
    last = headers[-1]
    if (first.shape[1:3], channels_of(first)) != (last.shape[1:3], channels_of(last)):
        raise ValueError(
            f"{path}: {parts[0].images} has the shape {first.shape} but {parts[-1].images} {last.shape}; save images of one shape"
        )


# --- Labels ---


def without_other_labels(path: Path, part: Part, header: Header) -> Part:
    """The same part without an `arr_1` that is no array of labels, as the name says nothing."""
    if part.labels != "arr_1":
        return part
    other = read_header(path, "arr_1")
    fits = other.dtype.kind in "iu" and other.shape == header.shape[:1]
    return part if fits else Part(part.images, None)


def describe(path: Path, parts: list[Part], counts: list[int]) -> Contents:
    """The content of the parts of an archive, of `counts` images."""
    import numpy as np

    held_out = range(counts[0], sum(counts)) if len(parts) > 1 else None
    notes = [note_split(parts, counts)] if parts[0].images not in dict(WHOLE) else []
    if len({part.labels is None for part in parts}) > 1:
        raise ValueError(
            f"{path}: of {parts[0].images} and {parts[1].images} one has labels ({parts[0].labels or parts[1].labels}); "
            "save labels of both or of none"
        )
    if parts[0].labels is None:
        return Contents(sum(counts), held_out=held_out, notes=tuple(notes))
    labels = [read_labels(path, str(part.labels), count) for part, count in zip(parts, counts, strict=True)]
    if unknown := sorted({*labels[-1].tolist()} - {*labels[0].tolist()}):
        raise ValueError(
            f"{path}: {parts[-1].labels} has the class {unknown[0]}, which {parts[0].labels} lacks; remove it"
        )
    present = np.unique(labels[0]).tolist()
    if not present:
        return Contents(sum(counts), held_out=held_out, notes=tuple(notes))
    classes = {str(number): number for number in present}
    missing = describe_missing(classes, {*present})
    notes += [missing] if missing else []
    return Contents(sum(counts), np.concatenate(labels), classes, held_out, tuple(notes))


def note_split(parts: list[Part], counts: list[int]) -> str:
    """A line about what is held out of an archive with splits."""
    if len(parts) == 1:
        return f"all images are those of {parts[0].images}, of which prepare_data.held_out says the share to hold out"
    return f"held out: {parts[1].images} ({counts[1]} images), so prepare_data.held_out is not used"


def read_labels(path: Path, name: str, count: int) -> np.ndarray:
    """Class numbers int64 (count,); those of Keras and MedMNIST may be saved as (count, 1)."""
    import numpy as np

    labels = read_array(path, name)
    shapes = [(count,)] if name in ("labels", "arr_1") else [(count,), (count, 1)]
    if labels.shape not in shapes or labels.dtype.kind not in "iub":
        raise ValueError(
            f"{path}: {name} is {labels.dtype} of shape {labels.shape}; wanted are {count} integers, one for each image; "
            "save them so (of one-hot rows the argmax), or leave them out"
        )
    for number in (labels.min(initial=0), labels.max(initial=0)):
        if not 0 <= int(number) <= MAX_NUMBER:
            raise ValueError(f"{path}: {name} holds the class {number}; number the classes from 0")
    return labels.reshape(count).astype(np.int64)
