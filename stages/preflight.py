"""What can be known of a run from its params and the folders they name, before the first job. Light: no torch.

A Snakefile calls `check_inputs` once, in the main process; every stage that reads the same input checks it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
