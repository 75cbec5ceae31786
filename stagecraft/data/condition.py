"""What a network is given beside x_t and t."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

LABELS = "labels"


@dataclass(frozen=True, eq=False)
class Condition:
    """Tensors by name, with one row for each sample; none for an unconditional network.

    Whatever passes it on does not look inside. What calls the network does: it knows the names.
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of samples; 0 without tensors."""
        return len(next(iter(self.tensors.values()), ()))

    def rows(self, rows: slice | torch.Tensor) -> Condition:
        """Some of the samples, by a slice or their numbers (n,)."""
        return Condition({name: tensor[rows] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device) -> Condition:
        """The same on a device."""
        return Condition({name: tensor.to(device) for name, tensor in self.tensors.items()})


UNCONDITIONAL = Condition()


def class_condition(labels: torch.Tensor | None) -> Condition:
    """The condition of a class-conditional network, from classes int64 (N,); an empty one where there are none."""
    return Condition({} if labels is None else {LABELS: labels})
