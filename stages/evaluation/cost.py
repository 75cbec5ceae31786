"""Multiply-accumulates (MACs) of one network evaluation, and parameters: the same count for teacher and student.

MACs are those of one image. A student's are weighted by the steps that the sampler takes in each stage.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from thop import profile
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def model_cost(
    model: nn.Module, shape: tuple[int, int, int], boundaries: Sequence[float], steps: Sequence[int]
) -> dict[str, Any]:
    """What a sampler with `steps[s]` evaluations in stage s pays for `model`.

    Args:
        model: a UNet called as model(x_NCHW, t); with `decoders` one per stage, without them the same at every t.
        shape: C, H, W of one image.
        boundaries: K - 1 ascending timesteps between the stages.
        steps: K numbers of network evaluations.

    Returns:
        `macs` and `macs_with_attention`, means per evaluation weighted by `steps`; `macs_per_stage` and
        `macs_with_attention_per_stage`; `params` in total and `params_active` at one evaluation, the largest of all stages.
    """
    assert len(steps) == len(boundaries) + 1, "one number of steps per stage"
    times = stage_timesteps(boundaries)
    thop = [count_macs(model, shape, t) for t in times]
    attention = [count_macs_with_attention(model, shape, t) for t in times]
    return {
        "macs": weighted_mean(thop, steps),
        "macs_with_attention": weighted_mean(attention, steps),
        "macs_per_stage": thop,
        "macs_with_attention_per_stage": attention,
        "params": count_parameters(model),
        "params_active": count_active_parameters(model),
    }


def stage_timesteps(boundaries: Sequence[float]) -> list[float]:
    """One timestep inside each stage; the stage of t is the number of boundaries <= t."""
    return [boundaries[0] - 1, *boundaries] if boundaries else [0]


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Mean of `values` weighted by `weights`."""
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def count_macs(model: nn.Module, shape: tuple[int, int, int], timestep: float) -> int:
    """MACs of convolutions and linear layers by thop, the literature's number; products inside attention are not seen.

    thop leaves buffers in the model it counts, so it is given a copy.
    """
    model, inputs = copy_for_counting(model, shape, timestep)
    return int(profile(model, inputs=inputs, verbose=False)[0])


def count_macs_with_attention(model: nn.Module, shape: tuple[int, int, int], timestep: float) -> int:
    """MACs by torch's FlopCounterMode (half its FLOPs), the products inside attention included.

    Attention runs as plain matrix products here: fused kernels are counted on some devices only.
    """
    model, inputs = copy_for_counting(model, shape, timestep)
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2


def copy_for_counting(
    model: nn.Module, shape: tuple[int, int, int], timestep: float
) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A copy of the model on the CPU and inputs for one image at one timestep."""
    return copy.deepcopy(model).cpu().eval(), (torch.zeros(1, *shape), torch.tensor([timestep]))


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def count_active_parameters(model: nn.Module) -> int:
    """Parameters of all but the decoders plus those of the largest decoder; all parameters without decoders."""
    decoders = [count_parameters(decoder) for decoder in getattr(model, "decoders", [])]
    return count_parameters(model) - sum(decoders) + max(decoders, default=0)
