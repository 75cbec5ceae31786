"""The dynamic joint loss of DiffNAS (arXiv 2311.04950, section 3.3) on a multi-decoder student."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from stagecraft.config.sections import Retrain
from stagecraft.diffusion.batches import Batch, NoisyBatches
from stagecraft.diffusion.losses import joint_variances, nmse, predict
from stagecraft.networks.families import family_of
from stagecraft.networks.family import Module, Site
from stagecraft.networks.stream import kept_channels, kept_part
from stagecraft.runtime.device import autocast
from stagecraft.runtime.processes import own_rows, world_size
from stagecraft.training.schedule import end_to_end_share

JACOBIAN_STEP = (
    0.1  # along a direction of unit variance a pixel; x_t has about as much. Smaller ones drown in bfloat16.
)
# By tensor and, for a block of the decoder, its range among the block's.
Variances = dict[tuple[str, int], torch.Tensor]


def rows_of(interval: torch.Tensor, intervals: Sequence[int]) -> torch.Tensor:
    """The rows of a batch, whose intervals are given (N,), that fall into some of them."""
    return torch.isin(interval, torch.tensor(intervals, device=interval.device)).nonzero().flatten()


class JointLoss:
    """L = (1-a) sum_b NMSE_b + a (L_noise + lambda L_output + mu L_jacobian), for the training loop.

    In the first part every block gets the teacher's inputs and skips, so gradients stay inside a block; in the second the student
    runs end to end, L_noise against the process's target and L_output against the teacher's prediction (both MSE). L_jacobian is
    the MSE of the student's and the teacher's Jacobian-vector products along a random direction (2ndMatch, CVPR 2026), as
    difference quotients.

    Args:
        settings: the `retrain` section of the params; `output_weight` is lambda, `jacobian_weight` mu.
    """

    def __init__(
        self,
        student: Module,
        teacher: Module,
        batches: NoisyBatches,
        settings: Retrain,
        precision: str,
    ) -> None:
        self.student = student
        self.teacher = teacher.requires_grad_(False)
        self.batches = batches
        self.settings = settings
        self.precision = precision
        self.family = family_of(teacher)
        self.sites = self.family.sites(teacher)
        self.kept = kept_channels(teacher, student.config.get("architecture", {}).get("stream"))

    def __call__(self, step: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
        batch = self.batches(generator)
        rows = own_rows(len(batch.t))
        total = len(batch.t)
        own = batch.rows(rows)
        share = end_to_end_share(step, self.settings.steps, self.settings)
        # Losses go backward while this generator waits within the context, so that casts of all weights would stay that long.
        with autocast(own.x_t.device, self.precision, cached=not self.settings.gradient_checkpointing):
            seen = self.teach(own, share)
            if share < 1:
                interval = self.student.interval_of(batch.t)
                variances = (
                    self.output_variances(seen, interval[rows], {*interval.tolist()}) if world_size() > 1 else None
                )
                losses = [self.block_loss(site, seen, interval[rows], total, variances) for site in self.sites]
                yield "blocks", (1 - share) * torch.stack(losses).sum()
            if share > 0:
                direction = self.draw_direction(batch, generator, rows)
                loss = share * self.end_to_end_loss(own, seen.get("output"), direction)
                yield "end_to_end", loss * (len(own.t) / total)

    @torch.no_grad()
    def teach(self, batch: Batch, share: float) -> dict[str, torch.Tensor]:
        """What the losses at this share need of the teacher: the student's channels at all sites, the output, or nothing."""
        if share < 1:
            seen = self.family.trace(self.teacher, batch.x_t, batch.t, batch.condition)
            return {name: kept_part(name, tensor, self.kept) for name, tensor in seen.items()}
        if not (self.settings.output_weight or self.settings.jacobian_weight):
            return {}
        return {"output": predict(self.teacher, batch.x_t, batch.t, batch.condition)}

    def output_variances(self, seen: dict[str, torch.Tensor], interval: torch.Tensor, present: set[int]) -> Variances:
        """Variances of the blocks' outputs over the batch of all processes, in which the intervals `present` occur."""
        parts: dict[tuple[str, int], torch.Tensor] = {}
        for site in self.sites:
            for index, block in enumerate(self.family.blocks(self.student, site)):
                if present & {*block.intervals}:
                    rows = rows_of(interval, block.intervals)
                    parts.update({(name, index): seen[name][rows] for name in site.writes})
        return dict(zip(parts, joint_variances([*parts.values()]), strict=True))

    def block_loss(
        self,
        site: Site,
        seen: dict[str, torch.Tensor],
        interval: torch.Tensor,
        total: int | None = None,
        variances: Variances | None = None,
    ) -> torch.Tensor:
        """NMSE of the student's blocks at one site; a decoder's block counts by the samples of its interval.

        Args:
            total, variances: samples in the batch of all processes and its variances, when `seen` is one process's share of it.
        """
        total = total or len(interval)
        loss = torch.zeros((), device=interval.device)
        for index, block in enumerate(self.family.blocks(self.student, site)):
            rows = rows_of(interval, block.intervals)
            if len(rows):
                predicted = self.family.run(site, block.module, [seen[name][rows] for name in site.reads])
                taught = [seen[name][rows] for name in site.writes]
                known = None if variances is None else [variances[name, index] for name in site.writes]
                loss = loss + nmse(predicted, taught, known) * len(rows) / total
        return loss

    def draw_direction(self, batch: Batch, generator: torch.Generator, rows: slice) -> torch.Tensor | None:
        """This process's rows of a random direction for every sample, of the shape of x_t; None where nothing asks for one."""
        if not self.settings.jacobian_weight:
            return None
        return torch.randn(batch.x_t.shape, generator=generator)[rows].to(batch.x_t.device)

    def end_to_end_loss(
        self, batch: Batch, taught: torch.Tensor | None, direction: torch.Tensor | None = None
    ) -> torch.Tensor:
        """L_noise + lambda L_output + mu L_jacobian; `taught` is the teacher's prediction, needed where lambda or mu is not 0."""
        prediction = predict(self.student, batch.x_t, batch.t, batch.condition).float()
        loss = F.mse_loss(prediction, batch.target)
        if taught is not None and self.settings.output_weight:
            loss = loss + self.settings.output_weight * F.mse_loss(prediction, taught.float())
        if taught is not None and direction is not None:
            jacobian = self.jacobian_loss(batch, prediction, taught.float(), direction)
            loss = loss + self.settings.jacobian_weight * jacobian
        return loss

    def jacobian_loss(
        self, batch: Batch, prediction: torch.Tensor, taught: torch.Tensor, direction: torch.Tensor
    ) -> torch.Tensor:
        """MSE of the two networks' Jacobian-vector products at x_t, where they predict `prediction` and `taught`."""
        moved = batch.x_t + JACOBIAN_STEP * direction
        with torch.no_grad():
            wanted = predict(self.teacher, moved, batch.t, batch.condition).float() - taught
        change = predict(self.student, moved, batch.t, batch.condition).float() - prediction
        return F.mse_loss(change / JACOBIAN_STEP, wanted / JACOBIAN_STEP)
