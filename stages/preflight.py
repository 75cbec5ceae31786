"""What can be known of a run from its params and the folders they name, before the first job. Light: no torch.

A Snakefile calls `check_inputs` once, in the main process; every stage that reads the same input checks it again.
"""

from __future__ import annotations

from typing import Any

from stages import config
from stages.datasets.classes import check_known, check_trained
from stages.datasets.survey import Survey, explained, survey
from stages.evaluation.counts import CLASSIFIER, INCEPTION, check_count, list_needs
from stages.files import pipeline_file

Params = dict[str, Any]


def check_inputs(params: Params) -> None:
    """Raise ValueError, one line, for what would end a later job: checked params, folders of this machine."""
    images = survey(params["prepare_data"])
    check_side(params, images)
    check_labels(params, images)
    check_counts(params, images)


def check_side(params: Params, images: Survey) -> None:
    """Refuse images whose own size the levels of the networks cannot halve."""
    for key, problem in config.resolution_problems(params, images.height):
        raise ValueError(f"{key}: {problem}")


def check_labels(params: Params, images: Survey) -> None:
    """Refuse images without the classes that a class-conditional teacher has, or is to be trained for."""
    settings = params["train_teacher"]
    if settings["source"] == "train":
        if settings["class_conditional"]:
            check_trained(images.classes)
        return
    known = config.read_teacher_config(settings).get("num_class_embeds")
    if isinstance(known, int):
        check_known(images.classes, known, str(pipeline_file(settings["path"], "unet", "config.json")))


def check_counts(params: Params, images: Survey) -> None:
    """Refuse too few training images to compare samples with."""
    settings = params["evaluate"]
    features = {CLASSIFIER: params["train_extractor"]["features"], INCEPTION: config.INCEPTION_FEATURES}
    extractor = settings["extractor"]
    needs = list_needs(extractor, features.get(extractor), settings["kid_subset_size"], settings["neighbours"])
    with explained(images.notes):
        check_count(images.train, "training images", "prepare_data", needs)
