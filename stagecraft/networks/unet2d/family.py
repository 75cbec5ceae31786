"""The family of diffusers' UNet2DModel."""

from collections.abc import Mapping

from diffusers import UNet2DModel

from stagecraft.data.condition import Condition, example_classes
from stagecraft.networks.family import Module, Spec
from stagecraft.networks.unet.family import UNetFamily
from stagecraft.networks.unet.stream import residual_stream
from stagecraft.networks.unet2d.layers import UNet2DLayers
from stagecraft.networks.unet2d.multi_decoder_unet import MultiDecoderUNet2DModel
from stagecraft.networks.unet2d.native import UNet2DNative, stock_model


class UNet2DFamily(UNetFamily):
    """The family of diffusers' UNet2DModel."""

    teacher_class = UNet2DModel
    student_class = MultiDecoderUNet2DModel

    def head_unit(self, net: Module, level: int) -> int:
        """Channels of a head."""
        return int(net.config["attention_head_dim"] or 1)

    def example_condition(self, net: Module, count: int) -> Condition:
        """Class 0 if a network is class-conditional."""
        return example_classes(net, count)

    def layers(self, net: Module, identities: Mapping[str, Spec]) -> UNet2DLayers:
        """The layers of a UNet, to be measured one by one."""
        condition = self.example_condition(net, 1)
        rebuilder = self.student_class.rebuilder
        return UNet2DLayers(net, identities, rebuilder, condition, self.tokens(net), native=self.native(net))

    def native(self, net: Module) -> UNet2DNative:
        """What a stock UNet2DModel expresses of a UNet."""
        sites = self.sites(net)
        return UNet2DNative(net, sites, residual_stream(net, sites).levels)

    def stock(self, student: Module) -> Module:
        """The UNet2DModel that a native student is."""
        return stock_model(student)
