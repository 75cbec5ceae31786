"""Few timesteps and stages of one of them: nothing is out of range, and all is finite."""

import json

import numpy as np
import pytest
import torch
import yaml
from helpers import ROOT, run_stages, tiny_unet

from stages.clustering.stages import cluster
from stages.config import validate_params
from stages.datasets.training import TrainingSet
from stages.diffusion.process import make_process
from stages.models.multi_decoder_unet import Calibration
from stages.models.pipelines import load_student
from stages.training.calibration import Calibrator

# What makes a run short, by section of the params.
SHORT = {
    "train_teacher": {"steps": 2, "warmup_steps": 1, "batch_size": 8},
    "train_extractor": {"steps": 4, "batch_size": 8},
    "cluster_timesteps": {"grid": 10, "draws": 32},
    "cache_features": {"triples_per_stage": 16, "shard_size": 16, "batch_size": 8},
    "search_block": {
        "steps": 2,
        "warmup_steps": 1,
        "batch_size": 4,
        "candidates": 6,
        "local_triples": 4,
        "output_triples": 2,
    }
    | {"output_candidates": 3},
    "assemble": {"macs": 1.0, "params": 3.0, "params_active": 1.0},
    "retrain": {"steps": 2, "warmup_steps": 1, "batch_size": 4, "calibration_draws": 4, "calibration_samples": 4},
    "evaluate": {"samples": 64, "kid_subset_size": 32, "speed_batch": 2, "speed_repeats": 1},
}


@pytest.fixture
def data(digits):
    return TrainingSet.of_images(digits)


# --- The calibration of narrow stages ---


@pytest.mark.parametrize(
    ("timesteps", "boundaries"),
    [
        (100, [94]),
        (1000, [995]),
        (1000, [999]),
        (1000, [1]),
        (1000, [950]),
        (16, [5]),
        (16, [14, 15]),
        (2, [1]),
        (2, []),
    ],
)
def test_every_timestep_of_narrow_stages_is_calibrated_by_its_own_stage(
    data, diffusion_settings, timesteps, boundaries
):
    process, teacher = make_process(diffusion_settings | {"num_train_timesteps": timesteps}), tiny_unet()
    how = {"calibrate": "teacher", "calibration_draws": 2, "calibration_samples": 0}
    calibrator, stages = Calibrator(teacher, data, process, how, 0), process.edges(boundaries)
    measured = []

    def row(student, t, number):
        stage = sum(t >= boundary for boundary in boundaries)
        measured.append((stage, t))
        return float(t), [1 + stage / 10] * 6

    calibrator._row = row
    table = calibrator.table(teacher, stages)
    assert len({*measured}) == len(measured)
    assert {stage for stage, _ in measured} == {*range(len(stages))}
    calibration = Calibration(table, (1, 8, 8))
    t = torch.arange(timesteps)
    gains = calibration.at(t)[:, 2:]
    wanted = 1 + torch.bucketize(t.float(), torch.tensor(boundaries, dtype=torch.float32), right=True)[:, None] / 10
    torch.testing.assert_close(gains, wanted.expand_as(gains))
    p, q = process.image_factors(torch.tensor(table["timesteps"]))
    assert (p.tolist(), q.tolist()) == (table["prediction"], table["sample"])


def test_neighbours_leave_no_middle_stage(digits, diffusion_settings, monkeypatch):
    monkeypatch.setattr("stages.clustering.stages.threshold_boundaries", lambda *_: (7, 8))
    how = {"method": "threshold", "stages": 3, "boundaries": None, "seeds": 1, "boundaries_in": "t", "grid": 3}
    how |= {"draws": 30, "eta": 0.4, "alpha": 0.9, "literal": False}
    with pytest.raises(ValueError, match=r"7 and 8 are neighbours and leave no middle stage; raise alpha or lower eta"):
        cluster(digits.reshape(64, -1).astype(np.float32) / 255, make_process(diffusion_settings), how, 0)


# --- Whole runs ---


@pytest.mark.parametrize(
    ("diffusion", "clustering", "sampling"),
    [
        ({"num_train_timesteps": 16}, {"stages": 3, "boundaries": [14, 15]}, {"scheduler": "dpm_solver", "steps": 15}),
    ],
    ids=["16-timesteps"],
)
def test_a_run_with_a_last_stage_of_one_timestep_ends(tmp_path, diffusion, clustering, sampling):
    params = yaml.safe_load((ROOT / "presets" / "smoke.yaml").read_text()) | {"device": "cpu"}
    changes = {"diffusion": diffusion, "cluster_timesteps": {"method": "given"} | clustering, "sampling": sampling}
    for part in (SHORT, changes):
        for section, values in part.items():
            params[section] |= values
    validate_params(params, "params.yaml")
    run_stages(tmp_path, params)
    results = tmp_path / "results"
    architecture = json.loads((results / "architecture.json").read_text())
    assert architecture["steps_per_stage"][-1] == 1 and sum(architecture["steps_per_stage"]) == sampling["steps"]
    student, process = load_student(results / "student"), make_process(params["diffusion"])
    t = torch.tensor([0, process.high - 2, process.high - 1])
    x = process.noise(torch.zeros(3, 1, 8, 8), torch.randn(3, 1, 8, 8), t)
    with torch.no_grad():
        assert student(x, t).sample.isfinite().all()
    assert (results / "report.html").stat().st_size > 10_000
