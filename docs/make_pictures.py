"""Cut 300 pictures from the two photographs that come with scikit-learn: python make_pictures.py data/raw/photos."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

SIDE = 160  # pixels
photographs = load_sample_images()
rng = np.random.default_rng(0)
for name, pixels in zip(photographs.filenames, photographs.images, strict=True):
    folder = Path(sys.argv[1]) / Path(name).stem
    folder.mkdir(parents=True, exist_ok=True)
    height, width, _ = pixels.shape
    for number in range(150):
        top = rng.integers(height - SIDE)
        left = rng.integers(width - SIDE)
        Image.fromarray(pixels[top : top + SIDE, left : left + SIDE]).save(folder / f"{number:03}.png")
