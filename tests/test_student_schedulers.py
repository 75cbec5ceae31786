"""A student's folder draws with every scheduler of diffusers that its process has."""

import shutil

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import tiny_unet

from stagecraft.diffusion.registry import make_process
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.networks.pipelines import load_student, save_pipeline
from stagecraft.training.student import build_student


@pytest.fixture(scope="module")
def student(tmp_path_factory, diffusion_settings):
    folder = tmp_path_factory.mktemp("student") / "student"
    unet = tiny_unet()
    student = build_student(unet, identity_architecture(unet, 2), [500], 0).eval()
    save_pipeline(folder, student, make_process(diffusion_settings).scheduler(), {})
    load_student(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "HeunDiscrete",
            "PNDM",
            "UniPCMultistep",
            "DEISMultistep",
            "LMSDiscrete",
            "KDPM2Discrete",
            "DPMSolverSinglestep",
        ),
        *(
            "EulerDiscrete",
            "EulerAncestralDiscrete",
            "KDPM2AncestralDiscrete",
            "DDIM",
            "DDPM",
            "DPMSolverMultistep",
            "LCM",
        ),
    ],
)
def test_a_student_draws_with_schedulers_that_take_no_generator_and_with_those_that_do(student, name):
    pipeline = DiffusionPipeline.from_pretrained(student, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipeline.scheduler.config)

    def draw():
        how = {"num_inference_steps": 4, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
        return pipeline(batch_size=2, **how).images

    images = draw()
    assert images.shape == (2, 1, 8, 8) and images.isfinite().all() and torch.equal(images, draw())
