"""What a teacher's scheduler states is what teacher and student are sampled with, and what their folders say."""

import inspect
import json
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from helpers import preset_params, tiny_unet

from stagecraft.config.sections import Everything
from stagecraft.data.pixels import to_uint8
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import Sampler, evaluation_timesteps, sample, snap, steps_per_interval
from stagecraft.diffusion.stated import (
    BETA_SCHEDULES,
    EDM_SCHEDULERS,
    SILENT,
    SPACINGS,
    VP_SCHEDULERS,
    are_betas,
    check_stated,
    spacing_of,
    timesteps_of,
)
from stagecraft.diffusion.stepper import unclipped
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.networks.pipelines import load_teacher, read_stated, save_pipeline
from stagecraft.preflight.clashes import cross_problems
from stagecraft.training.student import build_student

GIVEN = {"train_teacher": {"source": "path"}}


def said(scheduler) -> dict:
    """A scheduler_config.json, as it is read."""
    return json.loads(scheduler.to_json_string())


def settings_of(scheduler) -> dict:
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


def wanted(kind, stated: dict, **forced):
    """What diffusers itself makes of the teacher's config."""
    return settings_of(kind.from_config({k: v for k, v in stated.items() if not k.startswith("_")} | forced))


TEACHERS = {
    "ddpm": DDPMScheduler(variance_type="fixed_large", clip_sample_range=2.0, timestep_spacing="trailing"),
    "ddim": DDIMScheduler(clip_sample=True, set_alpha_to_one=False, steps_offset=1),
    "pndm": PNDMScheduler(skip_prk_steps=True, steps_offset=1, timestep_spacing="leading"),
    "solver": DPMSolverMultistepScheduler(use_karras_sigmas=True, solver_order=3, algorithm_type="sde-dpmsolver++"),
    "unclipped": DDPMScheduler(clip_sample=False, thresholding=True, sample_max_value=1.5),
}


@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_sampler_keeps_what_the_teacher_states(diffusion_settings, teacher):
    stated = said(TEACHERS[teacher])
    process = make_process(diffusion_settings, stated)
    unstated = {} if "clip_sample" in stated else {"clip_sample": False}
    assert settings_of(process.scheduler("ddpm")) == wanted(DDPMScheduler, stated)
    assert settings_of(process.scheduler("ddim")) == wanted(DDIMScheduler, stated, **unstated)
    assert settings_of(process.scheduler("dpm_solver")) == wanted(DPMSolverMultistepScheduler, stated)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_the_folders_of_teacher_and_student_say_the_same_and_nothing_beside(tmp_path, diffusion_settings, teacher):
    stated, unet = said(TEACHERS[teacher]), tiny_unet()
    process = make_process(diffusion_settings, stated)
    save_pipeline(tmp_path / "teacher", unet, process.scheduler(), GIVEN, given=True)
    load_teacher(tmp_path / "teacher")
    again = read_stated(tmp_path / "teacher")
    for config in (stated, again):
        config.pop("_class_name"), config.pop("_diffusers_version")
    assert again == stated
    later = make_process(diffusion_settings, again)
    for name in ("ddpm", "ddim", "dpm_solver"):
        assert settings_of(later.scheduler(name)) == settings_of(process.scheduler(name))
    student = build_student(unet, identity_architecture(unet), [], 0)
    save_pipeline(tmp_path / "student", student, later.scheduler(), {}, given=True)
    file = "scheduler/scheduler_config.json"
    assert (tmp_path / "student" / file).read_text() == (tmp_path / "teacher" / file).read_text()
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "teacher")
    assert isinstance(pipeline.scheduler, DDPMScheduler)


def test_a_teacher_that_states_nothing_is_sampled_as_one_that_is_trained_here(tmp_path, diffusion_settings):
    plain = make_process(diffusion_settings)
    save_pipeline(tmp_path / "given", tiny_unet(), make_process(diffusion_settings, {}).scheduler(), GIVEN, given=True)
    save_pipeline(tmp_path / "trained", tiny_unet(), plain.scheduler(), {"train_teacher": {"source": "train"}})
    assert read_stated(tmp_path / "trained") is None
    given = make_process(diffusion_settings, read_stated(tmp_path / "given"))
    for name in ("ddpm", "ddim", "dpm_solver"):
        assert settings_of(given.scheduler(name)) == settings_of(plain.scheduler(name))
    assert plain.scheduler("ddpm").config.clip_sample and not plain.scheduler("ddim").config.clip_sample


def test_old_configs_state_little_and_that_is_kept(diffusion_settings):
    """As that of ddpm-cifar10-32: no timestep_spacing, so each solver has its own."""
    stated = {
        "_class_name": "DDPMScheduler",
        "clip_sample": True,
        "variance_type": "fixed_large",
        "trained_betas": None,
    }
    process = make_process(diffusion_settings, stated)
    assert process.scheduler("dpm_solver").config.timestep_spacing == "linspace"
    assert process.scheduler("ddpm").config.timestep_spacing == "leading"
    assert process.scheduler("ddpm").config.variance_type == "fixed_large"
    assert process.scheduler("ddim").config.clip_sample


def test_a_pipeline_saved_here_is_sampled_with_the_same_timesteps_when_it_is_given(diffusion_settings):
    for changes in ({}, {"rescale_betas_zero_snr": True}):
        process = make_process(diffusion_settings | changes)
        given = make_process(diffusion_settings | changes, said(process.scheduler()))
        for steps in (10, 25):
            nodes = evaluation_timesteps(given, "dpm_solver", steps)
            assert nodes.tolist() == evaluation_timesteps(process, "dpm_solver", steps).tolist() and nodes[0] == 999
        loaded = UniPCMultistepScheduler.from_config(process.scheduler().config)
        loaded.set_timesteps(10)
        assert loaded.timesteps[0] == 999


def test_latents_stay_unclipped_and_a_learned_variance_is_a_fixed_one(diffusion_settings):
    for kind in ("learned", "learned_range"):
        process = make_process(diffusion_settings, said(DDPMScheduler(variance_type=kind)))
        assert process.scheduler("ddpm").config.variance_type == "fixed_small"
    assert process.scheduler("ddim").config.clip_sample and not unclipped(process.scheduler("ddim")).config.clip_sample


def test_steps_and_boundaries_follow_the_teachers_timesteps(diffusion_settings):
    process = make_process(diffusion_settings, {"timestep_spacing": "trailing"})
    reference = DDIMScheduler(timestep_spacing="trailing")
    reference.set_timesteps(4)
    assert evaluation_timesteps(process, "ddim", 4).tolist() == reference.timesteps.tolist() == [999, 749, 499, 249]
    assert steps_per_interval(process, "ddim", 4, [300, 999]) == [1, 2, 1]
    assert snap(process, "ddim", 4, [510]) == [500]
    shifted = make_process(diffusion_settings, {"steps_offset": 1})
    assert evaluation_timesteps(shifted, "ddim", 4).tolist() == [751, 501, 251, 1]


def test_a_sampler_of_params_is_that_of_the_teacher(diffusion_settings):
    params = {"diffusion": diffusion_settings, "sampling": {"scheduler": "ddim", "steps": 4}, "seed": 0}
    sampler = Sampler.of(
        params | {"precision": "fp32"}, (1, 4, 4), torch.device("cpu"), 2, stated={"timestep_spacing": "trailing"}
    )
    seen = []

    def model(x, t):
        seen.append(int(t))
        return SimpleNamespace(sample=torch.zeros_like(x))

    sample(model, sampler, range(2))
    assert seen == [999, 749, 499, 249]


# --- What diffusers knows ---


def test_schedulers_of_the_process_are_those_of_diffusers_with_its_betas():
    kinds = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    with_betas = set()
    for name in kinds:
        try:
            keys = inspect.signature(getattr(diffusers, name).__init__).parameters
        except ImportError:  # its own dependency is not installed
            continue
        if {"beta_start", "beta_end", "beta_schedule", "trained_betas"} <= keys.keys():
            with_betas.add(name)
    # CogVideoX shifts its noise levels by a key of its own.
    assert with_betas - {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"} <= VP_SCHEDULERS <= kinds
    assert not VP_SCHEDULERS & SILENT and EDM_SCHEDULERS < SILENT <= kinds


@pytest.mark.parametrize("name", sorted(VP_SCHEDULERS))
def test_schedulers_that_only_sample_are_no_obstacle(diffusion_settings, name):
    check_stated({"_class_name": name}, "file", diffusion_settings)
    with pytest.raises(ValueError, match="beta_end is 0\\.012"):
        check_stated({"_class_name": name, "beta_end": 0.012}, "file", diffusion_settings)


OTHER_SOLVERS = {
    "deis": {"algorithm_type": "deis", "solver_type": "logrho", "solver_order": 2},
    "sa": {"algorithm_type": "data_prediction", "predictor_order": 2},
    "sa_noise": {"algorithm_type": "noise_prediction"},
    "unipc": {"solver_type": "bh1", "predict_x0": True, "solver_order": 3},
    "old": {"algorithm_type": "dpmsolver"},
    "old_sde": {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "zero"},
}


@pytest.mark.parametrize("name", OTHER_SOLVERS)
def test_what_other_solvers_state_does_not_end_dpm_solver(diffusion_settings, name):
    process = make_process(diffusion_settings, OTHER_SOLVERS[name] | {"timestep_spacing": "trailing"})
    scheduler = process.scheduler("dpm_solver")
    assert scheduler.config["timestep_spacing"] == "trailing"
    known = OTHER_SOLVERS[name].get("algorithm_type", "").endswith("dpmsolver")
    assert scheduler.config["algorithm_type"] == (OTHER_SOLVERS[name]["algorithm_type"] if known else "dpmsolver++")
    scheduler.set_timesteps(5)
    x = torch.ones(1, 1, 4, 4)
    for t in scheduler.timesteps:
        x = scheduler.step(x / 2, t, x).prev_sample
    assert x.isfinite().all()


@pytest.mark.parametrize("name", sorted(SILENT))
def test_schedulers_without_betas_leave_the_process_to_the_params(diffusion_settings, edm_settings, name):
    stated = {"_class_name": name, "prediction_type": "v_prediction", "num_train_timesteps": 40, "sigma_max": 80.0}
    check_stated(stated, "file", diffusion_settings)
    assert make_process(diffusion_settings, stated).kept == {}
    with pytest.raises(ValueError, match="no process of diffusion\\.process: vp"):
        check_stated(stated | {"trained_betas": [0.1]}, "file", diffusion_settings)
    with pytest.raises(ValueError, match="no process of diffusion\\.process: edm"):
        check_stated(stated, "file", edm_settings)


def test_an_edm_teachers_settings_are_kept(edm_settings):
    stated = said(diffusers.EDMEulerScheduler(sigma_schedule="exponential"))
    check_stated(stated, "file", edm_settings)
    assert make_process(edm_settings, stated).scheduler("edm_dpm_solver").config.sigma_schedule == "exponential"


@pytest.mark.parametrize("count", [2, 16, 100, 1000])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm_solver"])
def test_timesteps_are_those_of_diffusers(diffusion_settings, count, name):
    for spacing in SPACINGS:
        for steps in (1, 2, 3, 7, 16, 29, 31, 61, 99, 100, 999):
            if steps <= count:
                stated = {"timestep_spacing": spacing, "steps_offset": 1}
                process = make_process(diffusion_settings | {"num_train_timesteps": count}, stated)
                found = timesteps_of(name, steps, count, spacing, 1)
                assert evaluation_timesteps(process, name, steps).tolist() == found, (spacing, steps)


def test_the_spacing_that_is_looked_at_is_that_of_the_sampler(diffusion_settings):
    rescaled = diffusion_settings | {"prediction_type": "sample", "rescale_betas_zero_snr": True}
    for settings in (diffusion_settings, rescaled):
        for stated in (None, {}, {"timestep_spacing": "leading"}, {"timestep_spacing": "linspace"}):
            process = make_process(settings, stated)
            for name in ("ddim", "ddpm", "dpm_solver"):
                assert process.scheduler(name).config.timestep_spacing == spacing_of(name, settings, process.kept)


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("count", [2, 100, 1000])
def test_trained_betas_that_are_those_of_the_schedule_are_known(diffusion_settings, schedule, count):
    settings = diffusion_settings | {"beta_schedule": schedule, "num_train_timesteps": count}
    keys = {key: value for key, value in settings.items() if key != "process"}
    betas = DDPMScheduler(**keys).betas.tolist()
    assert are_betas(betas, settings) and not are_betas([*betas[:-1], 1.01 * betas[-1]], settings)
    assert not are_betas(betas[:-1], settings) and not are_betas("betas", settings)
    check_stated(keys | {"trained_betas": betas}, "file", settings)


# --- Targets and schedules ---


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm_solver"])
@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "sample"},
        {"prediction_type": "sample", "beta_schedule": "sigmoid"},
        {"beta_schedule": "sigmoid"},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        {"prediction_type": "sample", "rescale_betas_zero_snr": True},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "beta_schedule": "squaredcos_cap_v2"},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "beta_schedule": "sigmoid"},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_with_a_perfect_denoiser_of_one_image_every_sampler_draws_it(diffusion_settings, scheduler, changes):
    process = make_process(diffusion_settings | changes)
    point = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def perfect(x_t, t):
        p, q = (factor.float().reshape(-1, 1, 1, 1) for factor in process.image_factors(t.reshape(1).expand(len(x_t))))
        return SimpleNamespace(sample=(point - q * x_t) / p)

    sampler = Sampler(process, scheduler, 12, 0, (1, 4, 4), torch.device("cpu"), 3)
    drawn = sample(perfect, sampler, range(3)).int()
    assert (drawn - to_uint8(point).int()).abs().max() <= 1


def clashes(params: dict) -> list[tuple[str, str]]:
    """The key and the problem of values that clash."""
    return [*cross_problems(Everything.model_validate(params))]


def test_noise_that_says_nothing_about_the_image_is_no_target(tmp_path):
    params = preset_params("smoke")
    params["diffusion"] |= {"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}
    ((key, problem),) = clashes(params)
    assert key == "diffusion.rescale_betas_zero_snr" and "diffusion.prediction_type: v_prediction" in problem
    for remedy in ({"rescale_betas_zero_snr": False}, {"prediction_type": "v_prediction"}):
        assert not clashes(params | {"diffusion": params["diffusion"] | remedy})


@pytest.mark.parametrize(("scheduler", "steps", "timesteps"), [("dpm_solver", 16, 16), ("dpm_solver", 1000, 1000)])
def test_more_steps_than_a_sampler_has_timesteps_are_refused(scheduler, steps, timesteps):
    params = preset_params("smoke")
    params["diffusion"]["num_train_timesteps"] = timesteps
    params["cluster_timesteps"]["grid"] = 10
    params["sampling"] = {"scheduler": scheduler, "steps": steps}
    ((key, problem),) = clashes(params)
    assert key == "sampling.steps" and problem.endswith(f"set sampling.steps: {steps - 1}")
    params["sampling"]["steps"] = steps - 1
    assert not clashes(params)
