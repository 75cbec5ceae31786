"""Malformed input of every family ends in one line that names it, never in a traceback, and leaves all files as they were.

Stages run in this process through the command line that their rules use; a sample of each family runs through Snakemake.
test_params.py, test_prepare_data_errors.py, test_bad_input.py and others hold more, for the functions that they are about.
"""

import importlib
import io
import itertools
import json
import os
import pickle
import re
import shutil
import struct
import sys
import zipfile
import zlib
from glob import glob
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import clone, ddpm_params, run, settings, smoke_text, tiny_unet
from PIL import Image
from safetensors.torch import load_file, save_file

from stagecraft.config.stages import stage_params
from stagecraft.preflight.params import load_params
from stagecraft.runtime.command import run_command
from stagecraft.runtime.files import read_checked_json, sha256_file, write_checked_json

SMOKE = smoke_text(ddpm_params())
BLOCKS = [
    "down_blocks.0",
    "down_blocks.1",
    "mid_block",
    *(f"up_blocks.{i}.interval_{s}" for s in (0, 1) for i in (0, 1)),
]
FLAGS = {
    "prepare_data": "--output data/prepared",
    "encode_prompts": "--data data/prepared --output data/prompts",
    "train_autoencoder": "--data data/prepared --output results/autoencoder --log results/logs/train_autoencoder.json",
    "encode_latents": "--data data/prepared --autoencoder results/autoencoder --output data/latents",
    "train_teacher": "--data data/prepared --latents data/latents --prompts data/prompts --autoencoder results/autoencoder "
    "--output results/teacher --log results/logs/train_teacher.json",
    "train_extractor": "--data data/prepared --output results/extractor.safetensors --log results/logs/train_extractor.json",
    "cluster_timesteps": "--data data/prepared --latents data/latents --prompts data/prompts --teacher results/teacher "
    "--output results/clusters.json",
    "cache_features": "--data data/prepared --latents data/latents --prompts data/prompts --teacher results/teacher "
    "--clusters results/clusters.json --output results/features",
    "rank_channels": "--data data/prepared --latents data/latents --prompts data/prompts "
    "--teacher results/teacher --output results/importance.json",
    "search_block": "--name mid_block --teacher results/teacher --features results/features "
    "--importance results/importance.json --latency results/latency.json --start "
    "--output results/search/mid_block.json --weights results/search/mid_block.safetensors",
    "assemble": "--teacher results/teacher --clusters results/clusters.json --search results/search "
    "--latency results/latency.json --output results/architecture.json",
    "retrain": "--data data/prepared --latents data/latents --prompts data/prompts --autoencoder results/autoencoder "
    "--teacher results/teacher --architecture results/architecture.json "
    "--search results/search --output results/student --log results/logs/retrain.json",
    "evaluate": "--data data/prepared --prompts data/prompts --autoencoder results/autoencoder "
    "--teacher results/teacher --student results/student "
    "--architecture results/architecture.json --extractor results/extractor.safetensors "
    "--output results/metrics.json --samples results/samples.npz",
    "report": "--metrics results/metrics.json --samples results/samples.npz --clusters results/clusters.json "
    "--architecture results/architecture.json --search results/search --logs results/logs/*.json "
    "--output results/report.html --plots results/plots",
    "publish": "--student results/student --prompts data/prompts --metrics results/metrics.json --samples results/samples.npz "
    "--architecture results/architecture.json --teacher-card --output results/model",
}


@pytest.fixture(scope="module")
def finished_copy(finished, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("malformed") / "run"
    for name in ("data", "results"):
        shutil.copytree(finished / name, folder / name)
    (folder / "params.yaml").write_text(SMOKE)
    return folder


@pytest.fixture
def folder(finished_copy, monkeypatch):
    """A finished run to work in; what a test changes there is put back."""
    before = contents(finished_copy)
    monkeypatch.chdir(finished_copy)
    yield finished_copy
    for name in contents(finished_copy).keys() - before.keys():
        Path(name).unlink()
    for name, content in before.items():
        if not Path(name).is_file() or Path(name).read_bytes() != content:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    files = (
        Path(root) / name for part in ("data", "results") for root, _, names in os.walk(folder / part) for name in names
    )
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if file.is_file()}


def refused(monkeypatch, stage: str, named: str, **changes) -> str:
    """Run a stage that must end in one line holding `named`, and nothing else happen; `changes` go into its own section."""
    params = stage_params(load_params("params.yaml"), stage)
    if changes:
        params[stage] |= changes
    flags = [path for word in FLAGS[stage].split() for path in (sorted(glob(word)) if "*" in word else [word])]
    monkeypatch.setattr(sys, "argv", [stage, "--params", json.dumps(params), "--threads", "1", *flags])
    before = contents(Path())
    with pytest.raises(SystemExit) as end:
        run_command(getattr(importlib.import_module(f"stages.{stage}"), stage))
    message = end.value.code
    assert isinstance(message, str) and message.startswith(f"error: {stage}: "), message
    assert "\n" not in message and len(message) < 800, message
    assert named in message, message
    assert contents(Path()) == before
    return message


# --- caches: every file that a stage reads, damaged in every way ---


def truncated(content: bytes, path: Path, random) -> bytes:
    return content[: random.integers(1, len(content))]


def flipped(content: bytes, path: Path, random) -> bytes:
    """One bit flipped where it means something: in JSON not the layout, in a shard a tensor that all jobs read."""
    places = range(len(content))
    if path.suffix == ".json":
        places = [match.start() for match in re.finditer(rb"[a-z]", content)]
    if path.parent.name == "features" and path.suffix == ".safetensors":
        size = int.from_bytes(content[:8], "little")
        places = range(*(8 + size + offset for offset in json.loads(content[8 : 8 + size])["emb"]["data_offsets"]))
    place = places[random.integers(len(places))]
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def junk(content: bytes, path: Path, random) -> bytes:
    return random.bytes(200)


def empty(content: bytes, path: Path, random) -> bytes:
    return b""


def other_json(content: bytes, path: Path, random) -> bytes:
    return [b"{}", b"[]", b"null", b'{"intervals": [[0, 1000]], "boundaries": []}'][random.integers(4)]


# Every file is cut and has a bit flipped; one in three is replaced in each other way.
ALWAYS, IN_TURN = (truncated, flipped), (junk, empty, other_json)
PREPARED = [f"data/prepared/{name}" for name in ("images.npy", "labels.npy", "meta.json")]
PIPELINE = ["model_index.json", "params.json", "sha256.json", "scheduler/scheduler_config.json", "unet/config.json"]
PIPELINE += ["unet/diffusion_pytorch_model.safetensors"]
TEACHER = [f"results/teacher/{name}" for name in PIPELINE]
STUDENT = [f"results/student/{name}" for name in [*PIPELINE, "unet/multi_decoder_unet.py", "multi_stage_pipeline.py"]]
SHARDS = [f"results/features/interval_{s}-shard_{i}.safetensors" for s in (0, 1) for i in (0, 1)]
REPORTS = [f"results/search/{block}.json" for block in BLOCKS]
CLUSTERS, ARCHITECTURE = "results/clusters.json", "results/architecture.json"
LATENCY = "results/latency.json"
AUTOENCODER, LATENTS, PROMPTS, SEARCHED = (
    f"{folder}/index.json" for folder in ("results/autoencoder", "data/latents", "data/prompts", "results/search")
)
READS = {
    "encode_latents": [*PREPARED, AUTOENCODER],
    "encode_prompts": PREPARED,
    "train_teacher": [*PREPARED, LATENTS, PROMPTS, AUTOENCODER],
    "train_extractor": PREPARED,
    "cluster_timesteps": [*PREPARED, LATENTS, PROMPTS],
    "cache_features": [*PREPARED, LATENTS, PROMPTS, *TEACHER, CLUSTERS],
    "rank_channels": [*PREPARED, LATENTS, PROMPTS, *TEACHER],
    "search_block": [*TEACHER, "results/features/index.json", "results/importance.json", LATENCY, *SHARDS],
    "assemble": [*TEACHER, CLUSTERS, SEARCHED, *REPORTS, LATENCY],
    "retrain": [
        *(*PREPARED, LATENTS, PROMPTS, AUTOENCODER, *TEACHER, ARCHITECTURE),
        *(f"results/search/{block}.safetensors" for block in BLOCKS),
    ],
    "evaluate": [*PREPARED, PROMPTS, AUTOENCODER, *TEACHER, *STUDENT, ARCHITECTURE, "results/extractor.safetensors"],
    "report": [
        *("results/metrics.json", "results/samples.npz", CLUSTERS, ARCHITECTURE, SEARCHED, *REPORTS),
        *(
            f"results/logs/{stage}.json"
            for stage in ("train_autoencoder", "train_teacher", "train_extractor", "retrain")
        ),
    ],
    "publish": [*STUDENT, PROMPTS, "results/metrics.json", "results/samples.npz", ARCHITECTURE],
}
PAIRS = [(stage, path) for stage, paths in READS.items() for path in paths]
DAMAGED = [(*pair, damage) for i, pair in enumerate(PAIRS) for damage in (*ALWAYS, IN_TURN[i % len(IN_TURN)])]
# FLAGS lists the other files with a star.
ALWAYS_NAMED = [pair for pair in PAIRS if "search/" not in pair[1] and "logs/" not in pair[1]]


KEPT = ("latency", "raw", "teacher")


def test_the_damaged_files_are_all_that_a_run_leaves_but_the_page_and_the_model(finished_copy):
    unread = {name for name in contents(finished_copy) if name.startswith(("results/model/", "results/plots/"))}
    unread |= {"results/report.html", "results/record.json", *(f"data/{name}/README.md" for name in KEPT)}
    unread |= {"data/latency/digits.json"}  # of the default, not of the preset that ran
    assert contents(finished_copy).keys() - {path for _, path in PAIRS} == unread


@pytest.mark.parametrize(("stage", "path", "damage"), DAMAGED, ids=lambda value: getattr(value, "__name__", value))
def test_a_damaged_file_is_named_with_the_command_that_mends_it(folder, monkeypatch, stage, path, damage):
    random = np.random.default_rng(zlib.crc32(f"{path} {damage.__name__}".encode()))
    Path(path).write_bytes(damage(Path(path).read_bytes(), Path(path), random))
    message = refused(monkeypatch, stage, f"{path}: ")
    assert re.search(r"run \w+ again \(snakemake --forcerun [\w./]+\)$", message), message


@pytest.mark.parametrize(("stage", "path"), ALWAYS_NAMED[::6], ids=lambda value: value)
def test_a_missing_file_is_named(folder, monkeypatch, stage, path):
    Path(path).unlink()
    refused(monkeypatch, stage, Path(path).name)


def test_exchanged_shards_are_named(folder, monkeypatch):
    first, second = map(Path, SHARDS[:2])
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b), second.write_bytes(a)
    refused(monkeypatch, "search_block", SHARDS[0])


def test_exchanged_supernets_are_named(folder, monkeypatch):
    first, second = (Path(f"results/search/up_blocks.0.interval_{s}.safetensors") for s in (0, 1))
    first.write_bytes(second.read_bytes())
    refused(monkeypatch, "retrain", str(first))


def boundaries(*values):
    return lambda data: data | {"boundaries": list(values)}


def stages(*values):
    edges = [0, *values, 1000]
    return lambda data: data | {"boundaries": list(values), "intervals": [list(p) for p in itertools.pairwise(edges)]}


def wider(data):
    data["unet"]["blocks"]["down_blocks.0"][0]["spec"]["resnets.0"] = {"width": 7, "kernels": [3, 3]}
    return data


def other_teacher(data):
    data["identity"]["blocks"]["down_blocks.0"][0]["spec"]["resnets.0"]["width"] = 64
    return data


CONTRADICTIONS = [
    ("cache_features", CLUSTERS, boundaries(0)),
    ("cache_features", CLUSTERS, boundaries(1000)),
    ("cache_features", CLUSTERS, stages(700, 300)),
    ("cache_features", CLUSTERS, stages(300, 300)),
    ("cache_features", CLUSTERS, stages(300, 1200)),
    ("cache_features", CLUSTERS, lambda data: data | {"intervals": [[0, 400], [600, 1000]]}),
    ("assemble", CLUSTERS, stages(700, 300)),
    ("assemble", CLUSTERS, stages()),
    ("assemble", CLUSTERS, stages(300, 600)),
    ("assemble", REPORTS[0], lambda data: data | {"identity": {}}),
    ("retrain", ARCHITECTURE, boundaries()),
    ("retrain", ARCHITECTURE, boundaries(300, 600)),
    ("retrain", ARCHITECTURE, wider),
    ("retrain", ARCHITECTURE, other_teacher),
    ("evaluate", ARCHITECTURE, boundaries(1)),
    ("evaluate", ARCHITECTURE, wider),
    ("report", CLUSTERS, stages(1)),
    ("report", ARCHITECTURE, lambda data: data | {"clustered": [1]}),
    ("report", REPORTS[0], lambda data: data | {"weights_sha256": "0" * 64}),
]


@pytest.mark.parametrize(("stage", "path", "change"), CONTRADICTIONS)
def test_whole_files_of_different_runs_are_named(folder, monkeypatch, stage, path, change):
    write_checked_json(Path(path), change(read_checked_json(Path(path), stage)))
    refused(monkeypatch, stage, "architecture" if path == ARCHITECTURE else ".json")


@pytest.mark.parametrize("damage", [truncated, flipped, junk, empty])
def test_a_damaged_checkpoint_is_named(folder, monkeypatch, damage):
    path = Path("results/checkpoints/retrain.pt")
    path.parent.mkdir(exist_ok=True)
    torch.save({"fingerprint": "", "model": {"weight": torch.zeros(100)}}, path)
    with path.open("ab") as file:
        file.write(bytes.fromhex(sha256_file(path)))
    path.write_bytes(damage(path.read_bytes(), path, np.random.default_rng(0)))
    refused(monkeypatch, "retrain", f"{path}: damaged checkpoint")


# --- no code from data ---


class Malice:
    """Creates a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_checkpoint_cannot_run_code(folder, monkeypatch):
    path = Path("results/checkpoints/retrain.pt")
    path.parent.mkdir(exist_ok=True)
    torch.save({"fingerprint": "", "model": Malice()}, path)
    with path.open("ab") as file:
        file.write(bytes.fromhex(sha256_file(path)))
    refused(monkeypatch, "retrain", f"{path}: unreadable checkpoint (UnpicklingError)")
    assert not Path("pwned").exists()


# --- a teacher from elsewhere ---


@pytest.fixture(scope="module")
def whole_teacher(tmp_path_factory, diffusion_settings) -> Path:
    from stagecraft.diffusion.vp import VPProcess

    path = tmp_path_factory.mktemp("given") / "teacher"
    tiny_unet().save_pretrained(path / "unet")
    VPProcess(diffusion_settings).scheduler().save_pretrained(path / "scheduler")
    return path


@pytest.fixture
def teacher(whole_teacher, folder, tmp_path) -> Path:
    return shutil.copytree(whole_teacher, tmp_path / "teacher")


WEIGHTS, CONFIG, SCHEDULER = (
    "unet/diffusion_pytorch_model.safetensors",
    "unet/config.json",
    "scheduler/scheduler_config.json",
)


def edit_json(name, **changes):
    def damage(teacher: Path):
        data = json.loads((teacher / name).read_text()) | changes
        (teacher / name).write_text(json.dumps({key: value for key, value in data.items() if value != "absent"}))

    return damage


def edit_weights(change):
    def damage(teacher: Path):
        weights = load_file(teacher / WEIGHTS)
        change(weights)
        save_file(weights, teacher / WEIGHTS, metadata={"format": "pt"})

    return damage


def write(name, content):
    return lambda teacher: (teacher / name).write_bytes(content)


def cut(name, keep):
    return lambda teacher: (teacher / name).write_bytes((teacher / name).read_bytes()[:keep])


def only_pickle(teacher: Path):
    (teacher / WEIGHTS).unlink()
    torch.save({"conv_in.weight": Malice()}, teacher / "unet" / "diffusion_pytorch_model.bin")


def header(**changes) -> bytes:
    text = json.dumps({"conv_in.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(16)


GIVEN = [
    ("no-config", lambda teacher: (teacher / CONFIG).unlink(), CONFIG),
    ("no-weights", lambda teacher: (teacher / WEIGHTS).unlink(), WEIGHTS),
    ("pickle-instead", only_pickle, WEIGHTS),
    ("pickle-renamed", write(WEIGHTS, pickle.dumps(Malice())), "unet"),
    ("weights-empty", write(WEIGHTS, b""), "unet"),
    ("weights-junk", write(WEIGHTS, np.random.default_rng(0).bytes(500)), "unet"),
    *((f"weights-cut-{keep}", cut(WEIGHTS, keep), "unet") for keep in (7, 8, 100, 5000, 50_000, -1)),
    ("weights-longer", lambda teacher: (teacher / WEIGHTS).open("ab").write(b"more"), "unet"),
    ("header-of-4-EiB", write(WEIGHTS, struct.pack("<Q", 2**62) + b"{}"), "unet"),
    ("header-no-json", write(WEIGHTS, struct.pack("<Q", 4) + b"{'a'"), "unet"),
    ("offsets-outside", write(WEIGHTS, header(data_offsets=[0, 1600])), "unet"),
    ("offsets-backwards", write(WEIGHTS, header(data_offsets=[16, 0])), "unet"),
    ("shape-of-more", write(WEIGHTS, header(shape=[10**6])), "unet"),
    ("shape-negative", write(WEIGHTS, header(shape=[-4])), "unet"),
    ("dtype-unknown", write(WEIGHTS, header(dtype="F31")), "unet"),
    ("other-weights", write(WEIGHTS, header()), "unet"),
    (
        "shape-mismatch",
        edit_weights(lambda w: w.update({"conv_in.weight": torch.zeros(16, 3, 3, 3)})),
        "conv_in.weight",
    ),
    ("tensor-missing", edit_weights(lambda w: w.pop("conv_out.bias")), "conv_out.bias"),
    ("tensor-unknown", edit_weights(lambda w: w.update(extra=torch.zeros(1))), "extra"),
    ("nan", edit_weights(lambda w: w["conv_in.weight"].view(-1)[3:4].fill_(float("nan"))), "conv_in.weight holds"),
    ("infinity", edit_weights(lambda w: w["conv_out.bias"].fill_(float("inf"))), "conv_out.bias holds"),
    (
        "sharded",
        write(f"{WEIGHTS}.index.json", b'{"weight_map": {"conv_in.weight": "../../../x"}}'),
        f"{WEIGHTS}.index.json",
    ),
    ("config-no-json", write(CONFIG, b"{"), CONFIG),
    ("config-list", write(CONFIG, b"[]"), CONFIG),
    ("config-empty", write(CONFIG, b""), CONFIG),
    ("config-utf16", write(CONFIG, "{}".encode("utf-16")), CONFIG),
    ("config-deep", write(CONFIG, b"[" * 100_000), CONFIG),
    ("config-without-keys", write(CONFIG, b"{}"), CONFIG),
    ("class-unknown", edit_json(CONFIG, _class_name="os.system"), "_class_name is 'os.system'"),
    ("class-of-text-models", edit_json(CONFIG, _class_name="UNet2DConditionModel"), "AttnDownBlock2D"),
    ("class-a-list", edit_json(CONFIG, _class_name=["UNet2DModel"]), "_class_name"),
    ("blocks-unknown", edit_json(CONFIG, down_block_types=["DownBlock2D", "Evil"]), "block type Evil"),
    (
        "blocks-unsupported",
        edit_json(CONFIG, up_block_types=["SkipUpBlock2D", "UpBlock2D"]),
        "block type SkipUpBlock2D",
    ),
    ("blocks-a-text", edit_json(CONFIG, down_block_types="DownBlock2D"), "down_block_types"),
    ("blocks-numbers", edit_json(CONFIG, up_block_types=[1, 2]), "up_block_types"),
    ("blocks-null", edit_json(CONFIG, up_block_types=None), "up_block_types"),
    ("blocks-fewer", edit_json(CONFIG, up_block_types=["UpBlock2D"]), "unet"),
    ("channels-fewer", edit_json(CONFIG, block_out_channels=[16]), "unet"),
    ("channels-a-text", edit_json(CONFIG, block_out_channels="16"), "unet"),
    ("groups-zero", edit_json(CONFIG, norm_num_groups=0), "unet"),
    ("groups-odd", edit_json(CONFIG, norm_num_groups=5), "unet"),
    ("layers-more", edit_json(CONFIG, layers_per_block=2), "unet"),
    ("size-of-text", edit_json(CONFIG, sample_size="8"), "sample_size"),
    ("size-pair", edit_json(CONFIG, sample_size=[8, 16]), "sample_size"),
    ("class-conditional", edit_json(CONFIG, num_class_embeds=10), "class_embedding.weight"),
    ("class-embedding", edit_json(CONFIG, class_embed_type="timestep"), "class_embed_type"),
    ("scheduler-no-json", write(SCHEDULER, b"not json"), SCHEDULER),
    ("scheduler-list", write(SCHEDULER, b"[]"), SCHEDULER),
    ("scheduler-of-flows", edit_json(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"), SCHEDULER),
    ("scheduler-unknown", edit_json(SCHEDULER, _class_name="Evil"), SCHEDULER),
    ("scheduler-steps", edit_json(SCHEDULER, num_train_timesteps=4000), "num_train_timesteps is 4000"),
    ("scheduler-steps-text", edit_json(SCHEDULER, num_train_timesteps="1000"), "num_train_timesteps is '1000'"),
    ("scheduler-betas", edit_json(SCHEDULER, trained_betas=[0.1, 0.2]), "trained_betas"),
    ("scheduler-zero-snr", edit_json(SCHEDULER, rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
    ("scheduler-other-target", edit_json(SCHEDULER, prediction_type="sample"), "prediction_type is 'sample'"),
    ("scheduler-other-end", edit_json(SCHEDULER, beta_end=0.012), "beta_end is 0.012"),
]


@pytest.mark.parametrize(("damage", "named"), [case[1:] for case in GIVEN], ids=[case[0] for case in GIVEN])
def test_a_malformed_teacher_is_named(teacher, monkeypatch, damage, named):
    damage(teacher)
    message = refused(monkeypatch, "train_teacher", named, source="path", path=str(teacher))
    assert str(teacher) in message and not Path("pwned").exists()


def test_keys_that_a_scheduler_leaves_out_are_those_of_diffusers(teacher, monkeypatch):
    edit_json(SCHEDULER, prediction_type="absent", beta_end="absent")(teacher)
    params = yaml.safe_load(SMOKE)
    params["diffusion"]["prediction_type"] = "v_prediction"
    monkeypatch.setattr(sys.modules[__name__], "load_params", lambda path: params)
    refused(monkeypatch, "train_teacher", "prediction_type is 'epsilon'", source="path", path=str(teacher))


# --- images ---


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, color, pixels, extra=b"") -> bytes:
    size = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = chunk(b"IHDR", size) + extra + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def encoded(kind: str, size=(8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind)
    return file.getvalue()


@pytest.fixture
def images(folder, tmp_path) -> Path:
    for i in range(12):
        path = tmp_path / "images" / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), (20 * i, 0, 255), dtype=np.uint8)).save(path)
    return tmp_path / "images"


BAD_FILES = {
    "bomb.png": png(60_000, 60_000, 8, 2, b""),
    "no-pixels.png": png(0, 0, 8, 2, b""),
    "few-pixels.png": png(8, 8, 8, 2, bytes(10)),
    "colour-type-7.png": png(8, 8, 8, 7, bytes(300)),
    "depth-3.png": png(8, 8, 3, 0, bytes(300)),
    "text-bomb.png": png(8, 8, 8, 2, bytes(200), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000)))),
    "profile-bomb.png": png(8, 8, 8, 2, bytes(200), chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(5_000_000)))),
    "wrong-crc.png": encoded("PNG")[:20] + b"\xff" + encoded("PNG")[21:],
    "signature-only.png": b"\x89PNG\r\n\x1a\n",
    "start-only.jpg": b"\xff\xd8\xff",
    "cut.jpg": encoded("JPEG", (64, 64))[:400],
    "cut.webp": encoded("WEBP", (64, 64))[:60],
    "riff-only.webp": b"RIFF\x10\0\0\0WEBP",
    "gif.jpg": encoded("GIF"),
    "tiff.png": encoded("TIFF"),
    "bmp.webp": encoded("BMP"),
    "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "page.jpg": b"<html>404</html>",
    "pickle.png": pickle.dumps(Malice()),
    "one-pixel.png": encoded("PNG", (1, 1)),
    "one-row.png": encoded("PNG", (300, 1)),
    "other-size.png": encoded("PNG", (9, 9)),
    "a name\nof two lines; $(touch pwned).png": b"x",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_malformed_image_is_named(images, monkeypatch, name):
    (images / name).write_bytes(BAD_FILES[name])
    refused(monkeypatch, "prepare_data", " ".join(name.split()), source="folder", path=str(images))
    assert not Path("pwned").exists()


def class_folders_with_a_loop(images: Path):
    for i, path in enumerate(sorted(images.iterdir())):
        (images / "ab"[i % 2]).mkdir(exist_ok=True)
        path.rename(images / "ab"[i % 2] / path.name)
    (images / "b" / "loop").symlink_to("..")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda images: os.mkfifo(images / "pipe.png"), "pipe.png"),
        (lambda images: (images / "link.png").symlink_to("nowhere"), "link.png"),
        (lambda images: (images / "self.png").symlink_to("self.png"), "self.png"),
        (class_folders_with_a_loop, "b/loop"),
        (lambda images: (images / "mixed").mkdir() or shutil.copy(images / "00.png", images / "mixed"), "top level"),
        (lambda images: [path.unlink() for path in images.iterdir()], "holds no images"),
        (lambda images: [path.unlink() for path in sorted(images.iterdir())[9:]], "only 9 images"),
        (shutil.rmtree, "there is no such folder"),
    ],
)
def test_a_malformed_folder_is_named(images, monkeypatch, spoil, named):
    spoil(images)
    refused(monkeypatch, "prepare_data", named, source="folder", path=str(images))


# --- npz ---


PIXELS = bytes(12 * 64)


def npy(shape=(12, 8, 8), data=PIXELS, descr="|u1", text=None) -> bytes:
    head = (text or repr({"descr": descr, "fortran_order": False, "shape": shape})).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head) + 1) + head + b"\n" + data


def archive(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            target.writestr(info, content)
    return file.getvalue()


def wrong_crc() -> bytes:
    content = bytearray(archive(("images.npy", npy())))
    content[400] ^= 1
    return bytes(content)


ARCHIVES = {
    "empty": b"",
    "no-zip": b"no archive",
    "empty-zip": archive(),
    "only-the-end": archive(("images.npy", npy()))[-22:],
    "cut": archive(("images.npy", npy()))[:-30],
    "wrong-crc": wrong_crc(),
    "missing-key": archive(("pixels.npy", npy())),
    "member-without-suffix": archive(("images", npy())),
    "member-empty": archive(("images.npy", b"")),
    "member-no-npy": archive(("images.npy", b"hello")),
    "member-a-pickle": archive(("images.npy", pickle.dumps(Malice()))),
    "member-twice": None,
    "outside": archive(("../images.npy", npy())),
    "absolute": archive(("/images.npy", npy())),
    "outside-and-cut": archive(("../x.npy", npy()), ("images.npy", npy()[:-1])),
    "claims-more": archive(("images.npy", npy((13, 8, 8)))),
    "claims-fewer": archive(("images.npy", npy((11, 8, 8)))),
    "claims-terabytes": archive(("images.npy", npy((10**13, 8, 8)))),
    "claims-negative": archive(("images.npy", npy((-12, 8, 8)))),
    "claims-none": archive(("images.npy", npy((0, 8, 8), b""))),
    "header-is-code": archive(("images.npy", npy(text="__import__('os').mkdir('pwned')"))),
    "header-long": archive(("images.npy", npy(text="{'shape': (" + "1, " * 20_000 + ")}"))),
    "header-cut": archive(("images.npy", npy()[:20])),
    "objects": archive(("images.npy", npy(descr="|O", data=pickle.dumps([Malice()])))),
    "records": archive(("images.npy", npy(descr=[("red", "|u1")]))),
    "floats": archive(("images.npy", npy(descr="<f4", shape=(3, 8, 8)))),
    "signed": archive(("images.npy", npy(descr="|i1"))),
    "texts": archive(("images.npy", npy(descr="|S1"))),
    "one-number": archive(("images.npy", npy((), b"1"))),
    "vectors": archive(("images.npy", npy((12, 64)))),
    "channels-first": archive(("images.npy", npy((4, 3, 8, 8)))),
    "two-channels": archive(("images.npy", npy((6, 8, 8, 2)))),
    "no-side": archive(("images.npy", npy((12, 0, 0), b""))),
    "not-square": archive(("images.npy", npy((12, 4, 16)))),
    "too-few": archive(("images.npy", npy((3, 16, 16)))),
    "labels-too-few": archive(("images.npy", npy()), ("labels.npy", npy((11,), bytes(11)))),
    "labels-floats": archive(("images.npy", npy()), ("labels.npy", npy((12,), bytes(96), "<f8"))),
    "labels-objects": archive(("images.npy", npy()), ("labels.npy", npy((12,), pickle.dumps([Malice()]), "|O"))),
    "labels-no-npy": archive(("images.npy", npy()), ("labels.npy", b"cat")),
}


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_malformed_npz_is_named(folder, monkeypatch, tmp_path, name):
    path = tmp_path / "in" / "images.npz"
    path.parent.mkdir()
    path.write_bytes(ARCHIVES[name] or archive(("images.npy", npy()), ("images.npy", npy())))
    around = sorted(tmp_path.rglob("*"))
    named = "only " if name in ("claims-none", "too-few") else str(path)
    refused(monkeypatch, "prepare_data", named, source="npz", path=str(path))
    assert sorted(tmp_path.rglob("*")) == around and not Path("pwned").exists()


def test_members_outside_the_archive_are_not_unpacked(folder, monkeypatch, tmp_path):
    path = tmp_path / "in" / "images.npz"
    path.parent.mkdir()
    path.write_bytes(archive(("../x.npy", npy()), (f"{tmp_path}/y.npy", npy()), ("images.npy", npy())))
    from stagecraft.data.sources import npz

    assert npz.load(settings(source="npz", path=path)).images.shape == (12, 8, 8, 1)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["images.npz", "in"]


# --- params ---


def put(key: str, value: str) -> str:
    """The smoke preset with another text for the value of `section.key`."""
    section, _, name = key.rpartition(".")
    pattern = rf"(^{section}:\n(?:  .*\n)*?  {name}:) .*$" if section else rf"(^{name}:) .*$"
    text, count = re.subn(pattern, lambda match: f"{match[1]} {value}", SMOKE, count=1, flags=re.MULTILINE)
    assert count == 1, key
    return text


INTEGERS = {
    "train_teacher": (
        "layers_per_block",
        "attention_head_dim",
        "norm_num_groups",
        "steps",
        "batch_size",
        "checkpoint_every",
    ),
    "train_extractor": ("features", "width"),
    "cluster_timesteps": ("intervals", "grid", "draws"),
    "cache_features": ("triples_per_interval", "shard_size"),
    "search_block": ("candidates",),
    "retrain": ("warmup_steps",),
    "evaluate": ("samples", "kid_subset_size", "neighbours", "speed_batch", "speed_repeats"),
    "report": ("images",),
    "sampling": ("steps",),
}
HUGE = [f"{section}.{name}" for section, names in INTEGERS.items() for name in names]
BAD_PARAMS: dict[str, tuple[str | bytes, str]] = {
    **{f"huge {key}": (put(key, "1" + "0" * 30), key) for key in ["seed", *HUGE]},
    "5000 digits": (put("seed", "9" * 5000), "not valid YAML"),
    "minus zero": (put("retrain.steps", "-0"), "retrain.steps"),
    "infinity": (put("retrain.learning_rate", ".inf"), "retrain.learning_rate"),
    "minus infinity": (put("assemble.macs", "-.inf"), "assemble.macs"),
    "too large a power": (put("cluster_timesteps.eta", "1.0e+999"), "cluster_timesteps.eta"),
    "nan among numbers": (put("cluster_timesteps.image_range", "[.nan, 1]"), "cluster_timesteps.image_range[0]"),
    "date": (put("seed", "2020-01-01"), "seed"),
    "no such date": (put("seed", "2020-99-99"), "month"),
    "bytes": (put("seed", "!!binary aGVsbG8="), "seed"),
    "no number": (put("seed", "!!int x"), "not valid YAML"),
    "set": (put("search_block.kernels", "!!set {1, 3}"), "search_block.kernels"),
    "function": (put("seed", "!!python/name:os.system"), "line 3, column 7"),
    "call": (put("seed", "!!python/object/apply:os.mkdir [pwned]"), "line 3, column 7"),
    "object": (put("seed", "!!python/object/new:os.mkdir [pwned]"), "line 3, column 7"),
    "module": (put("seed", "!!python/module:os"), "line 3, column 7"),
    "own tag": (put("seed", "!seed 1"), "line 3, column 7"),
    "yte": ("__use_yte__: true\n" + put("seed", "?__import__('os').mkdir('pwned')"), "__use_yte__"),
    "key twice": (SMOKE.replace("  images: 16", "  images: 16\n  images: 17"), "images is given twice"),
    "section twice": (SMOKE + "\nreport:\n  images: 3\n", "report is given twice"),
    "alias": (SMOKE.replace("steps: 60", "steps: &s 60").replace("steps: 50", "steps: *s"), "*s is an alias"),
    "alias of itself": (put("search_block.kernels", "&a [*a]"), "*a is an alias"),
    "anchor bomb": ("a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a, *a, *a]\n" for i in range(30)), "*a is an alias"),
    "undefined alias": (put("seed", "*x"), "*x is an alias"),
    "deep lists": ("[" * 20_000, "not valid YAML"),
    "deep maps": ("seed: " + "{a: " * 5000, "not valid YAML"),
    "two documents": (SMOKE + "---\nseed: 1\n", "another document"),
    "tab": (SMOKE.replace("  images: 16", "\timages: 16"), "\\t"),
    "nul": (SMOKE + "\0", "not valid YAML"),
    "number as key": (SMOKE + "1: 2\n", "unknown key"),
    "null as key": (SMOKE + "~: 2\n", "unknown key"),
    "list as key": (SMOKE + "[1, 2]: 2\n", "unhashable"),
    "utf-16": (SMOKE.encode("utf-16"), "not valid YAML"),
    "latin-1": (SMOKE.encode() + b"# \xe9\n", "not valid YAML"),
    "archive": (archive(("params.yaml", SMOKE.encode())), "not valid YAML"),
    "junk": (np.random.default_rng(0).bytes(500), "not valid YAML"),
    "cut in a list": (SMOKE[: SMOKE.index("[16, 32]") + 4], "not valid YAML"),
    "cut in a section": (SMOKE[: SMOKE.index("  tau_rel")], "retrain: missing"),
    "path of two lines": (put("prepare_data.path", '"a\\nb"'), "prepare_data.path"),
    "path with nul": (put("evaluate.extractor", '"a\\0b"'), "evaluate.extractor"),
    "path with half a letter": (put("evaluate.extractor", '"\\ud800"'), "evaluate.extractor"),
    "path with an escape": (put("evaluate.extractor", '"\\e[2J"'), "evaluate.extractor"),
    "wildcard in an extractor": (put("evaluate.extractor", '"{wildcards}"'), "evaluate.extractor"),
    "too many shards": (
        put("cache_features.triples_per_interval", "900000000").replace("shard_size: 64", "shard_size: 1"),
        "cache_features.shard_size",
    ),
}
SNAKEMAKE_SAMPLE = ("key twice", "anchor bomb", "yte", "deep lists", "huge cache_features.triples_per_interval")


@pytest.mark.parametrize("case", BAD_PARAMS)
def test_malformed_params_are_named(tmp_path, monkeypatch, case):
    content, named = BAD_PARAMS[case]
    path = tmp_path / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        load_params(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and named in message and "\n" not in message and len(message) < 600, message
    assert not Path("pwned").exists()


def test_params_with_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbf" + SMOKE.encode())
    assert load_params(tmp_path / "params.yaml")["seed"] == 0


# --- through Snakemake ---


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    return clone(tmp_path_factory.mktemp("bare") / "clone")


@pytest.fixture
def real(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "real", symlinks=True)


def snakemake_refuses(folder: Path, named: str, *arguments: str) -> str:
    """The one line that a run ends in; no traceback."""
    result = run(folder, "snakemake", *arguments)
    output = result.stdout + result.stderr
    assert result.returncode != 0 and "Traceback" not in output, output[-3000:]
    errors = {line.partition(" (logs/")[0] for line in output.splitlines() if line.startswith("error: ")}
    assert len(errors) == 1 and named in min(errors), output[-3000:]
    assert not list(folder.rglob("pwned")) and not list(folder.rglob("*.tmp"))
    return min(errors)


@pytest.mark.parametrize("case", SNAKEMAKE_SAMPLE)
def test_malformed_params_end_a_real_run_before_any_job(bare, case):
    content, named = BAD_PARAMS[case]
    (bare / "params.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    snakemake_refuses(bare, named, "--dry-run")
    assert not (bare / "logs").exists()


EVIL = "-rf $(mkdir pwned)`mkdir pwned`; mkdir pwned;'\"\\ &| * ~ %s #ünï"


def test_shell_characters_in_paths_are_only_names(real):
    params = yaml.safe_load(SMOKE)
    evil = f"{EVIL} {{wildcards}} {{0}} }}{{"
    (real / evil).mkdir()
    for i in range(90):
        Image.fromarray(np.full((8, 8), 2 * i, dtype=np.uint8)).save(
            real / evil / f"{i:02} {EVIL}.png".replace("/", "")
        )
    params["prepare_data"] |= {"source": "folder", "path": evil}
    (real / "params.yaml").write_text(yaml.safe_dump(params))
    result = run(real, "snakemake", "prepare_data")
    assert result.returncode == 0, result.stderr
    assert json.loads((real / "data/prepared/meta.json").read_text())["params"]["prepare_data"]["path"] == evil
    tiny_unet().save_pretrained(real / EVIL / "unet")
    params["train_teacher"] |= {"source": "path", "path": EVIL}
    (real / "params.yaml").write_text(yaml.safe_dump(params))
    result = run(real, "snakemake", "train_teacher")
    assert result.returncode == 0, result.stderr
    assert json.loads((real / "results/teacher/params.json").read_text())["train_teacher"]["path"] == EVIL
    assert not list(real.rglob("pwned"))


def test_shell_characters_in_the_name_of_an_extractor_are_only_a_name(real):
    (real / EVIL).write_text("no TorchScript")
    params = yaml.safe_load(SMOKE)
    params["evaluate"]["extractor"] = EVIL
    (real / "params.yaml").write_text(yaml.safe_dump(params))
    snakemake_refuses(real, f"evaluate.extractor: {EVIL} is no TorchScript file", "evaluate")


def test_a_malformed_teacher_ends_a_real_run(real, whole_teacher):
    shutil.copytree(whole_teacher, real / "given")
    edit_weights(lambda weights: weights["conv_in.bias"].fill_(float("nan")))(real / "given")
    (real / "params.yaml").write_text(SMOKE.replace("source: train\n  path: null", "source: path\n  path: given"))
    snakemake_refuses(real, "conv_in.bias holds values that are not finite", "train_teacher")


def damage_unseen(path: Path) -> None:
    """Flip a byte as a failing disk does: the time of the file stays."""
    times = path.stat()
    path.write_bytes(flipped(path.read_bytes(), path, np.random.default_rng(0)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_the_command_in_the_message_mends_the_run(real):
    path, flags = "results/search/mid_block.json", ("--until", "assemble")
    damage_unseen(real / path)
    damaged = (real / path).read_bytes()
    message = snakemake_refuses(real, path, "--forcerun", "assemble")
    command = re.search(r"\((snakemake --forcerun \S+)\)$", message)[1]
    result = run(real, *command.split(), *flags)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (real / path).read_bytes() != damaged
    planned = run(real, "snakemake", "--dry-run", *flags)
    assert "Nothing to be done" in planned.stdout + planned.stderr
