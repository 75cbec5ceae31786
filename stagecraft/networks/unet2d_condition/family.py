"""The family of diffusers' UNet2DConditionModel."""

import torch
from diffusers import UNet2DConditionModel

from stagecraft.data.condition import POOLED, PROMPT, SIZES, Condition, example_classes
from stagecraft.networks.family import Module
from stagecraft.networks.unet.family import UNetFamily
from stagecraft.networks.unet2d_condition.multi_decoder_unet_condition import MultiDecoderUNet2DConditionModel

NUMBERS = 6  # that SDXL is told of an image's sizes


class UNet2DConditionFamily(UNetFamily):
    """The family of diffusers' UNet2DConditionModel."""

    teacher_class = UNet2DConditionModel
    student_class = MultiDecoderUNet2DConditionModel
    tokens = 77  # that CLIP's text encoders, which Stable Diffusion has, give of any prompt

    def head_unit(self, net: Module, level: int) -> int:
        """The number of heads, which diffusers calls attention_head_dim."""
        heads = net.config["attention_head_dim"]
        return int(heads if isinstance(heads, int) else heads[level])

    def example_condition(self, net: Module, count: int) -> Condition:
        """An empty prompt, class 0 of a class-conditional network, and what is added of an SDXL."""
        config = net.config
        tensors = dict(example_classes(net, count).tensors)
        tensors[PROMPT] = torch.zeros(count, self.tokens, config["cross_attention_dim"])
        if config["addition_embed_type"] is not None:
            sizes = NUMBERS * config["addition_time_embed_dim"]
            tensors[POOLED] = torch.zeros(count, config["projection_class_embeddings_input_dim"] - sizes)
            tensors[SIZES] = torch.zeros(count, NUMBERS)
        return Condition(tensors)
