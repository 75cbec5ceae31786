"""An npz archive as the source of images. Light until loaded."""

from pathlib import Path

from stagecraft.config.sections import ImageFiles
from stagecraft.data import archives
from stagecraft.data.decoding import check_side, conform, square_side
from stagecraft.data.files import digest_of
from stagecraft.data.images import Images, Look


def load(settings: ImageFiles, threads: int = 1) -> Images:
    """Load images uint8 (N, H, W) or (N, H, W, 1 or 3), with integer labels (N,) if there are any.

    They are called `images` and `labels`, `arr_0` and `arr_1` (guided-diffusion), or `x_train` and `y_train` with `x_test`
    (Keras), `train_images` and `train_labels` with `test_images` (MedMNIST), of which the test images are held out.
    """
    import numpy as np

    path = path_of(settings)
    layout = archives.read_layout(path)
    arrays = [archives.read_array(path, part.images) for part in layout.parts]
    images = np.concatenate([array.reshape(*array.shape[:3], layout.channels) for array in arrays])
    names = " and ".join(part.images for part in layout.parts)
    return Images(conform(images, settings, f"{path}: {names}"), layout.contents, f"{names} of {path.name}")


def fingerprint(settings: ImageFiles) -> str:
    """Over the file's name, size and time."""
    path = path_of(settings)
    return digest_of([(path.name, path.stat())])


def look(settings: ImageFiles) -> Look:
    """Facts that headers and labels tell."""
    path = path_of(settings)
    layout = archives.read_layout(path)
    origin = f"{path}: {layout.parts[0].images}"
    check_side(layout.size, origin)
    return Look(layout.contents, settings.resolution or square_side(layout.size, origin), layout.channels)


def path_of(settings: ImageFiles) -> Path:
    """The file at `path`; ValueError when there is none."""
    path = Path(settings.path)
    if not path.is_file():
        raise ValueError(f"prepare_data.path: {path}: there is no such file; correct the path")
    return path
