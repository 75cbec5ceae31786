"""Costs of networks and blocks: MACs as thop counts them, and parameters."""

from torch import nn

from stagecraft.networks.families import family_of
from stagecraft.networks.family import Module, Site


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def count_network_macs(net: Module) -> int:
    """MACs of a teacher for one sample."""
    family = family_of(net)
    blocks = [family.block_macs(net.get_submodule(site.name), site) for site in family.sites(net)]
    return sum(blocks) + family.fixed_costs(net).macs


def count_tail_macs(net: Module, site: Site) -> int:
    """MACs for one sample from a block's input to the output, the block itself as the teacher has it."""
    family = family_of(net)
    sites = family.sites(net)
    later = sites[sites.index(site) :]
    blocks = [family.block_macs(net.get_submodule(other.name), other) for other in later]
    return sum(blocks) + family.fixed_costs(net).head_macs
