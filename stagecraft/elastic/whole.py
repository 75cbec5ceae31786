"""Whole blocks: the choices for a native student, which is of its teacher's own class (`NativeForm`)."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from stagecraft.elastic.searchable import Choice, Description
from stagecraft.networks.family import NativeChoice


class BlockChoices:
    """A list of choices for a block, the teacher's own first and the smallest last."""

    def __init__(self, options: Sequence[NativeChoice]) -> None:
        self.options = [cast(Choice, option) for option in options]

    def __len__(self) -> int:
        return len(self.options)

    def all(self) -> list[Choice]:
        """Every choice."""
        return self.options

    def plain(self) -> list[Choice]:
        """Every choice."""
        return self.options

    def smallest(self) -> Choice:
        """The smallest choice, which is the last."""
        return self.options[-1]

    def draw(self, rng: np.random.Generator) -> Choice:
        """A choice, drawn uniformly."""
        return self.options[rng.integers(len(self))]

    def changed(self, choice: Choice, rng: np.random.Generator) -> Choice:
        """A random choice."""
        return self.draw(rng)


class WholeBlock:
    """The kind of a choice for a whole block."""

    kind = "native"
    keys: frozenset[str] = frozenset()

    @staticmethod
    def describe_choice(choice: NativeChoice, identity: NativeChoice) -> Description:
        """Channels by level, layers, attention, of transformers with their depth."""
        if not choice["layers"]:
            return Description("dropped", 0.0)
        widths = ", ".join(map(str, choice["widths"].values()))
        layers = f"{choice['layers']} layer{'s' * (choice['layers'] > 1)}"
        share = sum(choice["widths"].values()) / sum(identity["widths"].values())
        attention = f"transformers of {choice['depth']}" if "depth" in choice else "attention"
        return Description(" · ".join([widths, layers, *[attention] * choice["attention"]]), share)
