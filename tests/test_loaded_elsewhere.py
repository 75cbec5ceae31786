"""A student loads, moves to half precision, saves and loads again where torch and diffusers are, and this project is not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoModel
from helpers import tiny_unet

from stagecraft.diffusion.registry import make_process
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.networks.pipelines import save_pipeline
from stagecraft.training.student import build_student

# Each folder by both ways, twice: as it was saved here, and as it was saved, in half precision, by this program.
PROGRAM = """
import sys

class NoProject:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("stagecraft", "stages"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, NoProject())
import torch
from diffusers import AutoModel, DiffusionPipeline

def check(folder, dtype):
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, torch_dtype=dtype)
    unet = AutoModel.from_pretrained(folder, subfolder="unet", trust_remote_code=True, torch_dtype=dtype)
    assert pipeline.unet.dtype == unet.dtype == dtype
    assert type(unet).__name__ == "MultiDecoderUNet2DModel"
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), pipeline.unet.parameters(), strict=True))
    return pipeline, unet

def draw(pipeline):
    generator = torch.Generator().manual_seed(0)
    return pipeline(batch_size=2, num_inference_steps=4, generator=generator, output_type="np").images

for folder in sys.argv[1:]:
    pipeline, unet = check(folder, torch.float32)
    before = draw(pipeline)
    pipeline.to(torch.float16).save_pretrained(f"{folder}-again")
    unet.to(torch.float16).save_pretrained(f"{folder}-unet")
    again, _ = check(f"{folder}-again", torch.float16)
    alone = AutoModel.from_pretrained(f"{folder}-unet", trust_remote_code=True, torch_dtype=torch.float16)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), again.unet.parameters(), strict=True))
    assert abs(draw(again) - before).mean() < 0.01 < before.std(), folder
    pipeline.to(torch.float32).unet.to(torch.float16)
    assert abs(draw(pipeline) - before).mean() < 0.01, folder
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, settings_of_processes) -> dict[str, Path]:
    """Students with layers that read and write some of the channels, one of each process and one in latents."""
    folder = tmp_path_factory.mktemp("students")
    teacher = tiny_unet()
    architecture = identity_architecture(teacher, 2)
    for entries in architecture["blocks"].values():
        entries[0]["spec"]["resnets.0"] = {"width": 16, "kernels": [1, 3], "reads": [0, 2], "writes": [1, 3]}
    torch.manual_seed(0)
    vae = AutoencoderKL(
        1, 1, latent_channels=1, block_out_channels=(4,), norm_num_groups=2, mid_block_add_attention=False
    )
    for name, process, boundary in (
        ("vp", "vp", 500),
        ("edm", "edm", 0.25),
        ("flow", "flow", 500),
        ("latent", "vp", 500),
    ):
        student = build_student(teacher, architecture, [boundary], 0).eval()
        scheduler = make_process(settings_of_processes[process]).scheduler()
        save_pipeline(folder / name, student, scheduler, {}, vae if name == "latent" else None)
    return {path.name: path for path in folder.iterdir()}


def run_alone(folder: Path, *arguments: str) -> str:
    """What PROGRAM prints in a process that finds nothing of this project."""
    place = folder / "elsewhere"
    place.mkdir()
    environment = os.environ | {"HF_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_students_are_loaded_halved_saved_and_loaded_again_without_this_project(folders, tmp_path):
    printed = run_alone(tmp_path, *map(str, folders.values()))
    assert "are not expected" not in printed, "a warning of config entries that diffusers itself wrote"


def test_a_students_code_is_run_with_consent_only(folders):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModel.from_pretrained(str(folders["vp"]), subfolder="unet")


def test_a_unet_that_is_pushed_alone_can_be_loaded(folders, tmp_path, monkeypatch):
    unet = AutoModel.from_pretrained(str(folders["vp"]), subfolder="unet", trust_remote_code=True)
    hub = "diffusers.utils.hub_utils"
    monkeypatch.setattr(f"{hub}.create_repo", lambda repo, **how: type("Repo", (), {"repo_id": repo}))
    monkeypatch.setattr(f"{hub}.ModelCard.load", no_card)
    monkeypatch.setattr(
        f"{hub}.upload_folder", lambda folder_path, **how: shutil.copytree(folder_path, tmp_path / "hub")
    )
    unet.to(torch.float16).push_to_hub("a/b")
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["auto_map"].keys() == {"AutoModel"}
    again = AutoModel.from_pretrained(str(tmp_path / "hub"), trust_remote_code=True, torch_dtype="auto")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), unet.parameters(), strict=True))


def no_card(*args, **how):
    """What the hub answers of a repository without README.md."""
    from huggingface_hub.errors import EntryNotFoundError

    raise EntryNotFoundError("there is none")
