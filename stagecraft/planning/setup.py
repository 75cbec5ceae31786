"""The models and images of a run as far as params and configs tell: networks on the meta device, without weights."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stagecraft.config.sections import Everything, PrepareData
from stagecraft.data.condition import LABELS
from stagecraft.data.prompts import Prompts
from stagecraft.data.sources.folder import guess_channels
from stagecraft.data.survey import Survey, survey
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.process import Process
from stagecraft.diffusion.registry import make_process
from stagecraft.networks.autoencoder import KINDS, build_autoencoder
from stagecraft.networks.configs import check_config, check_teacher_fits, reader_of
from stagecraft.networks.families import example_condition, family_of, teacher_class
from stagecraft.networks.family import Module
from stagecraft.networks.given import (
    Space,
    check_autoencoder_config,
    check_autoencoder_fits,
    check_own_teacher,
)
from stagecraft.networks.text_parts import TOKENS
from stagecraft.preflight.given_models import network_space, prompt_width
from stagecraft.runtime.files import pipeline_file, read_json
from stagecraft.search.features import FeatureWriter
from stagecraft.training.teacher import build_teacher

META = torch.device("meta")


@dataclass(frozen=True)
class Setup:
    """The inputs of a plan.

    Args:
        images: what is known of them; `train` is 0 where they are not there yet.
        side: pixels of the prepared images.
        teacher: on the meta device, fitted to the images or latents.
        autoencoder: likewise; None when the diffusion runs in pixels.
    """

    params: Everything
    images: Survey
    side: int
    teacher: Module
    autoencoder: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W of what the teacher draws."""
        side = self.teacher.config["sample_size"]
        return self.teacher.config["in_channels"], side, side

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return int(self.shape[0] if self.autoencoder is None else self.autoencoder.config["in_channels"])

    @property
    def intervals(self) -> int:
        """Number of intervals."""
        return self.params.cluster_timesteps.intervals

    @cached_property
    def process(self) -> Process:
        """The noise process."""
        return make_process(self.params.diffusion.as_dict())

    @cached_property
    def features(self) -> FeatureWriter:
        """The writer of the feature cache, with one black sample for data; the intervals do not matter for its size."""
        edges = self.process.edges([])[0]
        given = example_condition(self.teacher, 1)
        first = torch.zeros(1, dtype=torch.int64)
        prompts = Prompts(given.only({*given.tensors} - {LABELS}), first)
        data = TrainingSet(torch.zeros(1, *self.shape), given.tensors.get(LABELS), prompts=prompts)
        settings = self.params.cache_features
        return FeatureWriter(
            self.teacher, self.process, data, [edges] * self.intervals, settings, self.params.seed, META
        )


def read_setup(params: Everything) -> Setup:
    """The models and images of a run; weights are neither read nor needed, and neither are the images.

    Raises:
        ValueError: a config is missing or describes no model that a run takes, or models and images do not fit each other.
    """
    images = look_at_images(params.prepare_data)
    given = params.train_autoencoder.source == "path"
    if given:
        check_autoencoder_config(Path(str(params.train_autoencoder.path)) / "config.json")
    teacher = read_teacher(params, images, network_space(params, images))
    factor = network_space(params, images).factor or 1
    side = images.height or factor * teacher.config["sample_size"]
    autoencoder = read_autoencoder(params, side, images.channels)
    return Setup(params, images, side, teacher, autoencoder)


def look_at_images(settings: PrepareData) -> Survey:
    """A survey of the images; of a folder or file that is not there yet, what params say of it.

    Only decoding would tell whether all images of a folder are grey; they are taken to be as the first.
    """
    if settings.path is not None and not Path(settings.path).exists():
        return Survey(0, 0, settings.resolution, settings.resolution, settings.channels)
    seen = survey(settings)
    if settings.source == "folder" and seen.channels is None:
        return replace(seen, channels=guess_channels(settings))
    return seen


def read_teacher(params: Everything, images: Survey, space: Space) -> Module:
    """The teacher on the meta device; ValueError when it is not for the images."""
    settings = params.train_teacher
    if settings.source == "train":
        check_own_teacher(settings.as_dict(), space, images.classes)
        known = None not in (space.side, space.channels)
        if not known:
            raise ValueError(
                "prepare_data.resolution or channels: null, and the images that would tell are not there; set both"
            )
        classes = len(images.classes or ()) if settings.class_conditional else None
        with META:
            sizes = space.side or 0, space.channels or 0
            return build_teacher(settings, *sizes, params.seed, classes, prompt_sizes(params, images)).eval()
    path = pipeline_file(settings.path, "unet", "config.json")
    config = check_config(path)
    check_teacher_fits(config, path, space, params.diffusion.process)
    side = space.side or reader_of(config).sides(config, path).only
    if side is None:
        raise ValueError(
            f"{path}: says no sample_size, and the images that would tell are not there; set prepare_data.resolution"
        )
    with META:
        teacher = teacher_class(config["_class_name"]).from_config(config).eval()
    return family_of(teacher).adapt(teacher, side)


def prompt_sizes(params: Everything, images: Survey) -> tuple[int, int] | None:
    """Tokens and width of prompts or classes; None without. Of an encoder made here a token a word and two more are expected."""
    width = prompt_width(params)
    settings = params.encode_prompts
    if width is None or settings.source == "none":
        return None
    if settings.source != "random":
        return TOKENS if settings.source == "path" else 1, width
    prompts = [settings.template.replace("{}", name) for name in settings.names or images.classes or [""]]
    return 2 + max(len(prompt.split()) for prompt in prompts), width


def read_autoencoder(params: Everything, side: int, channels: int | None) -> Any:
    """The autoencoder on the meta device; None when the diffusion runs in pixels."""
    settings = params.train_autoencoder
    match settings.source:
        case "none":
            return None
        case "train":
            with META:
                return build_autoencoder(settings.as_dict(), channels or 1, side, params.seed)
    folder = Path(str(settings.path))
    config = read_json(folder / "config.json")
    check_autoencoder_fits(config, folder, side, channels)
    with META:
        return KINDS[config["_class_name"]].from_config(config).eval()
