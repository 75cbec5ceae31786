"""The family of diffusers' UNet2DModel."""

from diffusers import UNet2DModel

from stagecraft.data.condition import Condition, example_classes
from stagecraft.networks.family import Module
from stagecraft.networks.unet.family import UNetFamily
from stagecraft.networks.unet2d.multi_decoder_unet import MultiDecoderUNet2DModel
from stagecraft.networks.unet2d.native import UNet2DNative


class UNet2DFamily(UNetFamily):
    """The family of diffusers' UNet2DModel."""

    teacher_class = UNet2DModel
    student_class = MultiDecoderUNet2DModel
    native_class = UNet2DNative

    def head_unit(self, net: Module, level: int) -> int:
        """Channels of a head."""
        return int(net.config["attention_head_dim"] or 1)

    def example_condition(self, net: Module, count: int) -> Condition:
        """Class 0 if a network is class-conditional."""
        return example_classes(net, count)
