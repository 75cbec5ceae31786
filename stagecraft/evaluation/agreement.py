"""How far images show what their prompts say, by the scorers that are registered here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stagecraft.data.prepared import PreparedData
from stagecraft.data.prompts import Prompts
from stagecraft.evaluation.extractor import classifier_of
from stagecraft.runtime.imports import bring_back

# Scores images uint8 (N, H, W, C), given the numbers (N,) of the prepared images whose prompts they are of.
Scorer = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class ScorerInputs:
    """The inputs of scorers.

    Args:
        extractor: the project's own classifier.
        clip: folder of a CLIP model; None for none.
    """

    data: PreparedData
    prompts: Prompts
    extractor: Path
    clip: str | None
    device: torch.device


def class_scorer(given: ScorerInputs) -> Scorer | None:
    """The share of images whose class, by the project's own classifier, is that of their prompt; None without classes."""
    labels = given.data.labels
    classify = classifier_of(given.extractor, given.data.train_labels)
    if classify is None or labels is None:
        return None
    return lambda images, drawn: float((classify(images) == labels[drawn]).mean())


def clip_scorer(given: ScorerInputs) -> Scorer | None:
    """The mean of 100 cos(image, prompt) by a CLIP model, no less than 0 (Hessel et al. 2021, without their weight)."""
    if given.clip is None:
        return None
    bring_back("transformers")
    # Heavy, and of no use to most runs.
    from stagecraft.evaluation.clip import ClipModel

    model = ClipModel(Path(given.clip), given.device)
    texts = given.prompts.texts
    rows = given.prompts.rows.numpy()
    return lambda images, drawn: model.score(images, [texts[row] for row in rows[drawn]])


SCORERS: dict[str, Callable[[ScorerInputs], Scorer | None]] = {"agreement": class_scorer, "clip_score": clip_scorer}


def make_scorers(given: ScorerInputs) -> dict[str, Scorer]:
    """The scorers that there is all for, by the names of their figures."""
    made = {name: make(given) for name, make in SCORERS.items()}
    return {name: scorer for name, scorer in made.items() if scorer is not None}
