"""Facts about teachers that their configs give, by the class that they name, and their checks. Light: no torch, no diffusers.

families.py has the families of the same classes, which need torch.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from stagecraft.config.sections import Teacher
from stagecraft.networks.given import (
    CHANNELS,
    TEACHER,
    Config,
    Sides,
    SiteNames,
    Space,
    why_not_halved,
)
from stagecraft.networks.unet2d.config import UNet2DConfig
from stagecraft.networks.unet2d_condition.config import UNet2DConditionConfig
from stagecraft.networks.weights import check_weights, find_weights
from stagecraft.runtime.files import pipeline_file, read_json


class ConfigReader(Protocol):
    """All knowledge of the configs of one kind of network.

    Args:
        levels_key: the key that gives the resolution levels.
        prompted: whether networks of the kind read prompts.
        student_file: the name of the file with the class of its students, which is saved with them.
    """

    levels_key: str
    prompted: bool
    student_file: str

    def check(self, config: Config, path: Path) -> None:
        """Raise ValueError unless a config describes a network that can be searched."""

    def sites(self, config: Config) -> SiteNames:
        """The names of the sites, as `Family.sites` gives them; KeyError or TypeError where this is no config."""

    def sides(self, config: Config, path: Path) -> Sides:
        """The sides that a network can draw; ValueError when what the config says of them is no side."""

    def channels(self, config: Config) -> tuple[int, int]:
        """Channels of the input and of the output."""

    def widths(self, config: Config) -> Sequence[int]:
        """Channels of the residual stream at each level."""

    def trained(self, settings: Teacher, prompt_width: int | None = None) -> dict[str, object]:
        """The arguments of a network that is trained here, but for its images and classes; prompts are of this width."""


CONFIGS: dict[str, ConfigReader] = {"UNet2DModel": UNet2DConfig(), "UNet2DConditionModel": UNet2DConditionConfig()}
TRAINED = "UNet2DModel"  # the class of teachers that are trained here, without prompts
TRAINED_ON_PROMPTS = "UNet2DConditionModel"


def reader_of(config: Config) -> ConfigReader:
    """The reader of a config; a config of a class that `check_config` refuses is read as that of a teacher trained here."""
    return CONFIGS.get(str(config.get("_class_name")), CONFIGS[TRAINED])


def check_teacher_folder(folder: Path) -> tuple[Config, Path]:
    """unet/config.json of a pipeline folder and its path; ValueError unless its network can be read and searched."""
    path = pipeline_file(folder, "unet", "config.json")
    config = check_config(path)
    kind = config["_class_name"]
    check_weights(find_weights(path.parent, kind), kind, TEACHER)
    return config, path


def check_config(path: Path) -> Config:
    """The config of a teacher; ValueError unless it describes a network that can be searched."""
    if not path.is_file():
        raise ValueError(f"{path}: not found; give a diffusers pipeline folder with unet/config.json")
    config = read_json(path, TEACHER)
    if str(config.get("_class_name")) not in CONFIGS:
        known = " or a ".join(CONFIGS)
        raise ValueError(f"{path}: _class_name is {config.get('_class_name')!r}; the teacher must be a {known}")
    reader_of(config).check(config, path)
    return config


def check_teacher_fits(config: Config, path: Path, space: Space, process: str) -> None:
    """Raise ValueError when what a teacher draws has another shape than the images or latents."""
    check_size(config, path, space)
    inputs, outputs = reader_of(config).channels(config)
    if outputs != inputs and not (process == "vp" and has_learned_variance(config)):
        twice = ", or twice as many (a learned variance)" if process == "vp" else ""
        raise ValueError(
            f"{path}: out_channels is {outputs} for in_channels {inputs}; wanted are as many{twice}; {TEACHER}"
        )
    if space.factor is None and inputs not in CHANNELS:
        raise ValueError(f"{path}: in_channels is {inputs} but images have 1 or 3 channels; {TEACHER}")
    if space.channels is None or inputs == space.channels:
        return
    if space.factor is None:
        raise ValueError(
            f"{path}: in_channels is {inputs} but the images have {space.channels} channels; "
            f"set prepare_data.channels: {inputs} or {TEACHER}"
        )
    raise ValueError(
        f"{path}: in_channels is {inputs} but the autoencoder's latents have {space.channels} channels; {space.others}"
    )


def class_trained(prompted: bool) -> str:
    """The class of teachers that are trained here."""
    return TRAINED_ON_PROMPTS if prompted else TRAINED


def check_prompts(config: Config, path: Path, width: int | None, two: bool = False) -> None:
    """Raise ValueError when a teacher is conditioned on other prompts than are given.

    Args:
        width: of the prompts' hidden states; None where none are given.
        two: whether two encoders give them, as those of an SDXL do.
    """
    if not reader_of(config).prompted:
        if width is not None:
            raise ValueError(f"{path}: is not conditioned on prompts; set encode_prompts.source: none, or {TEACHER}")
        return
    if width is None:
        raise ValueError(
            f"{path}: is conditioned on prompts; set encode_prompts.source: path, with its text encoder, or classes, with its "
            f"class embedding, or {TEACHER}"
        )
    takes_two = config.get("addition_embed_type") is not None
    if takes_two and not two:
        raise ValueError(
            f"{path}: takes the two text encoders of an SDXL; give the teacher's own in encode_prompts.path"
        )
    if two and not takes_two:
        raise ValueError(f"{path}: takes one text encoder; give the teacher's own in encode_prompts.path")
    if config.get("cross_attention_dim") != width:
        raise ValueError(
            f"{path}: cross_attention_dim is {config.get('cross_attention_dim')} but the hidden states of the prompts "
            f"are {width} wide; give the teacher's own text encoder or class embedding in encode_prompts.path"
        )


def has_learned_variance(config: Config) -> bool:
    """Whether a network predicts a variance beside the mean, as diffusers' only models with twice as many outputs do."""
    inputs, outputs = reader_of(config).channels(config)
    return outputs == 2 * inputs


def check_size(config: Config, path: Path, space: Space) -> None:
    """Raise ValueError when a teacher is for other sides, or its levels cannot halve those of the images or latents."""
    reader = reader_of(config)
    sides = reader.sides(config, path)
    if sides.only is None:
        problem = why_not_halved(space, sides.levels, reader.levels_key, space.others)
        if problem is not None:
            raise ValueError(f"{path}: {problem}")
    elif space.side is not None and sides.only != space.side:
        whose = "images" if space.factor is None else "autoencoder's latents"
        raise ValueError(
            f"{path}: sample_size is {sides.only} but the {whose} have {space.side} {space.points} a side; "
            f"{space.remedy([sides.only], space.others)}"
        )
