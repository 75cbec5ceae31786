"""The embedded source: 1,797 handwritten digits that scikit-learn carries. Light until loaded."""

from stagecraft.config.sections import Digits
from stagecraft.data.decoding import conform
from stagecraft.data.images import Contents, Images, Look

COUNT = 1797
SIDE = 8  # pixels
CLASSES = {str(digit): digit for digit in range(10)}


def load(settings: Digits, threads: int = 1) -> Images:
    """Load the 1,797 handwritten digits that scikit-learn carries, 8x8, their values 0..16 stretched to 0..255."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    contents = Contents(COUNT, bunch.target, CLASSES)
    return Images(conform(images, settings, "digits"), contents, "the handwritten digits of scikit-learn")


def fingerprint(settings: Digits) -> str:
    """The digits never change."""
    return "digits"


def look(settings: Digits) -> Look:
    """Facts about the digits."""
    return Look(Contents(COUNT, None, CLASSES), settings.resolution or SIDE, 1)
