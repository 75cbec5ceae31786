"""How many images the measures of fidelity need. Light: no torch, so that it can be checked before the first job."""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

CLASSIFIER = "classifier"
INCEPTION = "inception-v3-compat"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
FEATURES_MULTIPLE = 4  # the classifier's features fill a 2x2 grid


def check_features(features: int) -> None:
    """Raise ValueError unless the features of the classifier fill its grid evenly."""
    if features % FEATURES_MULTIPLE:
        raise ValueError(f"train_extractor.features: {features} is not a multiple of {FEATURES_MULTIPLE}; choose one")


def inception_weights() -> Path:
    """torch-fidelity's Inception weights in torch's hub cache; ValueError without them, as nothing is fetched unasked."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    home = Path(os.environ.get("TORCH_HOME", cache / "torch")).expanduser()
    path = home / "hub" / "checkpoints" / INCEPTION_FILE
    if not path.is_file():
        raise ValueError(
            f"evaluate.extractor: {INCEPTION} needs the file {path}, part of the torch-fidelity release v0.2.0; "
            f"put it there or choose {CLASSIFIER}"
        )
    return path


def check_extractor(choice: str) -> None:
    """Raise ValueError when the file that an `evaluate.extractor` needs is missing or of another kind; nothing of it is run."""
    if choice == INCEPTION:
        inception_weights()
    elif choice != CLASSIFIER:
        check_torchscript(Path(choice))


def check_torchscript(path: Path) -> None:
    """Raise ValueError unless a file is there and is laid out as torch.jit.save does."""
    if not path.is_file():
        raise ValueError(
            f"evaluate.extractor: {str(path)!r} not found; use {CLASSIFIER}, {INCEPTION} or a TorchScript file"
        )
    if not zipfile.is_zipfile(path) or not has_constants(path):
        raise ValueError(
            f"evaluate.extractor: {path} is no TorchScript file; save the module as one (torch.jit), "
            f"or choose {CLASSIFIER}"
        )


def has_constants(path: Path) -> bool:
    """Whether a zip archive holds what torch.jit.save writes and torch.save does not; False for a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


@dataclass(frozen=True)
class Need:
    """A value that asks for a number of images.

    Args:
        name: the key of the params that holds it, or what it is.
        spare: images that it needs beyond its own number.
        step, lowest: the values that it may have are the multiples of `step` from `lowest` on; `lowest` None: this one only.
    """

    name: str
    value: int
    spare: int = 0
    step: int = 1
    lowest: int | None = None

    @property
    def minimum(self) -> int:
        """Number of images that it needs."""
        return self.value + self.spare

    def largest_for(self, count: int) -> int | None:
        """The largest value that `count` images are enough for; None when there is none."""
        value = (count - self.spare) // self.step * self.step
        return None if self.lowest is None or value < self.lowest else value


def list_needs(extractor: str, features: int | None, kid_subset_size: int, neighbours: int | None) -> list[Need]:
    """The needs of a covariance of full rank, of the subsets of KID and of the neighbours of precision and recall.

    Args:
        features: those of the extractor; None when they are not known yet.
        neighbours: None when precision and recall are not measured.
    """
    needs = [Need("evaluate.kid_subset_size", kid_subset_size, lowest=2)]
    if features is not None and extractor == CLASSIFIER:
        needs.append(Need("train_extractor.features", features, 1, FEATURES_MULTIPLE, FEATURES_MULTIPLE))
    elif features is not None:
        needs.append(Need(f"features of {extractor}:", features, 1))
    if neighbours is not None:
        needs.append(Need("evaluate.neighbours", neighbours, 1, lowest=1))
    return needs


def check_count(count: int, what: str, key: str, needs: list[Need]) -> None:
    """Raise ValueError when `count` images are too few for one of the needs; `what` they are and their `key` say where."""
    unmet = [need for need in needs if count < need.minimum]
    if not unmet:
        return
    named = ", ".join(f"{need.name} {need.value}" for need in unmet)
    message = (
        f"{key}: {count} {what} are too few for {named}; at least {max(need.minimum for need in unmet)} are needed"
    )
    lowered = [(need.name, need.largest_for(count)) for need in unmet]
    if all(value is not None for _, value in lowered):
        message += f", or lower {', '.join(f'{name} to {value}' for name, value in lowered)}"
    raise ValueError(message)
