"""Elastic blocks: one set of weights from which every sub-block of the search space is sliced.

A sub-block is a *skeleton* (the teacher's block rebuilt by `apply_spec` on the meta device) called with slices of the elastic
weights. The same slices are what the student inherits, so a sub-block and its extracted copy cannot differ.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from stagecraft.elastic.kinds import searchables_of
from stagecraft.elastic.searchable import Order, Searchable, Settings
from stagecraft.networks.family import Family, Module, Site, Spec

SKELETONS_KEPT = 512


class ElasticBlock(nn.Module):
    """A teacher's block that runs as the sub-block of the spec given at each call.

    The kinds of its layers (elastic/resnet.py and others) define the choices, and the slice of the weights that each takes.

    Args:
        block: a block of the teacher; copied.
        family, site: of the teacher, and where the block stands.
        settings: the `search_block` section of the params, as far as it says which weights the supernet has of its own.
    """

    def __init__(self, block: Module, family: Family, site: Site, settings: Settings) -> None:
        super().__init__()
        self.family = family
        self.site = site
        self.block: Module = copy.deepcopy(block).requires_grad_(True)
        self._template = [copy.deepcopy(block).to("meta")]  # in a list, so that it is no part of the state
        self._skeletons: dict[str, nn.Module] = {}
        self.layers: dict[str, Searchable[Any]] = searchables_of(self._template[0])
        self.other_kernels = nn.ParameterDict()
        self.stored: dict[str, str] = {}  # names of the supernet's own weights in its state
        for layer in searchables_of(block).values():
            for name, weight in layer.own_weights(settings).items():
                self.stored[name] = stored_name(name)
                self.other_kernels[self.stored[name]] = nn.Parameter(weight)
        for name, layer in self.layers.items():
            for key, count in layer.moved().items():
                self.register_buffer(stored_name(f"{name}.{key}"), torch.arange(count))

    def skeleton(self, spec: Spec) -> nn.Module:
        """The block that `spec` describes, its parameters on the meta device."""
        device = next(self.block.parameters()).device
        key = f"{device} {json.dumps(spec, sort_keys=True)}"
        if key not in self._skeletons:
            if len(self._skeletons) >= SKELETONS_KEPT:
                self._skeletons.clear()
            skeleton = self.build(spec).eval()
            place_indices(skeleton, device)
            self._skeletons[key] = skeleton
        return self._skeletons[key]

    def build(self, spec: Spec) -> Module:
        """A new block that `spec` describes, on the meta device."""
        return self.family.rebuild(copy.deepcopy(self._template[0]), spec)

    def weights(self, spec: Spec) -> dict[str, torch.Tensor]:
        """Slices of the elastic weights for a sub-block, by the names of its state dict."""
        skeleton = self.skeleton(spec)
        return {name: self._slice(name, p.shape, skeleton) for name, p in skeleton.named_parameters()}

    def _slice(self, name: str, shape: torch.Size, skeleton: nn.Module) -> torch.Tensor:
        layer = self.layers.get(layer_of(name))
        if layer is None:
            return self.block.get_parameter(name)
        weight = self._weight(layer.source(name, shape))
        return layer.slice(weight, name, shape, skeleton.get_submodule(layer.name))

    def _weight(self, name: str) -> torch.Tensor:
        if name in self.stored:
            return self.other_kernels[self.stored[name]]
        return self.block.get_parameter(name)

    def forward(self, spec: Spec, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run the sub-block `spec` on what its site reads; returns what it writes."""
        weights = {f"block.{name}": value for name, value in self.weights(spec).items()}
        call = BlockRunner(self.skeleton(spec), self.family, self.site)
        return torch.func.functional_call(call, weights, (tensors,))

    @torch.no_grad()
    def sort(self, tensors: Sequence[torch.Tensor]) -> dict[str, Order]:
        """Put what matters most to each layer's output on the given tensors first; the block computes what it did before.

        Returns:
            The order of the parts of each layer, the most important first, for layers that have any.
        """
        seen = self._inputs_and_outputs(tensors)
        orders = {}
        for name, layer in self.layers.items():
            own = {key: self._weight(key) for key in self.stored if layer_of(key) == name}
            order = layer.sort(self.block.get_submodule(name), own, seen)
            for key, parts in self._moved(name).items():
                parts.copy_(parts[order.pop(key)])
            if order:
                orders[name] = order
        return orders

    @torch.no_grad()
    def restore(self, spec: Spec) -> None:
        """Restore, in place, the teacher's order of heads and units in layers of which the sub-block `spec` keeps all.

        LoRA weights of the teacher rely on that order.
        """
        for name, layer in self.layers.items():
            choice = spec[name]
            if choice is not None:
                layer.restore(self.block.get_submodule(name), choice, self._moved(name))

    def _moved(self, name: str) -> dict[str, torch.Tensor]:
        """The present order of what `sort` moves in a layer, as numbers in the teacher."""
        return {key: self.get_buffer(stored_name(f"{name}.{key}")) for key in self.layers[name].moved()}

    def _inputs_and_outputs(self, tensors: Sequence[torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Input and output of each convolution and linear layer, by name."""
        seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        handles = [
            module.register_forward_hook(lambda module, args, output, at=name: seen.update({at: (args[0], output)}))
            for name, module in self.block.named_modules()
            if isinstance(module, (nn.Conv2d, nn.Linear))
        ]
        self.family.run(self.site, self.block, tensors)
        for handle in handles:
            handle.remove()
        return seen


class BlockRunner(nn.Module):
    """A block and the function that runs it, as a module for functional_call."""

    def __init__(self, block: Module, family: Family, site: Site) -> None:
        super().__init__()
        self.block = block
        self.family = family
        self.site = site

    def forward(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return self.family.run(self.site, self.block, tensors)


def place_indices(skeleton: nn.Module, device: torch.device) -> None:
    """Put the index lists of a skeleton's layers, which are no weights, where the weights are."""
    for module in skeleton.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def layer_of(name: str) -> str:
    """The layer that a parameter of a block belongs to: `resnets.0` of `resnets.0.conv1.weight`."""
    return ".".join(name.split(".")[:2])


def stored_name(name: str) -> str:
    """The name of one of the supernet's own weights in its state, where a name has no dots."""
    return name.replace(".weight", "").replace(".", "-")


def natural_orders(block: Module) -> dict[str, Order]:
    """What `ElasticBlock.sort` gives where all parts of a block's layers matter alike."""
    orders = {name: layer.natural_order() for name, layer in searchables_of(block).items()}
    return {name: order for name, order in orders.items() if order}


def student_state(
    state: Mapping[str, torch.Tensor], block: Module, family: Family, site: Site, spec: Spec
) -> dict[str, torch.Tensor]:
    """Weights of the sub-block `spec` out of the stored state of an ElasticBlock; `block` is the teacher's block.

    Where a layer has all heads or units, they stand in the teacher's order.
    """
    sizes = {int(name.rsplit("-", 1)[1]) for name in state if name.startswith("other_kernels.")}
    elastic = ElasticBlock(block, family, site, Settings.model_construct(kernels=sorted(sizes)))
    elastic.load_state_dict(state)
    elastic.restore(spec)
    return {name: value.detach().clone() for name, value in elastic.weights(spec).items()}
