"""Attentions: kept or dropped as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stagecraft.elastic.searchable import Choice, Description, Order, Searchable, Settings

KEPT: Mapping[str, object] = {}


@dataclass(frozen=True)
class AttentionChoices:
    """Kept, or kept and dropped."""

    may_drop: bool

    def __len__(self) -> int:
        return 1 + self.may_drop

    def all(self) -> list[Choice]:
        """Every choice, the dropped attention last."""
        return [KEPT, None] if self.may_drop else [KEPT]

    def plain(self) -> list[Choice]:
        """Every choice, as there are no more than two."""
        return self.all()

    def smallest(self) -> Choice:
        """Dropped, where it may be."""
        return self.all()[-1]

    def draw(self, rng: np.random.Generator) -> Choice:
        """A choice, drawn uniformly."""
        return self.all()[rng.integers(len(self))]

    def changed(self, choice: Choice, rng: np.random.Generator) -> Choice:
        """A random choice."""
        return self.draw(rng)


class SearchableAttention(Searchable[Mapping[str, object]]):
    """A self-attention over the pixels."""

    kind = "attentions"

    def identity(self) -> Mapping[str, object]:
        """Kept."""
        return KEPT

    def choices(self, settings: Settings, order: Order) -> AttentionChoices:
        """The choices that `drop_attention` admits."""
        return AttentionChoices(settings.drop_attention)

    @staticmethod
    def describe_choice(choice: Choice, identity: Mapping[str, object]) -> Description:
        """Kept or not."""
        return Description("no attention", 0.0) if choice is None else Description("attention", 1.0)
