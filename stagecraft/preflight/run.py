"""What can be known of a run from its params and the folders they name, before the first job. Light: no torch.

A Snakefile calls `check_inputs` in the main process, and `check_counts` when it plans an evaluation; every stage that reads the
same input checks it again.
"""

from __future__ import annotations

from stagecraft.config.sections import Everything
from stagecraft.data.classes import check_told
from stagecraft.data.survey import explained, survey
from stagecraft.evaluation.counts import CLASSIFIER, INCEPTION, check_count, check_extractor, list_needs
from stagecraft.preflight.clashes import INCEPTION_FEATURES
from stagecraft.preflight.given_models import check_given_autoencoder, check_given_teacher


def check_inputs(params: Everything) -> None:
    """Raise ValueError, one line, for what would end a later job: checked params, folders of this machine."""
    images = survey(params.prepare_data)
    prompts = params.encode_prompts
    if prompts.source != "none":
        check_told(images.with_texts, images.classes, prompts.names, prompts.template)
    check_given_autoencoder(params, images)
    check_given_teacher(params, images)


def check_counts(params: Everything) -> None:
    """Raise ValueError for too few training images to compare samples with, or nothing to compare by; only `evaluate` does so."""
    images = survey(params.prepare_data)
    settings = params.evaluate
    features = {CLASSIFIER: params.train_extractor.features, INCEPTION: INCEPTION_FEATURES}
    extractor = settings.extractor
    needs = list_needs(extractor, features.get(extractor), settings.kid_subset_size, settings.neighbours)
    with explained(images.notes):
        check_count(images.train, "training images", "prepare_data", needs)
    check_extractor(extractor)
