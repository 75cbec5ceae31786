"""A small CNN classifier trained on the training split, as the feature extractor of torch-fidelity.

It stands in for Inception where the images are small and no weights are at hand. Its distances compare models on one
data set by one extractor file only; they are no Inception distances, so every figure must name it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from stagecraft.config.sections import TrainExtractor
from stagecraft.evaluation.counts import CLASSIFIER, check_features
from stagecraft.evaluation.metrics import ExtractorDescription
from stagecraft.runtime.device import images_at_once
from stagecraft.runtime.files import (
    CONTENT_HASH,
    atomic_path,
    check_content,
    check_same_hash,
    run_again,
    sha256_content,
    sha256_tensor,
)
from stagecraft.training.loop import TrainSettings, train

STAGE = "train_extractor"
ROTATION = "rotation"
GRID = 2
QUARTER_TURNS = 4
# One metadata key only: safetensors writes several keys in an order that changes from process to process.
METADATA_KEY = "extractor"
WEIGHTS_HASH = "weights_sha256"


@dataclass(frozen=True)
class Shape:
    """The arguments that rebuild a `Classifier`: channels and size of its images, classes, penultimate features, first width."""

    channels: int
    resolution: int
    classes: int
    features: int
    width: int


class Classifier(nn.Module):
    """3x3 convolutions with ReLU, strided down to about 4x4, mean over a 2x2 grid, a linear layer.

    No normalisation, so that features keep contrast; a grid, so that they keep where things are. On the 8x8 digits this
    tells a sampler's faults from chance better than group norm with a global mean, whose features hold little but the class.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        size = shape.resolution
        layers = [*convolution(shape.channels, width)]
        while size >= 8:
            wider = min(2 * width, 4 * shape.width)
            layers += convolution(width, wider, stride=2)
            width = wider
            size = (size + 1) // 2
        layers += convolution(width, shape.features // GRID**2)
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(GRID), nn.Flatten())
        self.head = nn.Linear(shape.features, shape.classes)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (N, features) of uint8 images (N, C, H, W)."""
        x_NCHW = images.to(self.head.weight.dtype) / 127.5 - 1
        return self.body(x_NCHW)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) of uint8 images (N, C, H, W)."""
        return self.head(self.features(images))


def convolution(inside: int, outside: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution and ReLU, initialised as in He et al. 2015."""
    conv = nn.Conv2d(inside, outside, 3, stride=stride, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return [conv, nn.ReLU()]


@dataclass(frozen=True)
class Task:
    """The training task: `classifier` predicts the labels, `rotation` the quarter turn that an image was rotated by.

    The second needs no labels: Gidaris et al. 2018, Unsupervised Representation Learning by Predicting Image Rotations.
    """

    kind: str
    names: np.ndarray  # the labels told apart, ascending

    def batch(self, images: Tensor, labels: np.ndarray | None, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (n, C, H, H) and targets (n,): of the labels, or of `turns` (n,) in 0..3. A label never trained on is -1."""
        if self.kind == ROTATION:
            return rotated(images, turns), turns
        assert labels is not None
        places = np.searchsorted(self.names, labels).clip(max=len(self.names) - 1)
        return images, torch.from_numpy(np.where(self.names[places] == labels, places, -1))


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate image i of (n, C, H, H) by `turns[i]` quarter turns."""
    result = images.clone()
    for k in range(1, QUARTER_TURNS):
        chosen = turns == k
        result[chosen] = torch.rot90(images[chosen], k, dims=(2, 3))
    return result


def make_task(labels: np.ndarray | None) -> Task:
    """Classification when there are two or more labels (any integers), rotation prediction otherwise."""
    if labels is None or len(np.unique(labels)) < 2:
        return Task(ROTATION, np.arange(QUARTER_TURNS))
    return Task(CLASSIFIER, np.unique(labels))


@dataclass(frozen=True)
class Trained:
    """A classifier, its description (kind, shape, accuracies) and its loss history."""

    model: Classifier
    description: ExtractorDescription
    history: list[dict[str, float]]


def train_extractor(
    images: np.ndarray,
    labels: np.ndarray | None,
    held_out: tuple[np.ndarray, np.ndarray | None],
    settings: TrainExtractor,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    fingerprint: Mapping[str, object] | None = None,
) -> Trained:
    """Train a classifier on the training split and score it on the held-out images.

    `images` uint8 (N, H, H, C), `labels` integers (N,) or None, `held_out` the same of the held-out split, `settings`
    the section `train_extractor` of params, `fingerprint` what a checkpoint to resume from must have been made with.
    Raises ValueError for `features` that do not fill the 2x2 grid.
    """
    check_features(settings.features)
    task = make_task(labels)
    _, resolution, _, channels = images.shape
    shape = Shape(channels, resolution, len(task.names), settings.features, settings.width)
    model = build(shape, seed).to(device)
    result = train(
        model,
        classification_losses(model, task, images, labels, settings.batch_size),
        TrainSettings.of(settings, seed),
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        label="train_extractor",
    )
    scale_features(model.eval(), images)
    scores = {
        "training_accuracy": accuracy(model, task, images, labels),
        "held_out_accuracy": accuracy(model, task, *held_out),
    }
    description = cast(ExtractorDescription, {"kind": task.kind, **asdict(shape), **scores})
    return Trained(model, description, result.history)


@torch.no_grad()
def scale_features(model: Classifier, images: np.ndarray, batch_size: int = 1024) -> None:
    """Divide the features by their root mean square over `images`, in place and without a change of the logits.

    KID's kernel (x.y/F + 1)^3 presumes features of about this size. ReLU and means pass a factor on from the last
    convolution, and the linear layer takes it back.
    """
    device = model.head.weight.device
    total = 0.0
    batch_size = images_at_once(batch_size, *images.shape[1:3])
    for start in range(0, len(images), batch_size):
        features = model.features(to_tensor(images[start : start + batch_size]).to(device))
        total += float(features.double().square().sum())
    scale = (total / (len(images) * model.head.in_features)) ** 0.5
    last = [module for module in model.body if isinstance(module, nn.Conv2d)][-1]
    for weight in last.parameters():
        weight.div_(scale)
    model.head.weight.mul_(scale)


def build(shape: Shape, seed: int) -> Classifier:
    """A classifier with weights drawn from `seed`, leaving the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(shape)


def classification_losses(
    model: Classifier, task: Task, images: np.ndarray, labels: np.ndarray | None, batch_size: int
) -> Callable[[int, torch.Generator], Iterator[tuple[str, Tensor]]]:
    """The training loop's loss function: cross entropy of one batch drawn with replacement."""

    def losses(step: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        rows = torch.randint(len(images), (batch_size,), generator=generator).numpy()
        turns = torch.randint(QUARTER_TURNS, (batch_size,), generator=generator)
        inputs, targets = task.batch(to_tensor(images[rows]), None if labels is None else labels[rows], turns)
        device = model.head.weight.device
        yield "loss", F.cross_entropy(model(inputs.to(device)), targets.to(device))

    return losses


@torch.no_grad()
def accuracy(
    model: Classifier, task: Task, images: np.ndarray, labels: np.ndarray | None, batch_size: int = 1024
) -> float | None:
    """Share of right answers on uint8 images (N, H, H, C), for `rotation` over all four turns of each; None without images."""
    if len(images) == 0:
        return None
    device = model.head.weight.device
    right = 0
    batch_size = images_at_once(batch_size, *images.shape[1:3])
    every_turn = range(QUARTER_TURNS if task.kind == ROTATION else 1)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        pixels = to_tensor(images[rows])
        for k in every_turn:
            inputs, targets = task.batch(
                pixels, None if labels is None else labels[rows], torch.full((len(pixels),), k)
            )
            right += int((model(inputs.to(device)).argmax(1).cpu() == targets).sum())
    return right / (len(images) * len(every_turn))


def classifier_of(path: Path, labels: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray] | None:
    """A function from images uint8 (N, H, W, C) to their predicted labels (N,); None for a classifier of rotations.

    Args:
        labels: those that it was trained on.
    """
    description, _ = read_classifier(path)
    if description["kind"] != CLASSIFIER or labels is None:
        return None
    model = load_classifier(path)
    names = make_task(labels).names

    @torch.no_grad()
    def classify(images: np.ndarray, batch_size: int = 1024) -> np.ndarray:
        size = images_at_once(batch_size, *images.shape[1:3])
        parts = [model(to_tensor(images[start : start + size])).argmax(1) for start in range(0, len(images), size)]
        return names[torch.cat(parts).numpy()]

    return classify


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) array to a contiguous uint8 (N, C, H, W) tensor."""
    return torch.from_numpy(np.moveaxis(images, 3, 1).copy())


def save_classifier(path: Path, model: Classifier, description: Mapping[str, object]) -> None:
    """Write weights, their hashes and a description as one safetensors file, the same bytes for the same model."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    content = {**description, WEIGHTS_HASH: hash_weights(weights)}
    text = json.dumps(content | {CONTENT_HASH: sha256_content(content)}, sort_keys=True)
    with atomic_path(path) as aside:
        save_file(weights, aside, metadata={METADATA_KEY: text})


def read_classifier(path: Path) -> tuple[ExtractorDescription, dict[str, Tensor]]:
    """Description and weights of a saved classifier; ValueError when `path` is no such file or was altered."""
    remedy = run_again(STAGE, path)
    try:
        with safe_open(path, framework="pt") as file:
            description: dict[str, object] = json.loads(file.metadata()[METADATA_KEY])
            weights = load_file(path)
    except Exception as error:
        raise ValueError(f"{path}: not an extractor written by {STAGE} ({error}); {remedy}") from error
    check_content(path, description, STAGE)
    check_same_hash(path, hash_weights(weights), description.pop(WEIGHTS_HASH), f"its {WEIGHTS_HASH}", remedy)
    return cast(ExtractorDescription, description), weights


def hash_weights(weights: dict[str, Tensor]) -> str:
    """One hash of all weights with their names."""
    return sha256_content({name: sha256_tensor(value) for name, value in weights.items()})


def load_classifier(path: Path) -> Classifier:
    """Rebuild a saved classifier, in eval mode on the CPU."""
    description, weights = read_classifier(path)
    sizes = description["channels"], description["resolution"], description["classes"]
    model = Classifier(Shape(*sizes, description["features"], description["width"]))
    model.load_state_dict(weights)
    return model.eval()


class FileFeatures(FeatureExtractorBase):
    """Base of the extractors that torch-fidelity builds from a file: one layer, `features`, in float64 statistics."""

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return ("features",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False


class ClassifierFeatures(FileFeatures):
    """Features of a saved `Classifier` for uint8 images in its own number of channels."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any) -> None:
        super().__init__(name, features_list)
        self.model = load_classifier(Path(feature_extractor_weights_path))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.model.features(images).double(),)


class TorchScriptFeatures(FileFeatures):
    """Features of a TorchScript module: uint8 (N, 3, H, W) in, floating point (N, F) out."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any) -> None:
        super().__init__(name, features_list)
        self.model = torch.jit.load(feature_extractor_weights_path, map_location="cpu")

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.model(images).double(),)


for extractor_name, extractor_class in ((CLASSIFIER, ClassifierFeatures), ("torchscript", TorchScriptFeatures)):
    if extractor_name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(extractor_name, extractor_class)
