"""How much weaker the student's images are than the teacher's, by frequency and noise level: the table of a Calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stages.datasets.training import TrainingSet
from stages.diffusion.losses import Batch, NoisyBatches, predict
from stages.diffusion.process import Process
from stages.diffusion.seeds import generator_for
from stages.models.multi_decoder_unet import bands, calibrate, cosine_basis
from stages.models.pipelines import is_class_conditional

EDGES = [1 / 16, 1 / 8, 1 / 4, 1 / 2]
LEVELS = 18  # noise levels in all stages together, at least three in each
SAMPLES = 256  # of each
MEAN_IMAGES = 4096
FINER = 4  # timesteps of the table for each that is measured
MOST = 1.5  # gains are in [1 / MOST, MOST]


def calibrate_student(student: Any, teacher: Any, data: TrainingSet, process: Process, seed: int) -> None:
    """Measure and set the Calibration of a multi-decoder UNet or of separate ones, in place; see `calibration_table`."""
    mean, stages = mean_image(data, seed), process.edges(student.config["boundaries"])
    table = calibration_table(student.eval(), teacher.eval(), data, process, stages, mean, seed)
    calibrate(student, table, mean)


def mean_image(data: TrainingSet, seed: int) -> torch.Tensor:
    """The mean of at most 4,096 training images, C,H,W."""
    rows = torch.randperm(len(data), generator=generator_for(seed, "calibration", 0))[:MEAN_IMAGES]
    total = sum(data.x0(some).double().sum(0) for some in rows.split(SAMPLES))
    assert isinstance(total, torch.Tensor)
    return (total / len(rows)).float()


@torch.no_grad()
def calibration_table(
    student: Any,
    teacher: Any,
    data: TrainingSet,
    process: Process,
    stages: Sequence[Sequence[float]],
    mean: torch.Tensor,
    seed: int,
) -> dict[str, Any]:
    """The table that undoes the shrinkage of a retrained student.

    Trained by mean square error, a net of less capacity regresses to the mean: its image, less the mean image, is on average
    slope < 1 times the teacher's, S = slope T + error. The slope of each frequency band is the least squares one over noised
    training images, and its inverse the gain. A sampler adds such errors up, as they are alike at all steps.

    Args:
        student, teacher: nets in eval mode on one device, the student without a calibration.
        stages: [lo, hi) of t in every stage; between two levels of one stage gains are linear in t.
        mean: the mean image.
    """
    count, device, labels = (
        max(3, LEVELS // len(stages)),
        next(teacher.parameters()).device,
        is_class_conditional(teacher),
    )
    rows: list[tuple[float, list[float]]] = []
    for number, (lo, hi) in enumerate(stages):
        found: list[tuple[float, list[float]]] = []
        for level in range(count):
            t = process.as_t(lo + (hi - lo) * (level + 0.5) / count)
            at_t: dict[str, Any] = {"labels": labels, "stages": [[t, process.above(t)]], "probabilities": [1.0]}
            batch = NoisyBatches(data, process, SAMPLES, device, **at_t)(
                generator_for(seed, "calibration", 1 + number * count + level)
            )
            found.append((float(t), gains(*(strengths(net, batch, process, mean) for net in (student, teacher)))))
        last = min(float(hi), float(process.at_share(1)))
        rows += [(float(lo), found[0][1]), *found, (last, found[-1][1])]
    return finer(rows, process)


def strengths(net: Any, batch: Batch, process: Process, mean: torch.Tensor) -> torch.Tensor:
    """Cosine coefficients N,C,H,W of the difference between a net's images and the mean image, for a batch of one t."""
    p, q = (float(factor[0]) for factor in process.image_factors(batch.t[:1]))
    images = (p * predict(net, batch.x_t, batch.t, batch.labels) + q * batch.x_t).cpu()
    vertical, horizontal = (cosine_basis(side) for side in mean.shape[1:])
    return vertical @ (images - mean) @ horizontal.T


def finer(rows: list[tuple[float, list[float]]], process: Process) -> dict[str, Any]:
    """The table with timesteps between those measured, as p and q are not linear between them."""
    known = np.array([t for t, _ in rows])
    table = np.array([gains for _, gains in rows])
    # Positions, not timesteps, are divided: a timestep that is there twice stays so.
    places = np.linspace(0, len(rows) - 1, FINER * (len(rows) - 1) + 1)
    times = np.array([process.as_t(t) for t in np.interp(places, np.arange(len(rows)), known)], dtype=np.float64)
    p, q = process.image_factors(torch.from_numpy(times))
    columns = [np.interp(places, np.arange(len(rows)), column) for column in table.T]
    return {
        "timesteps": times.tolist(),
        "prediction": p.tolist(),
        "sample": q.tolist(),
        "edges": EDGES,
        "gains": np.stack(columns, 1).tolist(),
    }


def gains(student: torch.Tensor, teacher: torch.Tensor) -> list[float]:
    """The inverse slope of the student's coefficients on the teacher's, both N,C,H,W, per band; 1 for an empty band."""
    products, squares = (student * teacher).sum((0, 1)), teacher.square().sum((0, 1))
    band, found = bands(student.shape[2], student.shape[3], EDGES), []
    for number in range(len(EDGES) + 2):
        inside = band == number
        slope = float(products[inside].sum() / squares[inside].sum()) if inside.any() else 1.0
        found.append(float(np.clip(1 / slope, 1 / MOST, MOST)) if slope > 0 else MOST)
    return found
