"""The layers of diffusers' UNets one by one, and those that specs make of their blocks, native choices for whole ones as well."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers import Transformer2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from stagecraft.data.condition import Condition
from stagecraft.diffusion.losses import predict
from stagecraft.networks.family import NATIVE, Choice, Layers, Module, NativeChoice, Spec
from stagecraft.networks.layer import WHOLE, Layer
from stagecraft.networks.unet.names import UP
from stagecraft.networks.unet.native import UNetNative
from stagecraft.networks.unet.student import Dropped, PartialLayer, Rebuilder, ShortcutLayer

WITH_EMBEDDING = (ResnetBlock2D, PartialLayer, ShortcutLayer)  # called with the time embedding


class Whole(nn.Module):
    """A whole UNet, as one layer; `condition` is what it is given beside one sample."""

    def __init__(self, unet: Module, condition: Condition) -> None:
        super().__init__()
        self.unet = unet
        self.condition = condition

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        timesteps = torch.zeros(len(sample), device=sample.device)
        condition = self.condition.rows(torch.zeros(len(sample), dtype=torch.int64)).to(sample.device)
        return predict(self.unet, sample, timesteps, condition)


class Entrance(nn.Module):
    """conv_in and the time embedding of a UNet, as one layer."""

    def __init__(self, unet: Module) -> None:
        super().__init__()
        self.conv_in = unet.conv_in
        self.time_proj = unet.time_proj
        self.time_embedding = unet.time_embedding

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = torch.zeros(len(sample), device=sample.device)
        return self.conv_in(sample), self.time_embedding(self.time_proj(timesteps))


class Head(nn.Module):
    """The output head of a UNet, as one layer."""

    def __init__(self, unet: Module) -> None:
        super().__init__()
        self.norm = unet.conv_norm_out
        self.act = unet.conv_act
        self.conv = unet.conv_out

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(self.act(self.norm(hidden_states)))


class UNetLayers(Layers):
    """The layers of a UNet and of what specs make of its blocks.

    Args:
        rebuilder: of its family.
        condition: what it is given beside one sample.
        tokens: of a prompt.
        native: which students its own class expresses.
    """

    def __init__(
        self,
        unet: Module,
        identities: Mapping[str, Spec],
        rebuilder: Rebuilder,
        condition: Condition,
        tokens: int,
        native: UNetNative,
    ) -> None:
        super().__init__(unet, identities)
        self.native = native
        self.rebuilder = rebuilder
        self.condition = condition
        self.tokens = tokens
        self.reads = input_shapes(self.net, identities, condition)

    def fixed(self) -> list[Layer]:
        """Costs that every student has: the input side, and one output head."""
        config = self.net.config
        side = config["sample_size"]
        channels = self.net.conv_out.in_channels
        entrance = Layer(Entrance(self.net), (config["in_channels"], side, side))
        return [entrance, Layer(Head(self.net), (channels, side, side))]

    def together(self) -> Layer:
        """The whole UNet."""
        side = self.net.config["sample_size"]
        return Layer(Whole(self.net, self.condition), (self.net.config["in_channels"], side, side), name=WHOLE)

    def parts(self, name: str, spec: Spec) -> Spec:
        """The choice for each layer of a block, by its name there; None for a sampler, which cannot be searched."""
        samplers = samplers_of(self.net.get_submodule(name))
        return {**spec, **{part: None for part in samplers if part not in spec}}

    def build(self, name: str, part: str, choice: Choice) -> Module | None:
        """A layer of a block with a choice applied; None where it only passes its input on."""
        kind, _, _ = part.partition(".")
        module = self.net.get_submodule(f"{name}.{part}")
        if kind in self.rebuilder.builders:
            module = without_dropped(self.rebuilder.builders[kind](copy.deepcopy(module), choice))
        return None if is_free(module) else module

    def place(self, name: str, part: str, module: Module) -> Layer:
        """A module in place of a layer of a block; a ResNet layer of the decoder reads a skip tensor beside its input."""
        embedding = self.net.time_embedding.linear_2.out_features if isinstance(module, WITH_EMBEDDING) else None
        joined = name.startswith(UP) and part.startswith("resnets.")
        prompt = (self.tokens, module.config["cross_attention_dim"]) if isinstance(module, Transformer2DModel) else None
        return Layer(module, self.reads[f"{name}.{part}"], embedding, joined, prompt=prompt)

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


def samplers_of(block: Module) -> list[str]:
    """The names of a block's downsamplers and upsamplers."""
    return [
        f"{kind}.{i}" for kind in ("downsamplers", "upsamplers") for i, _ in enumerate(getattr(block, kind, None) or ())
    ]


def without_dropped(module: Module) -> Module:
    """A module with no places for dropped layers in its lists, in place: which ones were dropped is no matter of its time."""
    for part in [*module.modules()]:
        for name, layers in [*part.named_children()]:
            if isinstance(layers, nn.ModuleList):
                setattr(part, name, nn.ModuleList(layer for layer in layers if not isinstance(layer, Dropped)))
    return module


def is_free(module: nn.Module) -> bool:
    """Whether a layer only passes its input on."""
    return isinstance(module, Dropped | ShortcutLayer) and not any(True for _ in module.parameters())


@torch.no_grad()
def input_shapes(unet: Module, names: Iterable[str], condition: Condition) -> dict[str, tuple[int, int, int]]:
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
    side = unet.config["sample_size"]
    x_t = torch.empty(1, unet.config["in_channels"], side, side, device="meta")
    predict(unet, x_t, torch.zeros(1, device="meta"), condition.to(torch.device("meta")))
    for handle in handles:
        handle.remove()
    return seen


def remember_shape(seen: dict[str, tuple[int, int, int]], name: str) -> Callable[..., None]:
    """A hook that notes the shape of a module's input."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen[name] = tuple(args[0].shape[1:])

    return hook


def parts_of(block: Module) -> list[str]:
    """The names of the layers of a block that compute something."""
    kinds = ("resnets", "attentions", "downsamplers", "upsamplers")
    lists = {kind: getattr(block, kind, None) or () for kind in kinds}
    return [f"{kind}.{i}" for kind, layers in lists.items() for i, layer in enumerate(layers) if not is_free(layer)]


def input_channels(module: Module) -> int:
    """Channels that a layer reads."""
    names = ("in_channels", "query_dim", "channels")  # of a ResNet layer, an attention, another sampler
    return next(int(getattr(module, name)) for name in names if hasattr(module, name))
