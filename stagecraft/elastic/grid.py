"""Choices that are one option of each of several dimensions, or the dropped layer."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

DROPPED = 1 / 8  # share of random draws in which a layer that may be dropped is

C = TypeVar("C", bound=Mapping[str, object])


class GridChoices(ABC, Generic[C]):
    """What may be chosen of one layer that has options of several dimensions.

    Args:
        may_drop: whether the layer may be dropped as well.
    """

    def __init__(self, may_drop: bool) -> None:
        self.may_drop = may_drop

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Number of options of each dimension, in the order of `choice`."""

    @abstractmethod
    def choice(self, numbers: Sequence[int]) -> C:
        """The choice of the options with these numbers."""

    @abstractmethod
    def numbers(self, choice: C) -> list[int]:
        """The numbers of a choice's options, as `choice` takes them."""

    @abstractmethod
    def plain_numbers(self) -> list[list[int]]:
        """The numbers of the choices that treat all dimensions alike, from the teacher's down."""

    def __len__(self) -> int:
        return math.prod(self.sizes) + self.may_drop

    def smallest(self) -> C:
        """The smallest of everything, not dropped."""
        return self.choice([0] * len(self.sizes))

    def all(self) -> list[C | None]:
        """Every choice, the dropped layer last."""
        kept: list[C | None] = [self.choice(numbers) for numbers in itertools.product(*map(range, self.sizes))]
        return [*kept, None] if self.may_drop else kept

    def plain(self) -> list[C | None]:
        """The choices that treat all dimensions alike, from the teacher's down; the dropped layer."""
        kept: list[C | None] = [self.choice(numbers) for numbers in self.plain_numbers()]
        return [*kept, None] if self.may_drop else kept

    def draw(self, rng: np.random.Generator) -> C | None:
        """Each dimension uniform over its options, dropped once in eight."""
        if self.may_drop and rng.random() < DROPPED:
            return None
        return self.choice([int(rng.integers(size)) for size in self.sizes])

    def changed(self, choice: C | None, rng: np.random.Generator) -> C | None:
        """A choice that differs in one dimension, or now and then the dropped layer; a random choice for a dropped one."""
        if choice is None or (self.may_drop and rng.random() < DROPPED):
            return self.draw(rng) if choice is None else None
        numbers = self.numbers(choice)
        free = [i for i, size in enumerate(self.sizes) if size > 1]
        if not free:
            return choice
        at = free[rng.integers(len(free))]
        numbers[at] = (numbers[at] + 1 + int(rng.integers(self.sizes[at] - 1))) % self.sizes[at]
        return self.choice(numbers)


def counts(shares: Sequence[float], multiple: int, groups: int, size: int) -> list[int]:
    """Shares as numbers of whole groups of `size` channels, ascending; all of them is always among them.

    The channels of the others are multiples of `multiple`, at least one.
    """
    step = math.lcm(size, multiple) // size
    numbers = {step * max(1, round(share * groups / step)) for share in shares}
    return sorted({number for number in numbers if number < groups} | {groups})
