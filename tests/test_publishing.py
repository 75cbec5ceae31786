"""The folder for a model hub: its card, the metadata as the hub's own library reads them, and a student that loads from it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import tiny_unet
from huggingface_hub import ModelCard
from PIL import Image
from test_report import make_architecture, make_metrics

from stagecraft.config.stages import Publish
from stagecraft.diffusion.registry import make_process
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.evaluation.samples import PATH, save_samples
from stagecraft.networks.pipelines import check_hashes, save_pipeline
from stagecraft.report.card import read_license
from stagecraft.runtime.files import sha256_content, write_checked_json, write_json
from stagecraft.training.student import build_student
from stages.publish import publish

NOTHING = {"license": None, "base_model": None, "dataset": None}
RETRAINED = {"seed": 0, "retrain": {"steps": 500, "batch_size": 64}}


@pytest.fixture(scope="module")
def run(tmp_path_factory, diffusion_settings) -> Path:
    """What a run leaves that `publish` reads: the folder results."""
    folder = tmp_path_factory.mktemp("run")
    unet = tiny_unet(num_class_embeds=3)
    student = build_student(unet, identity_architecture(unet, 2), [500], 0).eval()
    save_pipeline(folder / "student", student, make_process(diffusion_settings).scheduler(), RETRAINED)
    metrics = make_metrics(fid=0.08, kid=0.002)
    write_json(folder / "metrics.json", metrics)
    random = np.random.default_rng(0)
    images = {name: random.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8) for name in ("teacher", "student", "real")}
    images |= dict.fromkeys(PATH, np.zeros((2, 1, 8, 8, 1), np.uint8))
    save_samples(folder / "samples.npz", images, sha256_content(metrics))
    write_checked_json(folder / "architecture.json", make_architecture())
    write_checked_json(folder / "prompts" / "index.json", {})
    return folder


def published(run: Path, output: Path, cards: tuple[str, ...] = (), **settings: str | None) -> ModelCard:
    """The card of a folder that `publish` wrote."""
    files = {"metrics": "metrics.json", "samples": "samples.npz", "architecture": "architecture.json"}
    publish(
        Publish.of({"publish": NOTHING | settings}),
        threads=1,
        student=run / "student",
        prompts=run / "prompts",
        teacher_card=[*cards],
        output=output,
        **{name: run / file for name, file in files.items()},
    )
    return ModelCard.load(output / "README.md")


def test_the_folder_is_the_student_with_a_card_and_samples(run, tmp_path):
    published(run, tmp_path / "model")
    files = {path.relative_to(tmp_path / "model") for path in (tmp_path / "model").rglob("*")}
    own = {path.relative_to(run / "student") for path in (run / "student").rglob("*")}
    assert files - own == {Path("README.md"), Path("samples.png")} and own <= files
    check_hashes(tmp_path / "model", "publish")
    made_with = json.loads((tmp_path / "model" / "params.json").read_text())
    assert made_with.keys() == {"seed", "retrain", "assemble", "sampling", "publish"}
    with Image.open(tmp_path / "model" / "samples.png") as sheet:
        assert sheet.size == (8 * 51 - 3, 4 * 51 - 3)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert pipeline(class_labels=[0, 1], num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 1)


def test_the_metadata_are_the_hubs(run, tmp_path):
    settings = {"license": "mit", "base_model": "google/ddpm-cifar10-32", "dataset": "uoft-cs/cifar10"}
    data = published(run, tmp_path / "model", **settings).data
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "unconditional-image-generation")
    assert (data.license, data.base_model, data.datasets) == ("mit", "google/ddpm-cifar10-32", ["uoft-cs/cifar10"])
    assert data.base_model_relation == "finetune" and data.metrics == ["fid", "kid"]
    assert data.model_name == "ddpm-cifar10-32-student"
    fid, kid = data.eval_results
    assert (fid.metric_type, fid.metric_value, kid.metric_value) == ("fid", 0.08, 0.002)
    assert (fid.dataset_type, fid.dataset_split) == ("uoft-cs/cifar10", "train")
    assert fid.metric_name == "FID (classifier features)"
    protocol = {"samples": 2000, "sampler": "ddim", "steps": 50, "seed": 0, "reference_images": 1438}
    assert protocol.items() <= fid.metric_args.items()


def test_what_nobody_said_is_left_out(run, tmp_path):
    card = published(run, tmp_path / "model")
    metadata = card.data.to_dict()
    assert not {"base_model", "base_model_relation", "datasets"} & metadata.keys()
    assert metadata["license"] == "unknown" and "Unknown: neither the params" in card.text
    assert card.data.eval_results[0].dataset_name == "digits"
    assert "- Teacher:" not in card.text and "None" not in card.text


def test_the_card_says_costs_making_use_and_limits(run, tmp_path):
    text = published(run, tmp_path / "model", base_model="a/b").text
    assert "| MACs per step (thop) | 1,000,000 | 480,000 | x 0.480 |" in text
    assert "| parameters | 400,000 | 380,000 | x 0.950 |" in text
    assert "| milliseconds an image and step | 0.2 | 0.1 | x 0.500 |" in text
    assert "Noise levels in 3 intervals, with boundaries at the timesteps 200, 500." in text
    assert "retrained for 500 steps of 64 images" in text
    assert "8 x 8 pixels, conditional on 3 classes" in text and "class_labels=[0, 1, 2]" in text
    assert "## Limits" in text and "![Samples of the student](samples.png)" in text


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        published(run, folder)
    for name in ("README.md", "samples.png", "sha256.json"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


def test_the_licence_of_the_teachers_card_is_carried_over(run, tmp_path):
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\ntags: [a]\n---\n# A teacher\n")
    found = published(run, tmp_path / "model", cards=(str(card),))
    assert (found.data.license, found.data.license_name, found.data.license_link) == ("other", "own", "LICENSE")
    assert "other, own, LICENSE." in found.text
    assert read_license("mit", [str(card)]) == {"license": "mit"}
    card.write_text("# A teacher without metadata\n")
    assert read_license(None, [str(card)]) == {"license": "unknown"}


def test_a_student_of_read_only_files_is_copied(run, tmp_path):
    files = [path for path in (run / "student").rglob("*") if path.is_file()]
    for file in files:
        file.chmod(0o444)
    published(run, tmp_path / "model")
    assert all((tmp_path / "model" / file.relative_to(run / "student")).stat().st_mode & 0o200 for file in files)


def test_the_published_weights_are_the_students(run, tmp_path):
    published(run, tmp_path / "model")
    unets = [
        DiffusionPipeline.from_pretrained(folder, trust_remote_code=True).unet
        for folder in (run / "student", tmp_path / "model")
    ]
    assert all(torch.equal(a, b) for a, b in zip(unets[0].parameters(), unets[1].parameters(), strict=True))
