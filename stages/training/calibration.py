"""How much too weak a student's images are, by frequency and noise level: what its Calibration undoes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stages.clustering.denoiser import OptimalDenoiser
from stages.datasets.training import TrainingSet
from stages.diffusion.losses import Batch, NoisyBatches, predict
from stages.diffusion.process import Process
from stages.diffusion.seeds import generator_for
from stages.models.multi_decoder_unet import bands, calibrate, cosine_basis
from stages.models.pipelines import is_class_conditional

EDGES = [1 / 16, 1 / 8, 1 / 4, 1 / 2]
LEVELS = 18  # noise levels in all stages together, at least three in each
CHUNK = 512  # images read at once
FINER = 4  # timesteps of the table for each that is measured
MOST = 1.5  # gains are in [1 / MOST, MOST]

Row = tuple[float, list[float]]  # t and its gains


def calibrate_student(
    student: Any, teacher: Any, data: TrainingSet, process: Process, settings: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Measure and set the Calibration of a multi-decoder UNet or of separate ones, in place. Returns its table."""
    calibrator = Calibrator(teacher, data, process, settings, seed)
    table = calibrator.table(student.eval(), process.edges(student.config["boundaries"]))
    calibrate(student, table, calibrator.mean)
    return table


class Calibrator:
    """Finds the gains that undo the shrinkage of nets trained by mean square error.

    Such a net regresses to the mean where its capacity ends: less the mean image, its image is on average slope < 1 times what
    it should be, S = slope R + error, and the sampler adds that up, as it is alike at all steps. The gain of a frequency band is
    1 / slope, over noised training images. With `teacher`, R is the teacher's image T, and the slope that of least squares,
    <S, T> / <T, T>.

    With `data`, R is the image O of the training set's optimal denoiser (OptimalDenoiser), each draw's own image left out of
    it, at noise levels at which O is nearer to the true images x0 than T is. There the teacher is too weak itself. As O has an
    error of its own, the slope is the ratio <S, x0> / <O, x0>, in which that error has no part. At other levels R is T.

    Args:
        teacher: the teacher in eval mode, on the device to compute on.
        settings: the `retrain` section of the params: what to `calibrate` against, `teacher` or `data`, and
            `calibration_draws`, the noised images at each noise level.
    """

    def __init__(self, teacher: Any, data: TrainingSet, process: Process, settings: dict[str, Any], seed: int) -> None:
        self.teacher, self.data, self.process, self.seed = teacher.eval(), data, process, seed
        self.draws = settings["calibration_draws"]
        images = torch.cat([data.x0(rows).flatten(1) for rows in torch.arange(len(data)).split(CHUNK)])
        self.device = next(teacher.parameters()).device
        self.denoiser = OptimalDenoiser(images.numpy(), device=self.device) if settings["calibrate"] == "data" else None
        self.mean = images.mean(0, dtype=torch.float64).float().view(data.shape)

    @torch.no_grad()
    def table(self, student: Any, stages: Sequence[Sequence[float]]) -> dict[str, Any]:
        """The table of a student's Calibration.

        Args:
            student: a net in eval mode without one, beside the teacher.
            stages: [lo, hi) of t in every stage; between two levels of one stage gains are linear in t.
        """
        count, rows = max(3, LEVELS // len(stages)), []
        for number, (lo, hi) in enumerate(stages):
            shares = (np.arange(count) + 0.5) / count
            times = [self.process.as_t(lo + (hi - lo) * float(share)) for share in shares]
            found = [self._row(student, t, number * count + level) for level, t in enumerate(times)]
            last = min(float(hi), float(self.process.at_share(1)))
            rows += [(float(lo), found[0][1]), *found, (last, found[-1][1])]
        return finer(rows, self.process)

    def _row(self, student: Any, t: float, number: int) -> Row:
        labels, only = is_class_conditional(self.teacher), [[t, self.process.above(t)]]
        batches = NoisyBatches(
            self.data, self.process, self.draws, self.device, labels=labels, stages=only, probabilities=[1.0]
        )
        batch = batches(generator_for(self.seed, "calibration", number))
        p, q = (float(factor[0]) for factor in self.process.image_factors(batch.t[:1]))
        ours, theirs = (
            self._strengths(p * predict(net, batch.x_t, batch.t, batch.labels) + q * batch.x_t)
            for net in (student, self.teacher)
        )
        if self.denoiser:
            images = p * batch.target + q * batch.x_t
            truth, best = self._strengths(images), self._strengths(self._denoised(self.denoiser, batch, images))
            if (best - truth).square().mean() <= (theirs - truth).square().mean():
                return float(t), gains(best * truth, ours * truth)
        return float(t), gains(theirs * theirs, ours * theirs)

    def _denoised(self, denoiser: OptimalDenoiser, batch: Batch, images: torch.Tensor) -> torch.Tensor:
        s, sigma = (float(value[0]) for value in self.process.scale_sigma(batch.t[:1]))
        z, own = ((x / scale).cpu().flatten(1).numpy() for x, scale in ((batch.x_t, s), (images, 1.0)))
        return torch.from_numpy(denoiser(z, sigma, own)).view(images.shape)

    def _strengths(self, images: torch.Tensor) -> torch.Tensor:
        """Cosine coefficients N,C,H,W of the difference from the mean image."""
        vertical, horizontal = (cosine_basis(side) for side in self.mean.shape[1:])
        return vertical @ (images.cpu() - self.mean) @ horizontal.T


def finer(rows: list[Row], process: Process) -> dict[str, Any]:
    """The table with timesteps between those measured, as p and q are not linear between them."""
    known, measured = np.array([t for t, _ in rows]), np.array([gains for _, gains in rows])
    # Positions, not timesteps, are divided: a timestep that is there twice stays so.
    given = np.arange(len(rows))
    places = np.linspace(0, len(rows) - 1, FINER * (len(rows) - 1) + 1)
    times = np.array([process.as_t(t) for t in np.interp(places, given, known)], dtype=np.float64)
    p, q = process.image_factors(torch.from_numpy(times))
    return {
        "timesteps": times.tolist(),
        "prediction": p.tolist(),
        "sample": q.tolist(),
        "edges": EDGES,
        "gains": np.stack([np.interp(places, given, column) for column in measured.T], 1).tolist(),
    }


def gains(wanted: torch.Tensor, found: torch.Tensor) -> list[float]:
    """Ratios per band of the sums over two N,C,H,W, within limits; 1 where a band is empty or a sum says nothing.

    What a ratio r = sum w / sum f has beyond 1 fades where it may be chance, by d^2 / (d^2 + v): d = r - 1, and
    v = sum (w - r f)^2 / (sum f)^2 is the variance of r, w and f being what the N draws contribute.
    """
    band = bands(wanted.shape[2], wanted.shape[3], EDGES)
    members = torch.nn.functional.one_hot(band.flatten(), len(EDGES) + 2).double()
    high, low = (x.double().sum(1).flatten(1) @ members for x in (wanted, found))
    return [faded(*pair) for pair in zip(high.T, low.T, strict=True)]


def faded(w: torch.Tensor, f: torch.Tensor) -> float:
    """The gain of one band from what the draws contribute to both sums, (N,) each."""
    if w.sum() <= 0 or f.sum() <= 0:
        return 1.0
    ratio = w.sum() / f.sum()
    excess, variance = ratio - 1, ((w - ratio * f) / f.sum()).square().sum()
    kept = excess**2 / (excess**2 + variance) if excess else excess
    return float(np.clip(1 + float(excess * kept), 1 / MOST, MOST))
