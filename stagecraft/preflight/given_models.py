"""Checks of a teacher and an autoencoder before the first job. Light: no torch, no diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stagecraft.config.sections import Everything, TrainTeacher
from stagecraft.data.classes import check_known
from stagecraft.diffusion.stated import check_stated, check_steps, kept_settings
from stagecraft.networks.class_parts import read_sizes
from stagecraft.networks.configs import check_config, check_prompts, check_teacher_fits, check_teacher_folder, reader_of
from stagecraft.networks.given import (
    TEACHER,
    Sides,
    Space,
    check_autoencoder_fits,
    check_autoencoder_folder,
    check_own_teacher,
    check_shares,
    downscaling_of,
    latent_channels_of,
    read_scheduler_config,
    why_undivided,
)
from stagecraft.networks.text_parts import has_second, width_of
from stagecraft.preflight.clashes import samplers
from stagecraft.runtime.files import pipeline_file, read_json

if TYPE_CHECKING:
    from stagecraft.data.survey import Survey


def check_given_autoencoder(params: Everything, survey: Survey) -> None:
    """Raise ValueError when the autoencoder that params give, or describe, is not for the images.

    Args:
        survey: what is known of the images; what is None is not checked.
    """
    settings = params.train_autoencoder
    if settings.source == "path":
        folder = Path(settings.path)
        check_autoencoder_folder(folder)
        wanted = wanted_sides(params.train_teacher)
        check_autoencoder_fits(read_json(folder / "config.json"), folder, survey.height, survey.channels, wanted)
    elif settings.source == "train":
        wanted = wanted_sides(params.train_teacher)
        problem = why_undivided(survey.height, len(settings.block_out_channels), wanted)
        if problem is not None:
            raise ValueError(f"prepare_data.resolution: {problem}")


def wanted_sides(settings: TrainTeacher) -> Sides:
    """The sides that the teacher of the `train_teacher` section can draw; ValueError when a given one's config is no UNet's."""
    if settings.source == "train":
        return Sides(2 ** (len(settings.block_out_channels) - 1))
    path = pipeline_file(settings.path, "unet", "config.json")
    config = check_config(path)
    return reader_of(config).sides(config, path)


def check_given_teacher(params: Everything, survey: Survey) -> None:
    """Raise ValueError when the teacher that params give, or describe, is not for the images; its autoencoder has been checked.

    Args:
        survey: what is known of the images; a size or a number of channels that is None is not checked.
    """
    settings = params.train_teacher
    space = network_space(params, survey)
    if settings.source == "train":
        check_own_teacher(settings.as_dict(), space, survey.classes)
        check_search(params, settings.block_out_channels)
        return
    folder = Path(settings.path)
    config, path = check_teacher_folder(folder)
    prompts = params.encode_prompts
    two = prompts.source == "path" and has_second(Path(prompts.path))
    check_prompts(config, path, prompt_width(params), two)
    if prompts.source == "classes" and config.get("num_class_embeds") is not None:
        raise ValueError(f"{path}: num_class_embeds beside a class embedding is not supported; {TEACHER}")
    check_search(params, reader_of(config).widths(config))
    check_teacher_fits(config, path, space, params.diffusion.process)
    if config.get("num_class_embeds") is not None:
        check_known(survey.classes, config["num_class_embeds"], f"{path}: num_class_embeds is")
    stated = read_scheduler_config(folder)
    diffusion = params.diffusion.as_dict()
    check_stated(stated, pipeline_file(folder, "scheduler", "scheduler_config.json"), diffusion)
    for key, sampling in samplers(params).items():
        check_steps(sampling, diffusion, kept_settings(stated, params.diffusion.process), key)


def prompt_width(params: Everything) -> int | None:
    """Width of the prompts' hidden states; None without prompts."""
    settings = params.encode_prompts
    match settings.source:
        case "random":
            return settings.width
        case "path":
            return width_of(Path(settings.path))
        case "classes":
            return read_sizes(Path(settings.path))[1]
    return None


def check_search(params: Everything, widths: Sequence[int]) -> None:
    """Raise ValueError when the shares of the residual stream are not for the levels of this teacher."""
    shares = params.search_block.channels
    if params.architecture == "searched" and isinstance(shares, list):
        check_shares(shares, widths)


def network_space(params: Everything, survey: Survey) -> Space:
    """The shape of the UNet's samples, as far as params, the autoencoder's folder and a survey tell."""
    settings = params.train_autoencoder
    if settings.source == "none":
        return Space(survey.height, survey.channels)
    config = read_json(Path(settings.path) / "config.json") if settings.source == "path" else settings.as_dict()
    factor = downscaling_of(config)
    return Space(None if survey.height is None else survey.height // factor, latent_channels_of(config), factor)
