"""Some channels of a teacher's residual stream, and those channels of what passes between its blocks."""

import torch

from stagecraft.networks.families import family_of
from stagecraft.networks.family import Module, Stream


def narrowed_teacher(teacher: Module, stream: Stream | None) -> Module:
    """A copy of the teacher with these channels of its residual stream alone, untrained; the teacher itself for None."""
    return teacher if stream is None else family_of(teacher).narrow(teacher, stream)


def kept_channels(teacher: Module, stream: Stream | None) -> dict[str, torch.Tensor]:
    """The channels that are kept of each tensor at a site, by name; empty for None."""
    if stream is None:
        return {}
    levels = family_of(teacher).residual_stream(teacher).levels
    return {name: torch.tensor(stream[level]) for name, level in levels.items()}


def kept_part(name: str, tensor: torch.Tensor, kept: dict[str, torch.Tensor]) -> torch.Tensor:
    """The channels that are kept of a tensor N,C,... at a site; all of one that `kept_channels` does not name."""
    return tensor.index_select(1, kept[name].to(tensor.device)) if name in kept else tensor


def with_part(name: str, tensor: torch.Tensor, part: torch.Tensor, kept: dict[str, torch.Tensor]) -> torch.Tensor:
    """A tensor N,C,... at a site with `part` in place of the channels that are kept of it."""
    return tensor.index_copy(1, kept[name].to(tensor.device), part.to(tensor.dtype)) if name in kept else part
