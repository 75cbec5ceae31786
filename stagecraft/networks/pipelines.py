"""Teacher and student as diffusers pipeline folders: safetensors only, never a pickle."""

import inspect
import json
import shutil
from pathlib import Path
from textwrap import shorten
from typing import Any

import diffusers

from stagecraft.diffusion.stepper import unclipped
from stagecraft.networks import class_parts, multi_stage_pipeline
from stagecraft.networks.configs import check_teacher_folder
from stagecraft.networks.families import student_class, teacher_class
from stagecraft.networks.family import Module
from stagecraft.networks.given import TEACHER
from stagecraft.networks.text_parts import CLASSES, FIRST, parts_of
from stagecraft.networks.weights import WEIGHTS, class_name, find_weights
from stagecraft.runtime.files import (
    atomic_folder,
    check_file,
    pipeline_file,
    read_checked_json,
    read_json,
    sha256_file,
    write_checked_json,
    write_json,
)

HASHES = "sha256.json"
SCHEDULER = "scheduler_config.json"


def load_teacher(folder: Path) -> Module:
    """The UNet of a folder written by `save_pipeline`, in eval mode on the CPU; ValueError when a file is not as written."""
    check_hashes(folder, "train_teacher")
    return with_token_count(_load(teacher_class(class_name(folder / "unet")), folder), folder)


def load_student(folder: Path) -> Module:
    """The student of a folder written by `save_pipeline`."""
    check_hashes(folder, "retrain")
    return with_token_count(_load(student_class(class_name(folder / "unet")), folder), folder)


def with_token_count(unet: Module, folder: Path) -> Module:
    """The UNet of a pipeline folder, told how many tokens its prompts have: one for a class, else what a tokenizer says."""
    if find_class_embedding(folder) is not None:
        unet.prompt_tokens = 1
    tokenizer = folder / FIRST[0] / "tokenizer_config.json"
    length = read_json(tokenizer).get("model_max_length") if tokenizer.is_file() else None
    if length is not None:
        unet.prompt_tokens = length
    return unet


def load_given_teacher(folder: Path) -> Module:
    """The UNet of a pipeline folder from elsewhere, in eval mode on the CPU.

    Raises:
        ValueError: the folder has no config or weights, its network is of another kind, has blocks that cannot be searched, or
            has weights that are missing, of another shape or not finite.
    """
    config, path = check_teacher_folder(folder)
    weights = find_weights(path.parent)
    unet = _load(teacher_class(config["_class_name"]), folder, weights.variant).float()
    for name, value in unet.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(f"{weights.files[0]}: {name} holds values that are not finite; {TEACHER}")
    return unet


def _load(kind: Any, folder: Path, variant: str | None = None) -> Any:
    unet = pipeline_file(folder, "unet", "config.json").parent
    try:
        model, report = kind.from_pretrained(
            str(unet), use_safetensors=True, variant=variant, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:
        raise ValueError(f"{unet}: cannot be loaded as {kind.__name__} ({shorten(str(error), 300)})") from error
    for problem, names in (("lacks", report["missing_keys"]), ("has the unknown", report["unexpected_keys"])):
        if names:
            raise ValueError(f"{unet}/{WEIGHTS}: {problem} {min(names)}, by its config.json; {TEACHER}")
    return model.eval()


def save_pipeline(
    folder: Path,
    unet: Module,
    scheduler: Any,
    params: dict[str, Any],
    vae: Any = None,
    *,
    given: bool = False,
    prompts: Path | None = None,
) -> None:
    """Write the pipeline folder of a teacher or student with the params it was made with; the old folder is replaced at the end.

    Of a student diffusers has no such class, so its model file is written too, and the folder alone loads it.

    Args:
        given: whether the teacher is from elsewhere; see `save_scheduler`.
        prompts: folder of the text encoder or class embedding, of models conditioned on prompts.
    """
    with atomic_folder(folder) as aside:
        unet.save_pretrained(aside / "unet", safe_serialization=True)
        write_pipeline(aside, unet, origin_of(unet), scheduler, vae, given=given, prompts=prompts)
        write_json(aside / "params.json", params)
        write_hashes(aside)


def origin_of(unet: Module) -> str:
    """The module that diffusers finds a model's class in: itself, or the file that is saved with the model."""
    kind = type(unet)
    return "diffusers" if kind is getattr(diffusers, kind.__name__, None) else Path(inspect.getfile(kind)).stem


def write_pipeline(
    folder: Path,
    unet: Any,
    origin: str,
    scheduler: Any,
    vae: Any,
    *,
    given: bool = False,
    prompts: Path | None = None,
) -> None:
    """Write what makes a folder with a UNet a pipeline.

    StableDiffusionPipeline, or that of XL, for texts. DDPMPipeline where it draws right; it knows no latents, no classes, no
    scheduler that scales its input, and, of those that a student may be given, none that takes no generator.

    Args:
        origin: module that diffusers finds the UNet's class in.
        given, prompts: as in `save_pipeline`.
    """
    forget_origin(folder / "unet" / "config.json")
    scheduler = scheduler if vae is None else unclipped(scheduler)
    save_scheduler(folder / "scheduler", scheduler, given)
    entry = [origin, type(unet).__name__]
    index: dict[str, object] = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": entry,
    }
    if vae is not None:
        vae.save_pretrained(folder / "vae", safe_serialization=True)
        forget_origin(folder / "vae" / "config.json")
    embedding = None if prompts is None else find_class_embedding(prompts)
    if prompts is not None and embedding is None:
        index |= text_pipeline(folder, prompts, vae)
    elif origin != "diffusers" or embedding is not None or needs_own_pipeline(unet, scheduler, vae):
        index |= own_pipeline(folder, entry, vae, embedding)
    write_json(folder / "model_index.json", index)


def own_pipeline(folder: Path, unet: list[str], vae: Any, embedding: Path | None) -> dict[str, object]:
    """Copy the project's own pipeline into a folder; returns what model_index.json says beside UNet and scheduler.

    Args:
        unet: the UNet's entry there.
        embedding: folder of a class embedding, which is copied too.
    """
    source = Path(inspect.getfile(multi_stage_pipeline))
    shutil.copyfile(source, folder / source.name)
    index: dict[str, object] = {
        "_class_name": [source.stem, multi_stage_pipeline.MultiStagePipeline.__name__],
        "vae": [None, None] if vae is None else ["diffusers", type(vae).__name__],
    }
    if embedding is not None:
        shutil.copytree(embedding, folder / embedding.name)
        index[embedding.name] = [embedding.name, class_name(embedding)]
    return index | multi_stage_pipeline.auto_map_of(unet)


def text_pipeline(folder: Path, prompts: Path, vae: Any) -> dict[str, object]:
    """Copy a text encoder into a pipeline folder; returns what model_index.json says beside UNet and scheduler."""
    parts = parts_of(prompts)
    for part in parts:
        shutil.copytree(prompts / part, folder / part)
    index: dict[str, object] = {part: ["transformers", CLASSES[part]] for part in parts}
    index |= {
        "vae": ["diffusers", type(vae).__name__],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if len(parts) > len(FIRST):
        return {**index, "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    checker = {"safety_checker": [None, None], "requires_safety_checker": False}
    return {**index, "_class_name": "StableDiffusionPipeline", **checker}


def find_class_embedding(folder: Path) -> Path | None:
    """The class embedding in a folder; None where there is none."""
    embedding = folder / class_parts.FOLDER
    return embedding if embedding.is_dir() else None


def count_classes(folder: Path) -> int | None:
    """How many classes the model of a pipeline folder is conditioned on; None for none."""
    embedding = find_class_embedding(folder)
    if embedding is None:
        return read_json(folder / "unet" / "config.json").get("num_class_embeds")
    config = read_json(embedding / "config.json")
    return config["rows"] - config["last_is_empty"]


def save_scheduler(folder: Path, scheduler: Any, given: bool) -> None:
    """Write a scheduler's folder; of a teacher from elsewhere it states what the teacher's did, and no defaults beside."""
    scheduler.save_pretrained(folder)
    if given:
        path = folder / SCHEDULER
        defaults = scheduler.config.get("_use_default_values", [])
        said = {key: value for key, value in read_json(path).items() if key not in defaults}
        # As diffusers writes it, which has infinities in it.
        path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_stated(folder: Path) -> dict[str, Any] | None:
    """The scheduler config that a given teacher states, from a folder written by `save_pipeline`.

    None for a teacher that was trained here: its folder holds the defaults of one scheduler, and samplers have their own.
    """
    made_with = read_json(folder / "params.json").get("train_teacher", {})
    return read_json(folder / "scheduler" / SCHEDULER) if made_with.get("source") == "path" else None


def needs_own_pipeline(unet: Any, scheduler: Any, vae: Any) -> bool:
    """Whether DDPMPipeline would not draw what the models can."""
    return vae is not None or is_class_conditional(unet) or type(scheduler).__name__.startswith("EDM")


def is_class_conditional(unet: Any) -> bool:
    """Whether a UNet wants labels."""
    return unet.config["num_class_embeds"] is not None


def write_hashes(folder: Path) -> None:
    """Write sha256.json with the hash of every file of a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    write_checked_json(folder / HASHES, {file.relative_to(folder).as_posix(): sha256_file(file) for file in files})


def check_hashes(folder: Path, stage: str) -> None:
    """Raise ValueError unless every file that `stage` wrote into a folder is as sha256.json says."""
    for name, sha256 in read_checked_json(folder / HASHES, stage).items():
        check_file(folder / name, sha256, folder / HASHES, stage)


def forget_origin(config: Path) -> None:
    """Drop the folder that a model was loaded from out of its saved config."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    write_json(config, settings)
