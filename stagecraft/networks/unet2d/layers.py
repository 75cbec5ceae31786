"""The layers of a UNet2DModel and of what is made of it, native choices for whole blocks as well."""

import copy
from dataclasses import replace
from typing import Any, cast

import torch

from stagecraft.networks.family import NATIVE, Module, NativeChoice, Spec
from stagecraft.networks.layer import Layer
from stagecraft.networks.unet.layers import UNetLayers, is_free
from stagecraft.networks.unet2d.native import UNet2DNative


class UNet2DLayers(UNetLayers):
    """The layers of a UNet2DModel and of what specs make of its blocks."""

    def __init__(self, *args: Any, native: UNet2DNative) -> None:
        super().__init__(*args)
        self.native = native

    def placed(self, name: str, spec: Spec) -> dict[str, Layer]:
        """The layers of a block by the names of the teacher's in whose place they stand; of a native choice as well."""
        if NATIVE not in spec:
            return super().placed(name, spec)
        choice = cast(NativeChoice, spec[NATIVE])
        kept = {int(level): torch.arange(width) for level, width in choice["widths"].items()}
        own = copy.deepcopy(self.net.get_submodule(name))
        block = self.native.narrow(own, self.native.sites[name], choice, kept)
        return {part: self.narrowed(name, part, block.get_submodule(part)) for part in parts_of(block)}

    def narrowed(self, name: str, part: str, module: Module) -> Layer:
        """A layer of a block of fewer channels."""
        layer = self.place(name, part, module)
        return replace(layer, reads=(input_channels(module), *layer.reads[1:]))


def parts_of(block: Module) -> list[str]:
    """The names of the layers of a block that compute something."""
    kinds = ("resnets", "attentions", "downsamplers", "upsamplers")
    lists = {kind: getattr(block, kind, None) or () for kind in kinds}
    return [f"{kind}.{i}" for kind, layers in lists.items() for i, layer in enumerate(layers) if not is_free(layer)]


def input_channels(module: Module) -> int:
    """Channels that a layer reads."""
    names = ("in_channels", "query_dim", "channels")  # of a ResNet layer, an attention, another sampler
    return next(int(getattr(module, name)) for name in names if hasattr(module, name))
