"""The layers of a UNet2DModel one by one, and those that specs make of its blocks."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from stagecraft.networks.family import NATIVE, Choice, Layers, Module, NativeChoice, Spec
from stagecraft.networks.layer import WHOLE, Layer
from stagecraft.networks.unet2d.multi_decoder_unet import BUILDERS, Dropped, PartialLayer, ShortcutLayer
from stagecraft.networks.unet2d.names import UP
from stagecraft.networks.unet2d.native import UNet2DNative

WITH_EMBEDDING = (ResnetBlock2D, PartialLayer, ShortcutLayer)  # called with the time embedding


class Whole(nn.Module):
    """A whole UNet, as one layer."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        labels = None if self.unet.config["num_class_embeds"] is None else torch.zeros(len(sample), dtype=torch.int64)
        timesteps = torch.zeros(len(sample), device=sample.device)
        output: torch.Tensor = self.unet(sample, timesteps, None if labels is None else labels.to(sample.device)).sample
        return output


class Entrance(nn.Module):
    """conv_in and the time embedding of a UNet, as one layer."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.conv_in = unet.conv_in
        self.time_proj = unet.time_proj
        self.time_embedding = unet.time_embedding

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = torch.zeros(len(sample), device=sample.device)
        return self.conv_in(sample), self.time_embedding(self.time_proj(timesteps))


class Head(nn.Module):
    """The output head of a UNet, as one layer."""

    def __init__(self, unet: UNet2DModel) -> None:
        super().__init__()
        self.norm = unet.conv_norm_out
        self.act = unet.conv_act
        self.conv = unet.conv_out

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(self.act(self.norm(hidden_states)))


class UNet2DLayers(Layers):
    """The layers of a UNet2DModel and of what specs make of its blocks."""

    def __init__(self, unet: Module, identities: Mapping[str, Spec], native: UNet2DNative) -> None:
        super().__init__(unet, identities)
        self.native = native
        self.reads = input_shapes(self.net, identities)

    def fixed(self) -> list[Layer]:
        """What every student has: the input side, and one output head."""
        config = self.net.config
        side = config["sample_size"]
        channels = self.net.conv_out.in_channels
        entrance = Layer(Entrance(self.net), (config["in_channels"], side, side))
        return [entrance, Layer(Head(self.net), (channels, side, side))]

    def together(self) -> Layer:
        """The whole UNet."""
        side = self.net.config["sample_size"]
        return Layer(Whole(self.net), (self.net.config["in_channels"], side, side), name=WHOLE)

    def parts(self, name: str, spec: Spec) -> Spec:
        """What is chosen of each layer of a block, by its name there; of a sampler, which cannot be searched, nothing."""
        samplers = samplers_of(self.net.get_submodule(name))
        return {**spec, **{part: None for part in samplers if part not in spec}}

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

    def build(self, name: str, part: str, choice: Choice) -> Module | None:
        """What a choice makes of a layer of a block; None where it only passes its input on."""
        module = built_part(self.net.get_submodule(name), part, choice)
        return None if is_free(module) else module

    def place(self, name: str, part: str, module: Module) -> Layer:
        """A module in place of a layer of a block; a ResNet layer of the decoder reads a skip tensor beside its input."""
        embedding = self.net.time_embedding.linear_2.out_features if isinstance(module, WITH_EMBEDDING) else None
        joined = name.startswith(UP) and part.startswith("resnets.")
        return Layer(module, self.reads[f"{name}.{part}"], embedding, joined)


def parts_of(block: Module) -> list[str]:
    """The names of the layers of a block that compute something."""
    kinds = ("resnets", "attentions", "downsamplers", "upsamplers")
    lists = {kind: getattr(block, kind, None) or () for kind in kinds}
    return [f"{kind}.{i}" for kind, layers in lists.items() for i, layer in enumerate(layers) if not is_free(layer)]


def input_channels(module: Module) -> int:
    """Channels that a layer reads."""
    names = ("in_channels", "query_dim", "channels")  # of a ResNet layer, an attention, another sampler
    return next(int(getattr(module, name)) for name in names if hasattr(module, name))


def samplers_of(block: Module) -> list[str]:
    """The names of a block's downsamplers and upsamplers."""
    return [
        f"{kind}.{i}" for kind in ("downsamplers", "upsamplers") for i, _ in enumerate(getattr(block, kind, None) or ())
    ]


def built_part(block: Module, part: str, choice: Choice) -> Module:
    """What a choice makes of one layer of a block, which stays as it is."""
    kind, _, _ = part.partition(".")
    layer = block.get_submodule(part)
    return BUILDERS[kind](copy.deepcopy(layer), choice) if kind in BUILDERS else layer


def is_free(module: nn.Module) -> bool:
    """Whether a layer only passes its input on."""
    return isinstance(module, Dropped | ShortcutLayer) and not any(True for _ in module.parameters())


@torch.no_grad()
def input_shapes(unet: Module, names: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """C, H, W of what each layer of some blocks of a UNet reads, by the layer's name; `unet` is on the meta device."""
    seen: dict[str, tuple[int, int, int]] = {}
    handles = []
    for site in names:
        block = unet.get_submodule(site)
        kinds = [("resnets", block.resnets), ("attentions", getattr(block, "attentions", None) or ())]
        kinds += [(kind, getattr(block, kind, None) or ()) for kind in ("downsamplers", "upsamplers")]
        for kind, modules in kinds:
            for index, module in enumerate(modules):
                name = f"{site}.{kind}.{index}"
                if module is not None:
                    handles.append(module.register_forward_pre_hook(remember_shape(seen, name)))
    config = unet.config
    labels = None if config["num_class_embeds"] is None else torch.zeros(1, dtype=torch.int64, device="meta")
    side = config["sample_size"]
    unet(torch.empty(1, config["in_channels"], side, side, device="meta"), torch.zeros(1, device="meta"), labels)
    for handle in handles:
        handle.remove()
    return seen


def remember_shape(seen: dict[str, tuple[int, int, int]], name: str) -> Callable[..., None]:
    """A hook that notes the shape of a module's input."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen[name] = tuple(args[0].shape[1:])

    return hook
