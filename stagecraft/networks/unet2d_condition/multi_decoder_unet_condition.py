"""A UNet2DConditionModel with one decoder per range of timesteps, and every block built from an architecture spec.

Self-contained (torch and diffusers only): the file that travels with the weights has the modules of this package in place of
their imports, so that `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` needs nothing else.

In a spec, {"attentions.0": {"layers": [0, 2], "heads": 4, "feed_forward": 640}} keeps two layers of a transformer, with as many
heads in each of their attentions and that inner width of their feed-forward parts; null drops the transformer.
"""

import copy
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch
from diffusers import UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import nn

from stagecraft.networks.unet.student import (
    Architecture,
    Dropped,
    Module,
    MultiDecoderModel,
    Rebuilder,
    arguments_of,
    build_resnet,
    channels_of,
    narrow_norm,
    select,
    self_contained,
)

BLOCK_TYPES = {
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
}


class TransformerChoice(TypedDict):
    """What is chosen of a transformer."""

    layers: list[int]
    heads: int
    feed_forward: int


class DroppedTransformer(Dropped):
    """Identity that replaces a dropped transformer, which gives a tuple."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        return (hidden_states,)


def build_transformer(transformer: Module, choice: TransformerChoice | None) -> Module:
    """What a choice makes of a transformer, which is changed in place; layers that are kept keep their numbers."""
    if choice is None:
        return DroppedTransformer()
    layers = transformer.transformer_blocks
    kept = channels_of("layers", choice["layers"], len(layers), 1)
    for index, layer in enumerate(layers):
        if index in kept:
            resize_heads(layer.attn1, choice["heads"])
            resize_heads(layer.attn2, choice["heads"])
            resize_feed_forward(layer.ff, choice["feed_forward"])
        else:
            layers[index] = Dropped()
    return transformer


def resize_heads(attention: Module, heads: int) -> None:
    """Give an attention another number of heads of the same size, in place; untouched when it has as many."""
    if heads == attention.heads:
        return
    if heads <= 0:
        raise ValueError(f"architecture: heads {heads} of an attention, which has at least one")
    width = attention.to_q.out_features // attention.heads * heads
    for name in ("to_q", "to_k", "to_v"):
        old = getattr(attention, name)
        setattr(attention, name, linear_like(old, old.in_features, width))
    attention.to_out[0] = linear_like(attention.to_out[0], width, attention.to_out[0].out_features)
    attention.heads = attention.sliceable_head_dim = heads
    attention.inner_dim = attention.inner_kv_dim = width


def resize_feed_forward(feed_forward: Module, width: int) -> None:
    """Give a feed-forward part of gated units another inner width, in place; untouched when it is the same."""
    gated, _, last = feed_forward.net
    if width == last.in_features:
        return
    if width <= 0:
        raise ValueError(f"architecture: feed_forward {width} of a transformer, which is at least 1")
    gated.proj = linear_like(gated.proj, gated.proj.in_features, 2 * width)
    feed_forward.net[2] = linear_like(last, width, last.out_features)


def linear_like(linear: Module, inputs: int, outputs: int) -> nn.Linear:
    """A linear layer of another size, with a bias where the other has one."""
    weight = linear.weight
    return nn.Linear(inputs, outputs, linear.bias is not None, device=weight.device, dtype=weight.dtype)


def narrow_transformer(transformer: Module, kept: torch.Tensor) -> None:
    """Keep the channels of the stream that a transformer reads and writes; inside it keeps its width."""
    narrow_norm(transformer.norm, kept)
    select(transformer.proj_in, kept, None)
    select(transformer.proj_out, None, kept)
    transformer.in_channels = transformer.out_channels = len(kept)


# How each kind of layer that can be searched is built, by the name of the list that holds it in a block.
BUILDERS: dict[str, Callable[[Module, Any], Module]] = {
    "resnets": build_resnet,
    "attentions": build_transformer,
}
REBUILDER = Rebuilder(BLOCK_TYPES, BUILDERS, narrow_transformer)


def lora_module(key: str) -> str:
    """The module that a tensor of a LoRA, or an alpha, belongs to."""
    return key.split(".lora_")[0].removesuffix(".alpha")


def lora_shape(name: str, tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...] | None:
    """The shape of the weight that a LoRA's tensors for a module are added to; None where one of them is missing."""
    read = tensors.get(f"{name}.lora_A.weight")
    written = tensors.get(f"{name}.lora_B.weight")
    return None if read is None or written is None else (written.shape[0], *read.shape[1:])


def weight_shapes(network: Module) -> dict[str, tuple[int, ...]]:
    """The shape of each module's weight."""
    weights = {name: getattr(module, "weight", None) for name, module in network.named_modules()}
    return {name: tuple(weight.shape) for name, weight in weights.items() if weight is not None}


def without_prefix(values: Mapping[str, Any], prefix: str | None) -> dict[str, Any]:
    """The values whose names start with a prefix, by the rest of the name; all where it is None."""
    start = "" if prefix is None else f"{prefix}."
    return {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}


def with_prefix(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values by their names after a prefix."""
    return {f"{prefix}.{key}": value for key, value in values.items()}


def placed(values: Mapping[str, Any], places: Mapping[str, list[str]]) -> dict[str, Any]:
    """What belongs to modules of the teacher, for each of the student's modules that stand for them; tensors as copies."""
    named = [(key, lora_module(key)) for key in values]
    return {own + key[len(name) :]: copy.deepcopy(values[key]) for key, name in named for own in places.get(name, ())}


def placed_patterns(patterns: Mapping[str, int], places: Mapping[str, list[str]]) -> dict[str, int]:
    """The ranks or alphas that patterns of peft give to modules of the teacher, by the student's modules."""
    result: dict[str, int] = {}
    for name, modules in places.items():
        value = next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name)), None)
        if value is not None:
            result |= {f"^{module}": value for module in modules}
    return result


def placed_settings(metadata: Mapping[str, Any], places: Mapping[str, list[str]]) -> dict[str, Any]:
    """The settings that peft kept of a LoRA of the teacher, for the student's modules that stand for those of the teacher."""
    patterns = {key: placed_patterns(metadata.get(key) or {}, places) for key in ("rank_pattern", "alpha_pattern")}
    return {**metadata, **patterns, "target_modules": [module for modules in places.values() for module in modules]}


def report_left(left: Sequence[str], count: int) -> None:
    """Warn of the modules of a LoRA that are left out; ValueError when these are all of it."""
    if left and len(left) == count:
        raise ValueError(f"LoRA: none of its {count} modules is in this model as it is in the teacher")
    if left:
        said = "LoRA: left out, as the search dropped, narrowed or reordered these: %s"
        logging.getLogger(__name__).warning(said, ", ".join(left))


class MultiDecoderUNet2DConditionModel(MultiDecoderModel, PeftAdapterMixin):
    """A UNet2DConditionModel rebuilt: shared encoder and mid block, one decoder per interval.

    With the identity spec and a UNet2DConditionModel's weights it returns that model's output bit for bit.

    Args:
        unet, architecture, boundaries: as in `MultiDecoderModel.build`.
        sample_size and others: as in `unet`; repeated where pipelines look for them.

    Raises:
        ValueError: the architecture does not fit the blocks or the intervals.
    """

    file = Path(__file__)
    code = self_contained(file)
    teacher_class = UNet2DConditionModel
    rebuilder = REBUILDER
    repeated: ClassVar[tuple[str, ...]] = (
        "sample_size",
        "in_channels",
        "out_channels",
        "num_class_embeds",
        "cross_attention_dim",
        "time_cond_proj_dim",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "layers_per_block",
    )

    @register_to_config
    def __init__(
        self,
        unet: Mapping[str, object],
        architecture: Architecture,
        boundaries: list[float],
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        num_class_embeds: int | None = None,
        cross_attention_dim: int = 1280,
        time_cond_proj_dim: None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        projection_class_embeddings_input_dim: int | None = None,
        layers_per_block: int | list[int] = 2,
    ) -> None:
        super().__init__()
        base = self.build(unet, architecture, boundaries)
        self.add_embedding = getattr(base, "add_embedding", None)
        if self.add_embedding is not None:
            self.add_time_proj = base.add_time_proj

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Mapping[str, torch.Tensor],
        prefix: str | None = "unet",
        hotswap: bool = False,
        *,
        network_alphas: Mapping[str, float] | None = None,
        metadata: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a LoRA that was trained for the teacher, as a pipeline's `load_lora_weights` does.

        It is added where `lora_places` says; a warning names the modules that are left out.

        Args:
            pretrained_model_name_or_path_or_dict, network_alphas, metadata: as the pipeline has read them.

        Raises:
            ValueError: it was trained for another model, or nothing of it fits, or it was not read by a pipeline.
        """
        state = pretrained_model_name_or_path_or_dict
        if not isinstance(state, Mapping):
            raise ValueError(f"{state}: load a LoRA with the pipeline's load_lora_weights")
        tensors = convert_unet_state_dict_to_peft(without_prefix(state, prefix))
        places = self.lora_places(tensors)
        report_left([name for name, modules in places.items() if not modules], len(places))
        if network_alphas:
            alphas = convert_unet_state_dict_to_peft(without_prefix(network_alphas, prefix))
            kwargs["network_alphas"] = with_prefix(placed(alphas, places), "unet")
        if metadata:
            kwargs["metadata"] = with_prefix(placed_settings(without_prefix(metadata, prefix), places), "unet")
        super().load_lora_adapter(
            with_prefix(placed(tensors, places), "unet"), prefix="unet", hotswap=hotswap, **kwargs
        )

    def lora_places(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
        """For each module of the teacher that a LoRA is for, the student's modules that it is added to, in every decoder.

        None where the student's has another shape, or ResNet layers, whose channels a search reorders. None of the output head
        either: decoders run it from a tuple, past what a LoRA puts in its place. One that was trained for this student itself, as
        its names of decoders show, is added as it is.

        Raises:
            ValueError: the teacher has no such module.
        """
        names = dict.fromkeys(map(lora_module, tensors))
        if any(name.startswith("decoders.") for name in names):
            return {name: [name] for name in names}
        with torch.device("meta"):
            teacher = self.teacher_class(**arguments_of(self.teacher_class, self.config.unet))
        known = weight_shapes(teacher)
        own = weight_shapes(self)
        places: dict[str, list[str]] = {}
        for name in names:
            shape = lora_shape(name, tensors)
            if shape is None or known.get(name) != shape:
                raise ValueError(f"LoRA: {name} is no module of this shape in the teacher; take a LoRA of the teacher")
            in_decoder = name.startswith("up_blocks")
            copies = [f"decoders.{k}.{name}" for k in range(self.num_intervals)] if in_decoder else [name]
            moved = ".resnets." in name or name.startswith("conv_")
            places[name] = [] if moved else [module for module in copies if own.get(module) == shape]
        return places

    def embed_all(
        self,
        timesteps: torch.Tensor,
        class_labels: torch.Tensor | None,
        added: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        """Embedding (N, D) of the time, the class and what is added: a pooled prompt and the sizes of the image."""
        emb = self.embed(timesteps, class_labels)
        if self.add_embedding is None:
            return emb
        if added is None:
            raise ValueError("added_cond_kwargs must be given, with text_embeds and time_ids")
        pooled = added["text_embeds"]
        sizes = self.add_time_proj(added["time_ids"].flatten()).reshape(len(pooled), -1)
        return emb + self.add_embedding(torch.cat([pooled, sizes], dim=-1).to(emb.dtype))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        timestep_cond: None = None,
        attention_mask: None = None,
        cross_attention_kwargs: Mapping[str, object] | None = None,
        added_cond_kwargs: Mapping[str, torch.Tensor] | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """Predict for x_t (N,C,H,W) at one timestep or at one per sample (N,), given prompts' hidden states (N,tokens,D).

        The same call as UNet2DConditionModel's; ValueError for those of its arguments that this model knows nothing of.
        """
        if timestep_cond is not None or attention_mask is not None or cross_attention_kwargs:
            raise ValueError("timestep_cond, attention_mask and cross_attention_kwargs are not supported")
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        interval = self.interval_of(timesteps)
        emb = self.embed_all(timesteps.expand(sample.shape[0]), class_labels, added_cond_kwargs)
        hidden, skips = self.encode(sample, emb, encoder_hidden_states)
        output = self.decode(hidden, skips, emb, interval, encoder_hidden_states)
        return UNet2DConditionOutput(sample=output) if return_dict else (output,)
