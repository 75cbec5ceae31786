"""FID, KID, precision and recall by torch-fidelity, on images held in memory.

Heusel et al. 2017 (FID), Binkowski et al. 2018 (KID), Kynkaanniemi et al. 2019 (precision and recall).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics
from torch_fidelity.utils import (
    create_feature_extractor,
    get_featuresdict_from_dataset,
    resolve_feature_layer_for_metric,
)

from stagecraft.evaluation.counts import (
    CLASSIFIER,
    INCEPTION,
    check_count,
    check_torchscript,
    inception_weights,
    list_needs,
)
from stagecraft.evaluation.extractor import read_classifier, to_tensor
from stagecraft.evaluation.metrics import ExtractorDescription, Fidelity, HeldOut
from stagecraft.runtime.files import sha256_file

INCEPTION_FEATURES = 2048
BATCH_SIZE = 250
DISTANCES_BATCH = 1000  # rows; each takes some 20 bytes for every image of the reference
MEASURES = {
    "fid": "frechet_inception_distance",
    "kid": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
}


class Scoring(TypedDict):
    """Keyword arguments of `fidelity`."""

    kid_subset_size: int
    neighbours: int
    seed: int
    device: torch.device
    batch_size: int


@dataclass(frozen=True)
class Extractor:
    """A feature extractor known to torch-fidelity: its registered name, weights, image channels and number of features.

    `description` says in the results what the figures were measured with.
    """

    name: str
    weights: Path
    channels: int
    features: int
    description: ExtractorDescription


class Images(Dataset):
    """uint8 images (N, H, W, C) as torch-fidelity wants them: uint8 tensors (C, H, W), grey repeated to `channels`."""

    def __init__(self, images: np.ndarray, channels: int) -> None:
        if images.shape[3] != channels and images.shape[3] != 1:
            raise ValueError(f"evaluate.extractor: takes {channels} channel(s) but the images have {images.shape[3]}")
        self.images_NCHW = to_tensor(images).expand(-1, channels, -1, -1)

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def __getitem__(self, index: int) -> Tensor:
        return self.images_NCHW[index]


def open_extractor(choice: str, classifier: Path, image: np.ndarray) -> Extractor:
    """The extractor that `evaluate.extractor` asks for.

    `choice` is `classifier` (the file of train_extractor), `inception-v3-compat` (torch-fidelity's own, from the weights in
    torch's hub cache) or the path of a TorchScript file, whose module takes uint8 (N, 3, H, W) and returns floating point
    (N, F). `image` uint8 (H, W, C) is one image of the data. Raises ValueError when weights are missing or do not fit.
    """
    if choice == CLASSIFIER:
        description, _ = read_classifier(classifier)
        return Extractor(CLASSIFIER, classifier, description["channels"], description["features"], description)
    if choice == INCEPTION:
        return Extractor(INCEPTION, inception_weights(), 3, INCEPTION_FEATURES, {"kind": INCEPTION})
    path = Path(choice)
    features = count_torchscript_features(path, image)
    return Extractor("torchscript", path, 3, features, {"kind": "torchscript", "file": path.name, "features": features})


def count_torchscript_features(path: Path, image: np.ndarray) -> int:
    """Number of features F that a TorchScript file gives for `image` uint8 (H, W, C); ValueError when it cannot."""
    check_torchscript(path)
    try:
        with torch.no_grad():
            output = torch.jit.load(path, map_location="cpu")(Images(image[None], 3).images_NCHW)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"evaluate.extractor: {path} fails on uint8 (1, 3, H, W) images: {reason}") from error
    if not torch.is_tensor(output) or output.ndim != 2 or not output.is_floating_point():
        raise ValueError(
            f"evaluate.extractor: {path} must return a floating point tensor (N, F) for uint8 (N, 3, H, W)"
        )
    return output.shape[1]


def describe_extractor(extractor: Extractor) -> ExtractorDescription:
    """The extractor as results describe it: name, hash of its weights and training task."""
    description = extractor.description.copy()
    description.pop("params", None)
    sha256 = sha256_file(extractor.weights)
    return {"name": extractor.name, "features": extractor.features, "sha256": sha256, **description}


def check_counts(
    generated: int, reference: int, extractor: Extractor, kid_subset_size: int, neighbours: int | None
) -> None:
    """Raise ValueError unless both sets are large enough for a full-rank covariance, the KID subsets and the neighbours."""
    needs = list_needs(extractor.name, extractor.features, kid_subset_size, neighbours)
    check_count(generated, "generated images", "evaluate.samples", needs)
    check_count(reference, "training images", "prepare_data", needs)


def fidelity(
    generated: np.ndarray,
    reference: np.ndarray,
    extractor: Extractor,
    *,
    kid_subset_size: int,
    neighbours: int | None,
    seed: int,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
) -> Fidelity:
    """Compare generated with reference images, both uint8 (N, H, W, C).

    Returns `fid`, `kid` (mean over 100 subsets drawn from `seed`), `precision` and `recall` (with `neighbours` nearest
    neighbours; None leaves both out, the slowest with a large reference). Features are computed of at most `batch_size` images
    at once. Raises ValueError for too few images.
    """
    check_counts(len(generated), len(reference), extractor, kid_subset_size, neighbours)
    measures = calculate_metrics(
        input1=Images(generated, extractor.channels),
        input2=Images(reference, extractor.channels),
        feature_extractor=extractor.name,
        feature_extractor_weights_path=str(extractor.weights),
        fid=True,
        kid=True,
        prc=neighbours is not None,
        kid_subset_size=kid_subset_size,
        prc_neighborhood=neighbours or 1,
        prc_batch_size=DISTANCES_BATCH,
        rng_seed=seed,
        batch_size=min(batch_size, BATCH_SIZE),
        cuda=device.type == "cuda",
        save_cpu_ram=True,  # no worker processes; distances in pieces
        cache=False,
        verbose=False,
    )
    return cast(Fidelity, {name: float(measures[key]) for name, key in MEASURES.items() if key in measures})


def extract_features(images: np.ndarray, extractor: Extractor, device: torch.device, batch_size: int) -> Tensor:
    """The features (N, F) that FID is computed of, on the CPU, of images uint8 (N, H, W, C)."""
    layer = resolve_feature_layer_for_metric("fid", feature_extractor=extractor.name)
    cuda = device.type == "cuda"
    network = create_feature_extractor(
        extractor.name, [layer], cuda=cuda, feature_extractor_weights_path=str(extractor.weights), verbose=False
    )
    pictures = Images(images, extractor.channels)
    features: Tensor = get_featuresdict_from_dataset(
        pictures, network, min(batch_size, BATCH_SIZE), cuda, save_cpu_ram=True, verbose=False
    )[layer]
    return features


def min_held_out(extractor: Extractor, neighbours: int) -> int:
    """How many held-out images have a covariance of full rank and the neighbours asked for."""
    return max(extractor.features, neighbours) + 1


def held_out_fidelity(
    held_out: np.ndarray,
    reference: np.ndarray,
    extractor: Extractor,
    *,
    kid_subset_size: int,
    neighbours: int,
    seed: int,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
) -> HeldOut:
    """`fidelity` of the held-out real images against the training images: what unseen real images score.

    The KID subsets are as large as the held-out set allows. A set too small for the covariance gives None for every measure
    and a `reason`, as its size is no choice of the evaluation.
    """
    needed = min_held_out(extractor, neighbours)
    if len(held_out) < needed:
        reason = f"{len(held_out)} held-out images; {needed} are needed for {extractor.features} features"
        return {"fid": None, "kid": None, "precision": None, "recall": None, "reason": reason}
    scores = fidelity(
        held_out,
        reference,
        extractor,
        kid_subset_size=min(len(held_out), kid_subset_size),
        neighbours=neighbours,
        seed=seed,
        device=device,
        batch_size=batch_size,
    )
    return {**scores}
