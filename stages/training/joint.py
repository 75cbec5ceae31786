"""The dynamic joint loss of DiffNAS (arXiv 2311.04950, section 3.3) on a multi-decoder student."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from stages.device import autocast
from stages.diffusion.losses import NoisyBatches, nmse
from stages.models.borders import Border, borders_of, run_block, trace
from stages.models.multi_decoder_unet import MultiDecoderUNet2DModel
from stages.training.student import student_blocks

SCHEDULES = {
    "linear": lambda share: share,
    "cosine": lambda share: 0.5 * (1 - math.cos(math.pi * share)),
    "step": lambda share: float(share >= 1),
    "constant": lambda share: 0.5,
}


def end_to_end_share(step: int, steps: int, settings: dict[str, Any]) -> float:
    """The weight a of the end-to-end loss at a step.

    `linear` and `cosine` rise from 0 to 1 over the first `ramp` of the steps and stay at 1; `step` jumps there from 0 to 1;
    `constant` is one half throughout.
    """
    share = min(1.0, step / max(1.0, settings["ramp"] * steps))
    return SCHEDULES[settings["joint_loss"]](share)


class JointLoss:
    """L = (1-a) sum_b NMSE_b + a (L_noise + lambda L_output), for the training loop.

    In the first part every block gets the teacher's inputs and skips, so gradients stay inside a block; in the second the student
    runs end to end, L_noise against the process's target and L_output against the teacher's prediction (both MSE).

    Args:
        settings: the `retrain` section of the params; `output_weight` is lambda.
    """

    def __init__(
        self,
        student: MultiDecoderUNet2DModel,
        teacher: UNet2DModel,
        batches: NoisyBatches,
        settings: dict[str, Any],
        precision: str,
    ) -> None:
        self.student, self.teacher, self.batches = student, teacher.requires_grad_(False), batches
        self.settings, self.precision = settings, precision
        self.borders = borders_of(teacher)

    def __call__(self, step: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
        x_t, t, target = self.batches(generator)
        share = end_to_end_share(step, self.settings["steps"], self.settings)
        with autocast(x_t.device, self.precision):
            seen = self.teach(x_t, t, share)
            if share < 1:
                stage = self.student.stage_of(t)
                losses = [self.block_loss(border, seen, stage) for border in self.borders]
                yield "blocks", (1 - share) * torch.stack(losses).sum()
            if share > 0:
                yield "end_to_end", share * self.output_loss(x_t, t, target, seen.get("output"))

    @torch.no_grad()
    def teach(self, x_t: torch.Tensor, t: torch.Tensor, share: float) -> dict[str, torch.Tensor]:
        """What the losses at this share need of the teacher: all borders, its output alone, or nothing."""
        if share < 1:
            return trace(self.teacher, x_t, t)
        return {"output": self.teacher(x_t, t).sample} if self.settings["output_weight"] else {}

    def block_loss(self, border: Border, seen: dict[str, torch.Tensor], stage: torch.Tensor) -> torch.Tensor:
        """NMSE of the student's blocks at one border; a decoder's block counts by the samples of its stage."""
        inputs, outputs = [seen[name] for name in border.inputs], [seen[name] for name in border.outputs]
        blocks = student_blocks(self.student, border)
        if border.kind != "up":
            return nmse(run_block(border.kind, blocks[0][1], inputs), outputs)
        total = torch.zeros((), device=stage.device)
        for index in stage.unique().tolist():
            rows = (stage == index).nonzero().flatten()
            predicted = run_block("up", blocks[index][1], [tensor[rows] for tensor in inputs])
            total = total + nmse(predicted, [tensor[rows] for tensor in outputs]) * len(rows) / len(stage)
        return total

    def output_loss(
        self, x_t: torch.Tensor, t: torch.Tensor, target: torch.Tensor, taught: torch.Tensor | None
    ) -> torch.Tensor:
        """L_noise + lambda L_output; `taught` is the teacher's prediction, not needed when lambda is 0."""
        prediction = self.student(x_t, t).sample.float()
        loss, weight = F.mse_loss(prediction, target), self.settings["output_weight"]
        return loss + weight * F.mse_loss(prediction, taught.float()) if weight and taught is not None else loss
