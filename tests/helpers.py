"""Params of prepare_data, a small UNet, and clones of the repository to run commands in."""

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


PREPARE_DATA = {
    "source": "folder",
    "path": None,
    "resolution": None,
    "resize": "crop",
    "channels": None,
    "held_out": 0.2,
}


MODEL_FILES = ("config.json", "diffusion_pytorch_model.safetensors")
PIPELINE_FILES = (*(f"vae/{name}" for name in MODEL_FILES), "multi_stage_pipeline.py")
# What a run in latents makes besides, by stage.
FILES_IN_LATENTS = {
    "train_autoencoder": [f"results/autoencoder/{name}" for name in MODEL_FILES],
    "encode_latents": ["data/latents/latents.npy"],
    "train_teacher": [f"results/teacher/{name}" for name in PIPELINE_FILES],
    "retrain": [f"results/student/{name}" for name in PIPELINE_FILES],
    "publish": [f"results/model/{name}" for name in PIPELINE_FILES],
}


# A `diffusion` section of the process edm.
EDM = {
    "process": "edm",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "rho": 7.0,
    "p_mean": -1.2,
    "p_std": 1.2,
}
# The same of the process flow.
FLOW = {"process": "flow", "num_train_timesteps": 1000, "shift": 3.0}


# What makes the config of a UNet2DModel that of a UNet2DConditionModel.
PROMPTED = {
    "_class_name": "UNet2DConditionModel",
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 6,
}


def prepare_data_keys(**changes):
    """The keys of the `prepare_data` section for a folder of images, with changes."""
    return PREPARE_DATA | {key: str(value) if isinstance(value, Path) else value for key, value in changes.items()}


def settings(**changes):
    """The `prepare_data` section for a folder of images, with changes."""
    from stagecraft.config.sections import CHOICES

    given = prepare_data_keys(**changes)
    return CHOICES["prepare_data"].members[given["source"]](**given)


def section_with(model, **keys):
    """A section with the keys that a test needs alone."""
    return model.model_construct(**keys)


# A small feature cache, and little search in it.
FEW_FEATURES = {"triples_per_interval": 16, "held_out": 0.5, "batch_size": 8, "shard_size": 8, "max_gib": 1.0}
FEW_FEATURES |= {"precision": "fp32"}
LITTLE_SEARCH = {
    "channels": 1.0,
    "steps": 2,
    "refine_steps": 2,
    "batch_size": 8,
    "learning_rate": 1e-4,
    "warmup_steps": 0,
}
LITTLE_SEARCH |= {"candidates": 9, "ranges": "own", "local_triples": 4, "output_candidates": 4, "output_triples": 2}
LITTLE_SEARCH |= {"checkpoint_every": 100}


# An AutoencoderKL or VQModel of grey images that halves their sides once.
VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "latent_channels": 2,
    "norm_num_groups": 4,
}


def tiny_unet(**changes):
    """A UNet2DModel of two levels with attention in the second, random weights that are not at their initial zeros."""
    from diffusers import UNet2DModel

    settings = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    return of_random_weights(UNet2DModel, settings | changes)


def tiny_prompted_unet(**changes):
    """A UNet2DConditionModel of two levels with cross-attention in the first, likewise."""
    from diffusers import UNet2DConditionModel

    settings = {
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": 6,
    }
    return of_random_weights(UNet2DConditionModel, settings | changes)


def save_clip(folder: Path, encoder: Path, **text: Any) -> Path:
    """Write a small CLIP model with random weights, of images of 8 x 8 pixels; `text` changes its text encoder's config."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    own = CLIPTextModel.from_pretrained(encoder / "text_encoder").config.to_dict()
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = CLIPConfig(
        text_config=own | text, vision_config={"image_size": 8, "patch_size": 4, **layers}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(encoder / "tokenizer").save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


def of_random_weights(kind, settings):
    """A network of a class for grey images of 8 x 8 pixels."""
    import torch

    common = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4}
    torch.manual_seed(0)
    unet = kind(**common | settings).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet


def activated() -> dict[str, str]:
    """The variables of a shell with the environment active, without this process's thread settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_"))}
    return kept | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would."""
    return subprocess.run(command, cwd=folder, env=activated(), capture_output=True, text=True, check=False)


def preset_params(name: str) -> dict[str, Any]:
    """The whole params of a preset; of `digits`, the default, those of params.yaml."""
    from stagecraft.preflight.params import load_over

    return load_over(*[ROOT / "presets" / f"{name}.yaml"] * (name != "digits"))


def ddpm_params() -> dict[str, Any]:
    """The preset smoke with the noise process that diffusers' DDPMScheduler has by default, for teachers saved with it."""
    params = preset_params("smoke")
    params["diffusion"] |= {"beta_schedule": "linear", "prediction_type": "epsilon"}
    params["sampling"]["scheduler"] = "ddim"
    return params


def text_params(**above: Any) -> dict[str, Any]:
    """The preset `text` with little training."""
    from stagecraft.config.overlay import lay_over, merge_files

    files = [ROOT / "params.yaml", ROOT / "presets" / "text.yaml", ROOT / "presets" / "smoke.yaml"]
    return lay_over(merge_files(files), {"device": "cpu", **above})


def smoke_text(params: dict[str, Any] | None = None) -> str:
    """A params.yaml of the preset smoke, or of other params, without comments behind values, which tests exchange."""
    from stagecraft.config.__main__ import with_values

    return re.sub(r" +#.*", "", with_values((ROOT / "params.yaml").read_text(), params or preset_params("smoke")))


# Flags of the stages that train networks, after `prepare`.
TRAINED_ON = ["--data", "data/prepared", "--latents", "data/latents", "--prompts", "data/prompts"]
TRAINED_ON += ["--autoencoder", "data/autoencoder"]


def prepare(folder: Path) -> None:
    """Run the stages before all training in a folder, with the smoke preset: images, no autoencoder, no latents."""
    from stagecraft.config.stages import stage_params

    params = preset_params("smoke") | {"device": "cpu"}
    for stage, flags in (
        ("prepare_data", "--output data/prepared"),
        ("encode_prompts", "--data data/prepared --output data/prompts"),
        ("train_autoencoder", "--data data/prepared --output data/autoencoder --log data/autoencoder.json"),
        ("encode_latents", "--data data/prepared --autoencoder data/autoencoder --output data/latents"),
    ):
        text = json.dumps(stage_params(params, stage))
        command = [sys.executable, "-m", f"stages.{stage}", "--params", text, "--threads", "1", *flags.split()]
        result = run(folder, *command)
        assert result.returncode == 0, result.stderr


def run_stages(folder: Path, params: dict[str, Any], last: str = "publish", threads: int = 1) -> None:
    """Run the commands of the stages in this process, in a folder, up to the last one asked for.

    Block searches have one thread, as their rule gives them.

    The files are those of the rules. What Snakemake adds is tested on the smoke preset and, with stubs, in tests/contracts.
    """
    from stagecraft.config.stages import stage_model
    from stagecraft.preflight.jobs import block_names, refined_from
    from stagecraft.preflight.params import validate_params

    results, logs, data = Path("results"), Path("results/logs"), {"data": Path("data/prepared")}
    prompts = {"prompts": Path("data/prompts")}
    encoded = data | prompts | {"latents": Path("data/latents")}
    teacher, student = {"teacher": results / "teacher"}, results / "student"
    autoencoder, search = {"autoencoder": results / "autoencoder"}, {"search": results / "search"}
    clusters, features = {"clusters": results / "clusters.json"}, {"features": results / "features"}
    importance = {"importance": results / "importance.json"}
    architecture = {"architecture": results / "architecture.json"}
    extractor, latency = {"extractor": results / "extractor.safetensors"}, {"latency": results / "latency.json"}
    metrics, samples = results / "metrics.json", results / "samples.npz"
    trainings = ["train_autoencoder", "train_teacher", "train_extractor", "retrain"]
    log = {name: {"log": logs / f"{name}.json"} for name in trainings}

    with contextlib.chdir(folder):
        checked = validate_params(params, "params.yaml")
        starts = refined_from(checked)
        searched = sorted(block_names(checked), key=lambda name: name in starts)

    def search_files(block: str) -> dict[str, Any]:
        report, weights = (search["search"] / f"{block}.{kind}" for kind in ("json", "safetensors"))
        start = [
            str(search["search"] / f"{starts[block]}.{kind}") for kind in ("json", "safetensors") if block in starts
        ]
        own = {"name": block, "start": start, "output": report, "weights": weights}
        return teacher | features | importance | latency | own

    commands: list[tuple[str, dict[str, Any]]] = [
        ("prepare_data", {"output": data["data"]}),
        ("encode_prompts", data | {"output": prompts["prompts"]}),
        ("train_autoencoder", data | log["train_autoencoder"] | {"output": autoencoder["autoencoder"]}),
        ("encode_latents", data | autoencoder | {"output": encoded["latents"]}),
        ("train_teacher", encoded | autoencoder | log["train_teacher"] | {"output": teacher["teacher"]}),
        ("train_extractor", data | log["train_extractor"] | {"output": extractor["extractor"]}),
        ("cluster_timesteps", encoded | teacher | {"output": clusters["clusters"]}),
        ("cache_features", encoded | teacher | clusters | {"output": features["features"]}),
        ("rank_channels", encoded | teacher | {"output": importance["importance"]}),
        ("measure_latency", teacher | importance | {"output": latency["latency"]}),
        *(("search_block", search_files(block)) for block in searched),
        ("collect_search", search | {"names": searched}),
        ("assemble", teacher | clusters | search | latency | {"output": architecture["architecture"]}),
        ("retrain", encoded | autoencoder | teacher | architecture | search | log["retrain"] | {"output": student}),
        ("evaluate", data | prompts | autoencoder | teacher | architecture | extractor | {"student": student}),
        ("report", clusters | architecture | search | {"metrics": metrics, "samples": samples}),
        ("publish", architecture | prompts | {"student": student, "metrics": metrics, "samples": samples}),
    ]
    outputs = {"evaluate": {"output": metrics, "samples": samples}}
    outputs["publish"] = {"output": results / "model", "teacher_card": []}
    outputs["report"] = {"output": results / "report.html", "plots": results / "plots"}
    outputs["report"] |= {"logs": [log[name]["log"] for name in trainings]}
    with contextlib.chdir(folder):
        for name, files in commands:
            body = getattr(importlib.import_module(f"stages.{name}"), name)
            body(
                stage_model(params, name),
                threads=1 if name == "search_block" else threads,
                **files,
                **outputs.get(name, {}),
            )
            if name == last:
                return


def documentation() -> list[Path]:
    """The pages that users read, README first."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    return pages + sorted((ROOT / "docs").glob("*.md"))


def documented_blocks(language: str) -> list[str]:
    """The code blocks of one language on all pages, each once, in their order."""
    return list(dict.fromkeys(block for page in documentation() for block in blocks_of(page, language)))


def blocks_of(page: Path, language: str) -> list[str]:
    """The code blocks of one language on a page."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
    return [block.strip() for block in fence.findall(page.read_text())]


def without_blocks(page: Path) -> str:
    """A page's text without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def clone(folder: Path) -> Path:
    """A clone of the repository as it is in the working tree, with the smoke preset as its params and this environment."""
    listed = run(ROOT, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(smoke_text())
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "dvc.lock").unlink(missing_ok=True)
    for command in ("init -q", "add -A", "-c user.name=t -c user.email=t@example.org commit -qm smoke"):
        assert run(folder, "git", *command.split()).returncode == 0
    return folder


def space_of(block, settings):
    """The search space of a block, its channels as they stand."""
    from stagecraft.elastic.block import natural_orders
    from stagecraft.search.space import BlockSpace

    return BlockSpace(block, search_space(settings), natural_orders(block))


def search_space(settings):
    """What of a `search_block` section says which layer shapes there are, as far as it is given."""
    from stagecraft.config.sections import SearchSpace

    return SearchSpace.model_construct(**settings)


def supernet_of(teacher, site, kernels=(1, 3)):
    """A fresh supernet of the block at a site of a teacher."""
    from stagecraft.elastic.block import ElasticBlock
    from stagecraft.networks.families import family_of

    return ElasticBlock(teacher.get_submodule(site.name), family_of(teacher), site, search_space({"kernels": kernels}))


def spec_at(architecture, name, interval=0):
    """The spec of a block in an interval, to be changed."""
    return next(entry["spec"] for entry in architecture["blocks"][name] if interval in entry["range"])


def with_ranges(architecture, ranges):
    """An architecture whose up blocks have these ranges, each with the spec of its first interval."""
    blocks = dict(architecture["blocks"])
    for index, parts in enumerate(ranges):
        name = f"up_blocks.{index}"
        specs = [entry["spec"] for entry in blocks[name]]
        blocks[name] = [{"range": part, "spec": specs[part[0] if part else 0]} for part in parts]
    return architecture | {"blocks": blocks}
