"""The images a run starts from: scikit-learn's digits, a folder of image files, or an npz archive.

Importing this module and calling `source_fingerprint` loads neither NumPy nor Pillow, so that a Snakefile may do both.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PillowImage

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I")
MIN_SIDE = 4  # pixels


@dataclass(frozen=True)
class Images:
    """Decoded `images` uint8 (N, H, W, C); `labels` int64 (N,), indices into `class_names`, both None when unknown."""

    images: np.ndarray
    labels: np.ndarray | None
    class_names: list[str] | None
    description: str


def load_source(settings: dict[str, Any], threads: int = 1) -> Images:
    """Load the images of `settings` (params section `prepare_data`), decoding files on `threads` threads.

    `resolution`, in pixels, resizes every image by the policy `resize`: `crop` scales the short side to it and cuts the
    centre, `squash` ignores the aspect ratio; LANCZOS when no side grows, BICUBIC otherwise. With `resolution` null the
    images keep their own size and must all be square and alike. `channels` null is what the images have: 1 if every
    image is grey (in a folder: also those stored as RGB with equal channels), otherwise 3. Labels that know one class
    only are no labels. Raises ValueError, one line, for anything a user can mend.
    """
    loaders: dict[str, Callable[[dict[str, Any]], Images]] = {
        "digits": load_digits,
        "folder": partial(load_folder, threads=threads),
        "npz": load_npz,
    }
    if settings["source"] not in loaders:
        raise ValueError(f"prepare_data.source: {settings['source']!r} is unknown; use one of {', '.join(loaders)}")
    if settings["resize"] not in ("crop", "squash"):
        raise ValueError(f"prepare_data.resize: {settings['resize']!r} is unknown; use crop or squash")
    if settings["channels"] not in (None, 1, 3):
        raise ValueError(f"prepare_data.channels: {settings['channels']!r}, but images have 1 or 3; or use null")
    resolution = settings["resolution"]
    if resolution is not None and resolution < MIN_SIDE:
        raise ValueError(f"prepare_data.resolution: {resolution} pixels are too few; use at least {MIN_SIDE}, or null")
    return loaders[settings["source"]](settings)


def source_fingerprint(settings: dict[str, Any]) -> str:
    """Return a string that changes when the source does: over (relative path, size, mtime) of its files, unopened.

    Raises ValueError when the path is missing or holds no images.
    """
    if settings["source"] == "digits":
        return "digits"
    path = source_path(settings)
    if settings["source"] == "npz":
        entries = [(path.name, path.stat())]
    else:
        entries = [(name, entry.stat()) for name, entry in image_files(path)]
    digest = hashlib.sha256()
    for name, stat in entries:
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def source_path(settings: dict[str, Any]) -> Path:
    """Return the existing folder (source `folder`) or file (source `npz`) at `path`; ValueError otherwise."""
    source = settings["source"]
    if settings["path"] is None:
        raise ValueError(f"prepare_data.path: null, but the source {source!r} needs one; set it")
    path = Path(settings["path"])
    if not (path.is_dir() if source == "folder" else path.is_file()):
        kind = "folder" if source == "folder" else "file"
        raise ValueError(f"prepare_data.path: {path}: there is no such {kind}; correct the path")
    return path


# --- digits ---


def load_digits(settings: dict[str, Any]) -> Images:
    """Load the 1,797 handwritten digits that scikit-learn carries, 8x8, their values 0..16 stretched to 0..255."""
    import numpy as np
    from sklearn.datasets import load_digits as load_bunch

    bunch = load_bunch()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels, class_names = encode_labels([str(label) for label in bunch.target])
    return Images(conform(images, settings, "digits"), labels, class_names, "the handwritten digits of scikit-learn")


# --- npz ---


def load_npz(settings: dict[str, Any]) -> Images:
    """Load `images` (or `arr_0`), uint8 (N, H, W) or (N, H, W, 1 or 3), and if there `labels`, integers (N,)."""
    import numpy as np

    path = source_path(settings)
    arrays = read_npz(path)
    name = "images" if "images" in arrays else "arr_0"
    if name not in arrays:
        raise ValueError(f"{path}: holds no array called images or arr_0; save the images under one of these names")
    images = arrays[name]
    if images.dtype != np.uint8:
        raise ValueError(f"{path}: {name} is {images.dtype}; save the pixels as uint8, 0..255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"{path}: {name} has the shape {arrays[name].shape}; wanted is N,H,W or N,H,W,C with C 1 or 3")
    labels, class_names = npz_labels(path, arrays.get("labels"), len(images))
    return Images(conform(images, settings, f"{path}: {name}"), labels, class_names, f"{name} of {path.name}")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays that matter from an npz archive; nothing in it is unpickled or unpacked to a file."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not an npz archive, or a damaged one; write it with numpy.savez")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            wanted = [name for name in ("images", "arr_0", "labels") if f"{name}.npy" in members]
            return {name: read_member(archive, f"{name}.npy") for name in wanted}
    except Exception as error:  # damaged archives raise OSError, BadZipFile, zlib.error, ValueError, ...
        raise ValueError(f"{path}: cannot be read ({one_line(error)}); write it anew with numpy.savez") from error


def read_member(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    """Read one array that fills its member of an npz archive."""
    import numpy as np

    if archive.namelist().count(member) > 1:
        raise ValueError(f"{member} is there more than once")
    with archive.open(member) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{member} holds more than the {array.shape} that its header says")
    return array


def npz_labels(path: Path, labels: np.ndarray | None, count: int) -> tuple[np.ndarray | None, list[str] | None]:
    """Check and encode the archive's labels."""
    import numpy as np

    if labels is None:
        return None, None
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        found = f"{labels.dtype} of shape {labels.shape}"
        raise ValueError(f"{path}: labels is {found}; wanted are {count} integers, one for each image")
    values, encoded = np.unique(labels, return_inverse=True)
    return (encoded.astype(np.int64), [str(value) for value in values]) if len(values) > 1 else (None, None)


def conform(images: np.ndarray, settings: dict[str, Any], origin: str) -> np.ndarray:
    """Bring images (N, H, W, C), all of one size, to the wanted resolution and channels; `origin` opens messages."""
    import numpy as np
    from PIL import Image

    count, height, width, own_channels = images.shape
    check_side((width, height), origin)
    side = settings["resolution"] or square_side((width, height), origin)
    channels = settings["channels"] or own_channels
    if (height, width, own_channels) == (side, side, channels):
        return np.ascontiguousarray(images)
    result = np.empty((count, side, side, channels), np.uint8)
    for index in range(count):
        image = Image.fromarray(images[index].squeeze(2) if own_channels == 1 else images[index])
        result[index] = to_array(image, side, settings["resize"], channels)
    return result


# --- folder ---


def load_folder(settings: dict[str, Any], threads: int = 1) -> Images:
    """Load the PNG, JPEG and WebP files of a folder and all below it, sorted by their relative posix paths.

    Hidden files and folders and files with other endings are ignored. Of an animation the first frame counts; EXIF
    orientation is applied; transparent pixels are laid over white; 16-bit grey is scaled to 8 bit. First-level folders
    are classes, labelled in the order of their sorted names; images at the top level have no labels.
    """
    folder = source_path(settings)
    names = [name for name, _ in image_files(folder)]
    labels, class_names = folder_labels(folder, names)
    paths = [folder / name for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("error", decompression_bomb_warning())
        images = decode_files(paths, settings, threads)
    return Images(images, labels, class_names, f"{len(paths)} image files")


def decompression_bomb_warning() -> type[Warning]:
    """Return the warning that Pillow gives for images so large that they are likely an attack."""
    from PIL import Image

    Image.init()  # load the plugins once, not in every thread
    return Image.DecompressionBombWarning


def image_files(folder: Path) -> list[tuple[str, os.DirEntry[str]]]:
    """Return (posix path relative to `folder`, entry) of the image files below it, sorted by the path."""
    found = []
    pending = [("", str(folder), {os.path.realpath(folder)})]
    while pending:
        prefix, current, above = pending.pop()
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    pending.append((f"{prefix}{entry.name}/", entry.path, above | {checked_folder(entry.path, above)}))
                elif entry.name.lower().endswith(SUFFIXES):
                    found.append((prefix + entry.name, checked_file(entry)))
    if not found:
        raise ValueError(f"{folder}: holds no images; put PNG, JPEG or WebP files there or correct prepare_data.path")
    return sorted(found, key=lambda item: item[0])


def checked_folder(path: str, above: set[str]) -> str:
    """Return the real path of a folder that is not among those it lies in, as a link back would be read without end."""
    real = os.path.realpath(path)
    if real in above:
        raise ValueError(f"{path}: is a link to a folder that it lies in; remove it")
    return real


def checked_file(entry: os.DirEntry[str]) -> os.DirEntry[str]:
    """Return an entry that is a file; opening a pipe would wait for ever."""
    if not entry.is_file():
        raise ValueError(f"{entry.path}: is no file, or a link to none; remove it")
    return entry


def folder_labels(folder: Path, names: Sequence[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """Label each relative path by its first-level folder."""
    top = next((name for name in names if "/" not in name), None)
    nested = next((name for name in names if "/" in name), None)
    if top is not None and nested is not None:
        raise ValueError(
            f"{folder}: images lie at the top level ({top}) and in class folders ({nested}); use one or the other"
        )
    return encode_labels([name.split("/")[0] for name in names]) if top is None else (None, None)


def encode_labels(names: Sequence[str]) -> tuple[np.ndarray | None, list[str] | None]:
    """Number the sorted class names; one class alone says nothing, so it gives (None, None)."""
    import numpy as np

    class_names = sorted(set(names))
    if len(class_names) < 2:
        return None, None
    index = {name: label for label, name in enumerate(class_names)}
    return np.array([index[name] for name in names], np.int64), class_names


def decode_files(paths: Sequence[Path], settings: dict[str, Any], threads: int) -> np.ndarray:
    """Decode files to uint8 (N, side, side, channels); the first bad file in their order is the one reported."""
    import numpy as np

    side = settings["resolution"] or square_side(read_image(paths[0]).size, str(paths[0]))
    channels = settings["channels"] or (1 if all(map(is_grey, paths)) else 3)
    images = np.empty((len(paths), side, side, channels), np.uint8)

    def decode(index: int) -> None:
        image = read_image(paths[index])
        if settings["resolution"] is None and image.size != (side, side):
            raise ValueError(
                f"{paths[0]} has {side}x{side} pixels but {paths[index]} has {image.width}x{image.height}; "
                "set prepare_data.resolution to give all images one size"
            )
        images[index] = to_array(image, side, settings["resize"], channels)

    with ThreadPoolExecutor(threads) as pool:
        for _ in show_progress(pool.map(decode, range(len(paths))), len(paths)):
            pass
    return images


def show_progress(done: Iterator[None], total: int) -> Iterator[None]:
    """Show a bar on a terminal; in a log a line every 30 s, none if all ends sooner."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return iter(tqdm(done, "decode", total, unit="image"))
    line = "{desc}: {n_fmt} of {total_fmt} images, {remaining} left\n"
    return iter(tqdm(done, "decode", total, mininterval=30, maxinterval=60, delay=30, bar_format=line))


# --- one image ---


@contextmanager
def opened(path: Path) -> Iterator[PillowImage.Image]:
    """Open an image file; whatever fails while it is open becomes a ValueError that names the file."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a PNG, JPEG or WebP image; replace or remove the file") from None
    except Exception as error:  # on damaged bytes decoders raise OSError, SyntaxError, struct.error, ...
        raise ValueError(f"{path}: cannot be decoded ({one_line(error)}); replace or remove the file") from error


def read_image(path: Path) -> PillowImage.Image:
    """Decode a file to an upright L or RGB image of at least 4x4 pixels."""
    from PIL import ImageOps

    with opened(path) as file:
        image = flatten(ImageOps.exif_transpose(file))
    check_side(image.size, str(path))
    return image


def is_grey(path: Path) -> bool:
    """Tell whether a file shows no colour; only those that could are decoded."""
    import numpy as np

    with opened(path) as file:
        if file.mode in GREY_MODES:
            return True
        pixels = np.asarray(flatten(file))
    return bool((pixels[..., :1] == pixels[..., 1:]).all())


def flatten(image: PillowImage.Image) -> PillowImage.Image:
    """Return the image as L or RGB, transparency laid over white, 16-bit grey (its tRNS chunk ignored) as 8 bit."""
    import numpy as np
    from PIL import Image

    mode = "L" if image.mode in GREY_MODES else "RGB"
    if image.mode.startswith("I"):
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image.load()
    return image.convert(mode)


def to_array(image: PillowImage.Image, side: int, policy: str, channels: int) -> np.ndarray:
    """Return an L or RGB image as uint8 (side, side, channels); a resized crop never looks beyond what it keeps."""
    import numpy as np
    from PIL import Image

    image = image.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    if (width, height) != (side, side):
        cut_width, cut_height = (min(image.size),) * 2 if policy == "crop" else image.size
        left, top = (width - cut_width) // 2, (height - cut_height) // 2
        filter_ = Image.Resampling.LANCZOS if min(cut_width, cut_height) >= side else Image.Resampling.BICUBIC
        image = image.resize((side, side), filter_, (left, top, left + cut_width, top + cut_height))
    return np.asarray(image).reshape(side, side, channels)


def check_side(size: tuple[int, int], origin: str) -> None:
    """Refuse images with too few pixels to be learnt from."""
    if min(size) < MIN_SIDE:
        raise ValueError(f"{origin}: {size[0]}x{size[1]} pixels; images need at least {MIN_SIDE}x{MIN_SIDE}, remove it")


def square_side(size: tuple[int, int], origin: str) -> int:
    """Return the side of a square image; others need a resolution to be brought to."""
    if size[0] != size[1]:
        raise ValueError(f"{origin}: {size[0]}x{size[1]} pixels are not square; set prepare_data.resolution")
    return size[0]


def one_line(error: Exception) -> str:
    """Return the first line of an exception's text, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
