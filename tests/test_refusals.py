"""docs/refusals.md lists every refusal; those before the first job come then, with the words it says, and none is left out."""

import ast
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import EDM, FLOW, PROMPTED, ROOT
from refusals import ROWS, Scene, at_start, check_words, message_of, names, says
from safetensors.numpy import save

from stagecraft.preflight import run as preflight
from stagecraft.preflight.params import load_params, validate_params
from stagecraft.runtime import lifeline

WEIGHTS = "diffusion_pytorch_model.safetensors"

# --- Params ---

LATENT = {"train_autoencoder.source": "train", "prepare_data.resolution": 8}
EDM_PARAMS = {"diffusion": EDM, "sampling.scheduler": "edm_euler"}
GIVEN = {
    "architecture": "given",
    "assemble.decoder_widths": [1.0, 0.5],
    "retrain.init": "teacher",
    "retrain.joint_loss": "none",
}
NATIVE = {"assemble.native": True, "cluster_timesteps.intervals": 1, "search_block.channels": 1.0}
PROMPTS = {"source": "random", "path": None, "template": "{}", "names": None, "empty": 0.1, "width": 8}
CLASSES = {"source": "classes", "path": "none.safetensors", "last_is_empty": False, "empty": 0.0}
BY_HAND = {"cluster_timesteps.method": "given"}

PARAMS: dict[str, list[dict[str, Any]]] = {
    "key-unknown": [{"retrain.setps": 3}, {"retrian": {}}],
    "key-missing": [{"retrain.steps": "absent"}, {"diffusion.beta_end": "absent"}],
    "value-type": [{"retrain.steps": "ten"}, {"retrain": 3}, {"seed": True}, {"train_teacher.attention": 1}],
    "value-choice": [{"device": "gpu"}, {"assemble.tau": "much"}],
    "value-range": [{"retrain.steps": 0}, {"retrain.ema_decay": 1.0}],
    "value-length": [
        {"cluster_timesteps.image_range": [0]},
        {"cluster_timesteps.image_range": [0, 1, 2]},
        {"search_block.widths": [0.5, 0.5]},
        {"evaluate.extractor": ""},
    ],
    "path-source": [{"prepare_data.path": "x"}, {"train_teacher.source": "path"}, {"prepare_data.source": "npz"}],
    "path-characters": [{"evaluate.extractor": "a\x01"}, {"evaluate.extractor": "{a}"}],
    "process-keys": [{"diffusion.sigma_data": 0.5}, {"sampling.scheduler": "edm_euler"}],
    "process-order": [
        EDM_PARAMS | {"diffusion": EDM | {"sigma_min": 80.0}},
        {"diffusion.beta_start": 0.02},
        {"diffusion.rescale_betas_zero_snr": True},
    ],
    "steps-possible": [{"sampling.steps": 2000}, {"sampling.scheduler": "dpm_solver", "sampling.steps": 1000}],
    "widths-divide": [
        {"train_teacher.block_out_channels": [12, 32]},
        {"train_teacher.attention_head_dim": 7},
        LATENT | {"train_autoencoder.block_out_channels": [32, 60]},
    ],
    "widths-attention": [{"train_teacher.attention": [True]}],
    "latents-flip": [LATENT | {"retrain.horizontal_flip": True}],
    "prompts-need": [
        {"encode_prompts": PROMPTS},
        LATENT | {"encode_prompts": PROMPTS, "diffusion": EDM, "sampling.scheduler": "edm_euler"},
        {"evaluate.guidance": 2.0},
        {"evaluate.clip": "clip"},
        LATENT | {"encode_prompts": PROMPTS, "train_teacher.class_conditional": True},
        LATENT | {"encode_prompts": PROMPTS | {"empty": 0.0}, "evaluate.guidance": 2.0},
        LATENT | {"encode_prompts": PROMPTS | {"width": 12}},
    ],
    "classes-need": [
        {"encode_prompts": CLASSES, "evaluate.guidance": 2.0},
        {"encode_prompts": CLASSES | {"empty": 0.1}},
        {"encode_prompts": CLASSES, "evaluate.clip": "clip"},
    ],
    "side-params": [LATENT | {"prepare_data.resolution": 9}, {"prepare_data.resolution": 9}],
    "intervals-count": [
        {"cluster_timesteps.grid": 1001},
        {"cluster_timesteps.grid": 2, "cluster_timesteps.intervals": 3},
        {"cluster_timesteps.method": "threshold"},
    ],
    "intervals-boundaries": [
        BY_HAND,
        BY_HAND | {"cluster_timesteps.boundaries": [1000]},
        {"cluster_timesteps.boundaries": [300]},
    ],
    "intervals-range": [{"cluster_timesteps.image_range": [1, 0]}],
    "intervals-steps": [
        {"assemble.snap_boundaries": True, "sampling.steps": 1},
        {"assemble.snap_boundaries": True, "evaluate.student_steps": 3},
    ],
    "architecture-kind": [
        {"assemble.decoder_widths": [1.0, 1.0]},
        GIVEN | {"assemble.decoder_widths": [1.0]},
        GIVEN | {"retrain.init": "inherit"},
        GIVEN | {"retrain.joint_loss": "linear"},
    ],
    "native-form": [
        NATIVE | GIVEN | {"assemble.decoder_widths": [1.0], "retrain.init": "teacher", "retrain.joint_loss": "none"},
        NATIVE | {"cluster_timesteps.intervals": 2},
        NATIVE | {"assemble.rule": "uniform"},
        NATIVE | {"search_block.channels": 0.75},
    ],
    "interval-shares": [{"retrain.interval_probabilities": [1, 2, 3]}],
    "training-warmup": [{"retrain.warmup_steps": 99}],
    "cache-sizes": [
        {"cache_features.triples_per_interval": 20_000, "cache_features.shard_size": 1},
        {"cache_features.held_out": 0.001},
    ],
    "search-levels": [{"search_block.channels": [1.0, 0.5, 0.5]}],
    "search-scores": [
        {"assemble.score": "output", "search_block.output_candidates": 1},
        {"search_block.local_triples": 99},
    ],
    "time-latency": [
        {"assemble.time": 0.5},
        {"assemble.time": 0.5, "assemble.rule": "uniform", "measure_latency.source": "measure"},
    ],
    "extractor-features": [{"train_extractor.features": 18}],
    "samples-few": [{"evaluate.samples": 16}, {"report.images": 129}],
    "publish-names": [
        {"publish.license": "Apache 2.0"},
        {"publish.base_model": "https://huggingface.co/a/b"},
        {"publish.dataset": "a/b/c"},
    ],
}
TEXTS = {"params-file": [None, "retrain: {", "seed: 1\nseed: 2", "a: &a 1\nb: *a", "- 1", "report: {images: 3}"]}


@pytest.mark.parametrize("name", PARAMS)
def test_what_params_alone_tell_is_refused_with_them(scenes, name):
    messages = []
    for changes in PARAMS[name]:
        scene = scenes()
        scene.put(changes)
        messages.append(str(message_of(validate_params, scene.params, "params.yaml")))
    assert all(message.startswith("params.yaml: ") for message in messages)
    check_words(name, messages)


@pytest.mark.parametrize("name", TEXTS)
def test_a_params_file_is_refused_before_it_is_read(scenes, name):
    messages = []
    for text in TEXTS[name]:
        path = scenes().folder / "params.yaml"
        if text is not None:
            path.write_text(text)
        messages.append(str(message_of(load_params, path)))
    check_words(name, messages)


# --- Before the first job ---

Setup = Callable[[Scene], Any]


def teacher(name: str = "", **changes: Any) -> Setup:
    """A teacher from elsewhere with another config."""
    return lambda scene: scene.use("teacher", name, **changes)


def prompted(**changes: Any) -> Setup:
    """A teacher from elsewhere conditioned on prompts."""
    return teacher(**PROMPTED | changes)


def scheduler(**changes: Any) -> Setup:
    """A teacher from elsewhere with another scheduler."""
    return teacher("scheduler/scheduler_config.json", **changes)


def autoencoder(**changes: Any) -> Setup:
    """An autoencoder from elsewhere with another config."""
    return lambda scene: scene.use("autoencoder", **changes)


def encoder(parts: int = 1, **config: Any) -> Setup:
    """A text encoder from elsewhere, of one part or two, with this config; without one nothing is there."""

    def setup(scene: Scene) -> None:
        for part in ("", "_2")[: parts if config else 0]:
            for name in ("vocab.json", "merges.txt"):
                scene.write(f"encoder/tokenizer{part}/{name}")
            scene.write(f"encoder/text_encoder{part}/config.json", json.dumps(config))
            scene.write(f"encoder/text_encoder{part}/model.safetensors")
        given = {key: value for key, value in PROMPTS.items() if key != "width"}
        scene.put({"encode_prompts": given | {"source": "path", "path": str(scene.folder / "encoder")}})

    return setup


def classes(rows: int = 2, spoil: bool = False, **tensors: np.ndarray) -> Setup:
    """A class embedding of so many rows for images of the classes a and b, its file spoilt or with more tensors."""

    def setup(scene: Scene) -> None:
        source("a", "b")(scene)
        content = save({"weight": np.zeros((rows, 8), np.float32), **tensors})
        path = scene.write("classes.safetensors", content[: 9 if spoil else None])
        scene.put({"encode_prompts": CLASSES | {"path": str(path)}})

    return setup


def clip(**config: Any) -> Setup:
    """A CLIP model with this config and no more, for images with prompts."""

    def setup(scene: Scene) -> None:
        for given in (source("a", "b"), autoencoder(), param(encode_prompts=PROMPTS)):
            given(scene)
        scene.put({"evaluate.clip": str(scene.write("clip/config.json", json.dumps(config)).parent)})

    return setup


def both(*setups: Setup) -> Setup:
    """One setup after another."""
    return lambda scene: [setup(scene) for setup in setups]


DIGITS = "data/latency/digits.json"


def param(**changes: Any) -> Setup:
    """Params changed, `__` in place of the point."""
    return lambda scene: scene.put({key.replace("__", "."): value for key, value in changes.items()})


def spoiled(spoil: Callable[[Path], Any]) -> Setup:
    """A teacher from elsewhere with spoiled files."""
    return lambda scene: spoil(scene.use("teacher") / "unet")


def source(*folders: str, spoil: Callable[[Path], Any] = lambda folder: None, **how: Any) -> Setup:
    """A folder of images, spoiled."""
    return lambda scene: spoil(scene.images(*folders, **how))


def archive(spoil: Callable[[Path], Any] = lambda file: None, **how: Any) -> Setup:
    """An npz archive, spoiled."""
    return lambda scene: spoil(scene.archive(**how))


def index(content: Any) -> Setup:
    """Weights of a teacher in parts, as an index says."""
    return spoiled(lambda unet: (unet / f"{WEIGHTS}.index.json").write_text(json.dumps(content)))


def renamed(name: str) -> Setup:
    """Weights of a teacher under another name."""
    return spoiled(lambda unet: (unet / WEIGHTS).rename(unet / name))


def unlinked(folder: Path) -> None:
    """No images any more, but a file of another format."""
    for file in folder.iterdir():
        file.rename(file.with_suffix(".heic"))


LINES = ('{"text": "a"}', '{"file_name": "00.png", "text": "a"}', '{"file_name": "00.png", "text": 1}')
LINES += ('{"file_name": "0", "text": "\\ud800"}', '{"file_name": "0", "text": "a"}\n{"file_name": "0", "text": "b"}')
TABLES = (b"file_name,text\n0.png,\xff", b"file_name,text,text\n")
CLIP = {"architectures": ["CLIPTextModel"], "hidden_size": 8}
PIXELS = np.zeros((12, 8, 8), np.uint8)
flow = param(diffusion=dict(FLOW), sampling__scheduler="flow_euler")
FLOW_STATED = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}

START: dict[str, list[Setup]] = {
    "source-missing": [
        param(prepare_data__source="folder", prepare_data__path="no/such"),
        param(**{"prepare_data__source": "npz", "prepare_data__path": "no/such"}),
    ],
    "folder-empty": [
        source(spoil=lambda raw: [file.unlink() for file in raw.iterdir()]),
        source(spoil=unlinked),
    ],
    "folder-entries": [
        source("a", "b", spoil=lambda raw: (raw / "a" / "loop").symlink_to("..")),
        source(spoil=lambda raw: (raw / "x.png").symlink_to("nowhere")),
    ],
    "folder-splits": [
        source("train", "test", "more"),
        source("test", "TEST"),
        source("trainA", "trainB", "testA", "testB"),
        source("test"),
        source("a/train", "a/test", "b"),
        source("train", "test", spoil=lambda raw: [file.unlink() for file in (raw / "test").iterdir()]),
    ],
    "folder-classes": [
        source("", "a"),
        source("train/a", "train/b", "test"),
        source("train/a", "train/b", "test/c"),
        source("1", "01"),
        source("1", str(2**63)),
    ],
    "archive-file": [archive(lambda file: file.write_bytes(b"x")), archive(images=np.array([None], object))],
    "archive-images": [
        archive(images=PIXELS.astype(float)),
        archive(images=PIXELS[0]),
        lambda scene: np.savez(scene.archive(), pictures=PIXELS),
        lambda scene: np.savez(scene.archive(), x_train=PIXELS, x_test=PIXELS[:, :4]),
    ],
    "archive-labels": [
        archive(labels=np.zeros(3, int)),
        archive(labels=-np.ones(100, int)),
        lambda scene: np.savez(scene.archive(), x_train=PIXELS, x_test=PIXELS, y_train=np.zeros(12, int)),
        lambda scene: np.savez(
            scene.archive(), x_train=PIXELS, x_test=PIXELS, y_train=np.zeros(12, int), y_test=np.ones(12, int)
        ),
    ],
    "image-side": [
        archive(side=2),
        archive(side=(8, 16)),
        source(size=(3, 3)),
        source(size=(8, 9)),
        source(spoil=lambda raw: (raw / "00.png").write_text("x")),
    ],
    "images-few": [
        source(count=9),
        lambda scene: np.savez(scene.archive(), x_train=PIXELS, x_test=PIXELS[:0]),
    ],
    "images-texts": [
        both(source(), autoencoder(), param(encode_prompts=PROMPTS)),
        both(source("a", "b"), autoencoder(), param(encode_prompts=PROMPTS | {"names": ["one"]})),
        both(source("a", "b"), autoencoder(), param(encode_prompts=PROMPTS | {"template": "a picture"})),
        *(source(spoil=lambda raw, line=line: (raw / "metadata.jsonl").write_text(line)) for line in LINES),
        *(source(spoil=lambda raw, table=table: (raw / "metadata.csv").write_bytes(table)) for table in TABLES),
    ],
    "side-images": [
        archive(side=9),
        both(archive(side=9), param(train_autoencoder__source="train")),
        both(archive(side=10), param(train_autoencoder__source="train")),
    ],
    "classes-trained": [
        both(archive(), param(train_teacher__class_conditional=True)),
        both(archive(labels=np.full(100, 10**6)), param(train_teacher__class_conditional=True)),
    ],
    "autoencoder-folder": [
        param(train_autoencoder__source="path", train_autoencoder__path="no/such"),
        autoencoder(_class_name="AutoencoderTiny"),
        autoencoder(block_out_channels=8),
    ],
    "autoencoder-fits": [
        autoencoder(out_channels=3),
        autoencoder(in_channels=4, out_channels=4),
        autoencoder(in_channels=3, out_channels=3),
        both(autoencoder(), param(prepare_data__resolution=9)),
    ],
    "autoencoder-scales": [
        autoencoder(scaling_factor=0),
        autoencoder(shift_factor="a"),
        autoencoder(latents_mean=[0.0], latents_std=[1.0]),
        autoencoder(latents_mean=[0.0, 0.0], latents_std=[1.0, 0.0]),
    ],
    "encoder-files": [
        both(source("a", "b"), autoencoder(), encoder()),
        both(source("a", "b"), autoencoder(), teacher(), encoder(architectures=["BertModel"], hidden_size=8)),
    ],
    "encoder-classes": [
        both(source("a", "b"), param(encode_prompts=CLASSES)),
        classes(spoil=True),
        classes(bias=np.zeros(1, np.float32)),
        classes(rows=3),
        both(autoencoder(), prompted(num_class_embeds=2, cross_attention_dim=8), classes()),
    ],
    "model-groups": [teacher(norm_num_groups=5), autoencoder(norm_num_groups=3)],
    "teacher-folder": [
        param(train_teacher__source="path", train_teacher__path="no/such"),
        spoiled(lambda unet: (unet / "config.json").write_text("{")),
        spoiled(lambda unet: (unet / "config.json").write_text("[]")),
    ],
    "teacher-kind": [
        teacher(_class_name="UNet1DModel"),
        teacher(down_block_types="x"),
        teacher(down_block_types=["DownBlock2D", "SkipDownBlock2D"]),
        teacher(class_embed_type="timestep"),
        prompted(class_embed_type="timestep"),
        prompted(addition_embed_type="image"),
        prompted(cross_attention_dim=[4, 6]),
        prompted(attention_head_dim=3),
    ],
    "teacher-levels": [
        teacher(block_out_channels=[16]),
        teacher(upsample_type="none"),
        teacher(downsample_padding=2),
    ],
    "teacher-channels": [
        teacher(out_channels=3),
        teacher(in_channels=4, out_channels=4),
        teacher(in_channels=3, out_channels=3),
        both(autoencoder(), teacher(), param(prepare_data__resolution=16)),
    ],
    "teacher-side": [
        teacher(sample_size=16),
        teacher(sample_size="8"),
        teacher(sample_size=[8, 4]),
        both(teacher(sample_size=None), param(prepare_data__resolution=9)),
    ],
    "teacher-classes": [
        both(archive(), teacher(num_class_embeds=4)),
        both(archive(labels=np.full(100, 7)), teacher(num_class_embeds=4)),
        both(source("a", "b"), teacher(num_class_embeds=4)),
        both(source("1", "x"), teacher(num_class_embeds=2)),
        both(source("a9", "a10"), teacher(num_class_embeds=2)),
    ],
    "teacher-prompts": [
        prompted(),
        both(source("a", "b"), autoencoder(), teacher(), encoder(**CLIP)),
        both(source("a", "b"), autoencoder(), prompted(), encoder(**CLIP)),
        both(
            source("a", "b"),
            autoencoder(),
            prompted(addition_embed_type="text_time", cross_attention_dim=8),
            encoder(**CLIP),
        ),
        both(source("a", "b"), autoencoder(), prompted(cross_attention_dim=16), encoder(2, **CLIP)),
    ],
    "weights-missing": [
        spoiled(lambda unet: (unet / WEIGHTS).unlink()),
        renamed("diffusion_pytorch_model-00001-of-00002.safetensors"),
        renamed("model.safetensors"),
        renamed("diffusion_pytorch_model.bin"),
        index({"weight_map": {"a": "a.safetensors"}}),
    ],
    "weights-files": [
        index({}),
        index({"weight_map": {"a": "../a.safetensors"}}),
        index({"weight_map": {"a": WEIGHTS}}),
        spoiled(lambda unet: (unet / WEIGHTS).write_bytes(struct.pack("<Q", 9) + b"x")),
    ],
    "scheduler-other": [
        scheduler(_class_name="FlowMatchEulerDiscreteScheduler"),
        scheduler(use_flow_sigmas=True),
        both(
            param(diffusion=dict(EDM), sampling__scheduler="edm_euler"),
            scheduler(_class_name="EDMEulerScheduler", prediction_type="v_prediction"),
        ),
        both(flow, scheduler(**FLOW_STATED, use_dynamic_shifting=True)),
        both(flow, scheduler(**FLOW_STATED, invert_sigmas=True)),
    ],
    "scheduler-differs": [scheduler(prediction_type="sample"), scheduler(beta_end=0.012)],
    "scheduler-impossible": [
        scheduler(beta_schedule="laplace"),
        scheduler(beta_start=0.02),
        both(
            param(diffusion=dict(EDM), sampling__scheduler="edm_euler"),
            scheduler(_class_name="EDMEulerScheduler", prediction_type="epsilon", sigma_min=90.0),
        ),
        scheduler(rescale_betas_zero_snr=True),
        scheduler(timestep_spacing="even"),
        scheduler(steps_offset=None),
        scheduler(trained_betas=[0.1] * 1000),
        both(flow, scheduler(**FLOW_STATED, use_karras_sigmas=True, use_beta_sigmas=True)),
        both(flow, scheduler(**FLOW_STATED, time_shift_type="square")),
        both(flow, scheduler(**FLOW_STATED, shift_terminal=1.0)),
    ],
    "scheduler-steps": [
        both(
            scheduler(timestep_spacing="linspace"),
            param(sampling__scheduler="dpm_solver", sampling__steps=1000),
        ),
        both(flow, scheduler(**FLOW_STATED, shift_terminal=0.1), param(sampling__steps=1)),
    ],
    "search-shares": [
        both(teacher(), param(search_block__channels=[1.0])),
        both(
            teacher(block_out_channels=[32, 32]),
            param(search_block__channels=[1.0, 0.5]),
        ),
    ],
    "extractor-file": [param(evaluate__extractor="no/such.pt")],
    "clip-folder": [
        both(clip(), param(evaluate__clip="no/such")),
        clip(architectures=["CLIPTextModel"]),
        clip(architectures=["CLIPModel"]),
        both(clip(architectures=["CLIPModel"]), lambda scene: scene.write("clip/model.safetensors.index.json", "{}")),
    ],
    "latency-file": [
        param(measure_latency__source="path", measure_latency__path="no/such.json"),
        param(measure_latency__source="path", measure_latency__path=DIGITS, prepare_data__resolution=16),
        both(source(), param(measure_latency__source="path", measure_latency__path=DIGITS, prepare_data__channels=3)),
        param(measure_latency__source="path", measure_latency__path=DIGITS, train_autoencoder__source="train"),
    ],
}


@pytest.mark.parametrize("name", START)
def test_what_folders_tell_is_refused_before_the_first_job(scenes, name):
    messages = []
    for setup in START[name]:
        scene = scenes()
        setup(scene)
        validate_params(scene.params, "params.yaml")
        found = at_start(scene.params)
        assert found and any(says(words, found[0]) for words in ROWS[name].words), found
        messages += [message for message in found if any(says(words, message) for words in ROWS[name].words)]
    check_words(name, messages)


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_job(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    check_words("folder-unwritable", [str(message_of(lifeline.check_writable, tmp_path))])


def no_inception(scene: Scene) -> None:
    """Enough images for the features of Inception, and no weights of it."""
    scene.put({"evaluate.extractor": "inception-v3-compat", "evaluate.samples": 2049, "prepare_data.held_out": 0.1})
    scene.archive(count=2500)


def no_torchscript(scene: Scene) -> None:
    """A file of text as the extractor."""
    scene.put({"evaluate.extractor": __file__})
    scene.archive(count=200)


PLAN: dict[str, list[Setup]] = {
    "images-compared": [archive(count=40)],
    "extractor-weights": [no_inception],
    "extractor-kind": [no_torchscript],
}


@pytest.mark.parametrize("name", PLAN)
def test_what_an_evaluation_lacks_is_refused_when_it_is_planned(scenes, name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    messages = []
    for setup in PLAN[name]:
        scene = scenes()
        setup(scene)
        validate_params(scene.params, "params.yaml")
        assert at_start(scene.params) == []
        messages.append(str(message_of(preflight.check_counts, validate_params(scene.params, "params.yaml"))))
    check_words(name, messages)


# --- The page is whole ---


def test_every_row_of_the_page_is_provoked_at_its_moment():
    assert names("params") == [*TEXTS, *PARAMS]
    assert names("start") == [*START, "folder-unwritable"]
    assert names("plan of evaluate") == [*PLAN]


# Functions that return words of a refusal, beside those called `why_...`.
TELLERS = {"no_middle_interval", "infeasible", "without_images", "what_there_is", "describe"}
# Modules whose ValueErrors tell of the program's own mistakes, as what they check has been made, and hashed, by a stage; or those
# that travel with a student, and tell its callers.
INVARIANTS = {
    "stagecraft/networks/class_embedding.py",
    "stagecraft/networks/multi_stage_pipeline.py",
    "stagecraft/networks/unet/student.py",
    "stagecraft/networks/unet2d_condition/multi_decoder_unet_condition.py",
    "stagecraft/networks/families.py",
}
# Messages that no user sees by themselves.
UNSEEN = {
    "not found; every stage needs its command": "a rule without its stage",
    "is there more than once": "within `cannot be read (...)`",
    "holds more than the": "within `cannot be read (...)`",
    ".npy has the version": "within `cannot be read (...)`",
    "Object arrays cannot be loaded": "within `cannot be read (...)`",
    "no header of a safetensors file": "within `cannot be loaded as (...)`",
    "its header": "within `cannot be loaded as (...)`",
    "has the unknown dtype": "within `cannot be loaded as (...)`",
    "does not take": "within `cannot be loaded as (...)`",
    "are too few for a silhouette": "a reason in clusters.json, no refusal",
    "the noise levels compared lie in": "a reason in clusters.json, no refusal",
    "is no share of the images": "the types of params refuse it",
    "searched without its effect on the image": "search-scores refuses it",
    "the teacher is class-conditional, but the images have no labels": "teacher-classes and classes-trained refuse it",
    "channel(s) but the images have": "the classifier was trained on the same images, others take three channels",
}


def texts_in(node: ast.AST) -> Iterator[str]:
    """The texts in a piece of code, `…` in place of values."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts_in(child)


def messages_in(file: Path) -> Iterator[str]:
    """The messages of a module: what it raises as ValueError or OSError, yields as problems, and returns as reasons."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            if isinstance(node.exc.func, ast.Name) and node.exc.func.id in ("ValueError", "OSError"):
                yield from texts_in(node.exc)
        elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and file.name == "clashes.py":
            yield from texts_in(node.value.elts[-1])
        elif isinstance(node, ast.FunctionDef) and (node.name.startswith("why_") or node.name in TELLERS):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    yield from texts_in(inner.value)


MESSAGES = sorted(
    {
        (file.relative_to(ROOT).as_posix(), text)
        for package in ("stagecraft", "stages")
        for file in (ROOT / package).rglob("*.py")
        for text in messages_in(file)
        # Others pass on the words of another.
        if len(re.findall(r"[A-Za-z]{2,}", text)) > 1 and " " in text.strip(" …:;") and not text.startswith("…: …; ")
    }
)


def test_every_message_of_the_code_is_on_the_page():
    known = [words for row in ROWS.values() for words in row.words]
    seen = [text for module, text in MESSAGES if module not in INVARIANTS]
    assert len(seen) > 150
    missing = [text for text in seen if not any(says(words, text) for words in [*known, *UNSEEN])]
    assert missing == []
    assert [words for words in UNSEEN if not any(says(words, text) for text in seen)] == []
