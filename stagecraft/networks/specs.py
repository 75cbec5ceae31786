"""Architecture specs as data: the identity of a block, and what a block costs."""

from typing import Any

from diffusers import UNet2DModel
from torch import nn

from stagecraft.networks.borders import Border, borders_of
from stagecraft.networks.multi_decoder_unet import Module

Spec = dict[str, Any]


def identity_spec(block: Module) -> Spec:
    """The spec that leaves a diffusers block as it is."""
    layers = [
        {"width": resnet.conv1.out_channels, "kernels": [resnet.conv1.kernel_size[0], resnet.conv2.kernel_size[0]]}
        for resnet in block.resnets
    ]
    attentions = getattr(block, "attentions", None) or []
    return {"layers": layers, "attentions": [attention is not None for attention in attentions]}


def identity_architecture(unet: UNet2DModel, stages: int = 1) -> dict[str, Any]:
    """The architecture that rebuilds `unet` itself, its decoder repeated for every stage."""
    return {
        "down_blocks": [identity_spec(block) for block in unet.down_blocks],
        "mid_block": None if unet.mid_block is None else identity_spec(unet.mid_block),
        "decoders": [[identity_spec(block) for block in unet.up_blocks] for _ in range(stages)],
    }


def parameter_count(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def block_macs(block: nn.Module, resolution: int) -> int:
    """Multiply-accumulates of one block for one sample, counted as thop does (convolutions and linear layers).

    Args:
        block: a down, mid or up block, on any device, `meta` included.
        resolution: side in pixels at which its ResNet layers run. Its downsampler writes half of it, its upsampler twice.
    """
    return sum(
        module.weight.numel() * _positions(name, resolution)
        for name, module in block.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    )


def _positions(name: str, resolution: int) -> int:
    if "time_emb_proj" in name:
        return 1
    if name.startswith("downsamplers"):
        return ((resolution + 1) // 2) ** 2
    if name.startswith("upsamplers"):
        return (2 * resolution) ** 2
    return resolution**2


def shared_macs(unet: UNet2DModel) -> tuple[int, int]:
    """MACs for one sample of what is not searched: (conv_in with the time embedding, conv_out)."""
    side = unet.config.sample_size
    embedding = sum(m.weight.numel() for m in unet.time_embedding.modules() if isinstance(m, nn.Linear))
    return unet.conv_in.weight.numel() * side**2 + embedding, unet.conv_out.weight.numel() * side**2


def unet_macs(unet: UNet2DModel) -> int:
    """MACs of a whole UNet for one sample, counted as `block_macs` does."""
    side = unet.config["sample_size"]
    blocks = [block_macs(unet.get_submodule(border.block), side >> border.level) for border in borders_of(unet)]
    return sum(blocks) + sum(shared_macs(unet))


def tail_macs(unet: UNet2DModel, border: Border) -> int:
    """MACs for one sample from a block's input to the output, the block itself as the teacher has it."""
    borders = borders_of(unet)
    side = unet.config["sample_size"]
    later = borders[[known.block for known in borders].index(border.block) :]
    return sum(block_macs(unet.get_submodule(b.block), side >> b.level) for b in later) + shared_macs(unet)[1]


def shared_params(unet: UNet2DModel) -> tuple[int, int]:
    """Parameters of what is not searched: (input side, output head). The output head is there once per stage."""
    head = parameter_count(unet.conv_norm_out) + parameter_count(unet.conv_out)
    blocks = [*unet.down_blocks, *unet.up_blocks, *([] if unet.mid_block is None else [unet.mid_block])]
    return parameter_count(unet) - head - sum(map(parameter_count, blocks)), head
