"""Folders with the files, classes and keys of google/ddpm-cifar10-32 and CompVis/ldm-celebahq-256, with few random weights.

The commands of all stages up to the student run here in one process.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import preset_params, run_stages
from hub import CIFAR
from PIL import Image

# config.json of google/ddpm-cifar10-32, its channels divided by 16.
CIFAR_UNET = CIFAR | {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4}
CIFAR_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}
# unet/config.json of CompVis/ldm-celebahq-256, its channels divided by 28 and its side by 8: one pixel at the deepest level.
CELEBA_UNET = CIFAR_UNET | {
    "attention_head_dim": 8,
    "block_out_channels": [8, 16, 24, 32],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "norm_eps": 1e-05,
    "sample_size": 8,
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
CELEBA_VQVAE = {
    "_class_name": "VQModel",
    "_diffusers_version": "0.1.2",
    "act_fn": "silu",
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "in_channels": 3,
    "latent_channels": 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "num_vq_embeddings": 64,
    "out_channels": 3,
    "sample_size": 32,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "vq_embed_dim": 3,
}
CELEBA_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.0015,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "timestep_values": None,
    "trained_betas": None,
}


def save(kind, config: dict, folder: Path) -> None:
    """A model with random weights under its config as it was published, keys of later versions left out."""
    kind.from_config(config).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))


def save_images(folder: Path, side: int) -> None:
    """Few random images."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(96):
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def shrunk(name: str, **changes: dict) -> dict:
    """A preset with steps, draws and samples for seconds; what describes the teacher and its process stays."""
    params, smoke = (preset_params(preset) for preset in (name, "smoke"))
    small = ("train_extractor", "cache_features", "search_block", "retrain", "evaluate", "report")
    params |= {section: smoke[section] for section in small} | {"precision": "fp32"}
    params["sampling"]["steps"] = 3
    params["cluster_timesteps"] |= {"intervals": 2, "seeds": 1, "grid": 10, "draws": 32}
    params["search_block"] |= {"steps": 2, "warmup_steps": 1, "candidates": 4, "batch_size": 4}
    params["search_block"] |= {"local_triples": 4, "output_triples": 2, "channels": 0.75}
    params["cache_features"] |= {"triples_per_interval": 16, "shard_size": 16, "max_gib": 4.0}
    params["retrain"] |= {"steps": 2, "warmup_steps": 1, "batch_size": 4}
    params["assemble"] |= {"macs": 1.0, "params": 3.0, "params_active": 1.0}
    for section, keys in changes.items():
        params[section] |= keys
    return params


@pytest.fixture
def cifar(tmp_path) -> Path:
    from diffusers import UNet2DModel

    folder = tmp_path / "cifar"
    teacher = folder / "data" / "teacher" / "ddpm-cifar10-32"
    save(UNet2DModel, CIFAR_UNET, teacher)
    (teacher / "scheduler_config.json").write_text(json.dumps(CIFAR_SCHEDULER))
    save_images(folder / "data" / "raw" / "cifar10", 32)
    return folder


@pytest.fixture
def celebahq(tmp_path) -> Path:
    from diffusers import UNet2DModel, VQModel

    folder = tmp_path / "celebahq"
    teacher = folder / "data" / "teacher" / "ldm-celebahq-256"
    save(UNet2DModel, CELEBA_UNET, teacher / "unet")
    save(VQModel, CELEBA_VQVAE, teacher / "vqvae")
    (teacher / "scheduler").mkdir()
    (teacher / "scheduler" / "scheduler_config.json").write_text(json.dumps(CELEBA_SCHEDULER))
    save_images(folder / "data" / "raw" / "celebahq", 40)
    return folder


def test_a_teacher_with_the_layout_of_ddpm_cifar10_gives_a_student(cifar):
    from diffusers import DiffusionPipeline

    run_stages(cifar, shrunk("cifar10-ddpm"), last="retrain")
    pipeline = DiffusionPipeline.from_pretrained(cifar / "results" / "student", trust_remote_code=True)
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 32, 32, 3)
    architecture = json.loads((cifar / "results" / "architecture.json").read_text())
    blocks = architecture["unet"]["blocks"]
    assert len([name for name in blocks if name.startswith("down_blocks")]) == 4
    assert [interval for entry in blocks["up_blocks.0"] for interval in entry["range"]] == [0, 1]


def test_a_teacher_with_the_layout_of_ldm_celebahq_gives_a_student_in_latents(celebahq):
    from diffusers import DiffusionPipeline

    params = shrunk("celebahq-ldm", prepare_data={"resolution": 32})
    run_stages(celebahq, params, last="retrain")
    student = celebahq / "results" / "student"
    latents = np.load(celebahq / "data" / "latents" / "latents.npy")
    assert latents.shape[1:] == (3, 8, 8)
    assert json.loads((student / "vae" / "config.json").read_text())["scaling_factor"] == 1
    pipeline = DiffusionPipeline.from_pretrained(student, trust_remote_code=True)
    assert pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape == (2, 32, 32, 3)
