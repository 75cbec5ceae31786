"""The layers of a UNet2DModel one by one, and those that specs make of its blocks."""

import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from stagecraft.networks.family import Choice, Module, Spec
from stagecraft.networks.layer import Layer
from stagecraft.networks.unet2d.family import UNet2DFamily
from stagecraft.networks.unet2d.multi_decoder_unet import BUILDERS, Dropped, PartialLayer, ShortcutLayer
from stagecraft.networks.unet2d.names import UP

WITH_EMBEDDING = (ResnetBlock2D, PartialLayer, ShortcutLayer)  # called with the time embedding
WHOLE = "the whole teacher"


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


class LayersOf:
    """The layers of a UNet and of what specs make of its blocks.

    Args:
        unet: the teacher, or the teacher with the student's hidden channels.
        identities: the spec of each of its blocks as it is.
    """

    def __init__(self, unet: UNet2DModel, identities: dict[str, Spec]) -> None:
        self.identities = identities
        self.unet: Module = copy.deepcopy(unet).to("meta")
        self.reads = input_shapes(self.unet)
        self._known: dict[str, Layer | None] = {}

    def fixed(self) -> list[Layer]:
        """What every student has: the input side, and one output head."""
        config = self.unet.config
        side = config["sample_size"]
        channels = self.unet.conv_out.in_channels
        entrance = Layer(Entrance(self.unet), (config["in_channels"], side, side))
        return [entrance, Layer(Head(self.unet), (channels, side, side))]

    def together(self) -> Layer:
        """The whole UNet, whose time is more than the sum of its layers': what lies between them takes some as well."""
        side = self.unet.config["sample_size"]
        return Layer(Whole(self.unet), (self.unet.config["in_channels"], side, side), name=WHOLE)

    def block(self, name: str, spec: Spec) -> list[Layer]:
        """The layers of a block (`down_blocks.0`) as a spec makes it, without those that compute nothing."""
        parts = self.parts(name, spec)
        layers = [self.layer(name, part, choice) for part, choice in parts.items()]
        return [layer for layer in layers if layer is not None]

    def parts(self, name: str, spec: Spec) -> Spec:
        """What is chosen of each layer of a block, by its name there; of a sampler, which cannot be searched, nothing."""
        samplers = samplers_of(self.unet.get_submodule(name))
        return {**spec, **{part: None for part in samplers if part not in spec}}

    def own(self) -> list[Layer]:
        """All layers of the UNet itself."""
        names = [site.name for site in UNet2DFamily().sites(self.unet)]
        inside = [self.block(name, self.identities[name]) for name in names]
        return [*self.fixed(), *(layer for layers in inside for layer in layers)]

    def counterpart(self, name: str, part: str) -> Layer:
        """The UNet's own layer at a place, for a comparison in turn."""
        return self._layer(name, part, self.unet.get_submodule(f"{name}.{part}"))

    def layer(self, name: str, part: str, choice: Choice) -> Layer | None:
        """What a choice makes of a layer of a block; None where that computes nothing."""
        known = f"{name}.{part} {json.dumps(choice, sort_keys=True)}"
        if known not in self._known:
            module = built_part(self.unet.get_submodule(name), part, choice)
            self._known[known] = None if is_free(module) else self._layer(name, part, module)
        return self._known[known]

    def _layer(self, name: str, part: str, module: Module) -> Layer:
        embedding = self.unet.time_embedding.linear_2.out_features if isinstance(module, WITH_EMBEDDING) else None
        joined = name.startswith(UP) and part.startswith("resnets.")
        return Layer(module, self.reads[f"{name}.{part}"], embedding, joined)


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
def input_shapes(unet: Module) -> dict[str, tuple[int, int, int]]:
    """C, H, W of what each layer of a UNet's blocks reads, by the layer's name; `unet` is on the meta device."""
    seen: dict[str, tuple[int, int, int]] = {}
    handles = []
    for site in UNet2DFamily().sites(unet):
        block = unet.get_submodule(site.name)
        kinds = [("resnets", block.resnets), ("attentions", getattr(block, "attentions", None) or ())]
        kinds += [(kind, getattr(block, kind, None) or ()) for kind in ("downsamplers", "upsamplers")]
        for kind, modules in kinds:
            for index, module in enumerate(modules):
                name = f"{site.name}.{kind}.{index}"
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
