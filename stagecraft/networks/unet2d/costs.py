"""What a UNet2DModel and its blocks cost: MACs of convolutions and linear layers as thop counts them, and parameters."""

from diffusers import UNet2DModel
from torch import nn

from stagecraft.networks.family import Site
from stagecraft.networks.unet2d.family import UNet2DFamily


def parameter_count(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


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


def shared_macs(unet: UNet2DModel) -> tuple[int, int]:
    """MACs for one sample of what is not searched: (conv_in with the time embedding, conv_out)."""
    side = unet.config.sample_size
    embedding = sum(m.weight.numel() for m in unet.time_embedding.modules() if isinstance(m, nn.Linear))
    return unet.conv_in.weight.numel() * side**2 + embedding, unet.conv_out.weight.numel() * side**2


def unet_macs(unet: UNet2DModel) -> int:
    """MACs of a whole UNet for one sample."""
    sites = UNet2DFamily().sites(unet)
    return sum(block_macs(unet.get_submodule(site.name), site.side) for site in sites) + sum(shared_macs(unet))


def tail_macs(unet: UNet2DModel, site: Site) -> int:
    """MACs for one sample from a block's input to the output, the block itself as the teacher has it."""
    later = [site, *UNet2DFamily().sites_after(unet, site)]
    return sum(block_macs(unet.get_submodule(b.name), b.side) for b in later) + shared_macs(unet)[1]


def shared_params(unet: UNet2DModel) -> tuple[int, int]:
    """Parameters of what is not searched: (input side, output head). The output head is there once per interval."""
    head = parameter_count(unet.conv_norm_out) + parameter_count(unet.conv_out)
    blocks = [unet.get_submodule(site.name) for site in UNet2DFamily().sites(unet)]
    return parameter_count(unet) - head - sum(map(parameter_count, blocks)), head
