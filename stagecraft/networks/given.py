"""The shape of a network's samples, and checks of a given autoencoder against the images. Light: no torch.

A run's first moment (stagecraft/preflight/given_models.py) and the stages that load the models ask the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagecraft.data.classes import Classes, check_trained
from stagecraft.networks.weights import Weights, check_weights, find_weights
from stagecraft.runtime.files import pipeline_file, read_json

Config = Mapping[str, Any]

AUTOENCODERS = ("AutoencoderKL", "VQModel")
TEACHER = "give another teacher"
AUTOENCODER = "give another autoencoder"
GROUPS = 32  # of a model whose config says none
CHANNELS = (1, 3)  # of images
SIDES = (4, 4096)  # pixels that prepare_data.resolution may be


@dataclass(frozen=True)
class Space:
    """The shape of a UNet's samples: images, or latents of an autoencoder; None for what is not known yet.

    Args:
        side: pixels, or latents, a side.
        channels: of each.
        factor: pixels a side that one latent stands for; None for images.
    """

    side: int | None
    channels: int | None
    factor: int | None = None

    @property
    def points(self) -> str:
        """The unit of its sides."""
        return "pixels" if self.factor is None else "latents"

    @property
    def others(self) -> str:
        """Advice for a teacher of another side."""
        return TEACHER if self.factor is None else f"{TEACHER} or another autoencoder"

    def remedy(self, sides: list[int], others: str) -> str:
        """Advice on how to get one of these sides."""
        pixels = [side * (self.factor or 1) for side in sides]
        settings = [
            f"prepare_data.resolution: {side}{' (resize: pad keeps their pixels)' * self.is_padding(side)}"
            for side in pixels
            if SIDES[0] <= side <= SIDES[1]
        ]
        return f"set {' or '.join(settings)}, or {others}" if settings else others

    def is_padding(self, side: int) -> bool:
        """Whether images of this side could hold the ones there are, with a site."""
        return self.side is not None and side > self.side * (self.factor or 1)


@dataclass(frozen=True)
class Sides:
    """The sides that a UNet can draw: multiples of `unit`, and where it says so one `only`."""

    unit: int
    only: int | None = None

    @property
    def levels(self) -> int:
        """Resolution levels of which each but the last halves the side."""
        return self.unit.bit_length()

    def near(self, side: int, factor: int = 1) -> list[int]:
        """The sides next to a side of images, the larger first, each times the factor of an autoencoder."""
        if self.only is not None:
            return [self.only * factor]
        unit = self.unit * factor
        larger = side + -side % unit
        return [larger, larger - unit]


ANY = Sides(1)


@dataclass(frozen=True)
class SiteNames:
    """The names of a network's sites: those that all intervals share, and those where ranges may have blocks of their own."""

    shared: list[str]
    per_range: list[str]


# --- Autoencoders ---


def check_autoencoder_folder(folder: Path) -> Weights:
    """The weights in an autoencoder's folder; ValueError unless it holds an AutoencoderKL or VQModel that can be read."""
    kind = check_autoencoder_config(folder / "config.json")["_class_name"]
    weights = find_weights(folder, kind)
    check_weights(weights, kind, AUTOENCODER)
    return weights


def check_autoencoder_config(path: Path) -> Config:
    """The config of an autoencoder; ValueError unless it describes an AutoencoderKL or VQModel."""
    if not path.is_file():
        raise ValueError(f"{path}: not found; give the folder of an AutoencoderKL or VQModel (vae or vqvae)")
    config = read_json(path, AUTOENCODER)
    kind = config.get("_class_name")
    if kind not in AUTOENCODERS:
        raise ValueError(f"{path}: _class_name is {kind!r}; the autoencoder must be an AutoencoderKL or a VQModel")
    widths = config.get("block_out_channels", [64])
    if not isinstance(widths, list) or not widths:
        raise ValueError(f"{path}: block_out_channels is {widths!r}, no list of channels; {AUTOENCODER}")
    check_groups(path, config, widths, AUTOENCODER)
    check_scales(config, path)
    return config


def check_scales(config: Config, path: Path) -> None:
    """Raise ValueError unless what an autoencoder's latents are scaled by are numbers, of each channel where they are lists."""
    factor = config.get("scaling_factor")
    shift = config.get("shift_factor")
    if not (factor is None or (is_number(factor) and factor > 0)):
        raise ValueError(f"{path}: scaling_factor is {factor!r}, no number above 0; {AUTOENCODER}")
    if not (shift is None or is_number(shift)):
        raise ValueError(f"{path}: shift_factor is {shift!r}, no number; {AUTOENCODER}")
    mean = config.get("latents_mean")
    std = config.get("latents_std")
    if mean is None and std is None:
        return
    channels = latent_channels_of(config)
    for key, values in (("latents_mean", mean), ("latents_std", std)):
        if not isinstance(values, list) or len(values) != channels or not all(map(is_number, values)):
            raise ValueError(
                f"{path}: {key} is {values!r}, no list of {channels} numbers, one of each channel; {AUTOENCODER}"
            )
    if min(config["latents_std"]) <= 0:
        raise ValueError(f"{path}: latents_std is {std!r}, not all above 0; {AUTOENCODER}")


def is_number(value: Any) -> bool:
    """Whether a value of a config is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_autoencoder_fits(
    config: Config, folder: Path | str, side: int | None, channels: int | None, wanted: Sides = ANY
) -> None:
    """Raise ValueError when an autoencoder is for other images; None for what is not known of them.

    Args:
        wanted: what the UNet in its latents can draw, for what the message advises.
    """
    theirs = config.get("in_channels", 3)
    given = config.get("out_channels", 3)
    if theirs != given:
        raise ValueError(
            f"{folder}/config.json: out_channels is {given} but in_channels is {theirs}; {AUTOENCODER}, of images to images"
        )
    if theirs not in CHANNELS:
        raise ValueError(
            f"{folder}/config.json: in_channels is {theirs} but images have 1 or 3 channels; {AUTOENCODER}"
        )
    if channels is not None and theirs != channels:
        raise ValueError(
            f"{folder}/config.json: in_channels is {theirs} but the images have {channels} channels; "
            f"set prepare_data.channels: {theirs} or {AUTOENCODER}"
        )
    factor = downscaling_of(config)
    if side is not None and side % factor:
        raise ValueError(
            f"{folder}/config.json: one latent stands for {factor} pixels, which {side} is no multiple of; "
            f"{Space(side, None).remedy(wanted.near(side, factor), AUTOENCODER)}"
        )


def why_undivided(side: int | None, levels: int, wanted: Sides) -> str | None:
    """Why the levels of an autoencoder that is trained here cannot halve a side of images, and what to do; None when they can.

    Args:
        wanted: what the UNet in its latents can draw.
    """
    factor = 2 ** (levels - 1)
    if side is None or side % factor == 0:
        return None
    remedy = Space(side, None).remedy(wanted.near(side, factor), "give it fewer levels")
    return (
        f"{side} pixels cannot be divided by {factor}, as the {levels} levels of train_autoencoder.block_out_channels do; "
        f"{remedy}"
    )


def downscaling_of(config: Config) -> int:
    """How many pixels a side one latent stands for."""
    return int(2 ** (len(config.get("block_out_channels", [64])) - 1))


def latent_channels_of(config: Config) -> int:
    """Channels of the latents that the diffusion runs in; a VQModel may say so by `vq_embed_dim`."""
    usual = 3 if config.get("_class_name") == "VQModel" else 4
    return int(config.get("vq_embed_dim") or config.get("latent_channels") or usual)


# --- Teachers ---


def check_own_teacher(settings: Config, space: Space, classes: Classes | None) -> None:
    """Raise ValueError when a teacher that is trained here would be for other images."""
    levels = len(settings["block_out_channels"])
    problem = why_not_halved(space, levels, "train_teacher.block_out_channels", "give it fewer levels")
    if problem is not None:
        raise ValueError(f"prepare_data.resolution: {problem}")
    if settings["class_conditional"]:
        check_trained(classes)


def check_groups(path: Path, config: Config, widths: Sequence[Any], remedy: str) -> None:
    """Raise ValueError unless the groups of GroupNorm divide the channels of every level."""
    groups = config.get("norm_num_groups", GROUPS)
    numbers = all(isinstance(number, int) and number > 0 for number in (groups, *widths))
    if not numbers or any(width % groups for width in widths):
        raise ValueError(
            f"{path}: block_out_channels {widths!r} are no multiples of norm_num_groups {groups!r}; {remedy}"
        )


def why_not_halved(space: Space, levels: int, where: str, others: str) -> str | None:
    """Why the levels of a UNet cannot halve a side, as each but the last does, and what to do; None when they can.

    Args:
        where: the key that gives the levels.
        others: what to do instead of taking other sides.
    """
    unit = 2 ** (levels - 1)
    if space.side is None or space.side % unit == 0:
        return None
    remedy = space.remedy(Sides(unit).near(space.side), others)
    return (
        f"{space.side} {space.points} cannot be halved {levels - 1} time(s), as the {levels} levels of {where} do, but "
        f"multiples of {unit} can; {remedy}"
    )


def check_shares(shares: Sequence[float], widths: Sequence[int]) -> None:
    """Raise ValueError unless there is a share of the residual stream for each level, the same for neighbours of equal width."""
    if len(shares) != len(widths):
        raise ValueError(
            f"search_block.channels: {shares} for {len(widths)} levels; give one share, or one for each level"
        )
    for level in range(1, len(widths)):
        if widths[level] == widths[level - 1] and shares[level] != shares[level - 1]:
            raise ValueError(
                f"search_block.channels[{level}]: {shares[level]} for a level as wide as the one before, which passes its "
                f"channels on; give both {shares[level - 1]}"
            )


def read_scheduler_config(folder: Path) -> dict[str, Any] | None:
    """scheduler/scheduler_config.json of a pipeline folder; None when the folder has none."""
    path = pipeline_file(folder, "scheduler", "scheduler_config.json")
    return read_json(path, TEACHER) if path.is_file() else None
