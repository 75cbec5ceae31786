"""A student that is loaded with diffusers alone, saved and loaded again, each time in a new process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, DiffusionPipeline
from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module
from helpers import EDM, tiny_unet

from stagecraft.diffusion.registry import make_process
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.networks.pipelines import save_pipeline
from stagecraft.networks.unet2d import multi_decoder_unet
from stagecraft.training.student import build_student

WEIGHTS = "diffusion_pytorch_model"
# What a new process does: load every folder of its first argument, save it into the second, and keep what its UNet predicts.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from diffusers import DiffusionPipeline

saved, again, ways = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
for name, (load, save, half) in ways.items():
    # As if each were loaded by a process of its own: a module that is known hides a name that leads nowhere.
    for module in [module for module in sys.modules if module.startswith("diffusers_modules")]:
        del sys.modules[module]
    pipeline = DiffusionPipeline.from_pretrained(saved / name, trust_remote_code=True, **load)
    config = pipeline.unet.config
    x = torch.linspace(-1, 1, 3 * config.in_channels * 64).view(3, config.in_channels, 8, 8)
    labels = {} if config.num_class_embeds is None else {"class_labels": torch.tensor([0, 1, 2])}
    with torch.no_grad():
        found = pipeline.unet.float()(x, torch.tensor([0.1, 0.5, 900.0]), **labels).sample
        if half:
            pipeline.to(torch.float16)
        pipeline.save_pretrained(again / name, **save)
    torch.save(found, again / f"{name}.pt")
"""
PLAIN = ({}, {}, False)
WAYS = {
    "plain": [PLAIN, PLAIN],
    "moved": [({}, {}, True), PLAIN],
    "variant": [({}, {"variant": "fp16"}, True), ({"variant": "fp16"}, {}, False)],
    "sharded": [({}, {"max_shard_size": "20KB"}, False), PLAIN],
    "sharded_variant": [
        ({}, {"max_shard_size": "20KB", "variant": "fp16"}, True),
        ({"variant": "fp16"}, {"max_shard_size": "20KB"}, False),
    ],
    "latent": [PLAIN, ({}, {"max_shard_size": "20KB"}, False)],
    "classes": [({}, {"variant": "fp16"}, True), ({"variant": "fp16"}, {}, False)],
    "edm": [PLAIN, PLAIN],
    "teacher": [PLAIN, PLAIN],
}


def student_of(unet, boundary, kind=None):
    student = build_student(unet, identity_architecture(unet, 2), [boundary], 0)
    if kind is not None:
        student = kind(**{key: value for key, value in student.config.items() if not key.startswith("_")})
    return student.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, diffusion_settings) -> Path:
    """A folder of students, and one teacher, as this project saves them."""
    folder = tmp_path_factory.mktemp("saved")
    vp = make_process(diffusion_settings)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        1, 1, latent_channels=1, block_out_channels=(4,), norm_num_groups=2, mid_block_add_attention=False
    )
    plain, conditional = tiny_unet(), tiny_unet(num_class_embeds=3)
    save_pipeline(folder / "plain", student_of(plain, 500), vp.scheduler(), {})
    for name in ("moved", "variant", "sharded", "sharded_variant"):
        shutil.copytree(folder / "plain", folder / name)
    save_pipeline(folder / "latent", student_of(plain, 500), vp.scheduler(), {}, vae)
    save_pipeline(folder / "classes", student_of(conditional, 500), vp.scheduler(), {})
    edm = make_process(EDM)
    save_pipeline(folder / "edm", student_of(plain, 0.25), edm.scheduler(), {})
    save_pipeline(folder / "teacher", conditional, edm.scheduler(), {})
    return folder


@pytest.fixture(scope="module")
def generations(folders) -> list[Path]:
    """The folders, saved again by a process that loaded them, and saved once more by another; a third only loads."""
    found = [folders]
    for turn in range(3):
        again = folders.with_name(f"again-{turn}")
        again.mkdir()
        ways = {name: [*turns, PLAIN][turn] for name, turns in WAYS.items()}
        command = [sys.executable, "-c", PROGRAM, str(found[-1]), str(again), json.dumps(ways)]
        done = subprocess.run(command, cwd=again, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(again)
    return found


@pytest.mark.parametrize("name", WAYS)
def test_what_is_saved_again_is_loaded_by_a_new_process_and_predicts_the_same(generations, name):
    first, second, third = (torch.load(folder / f"{name}.pt") for folder in generations[1:])
    halved = any(half for _, _, half in WAYS[name])
    assert first.std() > 0.1
    torch.testing.assert_close(second, first, atol=2e-3 if halved else 1e-6, rtol=0)
    torch.testing.assert_close(third, second, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", WAYS)
def test_every_module_that_the_index_names_is_in_the_folder(generations, name):
    for folder in generations:
        index = json.loads((folder / name / "model_index.json").read_text())
        for part, (module, _) in ((part, value) for part, value in index.items() if isinstance(value, list)):
            if module not in ("diffusers", None):
                place = folder / name if part == "_class_name" else folder / name / part
                assert (place / f"{module}.py").is_file(), (folder, part, module)
        assert [*(folder / name).rglob("*.bin")] == []
    assert (generations[1] / name / "unet" / f"{WEIGHTS}.fp16.safetensors").exists() == (name in ("variant", "classes"))
    assert (generations[1] / name / "unet" / f"{WEIGHTS}.safetensors.index.json").exists() == (name == "sharded")


def test_the_unet_alone_is_saved_with_its_file_and_fits_a_pipeline_made_by_hand(folders, tmp_path):
    unet = DiffusionPipeline.from_pretrained(folders / "plain", trust_remote_code=True).unet
    unet.save_pretrained(tmp_path / "alone")
    file = Path(multi_decoder_unet.__file__)
    kind = get_class_from_dynamic_module(
        str(tmp_path / "alone"), file.name, class_name=type(unet).__name__, trust_remote_code=True
    )
    for own in (kind, multi_decoder_unet.MultiDecoderUNet2DModel):
        alone = own.from_pretrained(tmp_path / "alone")
        alone.save_pretrained(tmp_path / "alone")  # over the files that it came from
        DDPMPipeline(alone, DDPMScheduler()).save_pretrained(tmp_path / own.__module__)
        index = json.loads((tmp_path / own.__module__ / "model_index.json").read_text())
        assert index["unet"] == [file.stem, "MultiDecoderUNet2DModel"]
        again = DiffusionPipeline.from_pretrained(tmp_path / own.__module__, trust_remote_code=True).unet
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), unet.parameters(), strict=True))
    assert (tmp_path / "alone" / file.name).read_bytes() == kind.code == multi_decoder_unet.MultiDecoderUNet2DModel.code
    assert b"stagecraft" not in b"".join(line for line in kind.code.splitlines() if b"import" in line)


def test_the_file_that_is_saved_is_the_one_that_was_loaded(folders, tmp_path):
    """Diffusers keeps one copy of a folder's modules for all folders: that of the folder which was loaded last."""
    pipeline = DiffusionPipeline.from_pretrained(folders / "edm", trust_remote_code=True)
    for file in (sys.modules[type(part).__module__].__file__ for part in (pipeline, pipeline.unet)):
        text = Path(file).read_text()
        Path(file).write_text("raise RuntimeError('the file of another student')\n")
        try:
            pipeline.save_pretrained(tmp_path / "again")
        finally:
            Path(file).write_text(text)
        DiffusionPipeline.from_pretrained(tmp_path / "again", trust_remote_code=True)


@pytest.mark.parametrize("name", ["plain", "edm"])
@pytest.mark.parametrize("while_saving", [True, False])
def test_what_is_pushed_to_the_hub_can_be_loaded(folders, tmp_path, monkeypatch, name, while_saving):
    pipeline = DiffusionPipeline.from_pretrained(folders / name, trust_remote_code=True)
    for module in ("diffusers.utils.hub_utils", "diffusers.pipelines.pipeline_utils"):
        monkeypatch.setattr(f"{module}.create_repo", lambda repo, **how: type("Repo", (), {"repo_id": repo}))
        monkeypatch.setattr(
            f"{module}.load_or_create_model_card", lambda *args, **how: type("Card", (), {"save": print})
        )
        monkeypatch.setattr(f"{module}.populate_model_card", lambda card, **how: card)
    upload = lambda self, folder, repo, **how: shutil.copytree(folder, tmp_path / "hub")  # noqa: E731
    monkeypatch.setattr(DiffusionPipeline, "_upload_folder", upload)
    if while_saving:
        pipeline.save_pretrained(str(tmp_path / "local"), push_to_hub=True, repo_id="a/b")
    else:
        pipeline.push_to_hub("a/b")
    again = DiffusionPipeline.from_pretrained(tmp_path / "hub", trust_remote_code=True)
    assert type(again).__name__ == type(pipeline).__name__
