"""Pixels from image files: decoded, upright, of one size and number of channels. Light until a function is called."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stagecraft.config.sections import Prepared

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PillowImage

FORMATS = ("PNG", "JPEG", "WEBP")
GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N", "I")
MIN_SIDE = 4  # pixels


def conform(images: np.ndarray, settings: Prepared, origin: str) -> np.ndarray:
    """Bring images (N, H, W, C), all of one size, to the wanted resolution and channels; `origin` opens messages."""
    import numpy as np
    from PIL import Image

    count, height, width, own_channels = images.shape
    check_side((width, height), origin)
    side = settings.resolution or square_side((width, height), origin)
    channels = settings.channels or own_channels
    if (height, width, own_channels) == (side, side, channels):
        return np.ascontiguousarray(images)
    result = np.empty((count, side, side, channels), np.uint8)
    for index in range(count):
        image = Image.fromarray(images[index].squeeze(2) if own_channels == 1 else images[index])
        result[index] = to_array(image, side, settings.resize, channels)
    return result


def decode_files(paths: Sequence[Path], settings: Prepared, threads: int) -> np.ndarray:
    """Decode files to uint8 (N, side, side, channels); the first bad file in their order is the one reported."""
    import numpy as np

    side = settings.resolution or square_side(read_image(paths[0]).size, str(paths[0]))
    channels = settings.channels or (1 if all(map(is_grey, paths)) else 3)
    images = np.empty((len(paths), side, side, channels), np.uint8)

    def decode(index: int) -> None:
        image = read_image(paths[index])
        if settings.resolution is None and image.size != (side, side):
            raise ValueError(
                f"{paths[0]} has {side}x{side} pixels but {paths[index]} has {image.width}x{image.height}; "
                "set prepare_data.resolution to give all images one size"
            )
        images[index] = to_array(image, side, settings.resize, channels)

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


def own_side(path: Path) -> int:
    """Side of a square image by its header."""
    with refused_bombs(), opened(path) as image:
        size = image.size
    check_side(size, str(path))
    return square_side(size, str(path))


@contextmanager
def refused_bombs() -> Iterator[None]:
    """Have Pillow's warning of images so large that they are likely an attack raised."""
    from PIL import Image

    Image.init()  # load the plugins once, not in every thread
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


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

    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (side, side):
        image = pad(image, side) if policy == "pad" else stretch(image, side, policy == "crop")
    return np.asarray(image).reshape(side, side, channels)


def stretch(image: PillowImage.Image, side: int, crop: bool) -> PillowImage.Image:
    """Scale an image, or the square in its centre, to a square."""
    from PIL import Image

    width, height = image.size
    cut_width, cut_height = (min(image.size),) * 2 if crop else image.size
    left = (width - cut_width) // 2
    top = (height - cut_height) // 2
    filter_ = Image.Resampling.LANCZOS if min(cut_width, cut_height) >= side else Image.Resampling.BICUBIC
    return image.resize((side, side), filter_, (left, top, left + cut_width, top + cut_height))


def pad(image: PillowImage.Image, side: int) -> PillowImage.Image:
    """Put an image on the centre of a black square, scaled down only if it is larger."""
    from PIL import Image

    longest = max(image.size)
    if longest > side:
        width, height = (max(1, round(length * side / longest)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new(image.mode, (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def check_side(size: tuple[int, int], origin: str) -> None:
    """Refuse images with too few pixels to be learnt from."""
    if min(size) < MIN_SIDE:
        raise ValueError(f"{origin}: {size[0]}x{size[1]} pixels; images need at least {MIN_SIDE}x{MIN_SIDE}, remove it")


def square_side(size: tuple[int, int], origin: str) -> int:
    """Return the side of a square image; others need a resolution to be brought to."""
    if size[0] != size[1]:
        raise ValueError(
            f"{origin}: {size[0]}x{size[1]} pixels are not square; set prepare_data.resolution, as only squares can be prepared "
            f"(prepare_data.resize says how: crop, squash, pad)"
        )
    return size[0]


def one_line(error: Exception) -> str:
    """Return the first line of an exception's text, or its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
