"""Teacher and student as diffusers pipeline folders: safetensors only, never a pickle."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDPMPipeline, UNet2DModel

from stages.files import atomic_folder, read_json, write_json
from stages.models import multi_decoder_unet
from stages.models.multi_decoder_unet import BLOCK_TYPES, MultiDecoderUNet2DModel

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_teacher(folder: Path) -> UNet2DModel:
    """The UNet of a teacher's pipeline folder, in eval mode on the CPU.

    Raises:
        ValueError: the folder has no config or weights, its UNet is no UNet2DModel, or has blocks that cannot be searched.
    """
    config = read_unet_config(folder)
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(
            f"{folder}/unet/config.json: _class_name is {config['_class_name']!r}; the teacher must be a UNet2DModel"
        )
    types = {*config["down_block_types"], *config["up_block_types"]}
    if types - BLOCK_TYPES:
        raise ValueError(
            f"{folder}/unet/config.json: block type {sorted(types - BLOCK_TYPES)[0]} is not supported; "
            f"supported are {', '.join(sorted(BLOCK_TYPES))}"
        )
    return _load(UNet2DModel, folder)


def load_student(folder: Path) -> MultiDecoderUNet2DModel:
    """The multi-decoder UNet of a student's pipeline folder, in eval mode on the CPU. Raises ValueError as `load_teacher`."""
    read_unet_config(folder)
    return _load(MultiDecoderUNet2DModel, folder)


def read_unet_config(folder: Path) -> dict[str, Any]:
    """unet/config.json of a pipeline folder, after checking that the folder is complete."""
    for name, hint in (
        ("config.json", "a diffusers pipeline folder with unet/config.json"),
        (WEIGHTS, "safetensors weights"),
    ):
        if not (Path(folder) / "unet" / name).is_file():
            raise ValueError(f"{folder}/unet/{name}: not found; give {hint}")
    return read_json(Path(folder) / "unet" / "config.json")


def _load(kind: Any, folder: Path) -> Any:
    try:
        model = kind.from_pretrained(str(folder), subfolder="unet", use_safetensors=True, low_cpu_mem_usage=False)
    except Exception as error:
        raise ValueError(f"{folder}/unet: cannot be loaded as {kind.__name__} ({error})") from error
    return model.eval()


def save_teacher(folder: Path, unet: UNet2DModel, scheduler: Any, params: dict[str, Any]) -> None:
    """Write a teacher's pipeline folder with the params it was made with; the old folder is replaced when all is written."""
    with atomic_folder(folder) as aside:
        DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(aside, safe_serialization=True)
        forget_origin(aside / "unet" / "config.json")
        write_json(aside / "params.json", params)


def save_student(folder: Path, unet: MultiDecoderUNet2DModel, scheduler: Any, params: dict[str, Any]) -> None:
    """Write a student's pipeline folder with its model file, so that diffusers alone loads it."""
    with atomic_folder(folder) as aside:
        unet.save_pretrained(aside / "unet", safe_serialization=True)
        forget_origin(aside / "unet" / "config.json")
        scheduler.save_pretrained(aside / "scheduler")
        source = Path(inspect.getfile(multi_decoder_unet))
        shutil.copyfile(source, aside / "unet" / source.name)
        index = {
            "_class_name": "DDPMPipeline",
            "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", type(scheduler).__name__],
            "unet": [source.stem, type(unet).__name__],
        }
        write_json(aside / "model_index.json", index)
        write_json(aside / "params.json", params)


def forget_origin(config: Path) -> None:
    """Drop the folder that a model was loaded from out of its saved config."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings.pop("_name_or_path", None)
    write_json(config, settings)


def read_scheduler_config(folder: Path) -> dict[str, Any]:
    """scheduler/scheduler_config.json of a pipeline folder; empty when the folder has none."""
    path = Path(folder) / "scheduler" / "scheduler_config.json"
    return read_json(path) if path.is_file() else {}


def check_fits(teacher: UNet2DModel, folder: str, resolution: int, channels: int) -> None:
    """Raise a ValueError when a teacher's images have another shape than the prepared ones."""
    for key, ours, name in (
        ("sample_size", resolution, "pixels a side"),
        ("in_channels", channels, "channels"),
        ("out_channels", channels, "channels"),
    ):
        theirs = teacher.config[key]
        if theirs != ours:
            section = "resolution" if key == "sample_size" else "channels"
            raise ValueError(
                f"{folder}/unet/config.json: {key} is {theirs} but the images have {ours} {name}; "
                f"set prepare_data.{section}: {theirs} or give another teacher"
            )
