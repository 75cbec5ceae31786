"""Folders as models of the hub have them, with their configs alone: what a plan needs, and no weights."""

import json
from pathlib import Path
from typing import Any

# google/ddpm-cifar10-32, whose files lie in no sub-folder.
CIFAR: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
# google/ddpm-celebahq-256, of the same layout.
CELEBAHQ = CIFAR | {
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "sample_size": 256,
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}
# CompVis/ldm-celebahq-256: unet/ and vqvae/.
LDM = CIFAR | {
    "attention_head_dim": 32,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-05,
    "sample_size": 64,
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
}
VQVAE = {
    "_class_name": "VQModel",
    "_diffusers_version": "0.1.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "in_channels": 3,
    "latent_channels": 3,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "num_vq_embeddings": 8192,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "vq_embed_dim": 3,
}
# stable-diffusion-v1-5: vae/ and text_encoder/ beside the UNet.
KL = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
STABLE = {
    "unet": json.loads((Path(__file__).parent / "unets" / "stable-diffusion-v1-5.json").read_text()),
    "vae": KL,
    "text_encoder": {"architectures": ["CLIPTextModel"], "hidden_size": 768},
}
# The LDM of 256 x 256 pixels on ImageNet, as its authors' config says, in diffusers' words.
IMAGENET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": [6, 12, 18, 30],
    "block_out_channels": [192, 384, 576, 960],
    "cross_attention_dim": 512,
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 3],
    "in_channels": 3,
    "out_channels": 3,
    "sample_size": 64,
    "up_block_types": [*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"],
}
FOLDERS: dict[str, dict[str, dict[str, Any]]] = {
    "ddpm-cifar10-32": {".": CIFAR},
    "ddpm-celebahq-256": {".": CELEBAHQ},
    "ldm-celebahq-256": {"unet": LDM, "vqvae": VQVAE},
    "ldm-imagenet-256": {"unet": IMAGENET, "vqvae": VQVAE},
    "stable-diffusion-v1-5": STABLE,
}


def save_configs(folder: Path) -> Path:
    """Write the models' folders, and return their parent."""
    for name, parts in FOLDERS.items():
        for part, config in parts.items():
            path = folder / name / part / "config.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config))
    return folder
