"""An extractor that the project has not trained: a published classifier of Fashion-MNIST as TorchScript, for evaluate.extractor.

python benchmarks/fashion_extractor.py fashion_mnist_cnn.pth fashion-cnn.pt

The weights are those of github.com/saharshasamudrala05/Fashion-MNIST-Model (MIT, 91.31 % of the test split); the features are the
128 after its first linear layer. Images of another size are scaled to its 28 x 28.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FashionFeatures(nn.Module):
    """uint8 images (N, 3, H, W) to features (N, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * 7 * 7, 128)

    def forward(self, images: Tensor) -> Tensor:
        x = images[:, :1].float() / 127.5 - 1
        if x.shape[2] != 28 or x.shape[3] != 28:
            x = F.interpolate(x, size=[28, 28], mode="bilinear", align_corners=False)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.relu(self.fc1(x.flatten(1)))


def main(weights: str, target: str) -> None:
    net = FashionFeatures()
    found = torch.load(weights, weights_only=True, map_location="cpu")
    net.load_state_dict({name: value for name, value in found.items() if not name.startswith("fc2")})
    torch.jit.script(net.eval()).save(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
