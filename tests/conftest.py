"""Small models and data that many tests share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import pytest


@pytest.fixture(scope="session")
def diffusion_settings() -> dict:
    return {
        "process": "vp",
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
    }


def tiny_unet(**changes):
    """A UNet2DModel of two levels with attention, random weights that are not at their initial zeros."""
    import torch
    from diffusers import UNet2DModel

    settings = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    torch.manual_seed(0)
    unet = UNet2DModel(**settings | changes).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """64 digits, uint8 N,H,W,C."""
    from sklearn.datasets import load_digits

    return (load_digits().images[:64, :, :, None] * 15.9375).round().astype(np.uint8)
