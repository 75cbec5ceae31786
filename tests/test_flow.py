"""Rectified flow: as in its papers and in diffusers, from the draws of t to the pipelines of teacher and student."""

import itertools
import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from helpers import FLOW, ROOT, run_stages, tiny_unet
from scipy.stats import kstest, uniform
from test_few_timesteps import SHORT

from stagecraft.diffusion.boundaries import shifted
from stagecraft.diffusion.flow import FlowProcess
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import Sampler, evaluation_timesteps, sample
from stagecraft.diffusion.stated import FLOW_SCHEDULERS, check_stated, check_steps
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.networks.pipelines import load_student, save_pipeline
from stagecraft.networks.unet.student import interval_of
from stagecraft.preflight.params import load_over, validate_params
from stagecraft.runtime.seeds import generator_for
from stagecraft.training.student import build_student, warm_start

CPU, SHAPE = torch.device("cpu"), (1, 8, 8)
STATED = {"_class_name": "FlowMatchEulerDiscreteScheduler"} | {k: v for k, v in FLOW.items() if k != "process"}


@pytest.fixture
def flow():
    return FlowProcess(FLOW)


@pytest.fixture
def unet():
    return tiny_unet()


def copies_of(unet, boundaries):
    """A student whose decoders are all the teacher's."""
    student = build_student(unet, identity_architecture(unet, len(boundaries) + 1), boundaries, 0).eval()
    warm_start(student, unet)
    return student


def drawn(model, process, scheduler="flow_euler", count=4, batch_size=4, **how):
    sampler = Sampler(process, scheduler, 6, 1, SHAPE, CPU, batch_size, **how)
    return sample(model, sampler, range(count)).int()


# --- The process ---


@pytest.mark.parametrize(("shift", "count"), [(1.0, 1000), (3.0, 1000), (0.5, 20)])
def test_noise_and_times_are_those_of_diffusers(shift, count):
    process = FlowProcess(FLOW | {"shift": shift, "num_train_timesteps": count})
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=count, shift=shift)
    t = scheduler.timesteps[:: count // 10]
    x0, eps = torch.randn(len(t), *SHAPE), torch.randn(len(t), *SHAPE)
    torch.testing.assert_close(process.noise(x0, eps, t), scheduler.scale_noise(x0, t, eps))
    assert process.low == pytest.approx(count * scheduler.sigma_min) and process.high == count * scheduler.sigma_max
    nodes = evaluation_timesteps(process, "flow_euler", 7)
    assert nodes[0] == count and (nodes.diff() < 0).all() and nodes[-1] > 0


def test_both_ends_are_finite_and_straight_lines_join_them(flow):
    t = torch.tensor([flow.low, 500.0, flow.high])
    x0, eps = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE)
    alpha, sigma = flow.alpha_sigma(t)
    assert (alpha + sigma == 1).all() and alpha[2] == 0 and flow.noise_level(t)[:2].isfinite().all()
    assert torch.equal(flow.noise(x0, eps, t)[2], eps[2]) and torch.equal(flow.target(x0, eps, t), eps - x0)
    p, q = (factor.reshape(-1, 1, 1, 1) for factor in flow.image_factors(t))
    torch.testing.assert_close(p * (eps - x0) + q * flow.noise(x0, eps, t), x0.double(), atol=1e-5, rtol=1e-5)
    assert flow.image_factor(t).tolist() == pytest.approx(sigma.tolist())


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.25])
def test_draws_are_uniform_before_the_shift(shift):
    process = FlowProcess(FLOW | {"shift": shift})
    s = process.draw(50_000, generator_for(0, "test", 0)).double().numpy() / 1000
    assert s.min() > 0 and s.max() <= 1
    assert kstest(s / (shift - (shift - 1) * s), uniform.cdf).pvalue > 0.01
    assert shifted(shifted(0.3, shift), 1 / shift) == pytest.approx(0.3)


def test_the_first_interval_has_what_no_sampler_reaches_and_the_last_the_noise(flow):
    edges = flow.edges([flow.as_t(300.0), flow.as_t(700.0)])
    first, middle, last = (flow.draw(20_000, generator_for(0, "test", i), *pair) for i, pair in enumerate(edges))
    assert 0 < first.min() < flow.low and first.max() < 300
    assert middle.min() >= 300 and middle.max() < 700 <= last.min() and last.max() <= 1000
    assert interval_of(torch.tensor([flow.high]), [300.0, 700.0]) == 2
    below = (flow.draw(20_000, generator_for(0, "test", 4)) < 300).float().mean()
    assert flow.share(*edges[0]) == pytest.approx(float(below), abs=0.01)
    assert sum(flow.share(*pair) for pair in edges) == pytest.approx(1)


# --- The networks ---


@pytest.mark.parametrize("boundaries", [[], [500.0], [300.5, 700.25]])
def test_the_identity_student_is_the_teacher_bit_for_bit(unet, boundaries):
    student, x = copies_of(unet, boundaries), torch.randn(3, *SHAPE)
    with torch.no_grad():
        for t in (0.003, 300.4999, 300.5, 700.25, 999.5, 1000.0):
            assert torch.equal(student(x, torch.tensor(t)).sample, unet(x, torch.tensor(t)).sample)


def test_three_equal_decoders_sample_as_one_does(unet, flow):
    boundaries = [flow.at_share(0.4), flow.at_share(0.7)]
    alone = drawn(unet, flow)
    for restarts in ((), boundaries):
        assert torch.equal(drawn(copies_of(unet, boundaries), flow, restarts=restarts), alone)
    assert torch.equal(drawn(copies_of(unet, []), flow), alone)
    assert (alone[0] != alone[1]).any()


def test_mixed_batches_are_single_ones(unet, flow):
    boundaries = [flow.at_share(0.4), flow.at_share(0.7)]
    student = copies_of(unet, boundaries)
    with torch.no_grad():
        for decoder in student.decoders[1:]:
            for parameter in decoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        t = torch.tensor([1000.0, 3.3, *boundaries, 650.5])
        x = torch.randn(len(t), *SHAPE)
        single = torch.cat([student(x[i : i + 1], t[i]).sample for i in range(len(t))])
        torch.testing.assert_close(student(x, t).sample, single, atol=1e-5, rtol=1e-4)
        assert (single - unet(x, t).sample).abs().max() > 1e-3


# --- Pipelines ---


def images_of(folder, count=4, scheduler=None):
    """What diffusers draws of a folder from the sampler's own noise, uint8 N,H,W,C."""
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    generators = [generator_for(1, "sample", i) for i in range(count)]
    found = pipeline(batch_size=count, num_inference_steps=6, generator=generators, output_type="np").images
    return torch.from_numpy(found * 255).round().int()


@pytest.mark.parametrize("stated", [None, STATED | {"stochastic_sampling": True, "use_karras_sigmas": True}])
def test_diffusers_draws_of_teacher_and_student_what_the_sampler_does(tmp_path, unet, stated):
    process = make_process(FLOW, stated)
    student = copies_of(unet, [300.0, 700.0])
    save_pipeline(tmp_path / "teacher", unet, process.scheduler(), {}, given=stated is not None)
    save_pipeline(tmp_path / "student", student, process.scheduler(), {}, given=stated is not None)
    wanted = drawn(unet, process)
    for name in ("teacher", "student"):
        assert (images_of(tmp_path / name) - wanted).abs().max() <= 1
        index = json.loads((tmp_path / name / "model_index.json").read_text())
        assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    config = json.loads((tmp_path / "student" / "scheduler" / "scheduler_config.json").read_text())
    assert config["shift"] == 3.0 and bool(config.get("stochastic_sampling")) == (stated is not None)
    x, t = torch.randn(2, *SHAPE), torch.tensor([299.5, 1000.0])
    with torch.no_grad():
        torch.testing.assert_close(load_student(tmp_path / "student")(x, t).sample, unet(x, t).sample)


@pytest.mark.parametrize("name", sorted(FLOW_SCHEDULERS))
def test_a_student_draws_with_every_flow_matching_scheduler_of_diffusers(tmp_path, unet, flow, name):
    save_pipeline(tmp_path / "student", copies_of(unet, [500.0]), flow.scheduler(), {})
    images, again = (images_of(tmp_path / "student", scheduler=getattr(diffusers, name)) for _ in range(2))
    assert images.shape == (4, 8, 8, 1) and torch.equal(images, again)


# --- Given teachers ---


def test_schedulers_of_the_process_are_those_of_diffusers():
    assert {name for name in dir(diffusers) if name.startswith("FlowMatch")} == FLOW_SCHEDULERS


@pytest.mark.parametrize("name", sorted(FLOW_SCHEDULERS))
def test_a_given_teachers_scheduler_is_known_and_must_be_of_the_params(name):
    stated = json.loads(getattr(diffusers, name)(shift=3.0).to_json_string())
    check_stated(stated, "file", FLOW)
    with pytest.raises(
        ValueError, match=r"shift is 3\.0 but params say diffusion\.shift: 1\.5; set diffusion\.shift: 3\.0"
    ):
        check_stated(stated, "file", FLOW | {"shift": 1.5})
    with pytest.raises(ValueError, match=r"shift is 1\.0 but"):  # what diffusers takes for a config that does not say
        check_stated({"_class_name": name}, "file", FLOW)
    with pytest.raises(ValueError, match=r"num_train_timesteps is 1, which diffusion\.num_train_timesteps cannot"):
        check_stated(stated | {"num_train_timesteps": 1}, "file", FLOW)
    for shift in (0, 1e4, "3", True):
        with pytest.raises(ValueError, match=r"which diffusion\.shift cannot say"):
            check_stated(stated | {"shift": shift}, "file", FLOW)
    process = make_process(FLOW, stated)
    assert (
        evaluation_timesteps(process, "flow_euler", 5).tolist()
        == evaluation_timesteps(FlowProcess(FLOW), "flow_euler", 5).tolist()
    )


def test_other_processes_are_refused():
    for name in ("DDPMScheduler", "EDMEulerScheduler"):
        with pytest.raises(ValueError, match=rf"_class_name is '{name}', no process of diffusion\.process: flow"):
            check_stated({"_class_name": name}, "file", FLOW)


@pytest.mark.parametrize(
    "kept",
    [
        {"stochastic_sampling": True},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"shift_terminal": 0.1},
    ],
    ids=lambda kept: next(iter(kept)),
)
def test_a_teachers_settings_are_sampled_with_whatever_the_batch(unet, kept):
    check_stated(STATED | kept, "file", FLOW)
    process = make_process(FLOW, STATED | kept)
    together = drawn(unet, process)
    assert (together - drawn(unet, process, batch_size=3)).abs().max() <= 1
    assert (together - drawn(unet, FlowProcess(FLOW))).abs().max() > 1
    assert evaluation_timesteps(process, "flow_euler", 5).isfinite().all()


def test_one_step_has_no_second_end():
    kept = {"shift_terminal": 0.1}
    assert evaluation_timesteps(make_process(FLOW, STATED | kept), "flow_euler", 1).isnan().all()
    for steps, stated in ((2, kept), (1, {})):
        check_steps({"scheduler": "flow_euler", "steps": steps}, FLOW, stated)
        assert evaluation_timesteps(make_process(FLOW, STATED | stated), "flow_euler", steps).isfinite().all()
    with pytest.raises(ValueError, match=r"1 step of flow_euler cannot .* shift_terminal 0\.1; set sampling\.steps: 2"):
        check_steps({"scheduler": "flow_euler", "steps": 1}, FLOW, kept)


# --- Whole runs ---


def test_the_preset_runs_to_its_report(tmp_path):
    params = load_over(ROOT / "presets" / "flow.yaml") | {"device": "cpu"}
    for section, values in SHORT.items():
        params[section] |= values
    params["sampling"]["steps"] = 5
    params["evaluate"]["student_steps"] = 4
    params["cache_features"]["held_out"] = 0.25
    params["train_extractor"]["features"] = 16
    validate_params(params, "params.yaml")
    run_stages(tmp_path, params)
    results = tmp_path / "results"
    clusters, metrics = (json.loads((results / f"{name}.json").read_text()) for name in ("clusters", "metrics"))
    assert clusters["process"] == "flow" and len(clusters["boundaries"]) == 2
    assert all(0 < low < high <= 1000 for low, high in itertools.pairwise([*clusters["boundaries"], 1000]))
    levels = np.array(clusters["boundaries"]) / (1000 - np.array(clusters["boundaries"]))
    assert clusters["boundaries_sigma"] == pytest.approx(levels)
    assert metrics["protocol"]["steps"] == 5 and np.isfinite(metrics["student"]["fid"])
    assert sum(metrics["protocol"]["steps_per_interval"]) == metrics["protocol"]["student_steps"] == 4
    per_image = {
        name: metrics[name]["milliseconds"] * metrics[name]["images_per_second"] for name in ("teacher", "student")
    }
    assert per_image == pytest.approx({"teacher": 1000 / 5, "student": 1000 / 4})
    with np.load(results / "samples.npz") as samples:
        assert len(samples["path_t"]) == 4
    assert images_of(results / "student").shape == (4, 8, 8, 1)
    assert "flow_euler" in (results / "report.html").read_text()
