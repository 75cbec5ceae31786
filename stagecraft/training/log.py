"""The loss history of a training, as results/logs/<stage>.json has it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

from stagecraft.runtime.files import read_checked_json, write_checked_json

History = list[dict[str, float]]


class TrainingLog(TypedDict):
    """Mean losses over each hundredth of the steps, none where nothing was trained, and the params of the stage."""

    stage: str
    history: History
    params: Mapping[str, object]


def write_log(path: Path, log: TrainingLog) -> None:
    """Write a loss history with the hash of its content."""
    write_checked_json(path, log)


def read_log(path: Path) -> TrainingLog:
    """The log of the stage that the file is named after; ValueError unless it is as it was written."""
    return cast(TrainingLog, read_checked_json(path, path.stem))
