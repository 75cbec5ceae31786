"""The autoencoder of latent diffusion: diffusers' AutoencoderKL or VQModel, from a folder or trained here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, VQModel

from stagecraft.data.prepared import save_array
from stagecraft.data.training import TrainingSet
from stagecraft.networks.given import AUTOENCODER, check_autoencoder_fits, check_autoencoder_folder, downscaling_of
from stagecraft.networks.multi_stage_pipeline import latent_scale
from stagecraft.networks.weights import WEIGHTS
from stagecraft.runtime.device import images_at_once
from stagecraft.runtime.files import atomic_path, check_file, read_checked_json, read_json
from stagecraft.runtime.progress import Progress

KINDS = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
# What latents were multiplied by when configs did not say so yet: AutoencoderKL's of Stable Diffusion by 0.18215, VQModel's of
# latent diffusion by nothing, although diffusers now takes 0.18215 for them too (its issue 6725).
UNSAID = {"AutoencoderKL": 0.18215, "VQModel": 1.0}
BATCH = 128
STAGE = "train_autoencoder"


def build_autoencoder(settings: dict[str, Any], channels: int, resolution: int, seed: int) -> AutoencoderKL:
    """An AutoencoderKL with random weights, as the `train_autoencoder` section describes it.

    Every level of `block_out_channels` but the last halves the resolution.
    """
    torch.manual_seed(seed)
    widths = tuple(settings["block_out_channels"])
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=settings["layers_per_block"],
        latent_channels=settings["latent_channels"],
        norm_num_groups=settings["norm_num_groups"],
        sample_size=resolution,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def load_given_autoencoder(folder: Path) -> Any:
    """AutoencoderKL or VQModel from a folder with config.json and safetensors weights, in eval mode on the CPU.

    Its config gets the scaling factor that its latents had.

    Raises:
        ValueError: files are missing, of another class, or hold values that are not finite.
    """
    weights = check_autoencoder_folder(Path(folder))
    config = read_json(Path(folder) / "config.json")
    kind = config["_class_name"]
    vae = load_autoencoder(folder, KINDS[kind], weights.variant).float()
    if config.get("scaling_factor") is None:
        vae.register_to_config(scaling_factor=UNSAID[kind])
    for name, value in vae.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{weights.files[0]}: {name} holds values that are not finite; {AUTOENCODER}")
    return vae


def load_autoencoder(folder: Path, kind: Any = None, variant: str | None = None) -> Any:
    """The autoencoder of a folder, in eval mode on the CPU; ValueError when it cannot be loaded."""
    if kind is None:
        kind = KINDS[json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["_class_name"]]
    try:
        model, report = kind.from_pretrained(
            str(folder), use_safetensors=True, variant=variant, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder}: cannot be loaded as {kind.__name__} ({text}); {AUTOENCODER}") from error
    for problem, names in (("lacks", report["missing_keys"]), ("has the unknown", report["unexpected_keys"])):
        if names:
            raise ValueError(f"{folder}/{WEIGHTS}: {problem} {min(names)}, by its config.json; {AUTOENCODER}")
    return model.eval()


def encode(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Scaled latents, float32 (N,c,h,w), of images in [-1, 1] (N,C,H,W); of an AutoencoderKL the mode."""
    encoded = vae.encode(images)
    z = encoded.latents if isinstance(vae, VQModel) else encoded.latent_dist.mode()
    z = z.float()
    shift, scale = latent_scale(vae, z)
    return (z - shift) * scale


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Images, about [-1, 1], of scaled latents; a VQModel quantises them first."""
    shift, scale = latent_scale(vae, latents)
    return vae.decode(latents / scale + shift).sample


def downscaling(vae: Any) -> int:
    """How many pixels a side one latent stands for."""
    return downscaling_of(vae.config)


@torch.no_grad()
def encode_all(vae: Any, data: TrainingSet, device: torch.device) -> torch.Tensor:
    """Scaled latents of all images, float32 (N,c,h,w), on the CPU."""
    progress = Progress("encoding", len(data))
    latents = []
    for rows in torch.arange(len(data)).split(images_at_once(BATCH, *data.shape[1:])):
        latents.append(encode(vae, data.x0(rows).to(device)).cpu())
        progress.update(int(rows[-1]) + 1)
    return torch.cat(latents)


def write_latents(path: Path, autoencoder: Path, images: np.ndarray, device: torch.device) -> list[int]:
    """Write the latents of uint8 images (N,H,W,C), float32 (N,c,h,w), as an npy file; their shape."""
    vae = open_autoencoder(autoencoder)
    latents = encode_all(vae.to(device), TrainingSet.of_images(images), device)
    with atomic_path(path) as aside:
        save_array(aside, latents.numpy().astype(np.float32))
    return list(latents.shape)


def open_autoencoder(folder: Path) -> Any:
    """The autoencoder that `train_autoencoder` left in a folder, in eval mode on the CPU; None when the diffusion runs in pixels.

    Raises:
        ValueError: a file is not as it was written.
    """
    index = read_checked_json(folder / "index.json", STAGE)
    for name, sha256 in index["sha256"].items():
        check_file(folder / name, sha256, folder / "index.json", STAGE)
    return None if index["source"] == "none" else load_autoencoder(folder)


def check_fits(vae: Any, folder: str, resolution: int, channels: int) -> None:
    """Raise ValueError when an autoencoder is for other images than the prepared ones."""
    check_autoencoder_fits(vae.config, folder, resolution, channels)
