"""The interface of a kind of layer that can be searched; one class for each (resnet.py, attention.py), registered in kinds.py.

A *choice* is JSON: the options that a spec gives a layer, None where the layer is dropped.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from stagecraft.config.sections import SearchSpace
from stagecraft.networks.family import Choice as Choice  # of any kind
from stagecraft.networks.family import Module
from stagecraft.networks.family import Seen as Seen  # input and output of each convolution and linear layer, by name

C = TypeVar("C", bound=Mapping[str, object])  # what a choice of this kind says of a layer that is kept
Order = dict[str, list[int]]  # what a choice takes parts of, the most important first
Settings = SearchSpace  # what of the `search_block` section says which layer shapes there are


class Choices(Protocol[C]):
    """All choices that the params admit for one layer; the teacher's own is always among them."""

    def __len__(self) -> int:
        """Number of choices."""

    def all(self) -> list[C | None]:
        """Every choice."""

    def plain(self) -> list[C | None]:
        """The choices that treat all dimensions of the layer alike, from the teacher's down."""

    def smallest(self) -> C | None:
        """The smallest choice, which the sandwich rule trains."""

    def draw(self, rng: np.random.Generator) -> C | None:
        """A random choice."""

    def changed(self, choice: C | None, rng: np.random.Generator) -> C | None:
        """A choice near another."""


@dataclass(frozen=True)
class Description:
    """A choice in words, and its width as a share of the teacher's; 0 for a dropped layer."""

    text: str
    share: float


class Searchable(ABC, Generic[C]):
    """A layer of the teacher that can be searched.

    Args:
        name: of the layer in its block, as in a spec: `resnets.0`.
        layer: the teacher's, which stays as it is.
    """

    kind: str  # the list that holds layers of this kind in a block, and the first part of their names
    keys: frozenset[str] = frozenset()  # of what a choice says, where lists of this name hold layers of several kinds

    def __init__(self, name: str, layer: Module) -> None:
        self.name = name
        self.layer = layer

    @abstractmethod
    def identity(self) -> C:
        """The choice that is the teacher's layer."""

    @abstractmethod
    def choices(self, settings: Settings, order: Order) -> Choices[C]:
        """What may be chosen.

        Args:
            order: as `sort` or `natural_order` gives it.
        """

    def natural_order(self) -> Order:
        """The order where all parts matter alike: as they stand."""
        return {}

    def own_weights(self, settings: Settings) -> dict[str, torch.Tensor]:
        """First values of weights that only the supernet has, by name and a suffix: `resnets.0.conv1.weight-1`."""
        return {}

    def sort(self, layer: Module, own: Mapping[str, torch.Tensor], seen: Seen) -> Order:
        """Order a layer's parts by importance; moves weights of `layer` and `own` where a choice takes the first of them.

        Returns:
            What a choice takes parts of, and the parts by `moved`, each the most important first.
        """
        return {}

    def moved(self) -> dict[str, int]:
        """What `sort` moves and `restore` can put back: how many parts there are of each kind, by its key in an order."""
        return {}

    def restore(self, layer: Module, choice: C, order: Mapping[str, torch.Tensor]) -> None:
        """Put back the parts of `layer` that `sort` moved where a choice has all of them, given the order they are in."""

    def source(self, name: str, shape: torch.Size) -> str:
        """The weight of the supernet that a parameter of this name and shape is sliced from."""
        return name

    def slice(self, weight: torch.Tensor, name: str, shape: torch.Size, built: nn.Module) -> torch.Tensor:
        """The part of a weight that the layer as it is built takes for a parameter."""
        return weight

    def with_units(self, count: int, order: Order, candidates: Sequence[C | None]) -> C | None:
        """The choice with `count` of `units` of everything that the candidates have in parts, nothing dropped."""
        return self.identity()

    @property
    def units(self) -> int:
        """In how many steps the layer can be narrowed evenly; 1 where it cannot."""
        return 1

    @staticmethod
    @abstractmethod
    def describe_choice(choice: C | None, identity: C) -> Description:
        """A choice beside the teacher's."""
