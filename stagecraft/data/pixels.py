"""Between images on disk (uint8, N,H,W,C) and tensors in the network (float, N,C,H,W, range [-1, 1])."""

import numpy as np
import torch


def to_network(images_NHWC: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 N,H,W,C to float32 N,C,H,W in [-1, 1]."""
    x = torch.as_tensor(np.ascontiguousarray(images_NHWC)) if isinstance(images_NHWC, np.ndarray) else images_NHWC
    return x.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_uint8(x_NCHW: torch.Tensor) -> torch.Tensor:
    """Float N,C,H,W in [-1, 1] (clipped) to uint8 N,H,W,C, rounded to the nearest value."""
    return ((x_NCHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
