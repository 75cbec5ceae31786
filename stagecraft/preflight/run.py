"""What can be known of a run from its params and the folders they name, before the first job. Light: no torch.

A Snakefile calls `check_inputs` in the main process, and `check_counts` when it plans an evaluation; every stage that reads the
same input checks it again.
"""

from __future__ import annotations

import re
from pathlib import Path

from stagecraft.config.sections import Everything
from stagecraft.data.classes import check_told
from stagecraft.data.survey import Survey, explained, survey
from stagecraft.evaluation.counts import CLASSIFIER, INCEPTION, check_count, check_extractor, list_needs
from stagecraft.networks.class_parts import check_classes
from stagecraft.preflight.clashes import INCEPTION_FEATURES
from stagecraft.preflight.given_models import check_given_autoencoder, check_given_teacher, network_space
from stagecraft.preflight.jobs import latency_files
from stagecraft.runtime.files import read_json

# How the key of a network's first layer begins in a table of latencies, with the channels and the side of a sample.
FIRST_LAYER = re.compile(r"Entrance of (\d+)x(\d+)x\d+,")


def check_inputs(params: Everything) -> None:
    """Raise ValueError, one line, for what would end a later job: checked params, folders of this machine."""
    images = survey(params.prepare_data)
    prompts = params.encode_prompts
    if prompts.source == "classes":
        check_classes(prompts, images.classes)
    elif prompts.source != "none":
        check_told(images.with_texts, images.classes, prompts.names, prompts.template)
    check_given_autoencoder(params, images)
    check_given_teacher(params, images)
    check_latencies(params, images)


def check_latencies(params: Everything, images: Survey) -> None:
    """Raise ValueError where a kept table of latencies is of networks for other samples, as the digits' is for own images."""
    settings = params.measure_latency
    if settings.source != "path" or params.architecture == "given":
        return
    layers = read_json(Path(latency_files(settings)[0])).get("layers")
    first = map(FIRST_LAYER.match, layers) if isinstance(layers, dict) else ()
    known = [(int(found[1]), int(found[2])) for found in first if found]
    space = network_space(params, images)
    if known and not any(space.channels in (None, c) and space.side in (None, side) for c, side in known):
        channels, side = known[0]
        own = [f"{space.side} x {space.side} pixels"] * (space.side is not None)
        own += [f"{space.channels} channel(s)"] * (space.channels is not None)
        raise ValueError(
            f"measure_latency.path: {settings.path} was measured for samples of {side} x {side} pixels and {channels} "
            f"channel(s), but those of this run have {' and '.join(own)}; "
            "set measure_latency.source: measure, and path: null"
        )


def check_counts(params: Everything) -> None:
    """Raise ValueError for too few training images to compare samples with, or nothing to compare by; only `evaluate` does so."""
    check_training_images(params, survey(params.prepare_data))
    check_extractor(params.evaluate.extractor)


def check_training_images(params: Everything, images: Survey) -> None:
    """Raise ValueError for too few of them to compare samples with."""
    settings = params.evaluate
    features = {CLASSIFIER: params.train_extractor.features, INCEPTION: INCEPTION_FEATURES}
    extractor = settings.extractor
    needs = list_needs(extractor, features.get(extractor), settings.kid_subset_size, settings.neighbours)
    with explained(images.notes):
        check_count(images.train, "training images", "prepare_data", needs)
