"""The content of architecture.json: the student that was chosen, its costs, and the intervals that it has decoders for."""

from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from stagecraft.networks.family import Architecture, Spec
from stagecraft.runtime.files import read_checked_json


class ChosenBlock(TypedDict):
    """The candidate that was chosen of a search, with its costs and, where they were measured, its errors and its time."""

    spec: Spec
    macs: int
    params: int
    nmse: NotRequired[float]
    output: NotRequired[list[float] | None]
    time: NotRequired[float]


class Assembled(TypedDict):
    """What was chosen and what it costs; `chosen` and `supernets` (hashes) go by search job, empty for a given architecture."""

    rule: str
    score: str | None
    tau: float | None
    budget: dict[str, float | None] | None
    unet: Architecture
    identity: Architecture
    chosen: Mapping[str, ChosenBlock]
    supernets: dict[str, str]
    expected: dict[str, float]
    teacher: dict[str, float | None]


class AssembledStudent(Assembled):
    """The content of architecture.json."""

    boundaries: list[float]
    boundaries_sigma: list[float | None]
    clustered: list[float]
    snapped: bool
    intervals: list[list[float]]
    density: list[float]
    steps_per_interval: list[int]
    sampler: Mapping[str, object]
    params: Mapping[str, object]


def read_architecture(path: Path) -> AssembledStudent:
    """The content of architecture.json; ValueError unless it is as it was written."""
    return cast(AssembledStudent, read_checked_json(path, "assemble"))
