"""Elastic blocks: one set of weights from which every sub-block of the search space is sliced.

A sub-block is a *skeleton* (the teacher's block rebuilt by `apply_spec` on the meta device) called with slices of the elastic
weights. The same slices are what the student inherits, so a sub-block and its extracted copy cannot differ.
"""

import copy
import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stagecraft.networks.borders import run_block
from stagecraft.networks.multi_decoder_unet import (
    Module,
    PartialLayer,
    apply_spec,
    group_size,
    output_group_size,
)
from stagecraft.networks.specs import Spec

ChannelOrder = dict[str, list[list[int]]]
SKELETONS_KEPT = 512


class ElasticBlock(nn.Module):
    """A teacher's block of which a spec says per call what is left: widths, kernels, layers, channels read and written.

    Channels between the two convolutions are kept in whole GroupNorm groups: the first k groups, which `sort_channels` makes
    the k most important. The channels that a layer reads and writes keep their places; a spec says which it takes. A
    convolution has separate weights for every kernel size; a size that the teacher has not starts from the centre of the
    teacher's kernel.

    Args:
        block: a diffusers down, mid or up block; copied.
        kind: down, mid or up.
        kernels: the kernel sizes of the space.
    """

    def __init__(self, block: Module, kind: str, kernels: Sequence[int]) -> None:
        super().__init__()
        self.kind = kind
        self.block: Module = copy.deepcopy(block).requires_grad_(True)
        self._template = [copy.deepcopy(block).to("meta")]  # in a list, so that it is no part of the state
        self._skeletons: dict[str, nn.Module] = {}
        self.other_kernels = nn.ParameterDict()
        for name, parameter in self._convolutions():
            for size in kernels:
                if size != parameter.shape[-1]:
                    self.other_kernels[_key(name, size)] = nn.Parameter(resize_kernel(parameter.detach(), size))

    def _convolutions(self) -> list[tuple[str, nn.Parameter]]:
        names = [f"resnets.{i}.{conv}.weight" for i in range(len(self.block.resnets)) for conv in ("conv1", "conv2")]
        return [(name, self.block.get_parameter(name)) for name in names]

    def skeleton(self, spec: Spec) -> nn.Module:
        """The block that `spec` describes, its parameters on the meta device."""
        device = next(self.block.parameters()).device
        key = f"{device} {json.dumps(spec, sort_keys=True)}"
        if key not in self._skeletons:
            if len(self._skeletons) >= SKELETONS_KEPT:
                self._skeletons.clear()
            skeleton = apply_spec(copy.deepcopy(self._template[0]), spec).eval()
            for layer in skeleton.modules():
                if isinstance(layer, PartialLayer):
                    for name, places in layer.named_buffers(recurse=False):
                        setattr(layer, name, places.to(device))
            self._skeletons[key] = skeleton
        return self._skeletons[key]

    def weights(self, spec: Spec) -> dict[str, torch.Tensor]:
        """Slices of the elastic weights for a sub-block, by the names of its state dict."""
        skeleton = self.skeleton(spec)
        return {name: self._slice(name, p.shape, skeleton) for name, p in skeleton.named_parameters()}

    def _slice(self, name: str, shape: torch.Size, skeleton: nn.Module) -> torch.Tensor:
        full = self._whole(name, shape)
        layer = skeleton.get_submodule(".".join(name.split(".")[:2]))
        if isinstance(layer, PartialLayer):
            full = _part_of_layer(full, name, layer)
        if full.shape == shape:
            return full
        if "time_emb_proj" in name and self._scale_and_shift(name):
            half, width = full.shape[0] // 2, shape[0] // 2
            return torch.cat([full[:width], full[half : half + width]])
        return full[tuple(slice(size) for size in shape)]

    def _whole(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The parameter that a part of a layer, with this name and shape, is sliced from."""
        full = self.block.get_parameter(name)
        if full.ndim == 4 and full.shape[-1] != shape[-1]:
            return self.other_kernels[_key(name, shape[-1])]
        return full

    def _scale_and_shift(self, name: str) -> bool:
        layer = self.block.get_submodule(name.rsplit(".", 2)[0])
        return layer.time_embedding_norm == "scale_shift"

    def forward(self, spec: Spec, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run the sub-block `spec` on a border's inputs; returns the border's outputs."""
        call = _Call(self.skeleton(spec), self.kind)
        weights = {f"block.{name}": value for name, value in self.weights(spec).items()}
        return torch.func.functional_call(call, weights, (tensors,))

    @torch.no_grad()
    def sort_channels(self, tensors: Sequence[torch.Tensor]) -> ChannelOrder:
        """Put the groups that add most to each ResNet layer's output first; the block computes what it did before.

        The importance of a group is the mean square of what it alone adds: ||conv2[:, g] * a_g||^2, where a is the input of
        the second convolution on the given border inputs; that of a group that is read is ||conv1[:, g] * a_g||^2; that of a
        group that is written is the mean square of conv2's output in it.

        Returns:
            {"reads", "writes"}: the groups of each layer, the most important first.
        """
        seen = self._inputs_and_outputs(tensors)
        order: ChannelOrder = {"reads": [], "writes": []}
        for i, resnet in enumerate(self.block.resnets):
            inner, written = seen[f"resnets.{i}.conv2"]
            order["reads"].append(_by_group(resnet.conv1, seen[f"resnets.{i}.conv1"][0], resnet.norm1.num_groups))
            order["writes"].append(
                _descending(written.unflatten(1, (-1, output_group_size(resnet))).square().mean((0, 2, 3, 4)))
            )
            self._permute(i, _by_group(resnet.conv2, inner, resnet.norm2.num_groups))
        return order

    def _inputs_and_outputs(self, tensors: Sequence[torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Input and output of each convolution and linear layer on a border's inputs, by name."""
        seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        handles = [
            module.register_forward_hook(lambda module, args, output, at=name: seen.update({at: (args[0], output)}))
            for name, module in self.block.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))
        ]
        run_block(self.kind, self.block, tensors)
        for handle in handles:
            handle.remove()
        return seen

    def _permute(self, index: int, group_order: list[int]) -> None:
        resnet = self.block.resnets[index]
        size = group_size(resnet)
        order = torch.tensor(
            [g * size + i for g in group_order for i in range(size)], device=resnet.conv1.weight.device
        )
        for name, parameter in self.block.resnets[index].named_parameters():
            if name.startswith(("conv1", "norm2")):
                parameter.copy_(parameter[order])
            elif name.startswith("time_emb_proj"):
                halves = 2 if resnet.time_embedding_norm == "scale_shift" else 1
                parameter.copy_(parameter[torch.cat([order + half * len(order) for half in range(halves)])])
            elif name == "conv2.weight":
                parameter.copy_(parameter[:, order])
        for key, kernel in self.other_kernels.items():
            if key.startswith(f"resnets-{index}-conv1-"):
                kernel.copy_(kernel[order])
            elif key.startswith(f"resnets-{index}-conv2-"):
                kernel.copy_(kernel[:, order])


def natural_order(block: Module) -> ChannelOrder:
    """What `ElasticBlock.sort_channels` gives where all groups of a block matter alike: their numbers, ascending."""
    groups = [list(range(resnet.norm1.num_groups)) for resnet in block.resnets]
    return {"reads": groups, "writes": groups}


def _part_of_layer(full: torch.Tensor, name: str, layer: PartialLayer) -> torch.Tensor:
    """A parameter of a whole layer with the channels that a partial one reads or writes."""
    match name.split(".")[2:]:
        case ["norm1", _]:
            return full.index_select(0, layer.read)
        case ["conv1", "weight"]:
            return full.index_select(1, layer.read)
        case ["conv2", _]:
            return full.index_select(0, layer.written)
    return full


class _Call(nn.Module):
    """Gives `run_block` the form of a module, for functional_call."""

    def __init__(self, block: Module, kind: str) -> None:
        super().__init__()
        self.block, self.kind = block, kind

    def forward(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return run_block(self.kind, self.block, tensors)


def added_by_group(conv: nn.Conv2d, inputs: torch.Tensor, groups: int) -> torch.Tensor:
    """Mean square of what each group of a convolution's input channels adds to its output, (groups,)."""
    size = inputs.shape[1] // groups
    parts = zip(inputs.split(size, 1), conv.weight.split(size, 1), strict=True)
    return torch.stack([F.conv2d(a, w, padding=conv.padding).square().mean() for a, w in parts])


def _by_group(conv: nn.Conv2d, inputs: torch.Tensor, groups: int) -> list[int]:
    return _descending(added_by_group(conv, inputs, groups))


def _descending(importance: torch.Tensor) -> list[int]:
    return importance.argsort(descending=True, stable=True).tolist()


def resize_kernel(weight: torch.Tensor, size: int) -> torch.Tensor:
    """The centre of a kernel (out, in, k, k), as (out, in, size, size)."""
    margin = (size - weight.shape[-1]) // 2
    return F.pad(weight, (margin,) * 4).clone()


def _key(name: str, size: int) -> str:
    return f"{name.removesuffix('.weight').replace('.', '-')}-{size}"


def student_state(elastic_state: dict[str, torch.Tensor], block: Module, kind: str, spec: Spec) -> dict[str, Any]:
    """Weights of the sub-block `spec` out of a stored ElasticBlock state; `block` is the teacher's block."""
    sizes = {int(name.rsplit("-", 1)[1]) for name in elastic_state if name.startswith("other_kernels.")}
    native = {conv.weight.shape[-1] for resnet in block.resnets for conv in (resnet.conv1, resnet.conv2)}
    elastic = ElasticBlock(block, kind, sorted(sizes | native))
    elastic.load_state_dict(elastic_state)
    return {name: value.detach().clone() for name, value in elastic.weights(spec).items()}
