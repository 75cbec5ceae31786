"""Ranges of contiguous stages that share a block of the decoder, in job names and architectures. Light: no torch."""

from collections.abc import Sequence
from typing import Any


def job_name(block: str, stages: Sequence[int]) -> str:
    """The name of the search job of an up block for a range of contiguous stages."""
    first, last = stages[0], stages[-1]
    return f"{block}.stage_{first}" if first == last else f"{block}.stage_{first}-{last}"


def range_of_name(text: str) -> list[int]:
    """The stages that the end of a job's name says: `2`, or `0-1`."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


def ranges_in(specs: dict[str, Any], index: int) -> list[list[int]]:
    """The ranges of one up block in the `unet` part of an architecture.json; each stage by itself where it names none."""
    return specs["ranges"][index] if "ranges" in specs else [[stage] for stage in range(len(specs["decoders"]))]
