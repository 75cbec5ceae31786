"""The steps of a run with their MACs: what each rule does, counted as the records of a run count it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from stagecraft.clustering.cluster import FIXED
from stagecraft.evaluation.extractor import QUARTER_TURNS, Classifier, Shape
from stagecraft.networks.costs import count_network_macs
from stagecraft.planning.setup import META, Setup
from stagecraft.planning.student import Search
from stagecraft.preflight.jobs import block_names
from stagecraft.search.importance import BATCH, BATCHES, chooses_channels
from stagecraft.training.schedule import passes_per_step

BACKWARD = 2  # forward passes that a backward one counts as
RULES = (
    "prepare_data",
    "encode_prompts",
    "train_autoencoder",
    "encode_latents",
    "train_teacher",
    "train_extractor",
    "cluster_timesteps",
    "cache_features",
    "rank_channels",
    "measure_latency",
    "search_block",
    "collect_search",
    "assemble",
    "retrain",
    "evaluate",
    "report",
    "publish",
    "record",
)


@dataclass(frozen=True)
class Work:
    """MACs of a rule's jobs together.

    Args:
        forward: of passes without gradients.
        training: of passes with a backward one, which counts as two more.
    """

    forward: float = 0.0
    training: float = 0.0

    @property
    def macs(self) -> float:
        """All of them."""
        return self.forward + self.training


def count_jobs(setup: Setup) -> dict[str, int]:
    """Jobs of each rule, in the order in which they run."""
    return dict.fromkeys(RULES, 1) | {"search_block": len(block_names(setup.params))}


def count_work(setup: Setup, student_macs: float, search: Search) -> dict[str, Work]:
    """MACs of each rule that runs networks, or the optimal denoiser."""
    counters: dict[str, Callable[[], Work]] = {
        "train_autoencoder": lambda: autoencoder_work(setup),
        "encode_latents": lambda: Work(forward=setup.images.train * encoder_macs(setup)),
        "train_teacher": lambda: teacher_work(setup),
        "train_extractor": lambda: extractor_work(setup),
        "cluster_timesteps": lambda: clustering_work(setup),
        "cache_features": lambda: features_work(setup),
        "rank_channels": lambda: ranking_work(setup),
        "search_block": lambda: search_work(search),
        "retrain": lambda: retraining_work(setup, student_macs),
        "evaluate": lambda: evaluation_work(setup, student_macs),
    }
    return {rule: counters[rule]() if rule in counters else Work() for rule in RULES}


def train_macs(settings: Any, macs: float) -> float:
    """MACs of a training whose forward pass takes so many for a sample."""
    again = getattr(settings, "gradient_checkpointing", False)
    return float((1 + again + BACKWARD) * settings.steps * settings.batch_size * macs)


def autoencoder_work(setup: Setup) -> Work:
    """The training of an autoencoder, and the encoding after it that says how latents are scaled."""
    settings = setup.params.train_autoencoder
    if settings.source != "train":
        return Work()
    encoding = encoder_macs(setup)
    training = train_macs(settings, encoding + decoder_macs(setup))
    return Work(forward=setup.images.train * encoding, training=training)


def teacher_work(setup: Setup) -> Work:
    """The teacher's training, where it is trained here."""
    settings = setup.params.train_teacher
    trained = settings.source == "train"
    return Work(training=train_macs(settings, count_network_macs(setup.teacher)) if trained else 0.0)


def extractor_work(setup: Setup) -> Work:
    """The training of the classifier of FID."""
    settings = setup.params.train_extractor
    classes = len(setup.images.classes or range(QUARTER_TURNS))
    with META:
        model = Classifier(Shape(setup.channels, setup.side, classes, settings.features, settings.width))
    images = torch.zeros(1, setup.channels, setup.side, setup.side, dtype=torch.uint8, device=META)
    return Work(training=train_macs(settings, count_macs_of(lambda: model(images))))


def clustering_work(setup: Setup) -> Work:
    """The two matrix products of the optimal denoiser over the training set, and the gradients of the method gradient."""
    settings = setup.params.cluster_timesteps
    seeds = 1 if settings.method in FIXED else settings.seeds
    channels, height, width = setup.shape
    compared = seeds if settings.method in ("agglomerative", "dynamic_programming") else 1
    points = compared * settings.grid * settings.draws
    points += seeds * settings.draws * (settings.method == "threshold")
    passes = seeds * settings.grid * settings.draws * (settings.method == "gradient")
    products = 2.0 * setup.images.train * channels * height * width
    return Work(points * products, (1 + BACKWARD) * passes * count_network_macs(setup.teacher))


def features_work(setup: Setup) -> Work:
    """One pass of the teacher over every triple."""
    triples = setup.intervals * setup.params.cache_features.triples_per_interval
    searched = setup.params.architecture == "searched"
    return Work(forward=float(triples * searched * count_network_macs(setup.teacher)))


def ranking_work(setup: Setup) -> Work:
    """The gradients that the importance of channels comes from, where some are, or may be, left out."""
    ranked = chooses_channels(setup.params, lambda: setup.teacher)
    return Work(training=float((1 + BACKWARD) * BATCHES * BATCH * ranked * count_network_macs(setup.teacher)))


def search_work(search: Search) -> Work:
    """All block searches."""
    spent = search.macs_spent()
    return Work(sum(one["scoring"] for one in spent), sum(one["training"] for one in spent))


def retraining_work(setup: Setup, student_macs: float) -> Work:
    """The student's retraining, and the teacher's passes for it."""
    settings = setup.params.retrain
    own, taught = passes_per_step(settings)
    teaching = taught * settings.steps * settings.batch_size * count_network_macs(setup.teacher)
    return Work(forward=teaching, training=own * train_macs(settings, student_macs))


def evaluation_work(setup: Setup, student_macs: float) -> Work:
    """The samples of teacher, student and teacher in fewer steps, decoded in latent diffusion.

    The fewer steps are taken to have the student's MACs; features and distances are left out.
    """
    settings = setup.params.evaluate
    steps = setup.params.sampling.steps
    teacher = steps * count_network_macs(setup.teacher)
    student = (settings.student_steps or steps) * student_macs
    drawn = [teacher, student, student] if student < teacher else [teacher, student]
    return Work(forward=float(settings.samples * (sum(drawn) + len(drawn) * decoder_macs(setup))))


def encoder_macs(setup: Setup) -> int:
    """MACs of encoding one image; 0 in pixels."""
    vae = setup.autoencoder
    if vae is None:
        return 0
    image = torch.zeros(1, setup.channels, setup.side, setup.side, device=META)
    return count_macs_of(lambda: vae.encode(image))


def decoder_macs(setup: Setup) -> int:
    """MACs of decoding one latent; 0 in pixels."""
    vae = setup.autoencoder
    if vae is None:
        return 0
    latent = torch.zeros(1, *setup.shape, device=META)
    return count_macs_of(lambda: vae.decode(latent))


def count_macs_of(call: Callable[[], Any]) -> int:
    """MACs of a call, by torch's FlopCounterMode."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2
