"""An extractor that the project has not trained: a published ResNet of CIFAR-10 as TorchScript, for evaluate.extractor.

python benchmarks/cifar_extractor.py resnet56-4bfd9763.th resnet-56.pt

The weights are those of github.com/akamaster/pytorch_resnet_cifar10 (BSD 2-clause; ResNet-20, 32, 44 or 56 as in He et al. 2016,
section 4.2, with parameter-free shortcuts); the features are the 64 before its linear layer. Images of another size are scaled to
its 32 x 32.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two convolutions and a shortcut that takes every second pixel and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.missing = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], [0, 0, 0, 0, self.missing, self.missing])
        return F.relu(inner + x)


class ResnetFeatures(nn.Module):
    """uint8 images (N, 3, H, W) to features (N, 64)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = level(WIDTHS[0], WIDTHS[0], blocks)
        self.layer2 = level(WIDTHS[0], WIDTHS[1], blocks)
        self.layer3 = level(WIDTHS[1], WIDTHS[2], blocks)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = (images.float() / 255 - self.mean) / self.std
        if x.shape[2] != 32 or x.shape[3] != 32:
            x = F.interpolate(x, size=[32, 32], mode="bilinear", align_corners=False)
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean([2, 3])


def level(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Blocks of one resolution, the first of which reads that of the level before."""
    first = Block(inputs, outputs, 1 if inputs == outputs else 2)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def main(weights: str, target: str) -> None:
    """Convert a state dict, whose number of blocks its names tell."""
    found = torch.load(weights, weights_only=True, map_location="cpu")["state_dict"]
    found = {name.removeprefix("module."): value for name, value in found.items()}
    blocks = 1 + max(int(name.split(".")[1]) for name in found if name.startswith("layer1."))
    net = ResnetFeatures(blocks)
    net.load_state_dict({name: value for name, value in found.items() if not name.startswith("linear")})
    torch.jit.script(net.eval()).save(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
