"""A layer as it runs within a network, by itself: to be measured alone, and to be told from layers of other shapes."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Module = Any  # as in family.py
WHOLE = "the whole teacher"


@dataclass(frozen=True)
class Layer:
    """A layer as it runs in a network.

    Args:
        module: the layer, on any device.
        reads: C, H, W of its input.
        embedding: channels of the time embedding, None where it reads none.
        joined: whether its input is a concatenation, which its time includes.
        name: the key of one that is known by name.
        prompt: tokens and width of the hidden states of an encoder, None where it reads none.
    """

    module: Module
    reads: tuple[int, int, int]
    embedding: int | None = None
    joined: bool = False
    name: str | None = None
    prompt: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """Text that layers of one shape have in common: type, input, and what its weights and index lists look like."""
        if self.name is not None:
            return self.name
        shapes = {name: tuple(p.shape) for name, p in self.module.named_parameters() if p.ndim > 1}
        shapes |= {name: tuple(b.shape) for name, b in self.module.named_buffers() if b is not None}
        sizes = [f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()]
        heads = [f"heads {m.heads}" for m in self.module.modules() if hasattr(m, "heads")]
        size = "x".join(map(str, self.reads))
        kind = f"{type(self.module).__name__} of {size}{' joined' if self.joined else ''}"
        return ", ".join([kind, *heads, *sizes])

    def call(self, batch: int, device: torch.device) -> "Call":
        """A call of the layer with random weights and inputs on a device."""
        module = copy.deepcopy(self.module).to_empty(device=device).eval()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.02)
        restore_buffers(self.module, module)
        channels, *size = self.reads
        halves = (channels - channels // 2, channels // 2) if self.joined else (channels,)
        tensors = [torch.randn(batch, half, *size, device=device) for half in halves]
        shapes: list[tuple[int, ...]] = [(self.embedding,)] if self.embedding else []
        shapes += [self.prompt] if self.prompt else []
        rest = [torch.randn(batch, *shape, device=device) for shape in shapes]
        return Call(module, tensors, rest)


def restore_buffers(source: nn.Module, target: nn.Module) -> None:
    """Give a copy the index lists of its source, which `to_empty` left without values."""
    for name, values in source.named_buffers():
        parent, _, last = name.rpartition(".")
        places = values if values.device.type != "meta" else torch.arange(len(values))
        setattr(target.get_submodule(parent), last, places.to(target.get_buffer(name).device))


@dataclass(frozen=True)
class Call:
    """A layer with what it is called with.

    Args:
        parts: tensors that make its input, side by side when there are two.
        rest: its other arguments.
    """

    module: Module
    parts: list[torch.Tensor]
    rest: list[torch.Tensor]

    def __call__(self) -> Any:
        """Run the layer."""
        hidden = torch.cat(self.parts, dim=1) if len(self.parts) > 1 else self.parts[0]
        return self.module(hidden, *self.rest)

    def write_inputs(self) -> None:
        """Write the tensors of the input anew, as the layers before would have."""
        for part in self.parts:
            part.mul_(1.0)
