"""The dynamic joint loss of DiffNAS (arXiv 2311.04950, section 3.3) on a multi-decoder student."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from stages.device import autocast
from stages.diffusion.losses import Batch, NoisyBatches, joint_variances, nmse, predict
from stages.models.borders import Border, borders_of, run_block, trace
from stages.models.multi_decoder_unet import MultiDecoderUNet2DModel
from stages.models.stream import kept_channels, kept_part
from stages.processes import count, own_rows
from stages.training.schedule import end_to_end_share
from stages.training.student import student_blocks

Spread = dict[tuple[str, int], torch.Tensor]  # by tensor and, for a block of the decoder, its range among the block's


def rows_of(stage: torch.Tensor, stages: Sequence[int]) -> torch.Tensor:
    """The rows of a batch, whose stages are given (N,), that fall into some of them."""
    return torch.isin(stage, torch.tensor(stages, device=stage.device)).nonzero().flatten()


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
        self.kept = kept_channels(teacher, student.config.get("architecture", {}).get("stream"))

    def __call__(self, step: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
        batch = self.batches(generator)
        rows, total = own_rows(len(batch.t)), len(batch.t)
        own = batch.rows(rows)
        share = end_to_end_share(step, self.settings["steps"], self.settings)
        with autocast(own.x_t.device, self.precision):
            seen = self.teach(own, share)
            if share < 1:
                stage = self.student.stage_of(batch.t)
                spread = self.spread(seen, stage[rows], {*stage.tolist()}) if count() > 1 else None
                losses = [self.block_loss(border, seen, stage[rows], total, spread) for border in self.borders]
                yield "blocks", (1 - share) * torch.stack(losses).sum()
            if share > 0:
                loss = share * self.output_loss(own, seen.get("output"))
                yield "end_to_end", loss * (len(own.t) / total)

    @torch.no_grad()
    def teach(self, batch: Batch, share: float) -> dict[str, torch.Tensor]:
        """What the losses at this share need of the teacher: the student's channels at all borders, the output, or nothing."""
        if share < 1:
            seen = trace(self.teacher, batch.x_t, batch.t, batch.labels)
            return {name: kept_part(name, tensor, self.kept) for name, tensor in seen.items()}
        if not self.settings["output_weight"]:
            return {}
        return {"output": predict(self.teacher, batch.x_t, batch.t, batch.labels)}

    def spread(self, seen: dict[str, torch.Tensor], stage: torch.Tensor, present: set[int]) -> Spread:
        """Variances of the blocks' outputs over the batch of all processes, in which the stages `present` occur."""
        parts: dict[tuple[str, int], torch.Tensor] = {}
        for border in self.borders:
            for index, block in enumerate(student_blocks(self.student, border)):
                if present & {*block.stages}:
                    rows = rows_of(stage, block.stages)
                    parts.update({(name, index): seen[name][rows] for name in border.outputs})
        return dict(zip(parts, joint_variances([*parts.values()]), strict=True))

    def block_loss(
        self,
        border: Border,
        seen: dict[str, torch.Tensor],
        stage: torch.Tensor,
        total: int | None = None,
        spread: Spread | None = None,
    ) -> torch.Tensor:
        """NMSE of the student's blocks at one border; a decoder's block counts by the samples of its stage.

        Args:
            total, spread: samples in the batch of all processes and its variances, when `seen` is one process's share of it.
        """
        total = total or len(stage)
        loss = torch.zeros((), device=stage.device)
        for index, block in enumerate(student_blocks(self.student, border)):
            rows = rows_of(stage, block.stages)
            if len(rows):
                predicted = run_block(border.kind, block.module, [seen[name][rows] for name in border.inputs])
                taught = [seen[name][rows] for name in border.outputs]
                variances = None if spread is None else [spread[name, index] for name in border.outputs]
                loss = loss + nmse(predicted, taught, variances) * len(rows) / total
        return loss

    def output_loss(self, batch: Batch, taught: torch.Tensor | None) -> torch.Tensor:
        """L_noise + lambda L_output; `taught` is the teacher's prediction, not needed when lambda is 0."""
        prediction = predict(self.student, batch.x_t, batch.t, batch.labels).float()
        loss, weight = F.mse_loss(prediction, batch.target), self.settings["output_weight"]
        return loss + weight * F.mse_loss(prediction, taught.float()) if weight and taught is not None else loss
