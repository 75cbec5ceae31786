"""The family of diffusers' UNet2DConditionModel."""

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel

from stagecraft.data.condition import POOLED, PROMPT, SIZES, Condition, example_classes
from stagecraft.networks.family import Architecture, Module
from stagecraft.networks.text_parts import TOKENS
from stagecraft.networks.unet.family import UNetFamily
from stagecraft.networks.unet2d_condition.multi_decoder_unet_condition import MultiDecoderUNet2DConditionModel
from stagecraft.networks.unet2d_condition.native import UNet2DConditionNative

NUMBERS = 6  # that SDXL is told of an image's sizes


class UNet2DConditionFamily(UNetFamily):
    """The family of diffusers' UNet2DConditionModel."""

    teacher_class = UNet2DConditionModel
    student_class = MultiDecoderUNet2DConditionModel
    native_class = UNet2DConditionNative

    def tokens(self, net: Module) -> int:
        """As its text encoder gives of any prompt: as many as that of Stable Diffusion, where nothing else is known."""
        return int(getattr(net, "prompt_tokens", TOKENS))

    def head_unit(self, net: Module, level: int) -> int:
        """The number of heads, which diffusers calls attention_head_dim."""
        heads = net.config["attention_head_dim"]
        return int(heads if isinstance(heads, int) else heads[level])

    def build_student(self, teacher: Module, architecture: Architecture, boundaries: Sequence[float]) -> Module:
        """A student with random weights, of prompts of as many tokens."""
        student = super().build_student(teacher, architecture, boundaries)
        student.prompt_tokens = self.tokens(teacher)
        return student

    def example_condition(self, net: Module, count: int) -> Condition:
        """An empty prompt, class 0 of a class-conditional network, and what is added of an SDXL."""
        config = net.config
        tensors = dict(example_classes(net, count).tensors)
        tensors[PROMPT] = torch.zeros(count, self.tokens(net), config["cross_attention_dim"])
        if config["addition_embed_type"] is not None:
            sizes = NUMBERS * config["addition_time_embed_dim"]
            tensors[POOLED] = torch.zeros(count, config["projection_class_embeddings_input_dim"] - sizes)
            tensors[SIZES] = torch.zeros(count, NUMBERS)
        return Condition(tensors)
