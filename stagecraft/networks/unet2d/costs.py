"""What the parts of a UNet2DModel cost: MACs of convolutions and linear layers as thop counts them, and parameters."""

from typing import Any

from torch import nn

from stagecraft.networks.family import FixedCosts, Module


def block_macs(block: nn.Module, side: int) -> int:
    """Multiply-accumulates of one block for one sample.

    Args:
        block: a down, mid or up block, on any device, `meta` included.
        side: pixels a side at which its ResNet layers run. Its downsampler writes half of it, its upsampler twice.
    """
    return sum(
        module.weight.numel() * positions_of(name, side)
        for name, module in block.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    )


def positions_of(name: str, side: int) -> int:
    """How often a layer of a block, by its name, is applied for one sample."""
    if "time_emb_proj" in name:
        return 1
    if name.startswith("downsamplers"):
        return int(((side + 1) // 2) ** 2)
    if name.startswith("upsamplers"):
        return int((2 * side) ** 2)
    return int(side**2)


def fixed_costs(unet: Module) -> FixedCosts:
    """conv_in and the time and class embeddings; the output head."""
    side = unet.config["sample_size"]
    embedding = sum(m.weight.numel() for m in unet.time_embedding.modules() if isinstance(m, nn.Linear))
    entrance = [unet.conv_in, unet.time_proj, unet.time_embedding, unet.class_embedding]
    head = [unet.conv_norm_out, unet.conv_out]
    return FixedCosts(
        entrance_macs=unet.conv_in.weight.numel() * side**2 + embedding,
        head_macs=unet.conv_out.weight.numel() * side**2,
        entrance_params=count(entrance),
        head_params=count(head),
    )


def count(modules: list[Any]) -> int:
    """Parameters of some modules, None among them."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())
