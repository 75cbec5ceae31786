"""Search jobs: a site of the teacher and, in the decoder, the range of intervals that is searched for. Light: no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

RANGE = ".interval_"  # before the range in a job's name


@dataclass(frozen=True)
class Job:
    """The subject of one search; `intervals` is None for a block that all intervals share."""

    site: str
    intervals: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, name: str) -> Self:
        """The job of a name: `down_blocks.0`, `up_blocks.0.interval_2`, `up_blocks.0.interval_0-1`."""
        site, _, text = name.partition(RANGE)
        if not text:
            return cls(site)
        first, _, last = text.partition("-")
        return cls(site, tuple(range(int(first), int(last or first) + 1)))

    @property
    def name(self) -> str:
        """The name of its files."""
        if self.intervals is None:
            return self.site
        first = self.intervals[0]
        last = self.intervals[-1]
        return f"{self.site}{RANGE}{first}" if first == last else f"{self.site}{RANGE}{first}-{last}"


def name_of(site: str, per_range: bool, intervals: Sequence[int]) -> str:
    """The name of the job that searches the block of these intervals at a site."""
    return Job(site, tuple(intervals) if per_range else None).name
