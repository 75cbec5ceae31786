"""The content of metrics.json: figures of teacher and student, and what they depend on. Light: no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, cast

from stagecraft.runtime.files import read_json, run_again


class Margins(TypedDict, total=False):
    """Margins of FIDs: half of their 95 % intervals, and FIDs at one number of images.

    `fid_margin` is that of `fid`; `fid_equal`, with a margin of its own, is of `protocol.equal_count` images in each set. They
    cover which images were drawn, not the seeds of training.
    """

    fid_margin: float
    fid_equal: float
    fid_equal_margin: float


class Fidelity(TypedDict):
    """How close images are to the reference; precision and recall where they were measured."""

    fid: float
    kid: float
    precision: NotRequired[float]
    recall: NotRequired[float]


class Agreement(TypedDict, total=False):
    """How far images show what their prompts say, by the scorers of agreement.py."""

    agreement: float
    clip_score: float


class Scores(Fidelity, Agreement):
    """How good the images of a model are."""


class ImageMetrics(Scores, Margins):
    """All figures of a model's images."""


class HeldOut(Margins, Agreement, total=False):
    """Fidelity of the held-out real images; None with a reason where they are too few."""

    fid: float | None
    kid: float | None
    precision: float | None
    recall: float | None
    reason: str


class Cost(TypedDict):
    """Costs of a model in sampling and in training.

    `macs` and `macs_with_attention` are means per evaluation weighted by the sampler's steps; `params_active` are those of one
    evaluation, the largest of all intervals; `macs_training` is the mean of a forward pass in training (a step's backward pass
    costs about two more), `macs_of_samplers` has `macs` by sampler.
    """

    macs: float
    macs_with_attention: float
    macs_per_interval: list[int]
    macs_with_attention_per_interval: list[int]
    params: int
    params_active: int
    macs_training: NotRequired[float]
    macs_of_samplers: NotRequired[dict[str, float]]


class Speed(TypedDict):
    """Speed of a model's evaluations.

    `milliseconds` an image of one evaluation, the mean over the sampler's; `peak_memory_mib`, the model's own weights and what
    one evaluation of a batch allocates beside its input, None on the CPU, where the allocator keeps no such count;
    `time_by_operation`, the share of the time that each kind of operation takes, which sum to 1.
    """

    images_per_second: float
    milliseconds: float
    peak_memory_mib: float | None
    time_by_operation: dict[str, float]


class FewerSteps(ImageMetrics):
    """The teacher in as many `steps` as take the student's time or MACs for an image, and the student's FID minus its own."""

    steps: int
    budget_of: Literal["time", "macs"]
    fid_difference: float
    fid_difference_margin: float


class ModelMetrics(ImageMetrics, Cost, Speed):
    """All figures of one model."""


class DecoderCost(TypedDict):
    """MACs of an autoencoder's decoder, once per image, and parameters of the autoencoder."""

    decoder_macs: int
    params: int


class ExtractorDescription(TypedDict, total=False):
    """Description of a feature extractor: its kind; of a classifier its shape and accuracies, of a file its name."""

    kind: str
    name: str
    sha256: str
    file: str
    channels: int
    resolution: int
    classes: int
    features: int
    width: int
    training_accuracy: float | None
    held_out_accuracy: float | None
    params: Mapping[str, object]


class Reference(TypedDict):
    """The images compared with."""

    split: str
    count: int
    sha256: str
    source: str


class Protocol(TypedDict):
    """The conditions of the measurement; with prompts also the scale `guidance` and the hash of a CLIP model.

    `steps_per_interval` are the student's; where it has a number of steps of its own, `student_steps` is there.
    """

    samples: int
    sampler: str
    steps: int
    steps_per_interval: list[int]
    training_shares: list[float]
    restarts: bool
    seed: int
    extractor: ExtractorDescription
    reference: Reference
    held_out: int
    equal_count: int | None
    kid_subset_size: int
    neighbours: int
    speed_batch: int
    device: str
    threads: int
    student_steps: NotRequired[int]
    guidance: NotRequired[float]
    clip: NotRequired[str]


def student_steps(protocol: Protocol) -> int:
    """The network evaluations per image of the student."""
    return protocol.get("student_steps", protocol["steps"])


class Metrics(TypedDict):
    """The content of metrics.json."""

    teacher: ModelMetrics
    student: ModelMetrics
    held_out: HeldOut
    fewer_steps: FewerSteps | None
    ratio: dict[str, float]
    autoencoder: DecoderCost | None
    protocol: Protocol
    params: Mapping[str, object]


def read_metrics(path: Path) -> Metrics:
    """The content of metrics.json; ValueError when it is no JSON object."""
    return cast(Metrics, read_json(path, run_again("evaluate", path)))
