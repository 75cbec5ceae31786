"""How much too weak a student's images are, by frequency and noise level: what its Calibration undoes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from stages.clustering.denoiser import OptimalDenoiser
from stages.datasets.training import TrainingSet
from stages.device import images_at_once
from stages.diffusion.losses import Batch, NoisyBatches, predict
from stages.diffusion.process import Process, make_process
from stages.diffusion.sampling import Sampler
from stages.diffusion.seeds import generator_for
from stages.models.autoencoder import decode
from stages.models.multi_decoder_unet import bands, calibrate, cosine_basis
from stages.models.pipelines import is_class_conditional
from stages.progress import Progress

EDGES = [1 / 16, 1 / 8, 1 / 4, 1 / 2]
LEVELS = 18  # noise levels in all stages together, at least three in each
CHUNK = 512  # images read at once
FINER = 4  # timesteps of the table for each that is measured
MOST = 1.5  # gains are in [1 / MOST, MOST]
ROUNDS = 2  # times that images are drawn to match their power
RESPONSE = 6.0  # expected change of log power over that of all gains in the first round; 3 to 9 measured
FURTHEST = 0.05  # change of the logarithm of gains in a round

Row = tuple[float, list[float]]  # t and its gains


def calibrate_student(
    student: Any,
    teacher: Any,
    data: TrainingSet,
    params: dict[str, Any],
    vae: Any = None,
    restarts: Sequence[float] = (),
    stated: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure and set the Calibration of a multi-decoder UNet or of separate ones, in place.

    Args:
        teacher: on the device to compute on, as the student.
        params: as the stage `retrain` gets them.
        vae: the autoencoder whose latents `data` are.
        restarts: see Sampler.
        stated: the scheduler config of a given teacher, as in `Process`.

    Returns:
        Its table, and `images_per_stage`, the noised images that each stage was measured with, `images_drawn` and `powers`: see
        `Calibrator.matched`.
    """
    settings, process = params["retrain"], make_process(params["diffusion"], stated)
    calibrator = Calibrator(teacher, data, process, settings, params["seed"])
    stages = process.edges(student.config["boundaries"])
    sampler = Sampler.of(
        params,
        data.shape,
        calibrator.device,
        settings["batch_size"],
        restarts=restarts,
        decode=None if vae is None else partial(decode, vae),
        labels=data.labels if is_class_conditional(teacher) else None,
        stated=stated,
    )

    def calibrated(table: dict[str, Any]) -> Any:
        calibrate(student, table, calibrator.mean)
        return student

    table, powers = calibrator.matched(calibrator.table(student.eval(), stages), calibrated, sampler)
    calibrated(table)
    drawn = len(powers) * settings["calibration_samples"]
    return table | {"images_per_stage": levels_of(stages) * calibrator.draws, "images_drawn": drawn, "powers": powers}


def levels_of(stages: Sequence[Sequence[float]]) -> int:
    """Noise levels in each stage at which gains are measured."""
    return max(3, LEVELS // len(stages))


class Calibrator:
    """Finds the gains that undo the shrinkage of nets trained by mean square error.

    Such a net regresses to the mean where its capacity ends: less the mean image, its image is on average slope < 1 times what
    it should be, S = slope R + error, and the sampler adds that up, as it is alike at all steps. The gain of a frequency band is
    1 / slope, over noised training images. With `teacher`, R is the teacher's image T, and the slope that of least squares,
    <S, T> / <T, T>.

    With `data`, R is the image O of the training set's optimal denoiser (OptimalDenoiser), each draw's own image left out of
    it, at noise levels at which O is nearer to the true images x0 than T is. There the teacher is too weak itself. As O has an
    error of its own, the slope is the ratio <S, x0> / <O, x0>, in which that error has no part. At other levels R is T.

    That holds on noised training images. A sampler's differ, being made of the net's own, and what it ends with is still too
    weak; `matched` finds what the gains lack for that.

    Args:
        teacher: the teacher in eval mode, on the device to compute on.
        settings: the `retrain` section of the params: what to `calibrate` against, `teacher` or `data`, and
            `calibration_draws`, the noised images at each noise level, and `calibration_samples`, the images that `matched`
            draws.
    """

    def __init__(self, teacher: Any, data: TrainingSet, process: Process, settings: dict[str, Any], seed: int) -> None:
        self.teacher, self.data, self.process, self.seed = teacher.eval(), data, process, seed
        self.draws = settings["calibration_draws"]
        self.samples = settings["calibration_samples"] if settings["calibrate"] == "data" else 0
        images = torch.cat([data.x0(rows).flatten(1) for rows in torch.arange(len(data)).split(CHUNK)])
        self.device = next(teacher.parameters()).device
        self.denoiser = OptimalDenoiser(images.numpy(), device=self.device) if settings["calibrate"] == "data" else None
        self.mean = images.mean(0, dtype=torch.float64).float().view(data.shape)
        strengths = (self._strengths(part.view(-1, *data.shape)) for part in images.split(CHUNK))
        self.power = np.concatenate([power_of(part) for part in strengths]).mean(0)

    @torch.no_grad()
    def table(self, student: Any, stages: Sequence[Sequence[float]]) -> dict[str, Any]:
        """The table of a student's Calibration.

        Args:
            student: a net in eval mode without one, beside the teacher.
            stages: [lo, hi) of t in every stage; between two levels of one stage gains are linear in t.
        """
        count, rows = levels_of(stages), []
        for number, (lo, hi) in enumerate(stages):
            shares = (np.arange(count) + 0.5) / count
            last = min(float(hi), float(self.process.at_share(1)))
            # A narrow stage has fewer timesteps than levels, and the first of the next one is not its own.
            levels = dict.fromkeys(self.process.as_t(lo + (hi - lo) * float(share)) for share in shares)
            times = [t for t in levels if t < hi]
            found = [self._row(student, t, number * count + level) for level, t in enumerate(times)]
            rows += [(float(lo), found[0][1]), *found, (last, found[-1][1])]
        return finer(rows, self.process)

    def matched(
        self, table: dict[str, Any], calibrated: Callable[[dict[str, Any]], Any], sampler: Sampler
    ) -> tuple[dict[str, Any], list[list[float]]]:
        """The table with one more factor per band, with which drawn images have the power that training images have in it.

        Args:
            calibrated: gives the net with the Calibration of a table.
            sampler: draws the images, of negative numbers: those of no evaluation.

        Returns:
            The table, and for each round the power of the images drawn in it, as shares of the training images'. No rounds,
            and the table as it was, when `calibration_samples` is 0 or it is calibrated to the teacher.
        """
        factors, powers = np.zeros(len(EDGES) + 2), list[Any]()
        response, moved, chance = np.full(len(factors), RESPONSE), factors, factors
        for _ in range(ROUNDS if self.samples else 0):
            contributed = self._drawn_powers(calibrated(scaled(table, np.exp(factors))), sampler)
            powers.append(shares_of(contributed.mean(0), self.power))
            excess = np.log(powers[-1])
            if len(powers) == 1:
                chance = excess - missing_power(contributed, self.power)
            else:
                change = excess - np.log(powers[-2])
                response = np.divide(change, moved, out=response, where=moved != 0).clip(RESPONSE / 3, RESPONSE * 3)
            moved = ((chance - excess) / response).clip(-FURTHEST, FURTHEST)
            factors = factors + moved
        return scaled(table, np.exp(factors)), [power.tolist() for power in powers]

    def _drawn_powers(self, net: Any, sampler: Sampler) -> np.ndarray:
        parts, progress = [], Progress("sampling for the calibration", self.samples)
        for first in range(0, self.samples, sampler.batch_size):
            numbers = range(first, min(first + sampler.batch_size, self.samples))
            images = sampler.draw_undecoded(net, [-1 - number for number in numbers])
            parts.append(power_of(self._strengths(images if sampler.decode else images.clamp(-1, 1))))
            progress.update(numbers.stop)
        return np.concatenate(parts)

    def _row(self, student: Any, t: float, number: int) -> Row:
        labels, only = is_class_conditional(self.teacher), [[t, self.process.above(t)]]
        batches = NoisyBatches(
            self.data, self.process, self.draws, self.device, labels=labels, stages=only, probabilities=[1.0]
        )
        batch = batches(generator_for(self.seed, "calibration", number))
        p, q = (float(factor[0]) for factor in self.process.image_factors(batch.t[:1]))
        ours, theirs = (
            self._strengths(p * self._predicted(net, batch) + q * batch.x_t) for net in (student, self.teacher)
        )
        if self.denoiser:
            images = p * batch.target + q * batch.x_t
            truth, best = self._strengths(images), self._strengths(self._denoised(self.denoiser, batch, images))
            if (best - truth).square().mean() <= (theirs - truth).square().mean():
                return float(t), gains(best * truth, ours * truth)
        return float(t), gains(theirs * theirs, ours * theirs)

    def _predicted(self, net: Any, batch: Batch) -> torch.Tensor:
        at_once = images_at_once(self.draws, *self.mean.shape[1:])
        parts = [batch.rows(slice(start, start + at_once)) for start in range(0, self.draws, at_once)]
        return torch.cat([predict(net, part.x_t, part.t, part.labels) for part in parts])

    def _denoised(self, denoiser: OptimalDenoiser, batch: Batch, images: torch.Tensor) -> torch.Tensor:
        s, sigma = (float(value[0]) for value in self.process.scale_sigma(batch.t[:1]))
        z, own = ((x / scale).cpu().flatten(1).numpy() for x, scale in ((batch.x_t, s), (images, 1.0)))
        return torch.from_numpy(denoiser(z, sigma, own)).view(images.shape)

    def _strengths(self, images: torch.Tensor) -> torch.Tensor:
        """Cosine coefficients N,C,H,W of the difference from the mean image."""
        vertical, horizontal = (cosine_basis(side) for side in self.mean.shape[1:])
        return vertical @ (images.cpu() - self.mean) @ horizontal.T


def power_of(strengths: torch.Tensor) -> np.ndarray:
    """Sums of squares per band, (N, bands), of cosine coefficients N,C,H,W."""
    return (strengths.double().square().sum(1).flatten(1) @ members_of(*strengths.shape[2:])).numpy()


def members_of(height: int, width: int) -> torch.Tensor:
    """(H W, bands): 1 where a coefficient is in a band, otherwise 0."""
    return torch.nn.functional.one_hot(bands(height, width, EDGES).flatten(), len(EDGES) + 2).double()


def shares_of(power: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`power` over `wanted` (bands,); 1 where either is 0, as in an empty band."""
    known = (power > 0) & (wanted > 0)
    return np.divide(power, wanted, out=np.ones_like(power), where=known)


def missing_power(contributed: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Logarithm of the power of N images (N, bands) over the wanted (bands,), faded where it may be chance as `gains` are."""
    share = shares_of(contributed.mean(0), wanted)
    error = np.divide(contributed.std(0), contributed.mean(0), out=np.zeros_like(share), where=share != 1)
    excess, variance = np.log(share), error**2 / len(contributed)
    return excess * np.divide(excess**2, excess**2 + variance, out=np.zeros_like(share), where=excess != 0)


def scaled(table: dict[str, Any], factors: np.ndarray) -> dict[str, Any]:
    """The table with the gains of all timesteps times a factor per band, within limits."""
    return table | {"gains": np.clip(np.array(table["gains"]) * factors, 1 / MOST, MOST).tolist()}


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
    members = members_of(*wanted.shape[2:])
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
