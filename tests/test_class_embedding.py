"""A latent diffusion model on ImageNet in small: a UNet2DConditionModel that attends to one hidden state for each class."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel, VQModel
from helpers import EDM, VAE, preset_params, run_stages, text_params, tiny_prompted_unet
from hub import save_configs
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from stagecraft.config.overlay import lay_over
from stagecraft.config.sections import ClassEncoder
from stagecraft.data.condition import PROMPT, Condition
from stagecraft.data.prompts import EMPTY
from stagecraft.diffusion.losses import predict, predict_guided
from stagecraft.networks.class_embedding import ClassEmbedding
from stagecraft.networks.class_parts import MADE, check_classes, read_sizes
from stagecraft.networks.multi_stage_pipeline import MultiStagePipeline
from stagecraft.planning.plan import make_plan
from stagecraft.preflight.jobs import encoder_files, encoder_names, needs_own_pipeline
from stagecraft.preflight.params import validate_params
from stagecraft.preflight.run import check_inputs

CLASSES = 10
WIDTH = 12


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet, a VQModel and a scheduler in the layout of diffusers, for grey images of 16 x 16 pixels, and a class embedding."""
    folder = tmp_path_factory.mktemp("ldm")
    unet = tiny_prompted_unet(in_channels=3, out_channels=3, cross_attention_dim=WIDTH)
    vae = VQModel(**VAE | {"latent_channels": 3, "num_vq_embeddings": 32, "sample_size": 16})
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vqvae")
    scheduler = DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.save_pretrained(folder / "scheduler")
    # As `cond_stage_model.embedding.weight` of the authors' checkpoint, whose last row stands for no class.
    save_file({"weight": torch.randn(CLASSES + 1, WIDTH)}, folder / "classes.safetensors")
    return folder


def class_params(folder: Path, file: Path | None = None, **above: Any) -> dict[str, Any]:
    """The params of a run of that folder, with little training."""
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "prediction_type": "epsilon"}
    path = str(file or folder / "classes.safetensors")
    changes = {
        "diffusion": {"process": "vp", "num_train_timesteps": 1000, **noise},
        "encode_prompts": {"source": "classes", "path": path, "last_is_empty": True, "empty": 0.1},
        "train_autoencoder": {"source": "path", "path": str(folder / "vqvae")},
        "train_teacher": {"source": "path", "path": str(folder)},
        "evaluate": {"guidance": 3.0},
    }
    return text_params(**changes | above)


def imagenet_params(teacher: Path) -> dict[str, Any]:
    """The preset celebahq-ldm for a class-conditional teacher, whose images are not there."""
    changes = {
        "prepare_data": {"path": str(teacher / "none"), "resolution": 256},
        "encode_prompts": {
            "source": "classes",
            "path": str(teacher / "classes.safetensors"),
            "last_is_empty": True,
            "empty": 0.1,
        },
        "train_autoencoder": {"source": "path", "path": str(teacher / "vqvae")},
        "train_teacher": {"source": "path", "path": str(teacher)},
    }
    return lay_over(preset_params("celebahq-ldm"), changes)


# --- What is refused ---


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a": torch.zeros(11, WIDTH), "b": torch.zeros(1)}, "holds 2 tensors (a [11, 12] of F32, b [1] of F32)"),
        ({"a": torch.zeros(11)}, "holds 1 tensors (a [11] of F32); give the teacher's class embedding"),
        ({"a": torch.zeros(11, WIDTH, dtype=torch.int64)}, "holds 1 tensors (a [11, 12] of I64)"),
        ({"a": torch.zeros(1, WIDTH)}, "holds 1 tensors (a [1, 12] of F32)"),
        ({"a": torch.zeros(11, 7)}, "cross_attention_dim is 12 but the hidden states of the prompts are 7 wide"),
        (
            {"a": torch.zeros(8, WIDTH)},
            "the number of classes, with encode_prompts.last_is_empty: true, is 7 but the images have the class 9",
        ),
    ],
)
def test_another_embedding_is_refused_before_the_first_job(
    given: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    save_file(tensors, tmp_path / "other.safetensors")
    params = validate_params(class_params(given, tmp_path / "other.safetensors"), "params.yaml")
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        check_inputs(params)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_none_or_no_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encode_prompts\.path: .*none\.safetensors not found; give the teacher's"):
        read_sizes(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match=r"bad\.safetensors: cannot be loaded as safetensors"):
        read_sizes(tmp_path / "bad.safetensors")


def test_images_need_classes(given: Path) -> None:
    path = str(given / "classes.safetensors")
    settings = ClassEncoder(source="classes", path=path, last_is_empty=True, empty=0.1)
    with pytest.raises(ValueError, match="last_is_empty: true, is 10 but the images have no labels"):
        check_classes(settings, None)
    check_classes(settings, {str(number): number for number in range(CLASSES)})
    # Without a row for no class there is one class more.
    check_classes(settings.model_copy(update={"last_is_empty": False}), {"10": 10})


@pytest.mark.parametrize(
    ("above", "words"),
    [
        (
            {"evaluate": {"guidance": 3.0}},
            "evaluate.guidance: 3, but no row of the class embedding stands for no class",
        ),
        (
            {"encode_prompts": {"last_is_empty": False, "empty": 0.1}},
            "encode_prompts.empty: 0.1, but no row of the class embedding stands for no class; set 0",
        ),
        (
            {"evaluate": {"clip": "folder"}},
            'evaluate.clip: "folder", but classes are no texts to compare with; set null',
        ),
    ],
)
def test_params_that_clash_with_classes_are_refused(given: Path, above: dict[str, Any], words: str) -> None:
    params = class_params(given)
    plain = {"encode_prompts": {"last_is_empty": False, "empty": 0.0}, "evaluate": {"guidance": 1.0}}
    for section, changes in (plain | above).items():
        params[section] |= plain.get(section, {}) | changes
    with pytest.raises(ValueError, match=re.escape(words)):
        validate_params(params, "params.yaml")


def test_a_teacher_that_is_told_classes_twice_is_refused(given: Path, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(given, tmp_path / "given"))
    config = json.loads((teacher / "unet" / "config.json").read_text())
    (teacher / "unet" / "config.json").write_text(json.dumps(config | {"num_class_embeds": CLASSES}))
    with pytest.raises(ValueError, match="num_class_embeds beside a class embedding is not supported"):
        check_inputs(validate_params(class_params(teacher), "params.yaml"))


# --- The embedding and its pipeline ---


def test_an_embedding_knows_its_classes_and_none() -> None:
    embedding = ClassEmbedding(4, 3, last_is_empty=True)
    weight = embedding.embedding.weight
    assert embedding.classes == 3
    assert torch.equal(embedding(torch.tensor([2, 0]))[:, 0], weight[[2, 0]])
    two = torch.tensor([0, 2])
    assert torch.equal(embedding.empty(two)[:, 0], weight[[3, 3]])
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=re.escape(f"class_labels: [{wrong}], but classes are 0 to 2")):
            embedding(torch.tensor([wrong]))
    assert not ClassEmbedding(4, 3, last_is_empty=False).empty(two).any()


def test_a_pipeline_asks_for_classes_and_for_a_row_to_guide_by(given: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(given / "unet")
    scheduler = DDIMScheduler.from_pretrained(given / "scheduler")
    pipeline = MultiStagePipeline(unet, scheduler, None, ClassEmbedding(CLASSES, WIDTH, last_is_empty=False))
    with pytest.raises(ValueError, match=re.escape("class_labels: none, but the model draws classes 0 to 9")):
        pipeline()
    with pytest.raises(ValueError, match=re.escape("guidance_scale: 2.0, but the model knows no empty class")):
        pipeline(class_labels=[1], guidance_scale=2.0)


def test_the_size_of_the_latent_model_on_imagenet_is_known(tmp_path: Path) -> None:
    """LDM-4 has 400 M parameters by its authors, and 99.80 G MACs by Diff-Pruning's (Fang et al. 2023)."""
    save_configs(tmp_path)
    teacher = tmp_path / "ldm-imagenet-256"
    save_file({"weight": torch.zeros(1001, 512)}, teacher / "classes.safetensors")
    plan, _ = make_plan(validate_params(imagenet_params(teacher), "imagenet"))
    assert plan.teacher["params"] == 400_920_579
    assert plan.teacher["macs"] == pytest.approx(99.8e9, rel=0.01)


# --- The whole run ---


@pytest.fixture(scope="module")
def done(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    run_stages(folder, class_params(given))
    return folder


def test_the_rules_expect_the_files_that_there_are(done: Path, given: Path) -> None:
    params = validate_params(class_params(given), "params.yaml")
    assert needs_own_pipeline(params) and encoder_files(params.encode_prompts) == [str(given / "classes.safetensors")]
    for folder in ("data/prompts", "results/teacher", "results/student", "results/model"):
        assert all((done / folder / name).is_file() for name in encoder_names(params))
    assert encoder_names(params) == [*MADE]
    for folder in ("results/teacher", "results/student"):
        assert (done / folder / "multi_stage_pipeline.py").is_file()


def test_each_image_has_the_row_of_its_class(done: Path, given: Path) -> None:
    (weight,) = load_file(given / "classes.safetensors").values()
    tensors = load_file(done / "data" / "prompts" / "prompts.safetensors")
    labels = np.load(done / "data" / "prepared" / "labels.npy")
    assert torch.equal(tensors[PROMPT][tensors["rows"]][:, 0], weight[labels])
    assert torch.equal(tensors[PROMPT][EMPTY, 0], weight[-1])


@pytest.mark.parametrize("name", ["teacher", "student", "model"])
def test_diffusers_draws_by_classes(done: Path, tmp_path: Path, name: str) -> None:
    pipeline = DiffusionPipeline.from_pretrained(str(done / "results" / name), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    how: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}

    def draw(drawing: Any, labels: list[int], **others: Any) -> np.ndarray:
        generator = [torch.Generator().manual_seed(seed) for seed in range(len(labels))]
        images: np.ndarray = drawing(class_labels=labels, generator=generator, **how, **others).images
        return images

    guided = draw(pipeline, [3, 7], guidance_scale=3.0)
    assert guided.shape == (2, 16, 16, 1) and np.isfinite(guided).all()
    for other in (draw(pipeline, [3, 7]), draw(pipeline, [4, 8], guidance_scale=3.0)):
        assert np.abs(guided - other).max() > 1e-4
    pipeline.save_pretrained(tmp_path / "again")
    again = DiffusionPipeline.from_pretrained(str(tmp_path / "again"), trust_remote_code=True)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(again, [3, 7], guidance_scale=3.0), guided)


def test_the_pipeline_predicts_what_the_evaluation_does(done: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(str(done / "results" / "student"), trust_remote_code=True)
    embedding = pipeline.class_embedding
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, 7])
    given, empty = (Condition({PROMPT: states}) for states in (embedding(labels), embedding.empty(labels)))
    with torch.no_grad():
        for t in (10, 900):
            plain = predict(pipeline.unet, x, t, given)
            assert torch.equal(pipeline.predict(x, torch.tensor(t), pipeline.arguments_of(labels, 1.0), 1.0), plain)
            guided = predict_guided(pipeline.unet, x, t, given, empty, 3.0)
            assert torch.equal(pipeline.predict(x, torch.tensor(t), pipeline.arguments_of(labels, 3.0), 3.0), guided)


def test_the_card_says_how_many_classes_and_how_to_draw_them(done: Path) -> None:
    text = (done / "results" / "model" / "README.md").read_text()
    assert "conditional on 10 classes" in text
    assert "pipeline(class_labels=[0, 1, 2, 3], guidance_scale=3.0, num_inference_steps=" in text
    assert ModelCard(text).data.pipeline_tag == "unconditional-image-generation"
    metrics = json.loads((done / "results" / "metrics.json").read_text())
    assert 0 <= metrics["student"]["agreement"] <= 1 and "clip_score" not in metrics["student"]


def test_a_teacher_may_be_trained_in_pixels_on_another_process(given: Path, tmp_path: Path) -> None:
    (weight,) = load_file(given / "classes.safetensors").values()
    save_file({"weight": weight[:CLASSES].half()}, tmp_path / "half.safetensors")
    changes = {
        "diffusion": EDM,
        "sampling": {"scheduler": "edm_euler"},
        "prepare_data": {"resolution": 8},
        "encode_prompts": {"last_is_empty": False, "empty": 0.0},
        "train_autoencoder": {"source": "none"},
        "train_teacher": {"source": "train", "steps": 2, "warmup_steps": 0},
        "evaluate": {"guidance": 1.0},
    }
    params = lay_over(class_params(given, tmp_path / "half.safetensors"), changes)
    run_stages(tmp_path, params, last="train_teacher")
    pipeline = DiffusionPipeline.from_pretrained(str(tmp_path / "results" / "teacher"), trust_remote_code=True)
    images = pipeline(class_labels=[3, 7], num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 1) and np.isfinite(images).all()
