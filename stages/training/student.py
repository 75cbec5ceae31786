"""The student before retraining: built from an architecture, with the weights that it inherits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from stages.files import run_again
from stages.models.borders import Border, borders_of
from stages.models.elastic import student_state
from stages.models.multi_decoder_unet import Module, MultiDecoderUNet2DModel
from stages.models.specs import identity_architecture

Supernet = Callable[[str], dict[str, torch.Tensor]]


def build_student(
    teacher: UNet2DModel, architecture: dict[str, Any], boundaries: Sequence[float], seed: int
) -> MultiDecoderUNet2DModel:
    """A student with random weights; `architecture` is the `unet` part of architecture.json."""
    torch.manual_seed(seed)
    config = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    return MultiDecoderUNet2DModel(
        unet=config,
        architecture=architecture,
        boundaries=list(boundaries),
        sample_size=teacher.config["sample_size"],
        in_channels=teacher.config["in_channels"],
        out_channels=teacher.config["out_channels"],
    )


def check_teacher(teacher: UNet2DModel, architecture: dict[str, Any], path: Path) -> None:
    """Raise ValueError unless an architecture.json, read from `path`, was made for this teacher."""
    if architecture["identity"] != identity_architecture(teacher):
        raise ValueError(f"{path}: describes another teacher; {run_again('assemble', path)}")


def inherit(student: MultiDecoderUNet2DModel, teacher: UNet2DModel, supernet: Supernet) -> None:
    """Copy weights in place: blocks from their supernets, all else from the teacher.

    Args:
        supernet: gives the stored state of the ElasticBlock of a search job, by its name.
    """
    own = student.state_dict()
    with torch.no_grad():
        for name, value in teacher.state_dict().items():
            if name.startswith(("conv_norm_out", "conv_out")):
                for decoder in range(student.num_stages):
                    own[f"decoders.{decoder}.{name}"].copy_(value)
            elif not name.startswith(("down_blocks", "mid_block", "up_blocks")):
                own[name].copy_(value)
    for border in borders_of(teacher):
        for job, module, spec in student_blocks(student, border):
            block = teacher.get_submodule(border.block)
            module.load_state_dict(student_state(supernet(job), block, border.kind, spec))


def student_blocks(student: Module, border: Border) -> list[tuple[str, Module, dict[str, Any]]]:
    """(job name, module, spec) of the student blocks that stand for one teacher block: one per stage in the decoder."""
    index = border.block.rpartition(".")[2]
    specs = student.config["architecture"]
    if border.kind == "mid":
        return [("mid_block", student.mid_block, specs["mid_block"])]
    if border.kind == "down":
        return [(border.block, student.down_blocks[int(index)], specs["down_blocks"][int(index)])]
    return [
        (f"{border.block}.stage_{s}", decoder.up_blocks[int(index)], specs["decoders"][s][int(index)])
        for s, decoder in enumerate(student.decoders)
    ]
