"""How much memory the activations take that a backward pass of a UNet needs, and how many images fit at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stagecraft.data.condition import Condition
from stagecraft.diffusion.losses import predict
from stagecraft.networks.families import example_condition
from stagecraft.networks.family import Module

Run = Callable[[Any, torch.Tensor, torch.Tensor, Condition], torch.Tensor]

BOUND = 2 * 2**30  # bytes of activations that a pass may keep, unless one image alone has more


@contextmanager
def bounded_activations(
    unet: Module, shape: Sequence[int], most: int, run: Run = predict, bound: int = BOUND
) -> Iterator[int]:
    """Give the number of images in a pass, at most `most`, whose activations take no more than `bound` bytes, at least 1.

    Where not even one image fits, the UNet computes the activations within its blocks again in the backward pass, until the
    context ends; gradients stay the same. All this follows from the config alone.

    Args:
        shape: C, H, W of an image.
        run: the forward pass, called as `predict`.
    """
    bytes_each = activation_bytes(unet, shape, run)
    again = bytes_each > bound
    try:
        if again:
            unet.enable_gradient_checkpointing()
            bytes_each = activation_bytes(unet, shape, run, again)
        yield max(1, min(most, bound // bytes_each))
    finally:
        if again:
            unet.disable_gradient_checkpointing()


def activation_bytes(unet: Module, shape: Sequence[int], run: Run = predict, checkpointing: bool = False) -> int:
    """Bytes that autograd keeps of one image for the backward pass, weights left out; nothing is computed or allocated."""
    with torch.device("meta"):
        empty = type(unet).from_config(unet.config).eval()
        x = torch.zeros(1, *shape, requires_grad=True)
        return count_kept_bytes(
            empty, lambda: run(empty, x, torch.zeros(1), example_condition(empty, 1)), checkpointing
        )


def count_kept_bytes(model: Module, call: Callable[[], Any], checkpointing: bool) -> int:
    """Bytes that autograd keeps of a call of a diffusers model on the meta device.

    With checkpointing those between the layers, and within the layer that has most of them while it is computed again.
    """
    layers = [0]

    def count_again(layer: Module, *tensors: Any) -> Any:
        layers.append(count_saved_bytes(layer, lambda: layer(*tensors)))
        return checkpoint(layer, *tensors, use_reentrant=False)

    if checkpointing:
        model.enable_gradient_checkpointing(count_again)
    return count_saved_bytes(model, call) + max(layers)


def count_saved_bytes(module: nn.Module, call: Callable[[], Any]) -> int:
    """Bytes that autograd keeps of a call of a module on the meta device, its weights left out."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    weights = {weight.untyped_storage()._cdata for weight in module.parameters()}
    return sum(storage.nbytes() for number, storage in kept.items() if number not in weights)
