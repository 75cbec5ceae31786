"""Few timesteps, intervals of one of them, and a last timestep of noise alone: nothing is out of range, and all is finite."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import preset_params, run_stages, section_with

from stagecraft.clustering.cluster import cluster
from stagecraft.clustering.denoiser import OptimalDenoiser
from stagecraft.config.sections import ClusterTimesteps
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.registry import make_process
from stagecraft.evaluation.fewer_steps import nearest_steps
from stagecraft.networks.pipelines import load_student
from stagecraft.preflight.params import validate_params
from stagecraft.report.page import interval_table

# What makes a run short, by section of the params.
SHORT = {
    "train_teacher": {"steps": 2, "warmup_steps": 1, "batch_size": 8},
    "train_extractor": {"steps": 4, "batch_size": 8},
    "cluster_timesteps": {"grid": 10, "draws": 32},
    "cache_features": {"triples_per_interval": 16, "shard_size": 16, "batch_size": 8},
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
    "retrain": {"steps": 2, "warmup_steps": 1, "batch_size": 4},
    "evaluate": {"samples": 64, "kid_subset_size": 32, "speed_batch": 2, "speed_repeats": 1},
}


@pytest.fixture
def data(digits):
    return TrainingSet.of_images(digits)


@pytest.fixture
def zero_snr(diffusion_settings):
    """Settings of processes whose last timestep is noise alone, by their target."""
    rescaled = diffusion_settings | {"rescale_betas_zero_snr": True}
    return {target: rescaled | {"prediction_type": target} for target in ("v_prediction", "sample")}


# --- A last timestep of noise alone ---


def test_at_the_last_timestep_there_is_nothing_but_noise(zero_snr):
    x0, eps = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)
    t = torch.tensor([0, 998, 999])
    for target, settings in zero_snr.items():
        process = make_process(settings)
        alpha, sigma = process.alpha_sigma(t)
        level = process.noise_level(t)
        assert alpha[2] == 0 and sigma[2] == 1 and sigma.isfinite().all()
        assert level[2] == math.inf and level[:2].isfinite().all()
        assert torch.equal(process.noise(x0, eps, t)[2], eps[2])
        wanted = -x0 if target == "v_prediction" else x0
        assert torch.equal(process.target(x0, eps, t)[2], wanted[2])
        p, q = process.image_factors(t)
        p, q = (factor.reshape(-1, 1, 1, 1) for factor in (p, q))
        image = p * process.target(x0, eps, t) + q * process.noise(x0, eps, t)
        torch.testing.assert_close(image, x0.double(), atol=1e-3, rtol=1e-3)
        assert process.image_factor(t).isfinite().all() and process.image_factor(t)[2] == 1
        assert process.noise_levels([500, 999])[1] is None and json.dumps(
            process.noise_levels([500, 999]), allow_nan=False
        )
        levels = torch.cat([level, torch.tensor([1e9, 1e-9])])
        assert process.t_of(levels).tolist() == [0, 998, 999, 998, 0]


def test_targets_are_those_of_diffusers_schedulers(diffusion_settings, zero_snr):
    from diffusers import DDPMScheduler

    x0, eps, t = torch.randn(4, 1, 4, 4), torch.randn(4, 1, 4, 4), torch.tensor([0, 500, 998, 999])
    for settings in (zero_snr["v_prediction"], diffusion_settings | {"beta_schedule": "sigmoid"}):
        process = make_process(settings)
        reference = DDPMScheduler(**{key: value for key, value in settings.items() if key != "process"})
        torch.testing.assert_close(process.noise(x0, eps, t), reference.add_noise(x0, eps, t), atol=1e-5, rtol=1e-4)
        if settings["prediction_type"] == "v_prediction":
            velocity = reference.get_velocity(x0, eps, t)
            torch.testing.assert_close(process.target(x0, eps, t), velocity, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "target"), [("vp", "epsilon"), ("vp", "v_prediction"), ("edm", None)])
def test_where_no_timestep_is_noise_alone_every_number_is_as_before(settings_of_processes, kind, target):
    """By the formulas of x_t = alpha_t (x0 + level_t eps), what networks see bit for bit."""
    process = make_process(settings_of_processes[kind] | {"prediction_type": target})
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(500, 1, 4, 4, generator=generator) for _ in range(2))
    t = process.draw(500, generator)
    alpha, level = (value.float().reshape(-1, 1, 1, 1) for value in (process.alpha_sigma(t)[0], process.noise_level(t)))
    assert torch.equal(process.noise(x0, eps, t), alpha * x0 + (alpha * level) * eps)
    alpha, level = process.alpha_sigma(t)[0], process.noise_level(t)
    a, b = process.target_factors(alpha, alpha * level)
    if process.name == "vp":
        v = target == "v_prediction"
        assert torch.equal(a, -(alpha * level) if v else 0 * alpha)
        assert torch.equal(b, alpha if v else torch.ones_like(alpha))
    p, q = process.image_factors(t)
    torch.testing.assert_close(p, level / (a * level - b), rtol=1e-14, atol=0)
    torch.testing.assert_close(q, -b / (alpha * level) * p, rtol=1e-14, atol=0)
    assert torch.equal(process.image_factor(t), (level / (a * level - b)).abs().clamp(max=1).float())


def test_the_optimal_denoiser_of_noise_alone_is_the_mean():
    y = np.random.default_rng(0).random((20, 5), dtype=np.float32)
    z = np.full((2, 5), np.nan, np.float32)
    z[0] = y[0]
    found = OptimalDenoiser(y)(z, np.array([0.01, np.inf]))
    np.testing.assert_allclose(found, [y[0], y.mean(0)], atol=1e-6)


@pytest.mark.parametrize("method", ["agglomerative", "dynamic_programming", "snr", "uniform", "given"])
@pytest.mark.parametrize("timesteps", [5, 16])
def test_few_timesteps_of_which_the_last_is_noise_alone_are_clustered(digits, zero_snr, method, timesteps):
    process = make_process(zero_snr["sample"] | {"num_train_timesteps": timesteps})
    how = {"method": method, "intervals": 2, "boundaries": [timesteps - 1] if method == "given" else None, "seeds": 1}
    how |= {"boundaries_in": "t", "grid": timesteps, "draws": 16, "eta": 0.008, "literal": False}
    y = digits.reshape(64, -1).astype(np.float32) / 255
    found = cluster(y, process, section_with(ClusterTimesteps, **how), 0)
    json.dumps(found, allow_nan=False)
    ((boundary,), (sigma,)) = found["boundaries"], found["boundaries_sigma"]
    assert 0 < boundary < timesteps and (sigma is None) == (boundary == timesteps - 1)
    assert method != "snr" or boundary < timesteps - 1


def test_neighbours_leave_no_middle_interval(digits, diffusion_settings, monkeypatch):
    monkeypatch.setattr("stagecraft.clustering.cluster.threshold_boundaries", lambda *_: (7, 8))
    how = {"method": "threshold", "intervals": 3, "boundaries": None, "seeds": 1, "boundaries_in": "t", "grid": 3}
    how |= {"draws": 30, "eta": 0.4, "alpha": 0.9, "literal": False}
    with pytest.raises(ValueError, match=r"7 and 8 leave no middle interval; raise alpha or lower eta"):
        cluster(
            digits.reshape(64, -1).astype(np.float32) / 255,
            make_process(diffusion_settings),
            section_with(ClusterTimesteps, **how),
            0,
        )


def test_the_report_says_that_a_boundary_is_at_noise_alone():
    architecture = {"boundaries_sigma": [None], "intervals": [[0, 999], [999, 1000]]}
    rows = interval_table(architecture, {"protocol": {"training_shares": [0.999, 0.001], "steps_per_interval": [4, 1]}})
    assert [row["sigma"] for row in rows] == ["σ < inf", "inf ≤ σ"]


# --- Whole runs ---


@pytest.mark.parametrize(
    ("diffusion", "clustering", "sampling"),
    [
        (
            {"num_train_timesteps": 16},
            {"intervals": 3, "boundaries": [14, 15]},
            {"scheduler": "dpm_solver", "steps": 15},
        ),
        (
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            {"boundaries": [999]},
            {"scheduler": "ddim", "steps": 4},
        ),
    ],
    ids=["16-timesteps", "zero-snr"],
)
def test_a_run_with_a_last_interval_of_one_timestep_ends(tmp_path, diffusion, clustering, sampling):
    params = preset_params("smoke") | {"device": "cpu"}
    changes = {"diffusion": diffusion, "cluster_timesteps": {"method": "given"} | clustering, "sampling": sampling}
    for part in (SHORT, changes):
        for section, values in part.items():
            params[section] |= values
    validate_params(params, "params.yaml")
    run_stages(tmp_path, params)
    results = tmp_path / "results"
    architecture = json.loads((results / "architecture.json").read_text())
    assert architecture["steps_per_interval"][-1] == 1 and sum(architecture["steps_per_interval"]) == sampling["steps"]
    student, process = load_student(results / "student"), make_process(params["diffusion"])
    t = torch.tensor([0, process.high - 2, process.high - 1])
    x = process.noise(torch.zeros(3, 1, 8, 8), torch.randn(3, 1, 8, 8), t)
    with torch.no_grad():
        assert student(x, t).sample.isfinite().all()
    assert (results / "report.html").stat().st_size > 10_000


# --- The teacher in fewer steps ---


@pytest.mark.parametrize(("wanted", "found"), [(12.6, 13), (0.4, 2), (29.1, 30), (39.4, 39), (39.6, None), (60, None)])
def test_the_number_of_fewer_steps_is_the_nearest_that_the_sampler_can_take(diffusion_settings, wanted, found):
    """Of 100 timesteps from the last one downwards diffusers makes no 29 different ones."""
    process = make_process(diffusion_settings | {"num_train_timesteps": 100}, {"timestep_spacing": "trailing"})
    assert nearest_steps(process, {"scheduler": "ddim", "steps": 40}, wanted) == found
