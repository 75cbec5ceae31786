"""The student before retraining: built from an architecture, with the weights that it inherits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file

from stagecraft.config.sections import Retrain
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.losses import NoisyBatches
from stagecraft.diffusion.process import Process
from stagecraft.elastic.block import ElasticBlock, full_ranks, student_state
from stagecraft.networks.borders import Border, border_of_job, borders_of
from stagecraft.networks.multi_decoder_unet import Module, MultiDecoderUNet2DModel, SeparateUNet2DModel, ranges_of
from stagecraft.networks.pipelines import is_class_conditional
from stagecraft.networks.ranges import job_name
from stagecraft.networks.specs import identity_architecture
from stagecraft.networks.stream import narrowed_teacher
from stagecraft.runtime.files import check_file, run_again

Supernet = Callable[[str], dict[str, torch.Tensor]]
KERNELS = [1, 3]  # all that a search space may have, of layers and of upsamplers


def build_student(
    teacher: UNet2DModel,
    architecture: dict[str, Any],
    boundaries: Sequence[float],
    seed: int,
    shared_encoder: bool = True,
) -> MultiDecoderUNet2DModel | SeparateUNet2DModel:
    """A student with random weights.

    Args:
        architecture: the `unet` part of architecture.json.
        shared_encoder: whether the stages share the encoder; else each is a net of its own.
    """
    torch.manual_seed(seed)
    config = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    kind = MultiDecoderUNet2DModel if shared_encoder else SeparateUNet2DModel
    return kind(
        unet=config,
        architecture=architecture,
        boundaries=list(boundaries),
        sample_size=teacher.config["sample_size"],
        in_channels=teacher.config["in_channels"],
        out_channels=teacher.config["out_channels"],
        num_class_embeds=teacher.config["num_class_embeds"],
    )


def start_student(
    teacher: UNet2DModel, chosen: dict[str, Any], init: str, seed: int, supernet: Supernet
) -> MultiDecoderUNet2DModel | SeparateUNet2DModel:
    """The student before its first step.

    Args:
        chosen: the content of architecture.json.
        init: `retrain.init`: `inherit` from the supernets, `teacher` for the teacher's weights, or `scratch`.
        supernet: as in `inherit`.
    """
    student = build_student(teacher, chosen["unet"], chosen["boundaries"], seed, chosen["shared_encoder"])
    if init == "teacher" and chosen["rule"] == "given":
        warm_start(student, teacher)
    elif init != "scratch":
        assert isinstance(student, MultiDecoderUNet2DModel), "a searched architecture shares its encoder"
        narrowed = narrowed_teacher(teacher, chosen["unet"].get("stream"))
        inherit(student, narrowed, supernet if init == "inherit" else untrained_supernets(narrowed))
    return student


def untrained_supernets(teacher: UNet2DModel) -> Supernet:
    """What gives a search job's supernet as it is before its first step: the teacher's weights, channels as they stand."""

    def state(job: str) -> dict[str, torch.Tensor]:
        border, _ = border_of_job(teacher, job)
        block = teacher.get_submodule(border.block)
        return ElasticBlock(block, border.kind, KERNELS, KERNELS, full_ranks(block)).state_dict()

    return state


def supernet_reader(folder: Path, hashes: dict[str, str], architecture: Path) -> Supernet:
    """What gives a search job's stored supernet by name; ValueError when it is not the one that architecture.json names."""

    def read(job: str) -> dict[str, torch.Tensor]:
        path = folder / f"{job}.safetensors"
        check_file(path, hashes[job], architecture, "search_block")
        return load_file(path)

    return read


def student_batches(
    data: TrainingSet,
    process: Process,
    teacher: UNet2DModel,
    boundaries: list[float],
    settings: Retrain,
    device: torch.device,
) -> NoisyBatches:
    """Batches as the `retrain` section of the params describes them, with labels when the teacher takes any."""
    stages = process.edges(boundaries)
    return NoisyBatches(
        data,
        process,
        settings.batch_size,
        device,
        settings.horizontal_flip,
        labels=is_class_conditional(teacher),
        stages=stages,
        probabilities=stage_probabilities(settings.stage_probabilities, stages),
    )


def check_teacher(teacher: UNet2DModel, architecture: dict[str, Any], path: Path) -> None:
    """Raise ValueError unless an architecture.json, read from `path`, was made for this teacher."""
    if architecture["identity"] != identity_architecture(teacher):
        raise ValueError(f"{path}: describes another teacher; {run_again('assemble', path)}")


def inherit(student: MultiDecoderUNet2DModel, teacher: UNet2DModel, supernet: Supernet) -> None:
    """Copy weights in place: blocks from their supernets, all else from the teacher.

    Args:
        teacher: with the student's residual stream.
        supernet: gives the stored state of the ElasticBlock of a search job, by its name.
    """
    own = student.state_dict()
    with torch.no_grad():
        for name, value in teacher.state_dict().items():
            if name.startswith(("conv_norm_out", "conv_out")):
                for copy in (f"decoders.{decoder}.{name}" for decoder in range(student.num_stages)):
                    if copy in own:  # else the head is another decoder's
                        own[copy].copy_(value)
            elif not name.startswith(("down_blocks", "mid_block", "up_blocks")):
                own[name].copy_(value)
    for border in borders_of(teacher):
        for own_block in student_blocks(student, border):
            block = teacher.get_submodule(border.block)
            state = student_state(supernet(own_block.job), block, border.kind, own_block.spec)
            own_block.module.load_state_dict(state)


def stage_probabilities(setting: str | list[float], stages: Sequence[Sequence[float]]) -> list[float] | None:
    """How often training draws each stage: None leaves it to the density of t; `uniform` draws all alike; or as given.

    Raises:
        ValueError: not one number per stage.
    """
    if setting == "density":
        return None
    if setting == "uniform":
        return [1 / len(stages)] * len(stages)
    if len(setting) != len(stages):
        raise ValueError(f"retrain.stage_probabilities: {setting} for {len(stages)} stages; give one number for each")
    return [float(value) / sum(map(float, setting)) for value in setting]


def warm_start(student: Module, teacher: UNet2DModel) -> None:
    """Copy the teacher's weights in place, into every decoder (or every separate net).

    A tensor of another shape gets what both have in common, its first channels, and keeps its random values in the rest; so only
    decoders of the teacher's own shape start as copies of the unified net.
    """
    nets = student.nets if isinstance(student, SeparateUNet2DModel) else [student]
    for net in nets:
        own = net.state_dict()
        with torch.no_grad():
            for name, value in teacher.state_dict().items():
                copies = (
                    [f"decoders.{s}.{name}" for s in range(net.num_stages)]
                    if name.startswith(("up_blocks", "conv_norm_out", "conv_out"))
                    else [name]
                )
                for copy in copies:
                    if copy in own:
                        common = tuple(slice(min(sizes)) for sizes in zip(own[copy].shape, value.shape, strict=True))
                        own[copy][common].copy_(value[common])


class StudentBlock(NamedTuple):
    """A block of a student: the search job that it is from, the module, its spec, and the stages in which it runs."""

    job: str
    module: Module
    spec: dict[str, Any]
    stages: list[int]


def student_blocks(student: Module, border: Border) -> list[StudentBlock]:
    """The student's blocks that stand for one of the teacher's: one, and in the decoder one for each range of stages."""
    specs, everywhere = student.config["architecture"], list(range(student.num_stages))
    if border.kind == "mid":
        return [StudentBlock("mid_block", student.mid_block, specs["mid_block"], everywhere)]
    index = int(border.block.rpartition(".")[2])
    if border.kind == "down":
        return [StudentBlock(border.block, student.down_blocks[index], specs["down_blocks"][index], everywhere)]
    return [
        StudentBlock(
            job_name(border.block, tile),
            student.decoders[tile[0]].blocks[index],
            specs["decoders"][tile[0]][index],
            tile,
        )
        for tile in ranges_of(specs)[index]
    ]
