"""The conditions that a network is given beside x_t and t."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

LABELS = "labels"
PROMPT = "prompt"
POOLED = "pooled"
SIZES = "sizes"
# What diffusers' UNets call these tensors, and those of them that it takes together as added conditions.
ARGUMENTS = {LABELS: "class_labels", PROMPT: "encoder_hidden_states"}
ADDED = {POOLED: "text_embeds", SIZES: "time_ids"}


@dataclass(frozen=True, eq=False)
class Condition:
    """Tensors by name, with one row for each sample; none for an unconditional network.

    Whatever passes it on does not look inside.

    Args:
        tensors: `labels`, classes int64 (N,); `prompt`, the hidden states of a text or class encoder (N, tokens, D); and, of an
            SDXL, `pooled`, its second encoder's embedding of the prompt (N, P), and `sizes`, the original size, the crop and
            the target size of the image, in pixels (N, 6).
    """

    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of samples; 0 without tensors."""
        return len(next(iter(self.tensors.values()), ()))

    def rows(self, rows: slice | torch.Tensor) -> Condition:
        """Some of the samples, by a slice or their numbers (n,)."""
        return Condition({name: tensor[rows] for name, tensor in self.tensors.items()})

    def joined(self, others: Condition) -> Condition:
        """These samples and others of the same tensors behind them."""
        return Condition({name: torch.cat([tensor, others.tensors[name]]) for name, tensor in self.tensors.items()})

    def to(self, device: torch.device) -> Condition:
        """The condition on a device."""
        return Condition({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def only(self, names: Collection[str]) -> Condition:
        """The condition with the tensors of these names alone."""
        return Condition({name: tensor for name, tensor in self.tensors.items() if name in names})

    def arguments(self) -> dict[str, Any]:
        """The condition as arguments of a diffusers UNet."""
        own = {ARGUMENTS[name]: tensor for name, tensor in self.tensors.items() if name in ARGUMENTS}
        added = {ADDED[name]: tensor for name, tensor in self.tensors.items() if name in ADDED}
        return {**own, "added_cond_kwargs": added} if added else own


UNCONDITIONAL = Condition()


def class_condition(labels: torch.Tensor | None) -> Condition:
    """The condition of a class-conditional network, from classes int64 (N,); an empty one where there are none."""
    return Condition({} if labels is None else {LABELS: labels})


def example_classes(net: Any, count: int) -> Condition:
    """Class 0 for `count` samples of a class-conditional network; an empty condition for another."""
    conditional = getattr(net, "config", {}).get("num_class_embeds") is not None
    return class_condition(torch.zeros(count, dtype=torch.int64) if conditional else None)
