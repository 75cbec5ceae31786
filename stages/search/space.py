"""The search space of one block: inner width x kernels x keep or drop layer x keep or drop attention x upsampler."""

import itertools
import json
import math
from typing import Any

import numpy as np

from stages.models.multi_decoder_unet import Module, group_size
from stages.models.specs import Spec, identity_spec

Layer = dict[str, Any] | None


class BlockSpace:
    """All sub-blocks of a teacher's block that the params admit; the teacher's own shape is always among them.

    Args:
        block: the teacher's block.
        settings: the `search_block` section: `widths` (shares of the teacher's inner width, rounded to whole GroupNorm groups),
            `kernels`, `drop_layers`, `drop_attention`, `upsampler_kernels` (where the block has an upsampler with a convolution).
    """

    def __init__(self, block: Module, settings: dict[str, Any]) -> None:
        self.identity = identity_spec(block)
        self.layers = [self._layer_options(resnet, settings) for resnet in block.resnets]
        self.attentions = [
            [True, False] if present and settings["drop_attention"] else [present]
            for present in self.identity["attentions"]
        ]
        folds = "upsampler" in self.identity
        self.upsamplers = [{"upsampler": k} for k in sorted(settings["upsampler_kernels"])] if folds else [{}]

    @staticmethod
    def _layer_options(resnet: Module, settings: dict[str, Any]) -> list[Layer]:
        groups, size = resnet.norm2.num_groups, group_size(resnet)
        widths = sorted({size * max(1, round(share * groups)) for share in settings["widths"]} | {groups * size})
        kernels = sorted({*settings["kernels"], resnet.conv1.kernel_size[0]})
        kept = [{"width": w, "kernels": [a, b]} for w in widths for a in kernels for b in kernels]
        return [*kept, None] if settings["drop_layers"] else [*kept]

    def __len__(self) -> int:
        return math.prod(map(len, [*self.layers, *self.attentions, self.upsamplers]))

    def smallest(self) -> Spec:
        """Every layer at its least width and kernels, every attention dropped that may be."""
        return {
            "layers": [options[0] for options in self.layers],
            "attentions": [options[-1] for options in self.attentions],
        } | self.upsamplers[0]

    def draw(self, rng: np.random.Generator) -> Spec:
        """One spec, each choice uniform over its options."""
        return {
            "layers": [options[rng.integers(len(options))] for options in self.layers],
            "attentions": [options[rng.integers(len(options))] for options in self.attentions],
        } | self.upsamplers[rng.integers(len(self.upsamplers))]

    def all(self) -> list[Spec]:
        """Every spec of the space."""
        return [
            {"layers": list(layers), "attentions": list(attentions)} | upsampler
            for layers in itertools.product(*self.layers)
            for attentions in itertools.product(*self.attentions)
            for upsampler in self.upsamplers
        ]

    def uniform(self) -> list[Spec]:
        """Specs that treat all layers alike, and all else at its most or its least: the plain choices a sample must not miss."""
        count = min(map(len, self.layers))
        plain = [[options[i] for options in self.layers] for i in range(count)]
        most = {"attentions": [options[0] for options in self.attentions]} | self.upsamplers[-1]
        least = {"attentions": [options[-1] for options in self.attentions]} | self.upsamplers[0]
        return [{"layers": layers} | end for layers in plain for end in (most, least)]

    def candidates(self, most: int, rng: np.random.Generator) -> list[Spec]:
        """The whole space when it has at most `most` specs; else the identity, the uniform specs and a seeded sample."""
        if len(self) <= most:
            return unique([self.identity, *self.all()])
        chosen = unique([self.identity, self.smallest(), *self.uniform()])
        while len(chosen) < most:
            chosen = unique([*chosen, *(self.draw(rng) for _ in range(most - len(chosen)))])
        return chosen


def unique(specs: list[Spec]) -> list[Spec]:
    """The specs without repetition, in their order."""
    return list({json.dumps(spec, sort_keys=True): spec for spec in specs}.values())
