"""The README's picture: samples of teacher and student from the same seeds, side by side.

python benchmarks/picture.py results/samples.npz docs/images/digits.png
"""

import sys

import numpy as np
from PIL import Image

ROWS, COLUMNS, SCALE, GAP = 6, 16, 4, 8


def grid(images_NHWC: np.ndarray) -> np.ndarray:
    """The first ROWS x COLUMNS images as one, H,W,3."""
    n, h, w, c = images_NHWC[: ROWS * COLUMNS].shape
    tiled = images_NHWC[:n].reshape(ROWS, COLUMNS, h, w, c).transpose(0, 2, 1, 3, 4).reshape(ROWS * h, COLUMNS * w, c)
    return np.repeat(tiled, 3 // c, axis=-1)


def main(samples: str, picture: str) -> None:
    with np.load(samples) as arrays:
        left, right = grid(arrays["teacher"]), grid(arrays["student"])
    between = np.full((len(left), GAP // SCALE, 3), 255, dtype=np.uint8)
    both = Image.fromarray(np.concatenate([left, between, right], axis=1))
    both.resize((both.width * SCALE, both.height * SCALE), Image.Resampling.NEAREST).save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
