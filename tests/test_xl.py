"""Stable Diffusion XL in small: a given folder with two text encoders, and a student that diffusers draws with."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from helpers import VAE, run_stages, text_params
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from stagecraft.data.condition import POOLED, PROMPT, SIZES
from stagecraft.networks.text_encoder import TextEncoder, make_encoder
from stagecraft.preflight.params import validate_params
from stagecraft.preflight.run import check_inputs

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SENTENCES = [f"a handwritten {name}" for name in NAMES]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of stable-diffusion-xl-base-1.0, for grey images of 16 x 16 pixels, weights random."""
    folder = tmp_path_factory.mktemp("xl")
    make_encoder(folder / "first", SENTENCES, 16, 0)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "first" / "tokenizer")
    first = CLIPTextModel.from_pretrained(folder / "first" / "text_encoder")
    wider = {"hidden_size": 24, "num_attention_heads": 3, "projection_dim": 8}
    torch.manual_seed(0)
    second = CLIPTextModelWithProjection(CLIPTextConfig(**{**first.config.to_dict(), **wider}))
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        cross_attention_dim=16 + 24,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 + 6 * 8,
    )
    vae = AutoencoderKL(**VAE | {"latent_channels": 4, "sample_size": 16})
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    pipeline = StableDiffusionXLPipeline(vae, first, second, tokenizer, tokenizer, unet, scheduler)
    pipeline.save_pretrained(folder / "given")
    return folder / "given"


def xl_params(folder: Path, **above: Any) -> dict[str, Any]:
    """The params of a run of that folder, with little training."""
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}
    changes = {
        "diffusion": {"process": "vp", "num_train_timesteps": 1000, **noise},
        "encode_prompts": {"source": "path", "path": str(folder)},
        "train_autoencoder": {"source": "path", "path": str(folder / "vae")},
        "train_teacher": {"source": "path", "path": str(folder)},
    }
    return text_params(**changes | above)


def test_prompts_are_encoded_as_the_pipeline_encodes_them(given: Path) -> None:
    ours = TextEncoder(given, CPU, 16).encode(["", *SENTENCES[:2]]).tensors
    pipeline = StableDiffusionXLPipeline.from_pretrained(given)
    states, nothing, pooled, pooled_nothing = pipeline.encode_prompt(SENTENCES[:2], device="cpu")
    torch.testing.assert_close(ours[PROMPT], torch.cat([nothing[:1], states]), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[POOLED], torch.cat([pooled_nothing[:1], pooled]), rtol=0, atol=1e-6)
    assert ours[SIZES][0].tolist() == [16, 16, 0, 0, 16, 16]


def test_a_folder_without_its_second_encoder_is_refused(given: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(given, tmp_path / "given"))
    shutil.rmtree(folder / "text_encoder_2")
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(ValueError, match="takes the two text encoders of an SDXL"):
        check_inputs(validate_params(xl_params(folder), "params.yaml"))


def test_from_images_to_a_student_that_diffusers_draws_with(given: Path, tmp_path: Path) -> None:
    run_stages(tmp_path, xl_params(given))
    for name in ("teacher", "student"):
        folder = tmp_path / "results" / name
        pipeline = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
        assert type(pipeline) is StableDiffusionXLPipeline
        pipeline.set_progress_bar_config(disable=True)
        assert type(pipeline.scheduler) is (DDPMScheduler if name == "teacher" else DPMSolverMultistepScheduler)
        images = []
        for negative in (None, ["a handwritten one"] * 2):
            generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
            how = {"num_inference_steps": 3, "output_type": "np", "guidance_scale": 5.0, "generator": generators}
            images.append(pipeline(SENTENCES[2:4], negative_prompt=negative, height=16, width=16, **how).images)
        assert np.isfinite(images).all() and np.abs(images[0] - images[1]).max() > 1e-4
