"""The part of results/search/<job>.json that the report reads."""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from stagecraft.networks.family import Spec


class Scored(TypedDict):
    """A candidate with its error on the block's own outputs and its costs; milliseconds an image where layers were timed."""

    spec: Spec
    nmse: float
    macs: int
    params: int
    time: NotRequired[float]


class MacsSpent(TypedDict):
    """MACs that a search took."""

    training: float
    scoring: float


class Search(TypedDict):
    """The content of a search's file."""

    identity: Spec
    candidates: list[Scored]
    teacher_macs: int
    teacher_params: int
    macs_spent: MacsSpent
    triples: int
    stream_triples: int
    log: list[dict[str, float]]
    params: Mapping[str, object]
    weights_sha256: str
