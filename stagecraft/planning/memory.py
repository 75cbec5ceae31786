"""Bytes of memory that a job of each rule needs: weights, what training keeps of them, activations, and its data."""

from typing import Any

import torch

from stagecraft.clustering.denoiser import BATCH, MOST_CENTRED
from stagecraft.config.sections import Averaged
from stagecraft.networks.activations import BOUND, activation_bytes, count_kept_bytes, count_saved_bytes
from stagecraft.networks.costs import count_parameters
from stagecraft.networks.families import family_of, sites_of
from stagecraft.networks.family import Site
from stagecraft.planning.setup import META, Setup
from stagecraft.planning.student import Search
from stagecraft.runtime.device import frozen_in
from stagecraft.search.importance import chooses_channels
from stagecraft.search.supernet import OutputScore

FLOAT = 4  # bytes of a float32
PROCESS = 2**29  # bytes of Python with its libraries
ADAM = 2  # numbers that the optimiser keeps of each weight


def estimate_memory(setup: Setup, student_params: int, search: Search) -> dict[str, int]:
    """Bytes that a job of each rule needs, at most about; of rules that run no network the process alone."""
    images = image_bytes(setup)
    weights = FLOAT * count_parameters(setup.teacher)
    student = FLOAT * student_params
    each = activation_bytes(setup.teacher, setup.shape)
    passing = sum(in_single(setup).values())  # what a pass without gradients holds of a sample
    params = setup.params
    needs = {
        "prepare_data": images,
        "train_autoencoder": images + autoencoder_bytes(setup),
        "train_teacher": images + 2 * weights,
        "cluster_timesteps": clustering_bytes(setup),
        "cache_features": images + weights + features_bytes(setup, passing),
        "rank_channels": images + weights + max(each, BOUND)
        if chooses_channels(params, lambda: setup.teacher)
        else images,
        "search_block": max((block_bytes(setup, site) for site in sites_of(setup.teacher)), default=0) + weights,
        "retrain": images + trained(student) + frozen_bytes(setup) + batch_bytes(setup, params.retrain),
        "evaluate": images + weights + student + params.evaluate.batch_size * passing,
    }
    if params.train_teacher.source == "train":
        needs["train_teacher"] = images + trained(weights) + batch_bytes(setup, params.train_teacher)
    return {rule: PROCESS + need for rule, need in needs.items()}


def in_single(setup: Setup) -> dict[str, int]:
    """Bytes of each tensor of one triple in single precision, in which jobs work with it."""
    return {name: FLOAT * tensor.numel() for name, tensor in setup.features.trace_one().items()}


def trained(weights: int, average: int = 1) -> int:
    """Bytes of weights with their gradients, the optimiser's numbers and their moving average."""
    return weights * (2 + ADAM + average)


def batch_bytes(setup: Setup, settings: Averaged) -> int:
    """Activations of a batch in the training of a network of the teacher's size."""
    return settings.batch_size * activation_bytes(
        setup.teacher, setup.shape, checkpointing=settings.gradient_checkpointing
    )


def frozen_bytes(setup: Setup) -> int:
    """The teacher's weights where they are not trained."""
    return frozen_in(setup.params.precision).itemsize * count_parameters(setup.teacher)


def image_bytes(setup: Setup) -> int:
    """Bytes of the prepared images, and of the latents of the training split."""
    known = setup.images.train + setup.images.held_out
    pixels = known * setup.channels * setup.side**2
    channels, height, width = setup.shape
    latents = FLOAT * setup.images.train * channels * height * width
    return pixels + (0 if setup.autoencoder is None else latents)


def autoencoder_bytes(setup: Setup) -> int:
    """Memory of an autoencoder's training, or of its encoding of a few images."""
    vae = setup.autoencoder
    settings = setup.params.train_autoencoder
    if vae is None:
        return 0
    weights = FLOAT * count_parameters(vae)
    if settings.source != "train":
        return weights
    x = torch.zeros(1, setup.channels, setup.side, setup.side, device=META, requires_grad=True)
    each = count_kept_bytes(vae, lambda: vae(x, sample_posterior=False), settings.gradient_checkpointing)
    return trained(weights) + settings.batch_size * each


def clustering_bytes(setup: Setup) -> int:
    """The images, some as float32, twice, the optimal denoisers at all noise levels, also in float64, and a batch's weights."""
    settings = setup.params.cluster_timesteps
    channels, height, width = setup.shape
    numbers = channels * height * width
    means = 3 * FLOAT * settings.grid * settings.draws * numbers
    batch = 5 * FLOAT * BATCH * setup.images.train
    centred = 2 * FLOAT * min(setup.images.train * numbers, MOST_CENTRED)
    return image_bytes(setup) + centred + means + batch


def features_bytes(setup: Setup, each: int) -> int:
    """A shard, in batches and as a whole."""
    settings = setup.params.cache_features
    return 2 * min(settings.shard_size, settings.triples_per_interval) * each


def block_bytes(setup: Setup, site: Site) -> int:
    """Memory of a block's search beside the teacher: the supernet, a path's activations, triples to score on."""
    settings = setup.params.search_block
    sizes = in_single(setup)
    family = family_of(setup.teacher)
    supernet = trained(FLOAT * count_parameters(setup.teacher.get_submodule(site.name)), average=0)
    own = sum(sizes[name] for name in (*site.reads, *site.writes))
    scored = sum(sizes[name] for name in OutputScore.names(setup.teacher, site, {}))
    held = setup.intervals * (settings.local_triples * own + settings.output_triples * scored)
    traced = setup.features.trace_one()
    inputs = [traced[name].detach() for name in site.reads]
    block: Any = setup.teacher.get_submodule(site.name)
    saved = count_saved_bytes(block, lambda: family.run(site, block, inputs))
    return supernet + held + settings.batch_size * (own + saved)
