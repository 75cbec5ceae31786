"""The job graph: names of the searches, files that the params name. Light, as a Snakefile imports it: no torch, no NumPy."""

import json
from pathlib import Path

from stagecraft.config.messages import show
from stagecraft.config.params import PROJECT
from stagecraft.config.sections import (
    EncodePrompts,
    Evaluate,
    Everything,
    MeasureLatency,
    TrainAutoencoder,
    TrainTeacher,
)
from stagecraft.networks import class_parts, text_parts
from stagecraft.networks.configs import CONFIGS, class_trained, reader_of
from stagecraft.networks.given import SiteNames
from stagecraft.networks.jobs import Job
from stagecraft.networks.weights import find_weights
from stagecraft.runtime.files import pipeline_file, read_json


def search_jobs(params: Everything) -> list[Job]:
    """The block searches in network order, those of the decoder once per range of intervals; none for a given architecture.

    Raises ValueError when the teacher's folder (source `path`) is incomplete.
    """
    if params.architecture == "given":
        return []
    sites = site_names(params)
    shared = [Job(site) for site in sites.shared]
    return [*shared, *(Job(site, part) for part in searched_ranges(params) for site in sites.per_range)]


def block_names(params: Everything) -> list[str]:
    """The names of the block searches, and of their files."""
    return [job.name for job in search_jobs(params)]


def searched_ranges(params: Everything) -> list[tuple[int, ...]]:
    """The ranges of contiguous intervals that blocks of the decoder are searched for."""
    count = params.cluster_timesteps.intervals
    everywhere = tuple(range(count))
    match params.search_block.ranges:
        case "own":
            return [(interval,) for interval in everywhere]
        case "shared":
            return [everywhere]
    return [everywhere[first:last] for first in range(count) for last in range(first + 1, count + 1)]


def refined_from(params: Everything) -> dict[str, str]:
    """For each search that is fine-tuned from another's supernet, by name, that of all intervals."""
    everywhere = tuple(range(params.cluster_timesteps.intervals))
    if params.search_block.ranges != "all":
        return {}
    ranged = [job for job in search_jobs(params) if job.intervals not in (None, everywhere)]
    return {job.name: Job(job.site, everywhere).name for job in ranged}


def site_names(params: Everything) -> SiteNames:
    """The names of the teacher's sites."""
    settings = params.train_teacher
    if settings.source == "train":
        reader = CONFIGS[class_trained(is_prompted(params))]
        return reader.sites(reader.trained(settings))
    config = read_teacher_config(settings)
    return reader_of(config).sites(config)


def read_teacher_config(settings: TrainTeacher) -> dict[str, object]:
    """unet/config.json of a given teacher; ValueError when it is not that of a network."""
    config = teacher_config_file(settings)
    try:
        unet: dict[str, object] = json.loads(config.read_text(encoding="utf-8"))
        reader_of(unet).sites(unet)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{config}: not the config of a diffusers {' or '.join(CONFIGS)}; give another train_teacher.path"
        ) from error
    return unet


def teacher_config_file(settings: TrainTeacher) -> Path:
    """unet/config.json of a given teacher; ValueError when there is none."""
    config = pipeline_file(str(settings.path), "unet", "config.json")
    if not config.is_file():
        raise ValueError(
            f"train_teacher.path: {config} not found; give a diffusers pipeline folder with safetensors weights"
        )
    return config


def teacher_files(settings: TrainTeacher) -> list[str]:
    """Files of the teacher's folder that a run reads, none for source `train`; ValueError when one is missing."""
    if settings.source == "train":
        return []
    folder = Path(settings.path)
    config = teacher_config_file(settings)
    files = [config, *weights_files("train_teacher.path", config.parent)]
    scheduler = pipeline_file(folder, "scheduler", "scheduler_config.json")
    return [str(file) for file in [*files, *([scheduler] if scheduler.is_file() else [])]]


def teacher_card(settings: TrainTeacher) -> list[str]:
    """The model card in the folder of a given teacher; empty when there is none."""
    if settings.source == "train":
        return []
    card = Path(settings.path) / "README.md"
    return [str(card)] if card.is_file() else []


def weights_files(key: str, folder: Path) -> list[Path]:
    """Files of the weights in a model's folder, all shards and their index; ValueError, naming the key, when one is missing."""
    try:
        return [*find_weights(folder).files]
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def is_prompted(params: Everything) -> bool:
    """Whether the teacher is conditioned on prompts."""
    return bool(params.encode_prompts.source != "none")


def encoder_files(settings: EncodePrompts) -> list[str]:
    """Files of a given text encoder or class embedding that a run reads, if any; ValueError when one is missing."""
    match settings.source:
        case "path":
            return [str(file) for file in text_parts.encoder_files(Path(settings.path))]
        case "classes":
            return [str(class_parts.find_embedding(Path(settings.path)))]
    return []


def encoder_names(params: Everything) -> list[str]:
    """Names of the text encoder's or class embedding's files in pipeline folders; none without prompts."""
    settings = params.encode_prompts
    if settings.source == "path":
        return [str(Path(file).relative_to(settings.path)) for file in encoder_files(settings)]
    return list({"random": text_parts.MADE, "classes": class_parts.MADE}.get(settings.source, ()))


def student_file(params: Everything) -> str:
    """The name of the file with a student's class, which is saved with its weights."""
    if params.train_teacher.source == "path":
        return reader_of(read_teacher_config(params.train_teacher)).student_file
    return CONFIGS[class_trained(is_prompted(params))].student_file


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
    if is_prompted(params):
        return bool(params.encode_prompts.source == "classes")
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
        f"measure_latency.path: {settings.path} not found; give a kept results/latency.json, "
        "or set source: measure and path: null"
    )


def extractor_files(settings: Evaluate) -> list[str]:
    """The TorchScript file that the `evaluate` section names, if any; ValueError when there is no such file."""
    name = settings.extractor
    if name in ("classifier", "inception-v3-compat"):
        return []
    if not Path(name).is_file():
        raise ValueError(
            f"evaluate.extractor: {show(name)} not found; use classifier, inception-v3-compat or a TorchScript file"
        )
    return [name]


def clip_files(settings: Evaluate) -> list[str]:
    """The files of the CLIP model that the `evaluate` section names, if any; ValueError when one is missing or it is another."""
    if settings.clip is None:
        return []
    folder = Path(settings.clip)
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"evaluate.clip: {config} not found; {text_parts.CLIP_REMEDY}")
    if read_json(config, text_parts.CLIP_REMEDY).get("architectures") != ["CLIPModel"]:
        raise ValueError(f"evaluate.clip: {config} is not that of a CLIPModel; {text_parts.CLIP_REMEDY}")
    weights = text_parts.weights_of(folder, text_parts.CLIP_REMEDY)
    files = [config, folder / "preprocessor_config.json", *text_parts.tokenizer_files(folder), *weights]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"evaluate.clip: {missing[0]} not found; {text_parts.CLIP_REMEDY}")
    return [*map(str, files)]
