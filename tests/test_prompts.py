"""Prompts: read from metadata.jsonl or made of classes, encoded once, trained on, guided by, and drawn with by diffusers."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from helpers import ROOT, run, run_stages, save_clip, text_params, tiny_prompted_unet
from huggingface_hub import ModelCard
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from transformers import CLIPTokenizer

from stagecraft.config.sections import ImageFiles
from stagecraft.config.stages import EncodePrompts, stage_model
from stagecraft.data.condition import PROMPT, Condition
from stagecraft.data.prepared import PreparedData
from stagecraft.data.prompts import EMPTY, Prompts, load_prompts
from stagecraft.data.sources import load_source
from stagecraft.data.survey import survey
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.losses import predict, predict_guided
from stagecraft.evaluation.clip import ClipModel
from stagecraft.networks.configs import check_prompts
from stagecraft.networks.pipelines import load_student, load_teacher
from stagecraft.networks.text_encoder import TextEncoder, make_encoder
from stagecraft.networks.text_parts import encoder_files
from stagecraft.preflight.params import validate_params
from stagecraft.preflight.run import check_inputs
from stages.encode_prompts import encode_prompts

SENTENCES = ["", "a handwritten seven", "a handwritten two", "a very long line of even words"]
# Of CLIP's images (Radford et al. 2021).
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
PARAMS = {"resolution": None, "resize": "crop", "channels": None, "held_out": 0.2}


def pictures(folder: Path, lines: list[dict[str, Any]], count: int = 12) -> ImageFiles:
    """A folder of pictures with these lines of metadata.jsonl, as params have it."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{number:02}.png")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ImageFiles(source="folder", path=str(folder), **PARAMS)


def lines(count: int = 12) -> list[dict[str, Any]]:
    return [{"file_name": f"{number:02}.png", "text": f"number {number}"} for number in range(count)]


# --- Where prompts come from ---


def test_texts_of_a_folder_are_in_the_order_of_its_images(tmp_path: Path) -> None:
    settings = pictures(tmp_path / "images", lines()[::-1])
    assert load_source(settings).contents.texts == [f"number {number}" for number in range(12)]
    assert survey(settings).with_texts


def test_texts_may_lie_in_each_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / split, [line | {"text": split} for line in lines()])
    settings = ImageFiles(source="folder", path=str(tmp_path), **PARAMS)
    assert load_source(settings).contents.texts == ["train"] * 12 + ["test"] * 12


def test_texts_may_be_a_table(tmp_path: Path) -> None:
    settings = pictures(tmp_path / "images", [])
    (tmp_path / "images" / "metadata.jsonl").unlink()
    table = tmp_path / "images" / "metadata.csv"
    rows = [f'{line["file_name"]},"a ""7"", {line["text"]}"\n' for line in lines()]
    table.write_text("".join(["file_name,text\n", *rows]), encoding="utf-8-sig")
    assert load_source(settings).contents.texts == [f'a "7", number {number}' for number in range(12)]
    for broken in (f"name,text\n{rows[0]}", "file_name,text\n00.png,one, two\n", f"file_name,text,text\n{rows[0]}"):
        table.write_text(broken)
        with pytest.raises(ValueError, match=r"metadata\.csv line [12]: ") as refusal:
            survey(settings)
        assert "\n" not in str(refusal.value)
    for other in ("", "file_name,label\n00.png,3\n"):
        table.write_text(other)
        assert load_source(settings).contents.texts is None
    table.write_bytes(b"file_name,text\n00.png,\xff\n")
    with pytest.raises(ValueError, match=r"metadata\.csv: no table in UTF-8"):
        survey(settings)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (lines(11), r"11\.png: no line of metadata\.jsonl gives its text; add one"),
        (
            [*lines(11), {"file_name": "11.png"}],
            r"metadata\.jsonl line 12: no file_name and text; write them as a JSON object",
        ),
        ([*lines(11), {"file_name": "11.png", "text": 3}], r"line 12: no file_name and text"),
    ],
)
def test_an_image_without_a_text_is_refused_before_the_first_job(tmp_path: Path, changed: Any, words: str) -> None:
    settings = pictures(tmp_path / "images", changed)
    with pytest.raises(ValueError, match=words):
        survey(settings)


def test_images_with_neither_texts_nor_classes_have_no_prompts(tmp_path: Path) -> None:
    pictures(tmp_path / "images", [])
    (tmp_path / "images" / "metadata.jsonl").unlink()
    images = {"source": "folder", "path": str(tmp_path / "images"), "resolution": 8, "channels": 1}
    params = validate_params(text_params(prepare_data=images, encode_prompts={"names": None}), "params.yaml")
    with pytest.raises(ValueError, match=r"encode_prompts: the images have neither texts nor classes"):
        check_inputs(params)


def test_a_name_is_needed_for_each_class() -> None:
    params = validate_params(text_params(encode_prompts={"names": ["zero", "one"]}), "params.yaml")
    with pytest.raises(ValueError, match=r"encode_prompts\.names: 2 for 10 classes; give one for each"):
        check_inputs(params)


# --- The encoder ---


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    make_encoder(folder, SENTENCES, 16, 0)
    return folder


def test_an_encoder_made_here_has_a_token_for_each_word(encoder: Path, tmp_path: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(encoder / "tokenizer")
    words = tokenizer.tokenize(" ".join(SENTENCES))
    assert words == [f"{word}</w>" for sentence in SENTENCES for word in sentence.split()]
    assert tokenizer.tokenize("Seven, 12 évents")[:4] == ["seven</w>", ",</w>", "1</w>", "2</w>"]
    assert tokenizer.model_max_length == 9 and tokenizer("").input_ids == [
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    ]
    make_encoder(tmp_path, SENTENCES, 16, 0)
    for file in encoder_files(encoder):
        assert file.read_bytes() == (tmp_path / file.relative_to(encoder)).read_bytes(), file


def test_prompts_are_encoded_as_a_pipeline_encodes_them(encoder: Path) -> None:
    states = TextEncoder(encoder, torch.device("cpu"), 8).encode(SENTENCES).tensors[PROMPT]
    assert states.shape == (4, 9, 16)
    made = TextEncoder(encoder, torch.device("cpu"), 8)
    pipeline = StableDiffusionPipeline(
        None, made.models[0], made.tokenizers[0], None, None, None, None, requires_safety_checker=False
    )
    theirs, _ = pipeline.encode_prompt(SENTENCES[1:3], "cpu", 1, False)
    torch.testing.assert_close(theirs, states[1:3], rtol=0, atol=1e-6)
    assert (states[1] - states[2]).abs().max() > 0.1


def test_a_prompt_that_is_too_long_is_cut(encoder: Path) -> None:
    text = TextEncoder(encoder, torch.device("cpu"), 8)
    long = " ".join(["words"] * 20)
    assert text.cut([*SENTENCES, long]) == [long]
    assert text.encode([long]).tensors[PROMPT].shape == (1, 9, 16)


def test_a_missing_file_is_named(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encode_prompts\.path: .*tokenizer/vocab\.json not found"):
        encoder_files(tmp_path)


@pytest.mark.parametrize("gone", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_a_tokenizer_is_one_file_or_two(encoder: Path, tmp_path: Path, gone: tuple[str, ...]) -> None:
    folder = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    whole = CLIPTokenizer.from_pretrained(encoder / "tokenizer")
    whole.save_pretrained(tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "tokenizer.json", folder / "tokenizer")
    for name in gone:
        (folder / "tokenizer" / name).unlink()
    names = {file.name for file in encoder_files(folder)}
    assert {"vocab.json", "merges.txt", "tokenizer.json"} - {*gone} < names and not names & {*gone}
    given, made = (
        TextEncoder(parts, torch.device("cpu"), 8).encode(SENTENCES).tensors[PROMPT] for parts in (folder, encoder)
    )
    assert torch.equal(given, made)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "["])
def test_an_index_of_weights_that_is_none_is_named(encoder: Path, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json.*; give another text encoder"):
        encoder_files(folder)


@pytest.mark.parametrize(
    ("changes", "width", "words"),
    [
        ({}, None, "is conditioned on prompts; set encode_prompts"),
        ({}, 5, "cross_attention_dim is 6 but the hidden states of the prompts are 5 wide"),
        ({"addition_embed_type": "text_time"}, 6, "takes the two text encoders of an SDXL"),
        ({"_class_name": "UNet2DModel"}, 6, "is not conditioned on prompts; set encode_prompts.source: none"),
    ],
)
def test_a_teacher_of_other_prompts_is_refused(changes: dict[str, Any], width: int | None, words: str) -> None:
    config = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 6} | changes
    with pytest.raises(ValueError, match=re.escape(words)):
        check_prompts(config, Path("config.json"), width)


# --- What networks are given ---


def some_prompts(empty: float = 0.0) -> Prompts:
    states = torch.arange(3, dtype=torch.float32)[:, None, None].expand(3, 2, 4).contiguous()
    return Prompts(Condition({PROMPT: states}), torch.tensor([1, 2] * 500), empty)


def test_some_prompts_are_left_empty_in_training() -> None:
    images = torch.arange(1000)
    prompts = some_prompts(0.25)
    plain = prompts.take(images).tensors[PROMPT][:, 0, 0]
    assert plain.tolist() == [1, 2] * 500
    drawn = prompts.take(images, torch.Generator().manual_seed(0)).tensors[PROMPT][:, 0, 0]
    assert 0.2 < (drawn == EMPTY).float().mean() < 0.3
    assert ((drawn == EMPTY) | (drawn == plain)).all()


def test_prompts_without_empty_ones_draw_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    some_prompts().take(torch.arange(9), generator)
    assert torch.equal(generator.get_state(), before)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny_prompted_unet(in_channels=4, out_channels=4)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_guidance_leads_away_from_the_empty_prompt(unet: UNet2DConditionModel, scale: float) -> None:
    x = torch.randn(3, 4, 8, 8)
    t = torch.tensor([10, 500, 900])
    given, empty = (Condition({PROMPT: torch.randn(3, 5, 6)}) for _ in range(2))
    without = predict(unet, x, t, empty)
    expected = without + scale * (predict(unet, x, t, given) - without)
    torch.testing.assert_close(predict_guided(unet, x, t, given, empty, scale), expected, rtol=1e-4, atol=1e-5)


# --- How far images show what prompts say ---


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"), encoder)


def test_the_clip_score_is_the_cosine_of_image_and_prompt(clip: Path) -> None:
    model = ClipModel(clip, torch.device("cpu"))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    pixels = (torch.from_numpy(images).movedim(3, 1).expand(3, 3, 8, 8) / 255 - MEAN) / STD
    tokens = model.tokenizer(SENTENCES[1:], padding="max_length", max_length=9, return_tensors="pt")
    with torch.no_grad():
        pictured = model.model.get_image_features(pixels)
        said = model.model.get_text_features(**tokens)
    pictured, said = (getattr(found, "pooler_output", found) for found in (pictured, said))
    wanted = 100 * torch.nn.functional.cosine_similarity(pictured, said).clamp(min=0).mean()
    assert model.score(images, SENTENCES[1:]) == pytest.approx(float(wanted), rel=1e-4)
    assert model.score(images, SENTENCES[:0:-1]) != pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("preprocessor_config.json", "{}", "cannot score an image"),
        ("preprocessor_config.json", "[", "cannot be loaded as CLIPImageProcessor"),
        ("model.safetensors", "x", "cannot be loaded as CLIPModel"),
    ],
)
def test_a_clip_model_that_does_not_work_is_refused_in_one_line(
    clip: Path, tmp_path: Path, file: str, content: str, words: str
) -> None:
    folder = Path(shutil.copytree(clip, tmp_path / "clip"))
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=words) as refusal:
        ClipModel(folder, torch.device("cpu"))
    assert "\n" not in str(refusal.value) and "give the folder of a CLIP model" in str(refusal.value)


def test_a_stage_finds_transformers_where_a_clip_model_is_given(clip: Path) -> None:
    program = (
        "import sys, stages.evaluate, torch; from stagecraft.data.prompts import Prompts; from pathlib import Path;"
        "from stagecraft.data.condition import Condition; from stagecraft.evaluation.agreement import *;"
        "assert sys.modules['transformers'] is None;"
        f"given = ScorerInputs(None, Prompts(Condition({{}}), torch.zeros(1)), Path(), Path({str(clip)!r}), torch.device('cpu'));"
        "assert clip_scorer(given) is not None"
    )
    hidden = "import sys; sys.argv[0] = '-m'; import stages;"  # as Python does for python -m stages.evaluate
    result = run(ROOT, sys.executable, "-c", hidden + program, "stages.evaluate")
    assert result.returncode == 0, result.stderr


# --- The whole run ---


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    folder = tmp_path_factory.mktemp("text")
    run_stages(folder, text_params(evaluate={"clip": str(clip)}))
    return folder


def test_the_figures_say_what_prompts_did(done: Path) -> None:
    metrics = json.loads((done / "results" / "metrics.json").read_text())
    assert metrics["protocol"]["guidance"] == 1.5
    for name in ("teacher", "student"):
        assert 0 <= metrics[name]["agreement"] <= 1 and 0 <= metrics[name]["clip_score"] <= 100
    assert 0.3 < metrics["held_out"]["agreement"] <= 1 and "clip_score" in metrics["held_out"]
    page = (done / "results" / "report.html").read_text()
    assert "class as in the prompt (guidance 1.5)" in page and "CLIP score (guidance 1.5)" in page


def test_diffusers_draws_by_prompts(done: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(str(done / "results" / "student"), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is StableDiffusionPipeline
    prompts = ["a handwritten seven", "a handwritten two"]

    def draw(prompts: list[str], seeds: list[int], **how: Any) -> np.ndarray:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn: np.ndarray = pipeline(
            prompts, generator=generators, num_inference_steps=4, output_type="np", **how
        ).images
        return drawn

    for scale in (1.0, 5.0):
        both = draw(prompts, [0, 1], guidance_scale=scale)
        alone = [draw([prompt], [seed], guidance_scale=scale)[0] for seed, prompt in enumerate(prompts)]
        np.testing.assert_allclose(both, np.stack(alone), atol=1e-4)
    plain = draw(prompts, [0, 1], guidance_scale=5.0)
    other = draw(prompts, [0, 1], guidance_scale=5.0, negative_prompt=["a handwritten one"] * 2)
    assert both.shape == (2, 16, 16, 1) or both.shape == (2, 16, 16, 3)
    assert np.abs(plain - other).max() > 1e-4


def test_a_pipeline_of_the_student_takes_a_lora_of_the_teacher(done: Path, tmp_path: Path) -> None:
    trained = load_teacher(done / "results" / "teacher")
    trained.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "ff.net.2"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(trained))
    pipeline = DiffusionPipeline.from_pretrained(str(done / "results" / "student"), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> np.ndarray:
        how: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np", "guidance_scale": 2.0}
        drawn: np.ndarray = pipeline(["a handwritten two"], generator=torch.Generator().manual_seed(0), **how).images
        return drawn

    plain = draw()
    pipeline.load_lora_weights(tmp_path)
    with_lora = draw()
    pipeline.set_adapters(pipeline.get_active_adapters(), 0.5)
    weaker = draw()
    pipeline.unload_lora_weights()
    assert np.abs(with_lora - plain).max() > 1e-3 and np.abs(weaker - with_lora).max() > 1e-3
    np.testing.assert_allclose(draw(), plain, atol=1e-5)


@torch.no_grad()
def test_mixed_batches_of_prompts_and_timesteps_equal_single_ones(done: Path) -> None:
    student = load_student(done / "results" / "student")
    prompts = load_prompts(done / "data" / "prompts", PreparedData.load(done / "data" / "prepared").meta["sha256"])
    assert prompts is not None and student.config["cross_attention_dim"] == prompts.sizes[1]
    x = torch.randn(6, *[student.config[key] for key in ("in_channels", "sample_size", "sample_size")])
    t = torch.tensor([0, 200, 500, 700, 900, 999])
    condition = prompts.take(torch.arange(6))
    mixed = predict(student, x, t, condition)
    single = [predict(student, x[i : i + 1], t[i : i + 1], condition.rows(slice(i, i + 1))) for i in range(6)]
    torch.testing.assert_close(mixed, torch.cat(single), rtol=1e-4, atol=1e-5)


def test_other_prompts_are_another_training_set(done: Path, tmp_path: Path) -> None:
    data, latents = done / "data" / "prepared", done / "data" / "latents"
    folder = tmp_path / "prompts"
    encode_prompts(
        stage_model(text_params(encode_prompts={"template": "a {}"}), "encode_prompts"),
        threads=1,
        data=data,
        output=folder,
    )
    hashes = [TrainingSet.load(data, latents, prompts).sha256 for prompts in (None, done / "data" / "prompts", folder)]
    assert len({*hashes}) == 3


def test_prompts_of_an_earlier_run_do_not_stay(done: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(done / "data" / "prompts", tmp_path / "prompts"))
    assert (folder / "prompts.safetensors").is_file()
    params = EncodePrompts.of({"seed": 0, "device": "cpu", "encode_prompts": {"source": "none", "path": None}})
    encode_prompts(params, threads=1, data=done / "data" / "prepared", output=folder)
    assert [file.name for file in folder.iterdir()] == ["index.json"]


def test_the_card_is_that_of_a_text_to_image_model(done: Path) -> None:
    card = ModelCard.load(done / "results" / "model" / "README.md")
    assert card.data.pipeline_tag == "text-to-image"
    assert "images = pipeline(['a handwritten eight', 'a handwritten five'], guidance_scale=1.5" in card.text
    assert (
        "`unet/multi_decoder_unet_condition.py` in this folder, which needs torch, diffusers and transformers only"
        in card.text
    )


@pytest.mark.parametrize(
    ("above", "words"),
    [
        (
            {"train_autoencoder": {"source": "none"}},
            "encode_prompts.source: random, but pipelines with prompts work in latents",
        ),
        (
            {"encode_prompts": {"source": "none"}, "evaluate": {"guidance": 3.0}},
            "evaluate.guidance: 3, but there are no prompts to guide by",
        ),
        ({"encode_prompts": {"width": 12}}, "encode_prompts.width: 12 is no multiple of 8"),
        (
            {"encode_prompts": {"empty": 0.0}},
            "encode_prompts.empty: 0, but evaluate.guidance 1.5 needs training with empty prompts",
        ),
        (
            {"train_teacher": {"class_conditional": True}},
            "already conditions the teacher; set false, or encode_prompts.source: none",
        ),
    ],
)
def test_params_that_clash_with_prompts_are_refused(above: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        validate_params(text_params(**above), "params.yaml")
