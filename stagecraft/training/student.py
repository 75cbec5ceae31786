"""The student before retraining: built from an architecture, with the weights that it inherits."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers.models.embeddings import GaussianFourierProjection
from safetensors.torch import load_file
from torch import nn

from stagecraft.config.sections import Retrain, SearchSpace
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.process import Process
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.elastic.block import ElasticBlock, student_state
from stagecraft.elastic.native import NativeBlock
from stagecraft.networks.families import condition_names, family_of, site_named
from stagecraft.networks.family import Architecture, Module
from stagecraft.networks.jobs import Job, name_of
from stagecraft.networks.stream import narrowed_teacher
from stagecraft.runtime.device import frozen_in
from stagecraft.runtime.files import check_file, run_again
from stagecraft.training.assembled import AssembledStudent

SupernetLoader = Callable[[str], dict[str, torch.Tensor]]
KERNELS = [1, 3]  # all that a search space may have


def build_student(
    teacher: Module,
    architecture: Architecture,
    boundaries: Sequence[float],
    seed: int,
) -> Module:
    """A student with random weights.

    Args:
        architecture: the `unet` part of architecture.json.
    """
    torch.manual_seed(seed)
    return family_of(teacher).build_student(teacher, architecture, boundaries)


def start_student(teacher: Module, chosen: AssembledStudent, init: str, seed: int, supernet: SupernetLoader) -> Module:
    """The student before its first step.

    Args:
        chosen: the content of architecture.json.
        init: `retrain.init`: `inherit` from the supernets, `teacher` for the teacher's weights, or `scratch`.
        supernet: as in `inherit`.
    """
    student = build_student(teacher, chosen["unet"], chosen["boundaries"], seed)
    if init == "teacher" and chosen["rule"] == "given":
        warm_start(student, teacher)
    elif init != "scratch" and "native" in chosen["unet"]:
        inherit_native(student, teacher, chosen, supernet if init == "inherit" else None)
    elif init != "scratch":
        narrowed = narrowed_teacher(teacher, chosen["unet"].get("stream"))
        inherit(student, narrowed, supernet if init == "inherit" else untrained_supernets(narrowed))
    return student


def untrained_supernets(teacher: Module) -> SupernetLoader:
    """A function that returns a search job's supernet before its first step: the teacher's weights and order of channels."""

    def state(job: str) -> dict[str, torch.Tensor]:
        site = site_named(teacher, Job.parse(job).site)
        block = teacher.get_submodule(site.name)
        return ElasticBlock(block, family_of(teacher), site, SearchSpace.model_construct(kernels=KERNELS)).state_dict()

    return state


def supernet_loader(folder: Path, hashes: dict[str, str], architecture: Path) -> SupernetLoader:
    """A function from a job's name to its stored supernet; ValueError when it is not the one that architecture.json names."""

    def read(job: str) -> dict[str, torch.Tensor]:
        path = folder / f"{job}.safetensors"
        check_file(path, hashes[job], architecture, "search_block")
        return load_file(path)

    return read


def student_batches(
    data: TrainingSet,
    process: Process,
    teacher: Module,
    boundaries: list[float],
    settings: Retrain,
    device: torch.device,
) -> NoisyBatches:
    """Batches as the `retrain` section of the params describes them, with what the teacher is given beside x_t and t."""
    intervals = process.edges(boundaries)
    names = condition_names(teacher)
    return NoisyBatches(
        data.only(names),
        process,
        settings.batch_size,
        device,
        settings.horizontal_flip,
        conditional=bool(names),
        intervals=intervals,
        probabilities=interval_probabilities(settings.interval_probabilities, intervals),
    )


def check_teacher(teacher: Module, architecture: AssembledStudent, path: Path) -> None:
    """Raise ValueError unless an architecture.json, read from `path`, was made for this teacher."""
    if architecture["identity"] != identity_architecture(teacher):
        raise ValueError(f"{path}: describes another teacher; {run_again('assemble', path)}")


def inherit(student: Module, teacher: Module, supernet: SupernetLoader) -> None:
    """Copy weights in place: blocks from their supernets, all else from the teacher.

    Args:
        teacher: with the student's residual stream.
        supernet: gives the stored state of the ElasticBlock of a search job, by its name.
    """
    family = family_of(teacher)
    family.copy_fixed(student, teacher)
    for site in family.sites(teacher):
        block = teacher.get_submodule(site.name)
        for own_block in family.blocks(student, site):
            job = name_of(site.name, site.per_range, own_block.intervals)
            state = student_state(supernet(job), block, family, site, own_block.spec)
            own_block.module.load_state_dict(state)


def inherit_native(student: Module, teacher: Module, chosen: AssembledStudent, supernet: SupernetLoader | None) -> None:
    """Copy weights in place into a native student.

    Args:
        chosen: the content of architecture.json.
        supernet: as in `inherit`, of NativeBlocks; None for the teacher's weights, channels inside layers as they stand.
    """
    family = family_of(teacher)
    form = family.native(teacher)
    architecture = chosen["unet"]
    span = (chosen["intervals"][0][0], chosen["intervals"][-1][1])
    order = {str(level): channels for level, channels in enumerate(architecture["stream"])}
    family.copy_fixed(student, form.start(teacher, architecture, span))
    for site in family.sites(teacher):
        for own_block in family.blocks(student, site):
            job = name_of(site.name, site.per_range, own_block.intervals)
            elastic = NativeBlock(teacher.get_submodule(site.name), family, site, form, order)
            if supernet is not None:
                elastic.load_state_dict(supernet(job))
            own_block.module.load_state_dict(elastic.weights(chosen["chosen"][job]["spec"]))


def interval_probabilities(setting: str | list[float], intervals: Sequence[Sequence[float]]) -> list[float] | None:
    """How often training draws each interval: None leaves it to the density of t; `uniform` draws all alike; or as given.

    Raises:
        ValueError: not one number per interval.
    """
    if setting == "density":
        return None
    if setting == "uniform":
        return [1 / len(intervals)] * len(intervals)
    if len(setting) != len(intervals):
        raise ValueError(
            f"retrain.interval_probabilities: {setting} for {len(intervals)} intervals; give one number for each"
        )
    return [float(value) / sum(map(float, setting)) for value in setting]


def cast_teacher(teacher: Module, device: torch.device, precision: str) -> Module:
    """Move the teacher to a device and cast its weights for a precision, in place.

    The frequencies of the time embedding stay in single precision: cos and sin of their products with t would be others.
    """
    nn.Module.to(teacher, device, frozen_in(precision))  # not diffusers' own, which would warn
    for module in teacher.modules():
        if isinstance(module, GaussianFourierProjection):
            module.float()
    return teacher


def to_saved_class(student: Module, teacher: Module) -> Module:
    """A student as it is saved: of its teacher's own class where it is native."""
    return family_of(teacher).stock(student) if "native" in student.config["architecture"] else student


def with_decoders(student: Module) -> Module:
    """A saved student in its form with decoders; a native student is converted back."""
    if "architecture" in student.config:
        return student
    built = build_student(student, identity_architecture(student), [], 0)
    warm_start(built, student)
    return built.eval()


def warm_start(student: Module, teacher: Module) -> None:
    """Copy the teacher's weights in place, into every decoder; see `Family.copy_all`."""
    family_of(teacher).copy_all(student, teacher)
