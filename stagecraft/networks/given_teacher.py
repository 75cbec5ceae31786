"""A teacher from elsewhere, opened once it is known to fit the images, their classes and the noise process."""

from pathlib import Path
from typing import Any

from stagecraft.data.classes import check_known
from stagecraft.data.condition import POOLED, PROMPT
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.stated import check_stated, says_nothing
from stagecraft.networks.configs import check_prompts, check_teacher_fits, check_teacher_folder, has_learned_variance
from stagecraft.networks.families import family_of
from stagecraft.networks.family import Module
from stagecraft.networks.given import Space, read_scheduler_config
from stagecraft.networks.pipelines import load_given_teacher
from stagecraft.runtime.files import pipeline_file


def open_given_teacher(
    path: str, images: TrainingSet, diffusion: dict[str, Any], space: Space
) -> tuple[Module, dict[str, Any] | None]:
    """The teacher of a diffusers folder, and what its scheduler config states.

    Args:
        diffusion: the `diffusion` section of the params.
        space: what the teacher is to draw.

    Raises:
        ValueError: it does not fit the images (or the latents), their classes or the noise process.
    """
    config, file = check_teacher_folder(Path(path))
    states = images.prompts.states.tensors if images.prompts else {}
    check_prompts(config, file, states[PROMPT].shape[-1] if states else None, POOLED in states)
    check_teacher_fits(config, file, space, diffusion["process"])
    if config.get("num_class_embeds") is not None:
        check_known(images.class_numbers, config["num_class_embeds"], f"{file}: num_class_embeds is")
    stated = read_scheduler_config(Path(path))
    check_stated(stated, pipeline_file(path, "scheduler", "scheduler_config.json"), diffusion)
    teacher = load_given_teacher(Path(path))
    if has_learned_variance(config):
        print(f"train_teacher: {file}: out_channels is twice in_channels, a learned variance; only the mean is used")
    if stated is not None and says_nothing(stated, diffusion["process"]):
        print(f"train_teacher: {stated['_class_name']} states no noise process; params say it (diffusion)")
    assert space.side is not None, "the images are known"
    return family_of(teacher).adapt(teacher, space.side), stated
