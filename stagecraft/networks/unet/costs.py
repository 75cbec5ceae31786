"""Costs of the parts of diffusers' UNets: MACs of convolutions and linear layers as thop counts them, and parameters."""

from typing import Any

from torch import nn

from stagecraft.networks.family import FixedCosts, Module

READING_PROMPTS = ("attn2.to_k", "attn2.to_v")  # what diffusers calls the layers that read a prompt's tokens


def block_macs(block: nn.Module, side: int, tokens: int = 0) -> int:
    """Multiply-accumulates of one block for one sample.

    Args:
        block: a down, mid or up block, on any device, `meta` included.
        side: pixels a side at which its ResNet layers run. Its downsampler writes half of it, its upsampler twice.
        tokens: of the prompt that its cross-attentions read.
    """
    return sum(
        module.weight.numel() * positions_of(name, side, tokens)
        for name, module in block.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    )


def positions_of(name: str, side: int, tokens: int) -> int:
    """How often a layer of a block, by its name, is applied for one sample."""
    if "time_emb_proj" in name:
        return 1
    if name.endswith(READING_PROMPTS):
        return tokens
    if name.startswith("downsamplers"):
        return int(((side + 1) // 2) ** 2)
    if name.startswith("upsamplers"):
        return int((2 * side) ** 2)
    return int(side**2)


def fixed_costs(unet: Module) -> FixedCosts:
    """conv_in and the embeddings of the time, the class and what is added; the output head."""
    side = unet.config["sample_size"]
    embeddings = [unet.time_embedding, getattr(unet, "add_embedding", None)]
    linears = [m for module in embeddings if module is not None for m in module.modules() if isinstance(m, nn.Linear)]
    embedding = sum(linear.weight.numel() for linear in linears)
    entrance = [unet.conv_in, unet.time_proj, unet.class_embedding, *embeddings]
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
