"""Facts about a UNet2DConditionModel that its config gives without building it. Light: no torch, no diffusers."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from stagecraft.config.sections import Teacher
from stagecraft.networks.given import TEACHER, Config
from stagecraft.networks.unet.config import UNetConfig

# Types of blocks that can be searched; multi_decoder_unet_condition.py rebuilds them.
BLOCK_TYPES = {
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
}
# What a UNet2DConditionModel can do and the search cannot: keys, and what they must say.
SUPPORTED: Mapping[str, object] = {
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "num_attention_heads": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "cross_attention_norm": None,
    "attention_type": "default",
    "resnet_skip_time_act": False,
}


class UNet2DConditionConfig(UNetConfig):
    """The configs of diffusers' UNet2DConditionModel."""

    class_name = "UNet2DConditionModel"
    student_file = "multi_decoder_unet_condition.py"
    types = BLOCK_TYPES
    defaults: ClassVar[Mapping[str, object]] = {
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1280,
        "attention_head_dim": 8,
    }
    prompted = True

    def check_features(self, path: Path, config: Config) -> None:
        """Raise ValueError for other embeddings, attentions, or heads that do not divide the channels."""
        for key, value in SUPPORTED.items():
            if config.get(key, value) != value:
                raise ValueError(f"{path}: {key} is {config[key]!r}, but only {value!r} is supported; {TEACHER}")
        if config.get("addition_embed_type") not in (None, "text_time"):
            raise ValueError(
                f"{path}: addition_embed_type is {config['addition_embed_type']!r}, but only text_time is supported; {TEACHER}"
            )
        if not isinstance(self.get(config, "cross_attention_dim"), int):
            raise ValueError(
                f"{path}: cross_attention_dim is {config['cross_attention_dim']!r}, but only one width of prompts is supported; "
                f"{TEACHER}"
            )

    def trained(self, settings: Teacher, prompt_width: int | None = None) -> dict[str, object]:
        """The arguments of a UNet2DConditionModel that is trained here, for prompts of a width.

        Cross-attention stands in the levels of `attention` that are true, and in the mid block.
        """
        attention = settings.attention
        widths = settings.block_out_channels
        return {
            "block_out_channels": tuple(widths),
            "down_block_types": tuple("CrossAttnDownBlock2D" if on else "DownBlock2D" for on in attention),
            "up_block_types": tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(attention)),
            "layers_per_block": settings.layers_per_block,
            "attention_head_dim": tuple(width // settings.attention_head_dim for width in widths),
            "norm_num_groups": settings.norm_num_groups,
            "dropout": settings.dropout,
            "cross_attention_dim": prompt_width,
        }

    def check_levels(self, path: Path, config: Config) -> None:
        """The checks of all UNets, and heads that divide the channels of their level.

        Diffusers' key attention_head_dim holds the number of heads, one for all levels or one for each.
        """
        super().check_levels(path, config)
        widths = self.widths(config)
        heads = self.get(config, "attention_head_dim")
        each = heads if isinstance(heads, list) else [heads] * len(widths)
        numbers = all(isinstance(number, int) and number > 0 for number in each)
        if not numbers or len(each) != len(widths) or any(w % h for w, h in zip(widths, each, strict=True)):
            raise ValueError(
                f"{path}: attention_head_dim is {heads!r}, no number of heads that divides block_out_channels {widths!r}; "
                f"{TEACHER}"
            )
