"""What can be known of a run from its params and the folders they name, before the first job. Light: no torch.

A Snakefile calls `check_inputs` once, in the main process; every stage that reads the same input checks it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stages.config import DIGITS_RESOLUTION
from stages.models.at_start import check_given_autoencoder, check_given_teacher

DIGITS = 1797  # images

Params = dict[str, Any]


@dataclass(frozen=True)
class Survey:
    """What a look at the source of the images tells without decoding them; None for what only decoding would tell.

    Args:
        train: images of the training split.
        held_out: images of the held-out split.
        height, width: pixels of the prepared images.
        channels: 1 (grey) or 3 (RGB).
        classes: number of each class by its name; None when the images have no labels.
    """

    train: int
    held_out: int
    height: int | None = None
    width: int | None = None
    channels: int | None = None
    classes: dict[str, int] | None = None


def check_inputs(params: Params) -> None:
    """Raise ValueError, one line, for what would end a later job: checked params, folders of this machine."""
    survey = survey_of_params(params)
    check_given_autoencoder(params, survey)
    check_given_teacher(params, survey)


def survey_of_params(params: Params) -> Survey:
    """What the params alone tell of the images; of a source whose images nobody has counted `train` is 0."""
    settings = params["prepare_data"]
    side, channels = settings["resolution"], settings["channels"]
    if settings["source"] != "digits":
        return Survey(0, 0, side, side, channels)
    side, count = side or DIGITS_RESOLUTION, DIGITS
    held_out = round(count * settings["held_out"])
    return Survey(count - held_out, held_out, side, side, channels or 1, {str(digit): digit for digit in range(10)})
