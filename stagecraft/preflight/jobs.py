"""The job graph: names of the searches, files that the params name. Light, as a Snakefile imports it: no torch, no NumPy."""

import json
from pathlib import Path
from typing import Any

from stagecraft.config.messages import show
from stagecraft.config.params import PROJECT
from stagecraft.config.sections import Evaluate, Everything, MeasureLatency, TrainAutoencoder, TrainTeacher
from stagecraft.networks.weights import find_weights
from stagecraft.runtime.files import pipeline_file


def block_names(params: Everything) -> list[str]:
    """Names of the block searches in network order, up blocks once per range of stages; none for a given architecture.

    Raises ValueError when the teacher's folder (source `path`) is incomplete.
    """
    if params.architecture == "given":
        return []
    levels, has_mid = teacher_shape(params.train_teacher)
    down = [f"down_blocks.{i}" for i in range(levels)]
    up = [f"up_blocks.{i}.stage_{name}" for name in range_names(params) for i in range(levels)]
    return [*down, *(["mid_block"] if has_mid else []), *up]


def range_names(params: Everything) -> list[str]:
    """The ranges of contiguous stages that up blocks are searched for, as job names have them: `2`, or `0-1`."""
    count, which = params.cluster_timesteps.stages, params.search_block.ranges
    ranges = [(first, last) for first in range(count) for last in range(first, count)]
    if which != "all":
        ranges = [
            (first, last) for first, last in ranges if (first == last if which == "own" else last - first == count - 1)
        ]
    return [str(first) if first == last else f"{first}-{last}" for first, last in ranges]


def refined_from(params: Everything) -> dict[str, str]:
    """For each search that is fine-tuned from another's supernet, by name, that of all stages."""
    last = params.cluster_timesteps.stages - 1
    if params.search_block.ranges != "all" or not last:
        return {}
    found = {name: f"{name.partition('.stage_')[0]}.stage_0-{last}" for name in block_names(params) if "stage_" in name}
    return {name: start for name, start in found.items() if name != start}


def teacher_shape(settings: TrainTeacher) -> tuple[int, bool]:
    """Number of resolution levels of the teacher, and whether it has a mid block."""
    if settings.source == "train":
        return len(settings.block_out_channels), True
    unet = read_teacher_config(settings)
    return len(unet["down_block_types"]), unet.get("mid_block_type", "UNetMidBlock2D") is not None


def read_teacher_config(settings: TrainTeacher) -> dict[str, Any]:
    """unet/config.json of a given teacher; ValueError when it is not that of a UNet2DModel."""
    config = Path(teacher_files(settings)[0])
    try:
        unet: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        len(unet["down_block_types"]), unet.get("mid_block_type")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{config}: not the config of a diffusers UNet2DModel; give another train_teacher.path"
        ) from error
    return unet


def teacher_files(settings: TrainTeacher) -> list[str]:
    """Files of the teacher's folder that a run reads, none for source `train`; ValueError when one is missing."""
    if settings.source == "train":
        return []
    folder = Path(settings.path)
    config = pipeline_file(folder, "unet", "config.json")
    if not config.is_file():
        raise ValueError(
            f"train_teacher.path: {config} not found; give a diffusers pipeline folder with safetensors weights"
        )
    files = [config, *weights_files("train_teacher.path", config.parent)]
    scheduler = pipeline_file(folder, "scheduler", "scheduler_config.json")
    return [str(file) for file in [*files, *([scheduler] if scheduler.is_file() else [])]]


def weights_files(key: str, folder: Path) -> list[Path]:
    """Files of the weights in a model's folder, all shards and their index; ValueError, naming the key, when one is missing."""
    try:
        return [*find_weights(folder).files]
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def runs_in_latents(params: Everything) -> bool:
    """Whether the diffusion runs in the latents of an autoencoder."""
    return bool(params.train_autoencoder.source != "none")


def needs_own_pipeline(params: Everything) -> bool:
    """Whether the pipeline folders hold a pipeline of their own, as diffusers' DDPMPipeline would not draw what they can.

    stagecraft/networks/pipelines.py decides the same by the models.
    """
    settings = params.train_teacher
    conditional = settings.class_conditional
    if settings.source == "path":
        conditional = read_teacher_config(settings).get("num_class_embeds") is not None
    return runs_in_latents(params) or params.diffusion.process == "edm" or bool(conditional)


def autoencoder_files(settings: TrainAutoencoder) -> list[str]:
    """Files of an autoencoder's folder that a run reads, none but for source `path`; ValueError when one is missing."""
    if settings.source != "path":
        return []
    config = Path(settings.path) / "config.json"
    if not config.is_file():
        raise ValueError(
            f"train_autoencoder.path: {config} not found; give an AutoencoderKL's or VQModel's folder with safetensors weights"
        )
    return [str(file) for file in [config, *weights_files("train_autoencoder.path", config.parent)]]


def latency_files(settings: MeasureLatency) -> list[str]:
    """The table that the `measure_latency` section names, none but for source `path`; ValueError when there is no such file.

    One that the working folder lacks is taken from the project, whose presets name tables of its own.
    """
    if settings.source != "path":
        return []
    for path in (Path(settings.path), PROJECT / settings.path):
        if path.is_file():
            return [str(path)]
    raise ValueError(
        f"measure_latency.path: {settings.path} not found; give a results/latency.json, or source: measure"
    )


def extractor_files(settings: Evaluate) -> list[str]:
    """The TorchScript file that the `evaluate` section names, if any; ValueError when there is no such file."""
    name = settings.extractor
    if name in ("classifier", "inception-v3-compat"):
        return []
    if not Path(name).is_file():
        raise ValueError(
            f"evaluate.extractor: {show(name)} is neither classifier, inception-v3-compat nor a TorchScript file"
        )
    return [name]
