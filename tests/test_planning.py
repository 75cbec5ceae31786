"""`snakemake plan`: what it predicts beside what the default run took, and on configs of the hub, without weights or images."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, preset_params, run, tiny_unet
from hub import save_configs
from PIL import Image
from refusals import check_words, names

from stagecraft.config.overlay import lay_over
from stagecraft.data.survey import Survey
from stagecraft.planning import setup as planning_setup
from stagecraft.planning.gpu import Gpu
from stagecraft.planning.plan import Plan, format_plan, make_plan, plan_as_json
from stagecraft.planning.rates import LARGEST_IMAGE, Machine, Rate, measure_rate, shrink
from stagecraft.planning.setup import META, read_setup
from stagecraft.planning.steps import Work, count_jobs
from stagecraft.preflight.params import validate_params
from stages.plan import plan as make_a_plan

# What the default run took on two quiet cores with AVX-512, when it asked for 0.54 of the time: seconds from the start
# of a rule's first job to the end of its last, and of all; bytes of the shards; MACs, as its files hold them. `machine`
# are its speeds: forward with two threads as its metrics.json had it; `start`, the job of train_autoencoder, which did
# nothing else; `single`, timed later by measure_rate on one core; training with two threads is scaled by the ratio of
# the two with one, not measured. The evaluation did not draw the teacher in fewer steps yet, which is taken to have the
# student's MACs and the same speed.
RECORD: dict[str, Any] = json.loads((ROOT / "tests" / "default_run.json").read_text())
STUDENT_MACS = RECORD["macs"]["evaluate"] - 5_000 * 25 * 16_052_224
STUDENT_SECONDS = RECORD["seconds"]["evaluate"] * STUDENT_MACS / RECORD["macs"]["evaluate"]
RECORD["macs"]["evaluate"] += STUDENT_MACS
RECORD["seconds"]["evaluate"] += STUDENT_SECONDS
RECORD["seconds_in_all"] += STUDENT_SECONDS


def machine_of(record: dict[str, Any]) -> Machine:
    return Machine(record["cores"], Rate(**record["rate"]), Rate(**record["single"]), record["start"])


MACHINE = machine_of(RECORD["machine"])


def plan_of(preset: str, **sections: dict[str, Any]) -> Plan:
    plan, _ = make_plan(validate_params(lay_over(preset_params(preset), sections), preset))
    return plan


@pytest.fixture(scope="module")
def default() -> Plan:
    return plan_of("digits", assemble={"time": 0.54})


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_configs(tmp_path_factory.mktemp("hub"))


# --- Beside the record ---


def test_the_disk_of_the_features_is_that_of_the_record(default: Plan) -> None:
    assert default.disk == pytest.approx(RECORD["features_bytes"], rel=0.02)


def test_the_macs_are_those_of_the_record(default: Plan) -> None:
    macs = {step.rule: step.work.macs for step in default.steps if step.rule in RECORD["macs"]}
    assert sum(macs.values()) == pytest.approx(sum(RECORD["macs"].values()), rel=0.01)
    for rule in ("train_teacher", "cache_features"):
        assert macs[rule] == RECORD["macs"][rule]
    # What follows from what the search finds, of which only the beginning is known.
    for rule, most in {"search_block": 0.03, "retrain": 0.015, "evaluate": 0.01}.items():
        assert macs[rule] == pytest.approx(RECORD["macs"][rule], rel=most), rule


def test_the_hours_are_those_of_the_record(default: Plan) -> None:
    assert default.total_seconds(MACHINE) == pytest.approx(RECORD["seconds_in_all"], rel=0.3)
    seconds = {step.rule: default.seconds(step, MACHINE) for step in default.steps}
    for rule in ("train_teacher", "search_block", "evaluate"):
        assert seconds[rule] == pytest.approx(RECORD["seconds"][rule], rel=0.3), rule


def test_jobs_are_counted_as_the_rules_make_them(rules_of_the_default: dict[str, int]) -> None:
    setup = read_setup(validate_params(preset_params("digits"), "digits"))
    assert count_jobs(setup) == rules_of_the_default


@pytest.fixture
def rules_of_the_default() -> dict[str, int]:
    result = run(ROOT, sys.executable, "-m", "snakemake", "--list-rules")
    assert result.returncode == 0, result.stderr
    listed = set(result.stdout.split()) - {"all", "plan", "export"}
    return dict.fromkeys(listed, 1) | RECORD["jobs"]


# --- Configs of the hub ---


@pytest.mark.parametrize(
    ("preset", "name", "params", "macs", "jobs"),
    [
        ("cifar10-ddpm", "ddpm-cifar10-32", 35_746_307, 6.05e9, 17),
        ("cifar10-ddpm", "ddpm-celebahq-256", 113_673_219, 248e9, 25),
        ("celebahq-ddpm", "ddpm-celebahq-256", 113_673_219, 248e9, 25),
        ("celebahq-ldm", "ldm-celebahq-256", 274_056_163, 96e9, 17),
        ("stable-diffusion", "stable-diffusion-v1-5", 859_520_964, 339e9, 17),
    ],
)
def test_configs_alone_are_planned(hub: Path, preset: str, name: str, params: int, macs: float, jobs: int) -> None:
    changes: dict[str, Any] = {"train_teacher": {"source": "path", "path": str(hub / name)}}
    changes["prepare_data"] = {"path": str(hub / "none"), "resolution": 32 if "32" in name else 256}
    if preset == "celebahq-ldm":
        changes["train_autoencoder"] = {"source": "path", "path": str(hub / name / "vqvae")}
    if preset == "stable-diffusion":
        changes["train_autoencoder"] = {"source": "path", "path": str(hub / name / "vae")}
        changes["encode_prompts"] = {"source": "path", "path": str(hub / name)}
        changes["prepare_data"]["resolution"] = 512
    plan = plan_of(preset, **changes)
    assert plan.teacher["params"] == params
    assert plan.teacher["macs"] == pytest.approx(macs, rel=0.01)
    assert plan.student_macs == pytest.approx(plan.teacher["macs"] / 2, rel=0.02)
    steps = {step.rule: step for step in plan.steps}
    assert steps["search_block"].jobs == jobs
    retrain = plan.params.retrain
    assert steps["retrain"].work.training == pytest.approx(
        (3 + retrain.gradient_checkpointing) * retrain.steps * retrain.batch_size * plan.student_macs * 1.15, rel=0.01
    )
    assert steps["train_teacher"].work.macs == 0
    assert steps["encode_latents"].work.macs == 0  # of no images
    text = format_plan(plan, MACHINE, Gpu())
    assert "The images are not there yet" in text and "of the run" in text
    refused = preset == "cifar10-ddpm" and name == "ddpm-celebahq-256"
    assert ("cache_features.max_gib 200 refuses it" in text) == refused
    json.dumps(plan_as_json(plan, MACHINE, Gpu()), allow_nan=False)


def test_no_step_before_retraining_needs_more_than_16_gib_at_256_pixels(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning_setup, "look_at_images", lambda settings: Survey(27_000, 3_000, 256, 256, 3))
    plan = plan_of("celebahq-ddpm", train_teacher={"source": "path", "path": str(hub / "ddpm-celebahq-256")})
    rules = [step.rule for step in plan.steps]
    before = plan.steps[: rules.index("retrain")]
    assert {"cluster_timesteps", "cache_features", "search_block"} <= {step.rule for step in before}
    assert max(step.memory or 0 for step in before) <= 16 * 2**30
    assert plan.disk < 100 * 2**30


def test_a_large_image_is_timed_at_fewer_pixels(hub: Path) -> None:
    changes = {"train_teacher": {"source": "path", "path": str(hub / "ddpm-celebahq-256")}}
    changes |= {"prepare_data": {"path": str(hub / "none"), "resolution": 256}}
    setup = read_setup(validate_params(lay_over(preset_params("cifar10-ddpm"), changes), "celebahq"))
    assert shrink(setup.teacher).config["sample_size"] == 64
    assert setup.teacher.config["sample_size"] == 256 and LARGEST_IMAGE < 248e9 / 4


# --- The parts of the arithmetic ---


def test_a_given_architecture_searches_nothing_and_caches_nothing() -> None:
    plan = plan_of("multistage")
    steps = {step.rule: step for step in plan.steps}
    assert plan.disk == 0 and steps["search_block"].jobs == 0
    assert steps["search_block"].work.macs == steps["cache_features"].work.macs == 0
    assert plan.student_macs != plan.teacher["macs"]


def test_a_trained_autoencoder_is_counted() -> None:
    steps = {step.rule: step.work for step in plan_of("latent").steps}
    assert steps["train_autoencoder"].training > 3 * steps["train_autoencoder"].forward > 0
    assert steps["encode_latents"].macs == steps["train_autoencoder"].forward


def test_searches_run_side_by_side_on_the_cores_with_a_thread_each(default: Plan) -> None:
    (search,) = [step for step in default.steps if step.rule == "search_block"]
    rate = Rate(1e-11, 2e-11)
    alone, three = (default.seconds(search, Machine(cores, rate, rate, 4.0)) for cores in (1, 3))
    assert alone == pytest.approx(15 * 4.0 + search.work.forward * 1e-11 + search.work.training * 2e-11)
    assert three == pytest.approx(alone / 3)


def test_a_gpu_takes_two_operations_for_a_mac() -> None:
    assert Gpu(tflops=100.0, utilisation=0.5).seconds(25e12) == 1.0
    config = {"tflops": 989, "utilisation": "0.4", "seed": 3}
    assert Gpu.take_from(config) == Gpu(989.0, 0.4) and config == {"seed": 3}


def test_a_rate_is_of_the_networks_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagecraft.planning.rates.time_call", lambda call, device: (call(), 6.0)[1])
    unet = tiny_unet().to(META)
    rate = measure_rate(unet, 4, torch.device("cpu"), "fp32", 1)
    assert rate.training == pytest.approx(rate.forward / 3)
    assert rate.seconds(Work(forward=2 / rate.forward, training=1 / rate.training)) == pytest.approx(3.0)


# --- What is refused ---


def message(call: Any, *arguments: Any) -> str:
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    return str(caught.value)


def test_every_row_of_the_page_about_plans_is_provoked(tmp_path: Path) -> None:
    assert names("plan") == ["plan-gpu", "plan-size"]
    wrong = [{"tflops": "fast"}, {"tflops": "nan"}, {"tflops": -3}, {"utilisation": 0}, {"utilisation": 1.5}]
    check_words("plan-gpu", [message(Gpu.of, given) for given in wrong])
    tiny_unet(sample_size=None).save_config(tmp_path / "teacher")
    images = {"prepare_data": {"source": "folder", "path": str(tmp_path / "none")}}
    given = {"train_teacher": {"source": "path", "path": str(tmp_path / "teacher")}}
    runs = [validate_params(lay_over(preset_params("smoke"), images | more), "smoke") for more in ({}, given)]
    check_words("plan-size", [message(make_plan, params) for params in runs])


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    for number in range(20):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    images = {"source": "folder", "path": str(tmp_path), "resolution": 8, "channels": 1}
    params = lay_over(preset_params("digits"), {"prepare_data": images, "measure_latency": {"source": "measure"}})
    with pytest.raises(ValueError, match=r"prepare_data: 16 training images are too few for "):
        make_a_plan(params, threads=1, cores=2, gpu="{}", figures=tmp_path / "plan.json")


def test_a_teacher_for_other_images_is_refused(hub: Path) -> None:
    given = {"train_teacher": {"source": "path", "path": str(hub / "ddpm-cifar10-32")}}
    params = validate_params(lay_over(preset_params("digits"), given), "digits")
    assert "sample_size is 32 but the images have 8 pixels" in message(make_plan, params)
    params = validate_params(lay_over(preset_params("digits"), {"train_teacher": {"source": "path", "path": "no"}}), "")
    assert "not found; give a diffusers pipeline folder" in message(make_plan, params)


# --- The command ---


def test_snakemake_plans_without_images_weights_or_results(tmp_path: Path) -> None:
    tiny_unet(in_channels=3, out_channels=3).save_config(tmp_path / "teacher" / "unet")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "own.json").write_text(
        json.dumps(
            {
                "train_teacher": {"source": "path", "path": "teacher"},
                "prepare_data": {"source": "folder", "path": "none", "resolution": 8, "channels": 3},
                "measure_latency": {"source": "none"},
                "assemble": {"time": None, "macs": 0.5},
            }
        )
    )
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", "1"]
    result = run(tmp_path, *command, "plan", "--configfile", "own.json", "--config", "tflops=100")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("teacher   3 x 8 x 8") and "GPU       100 TFLOP/s" in result.stdout
    figures = json.loads((tmp_path / "logs" / "plan" / "plan.json").read_text())
    assert figures["gpu"] == {"tflops": 100.0, "utilisation": 0.3}
    assert 0 < figures["machine"]["rate"]["forward"] < 1e-6 and figures["machine"]["start"] > 0
    assert not (tmp_path / "results").exists() and not (tmp_path / "data").exists()
    result = run(tmp_path, *command, "plan", "--configfile", "own.json", "--config", "tflops=fast")
    assert result.returncode == 1
    assert "error: tflops: 'fast' is no number; give one (--config tflops=...)" in result.stderr
    own: dict[str, Any] = {"prepare_data": {"source": "folder", "path": "none"}, "measure_latency": {"source": "none"}}
    own["assemble"] = {"time": None, "macs": 0.5}
    (tmp_path / "own.json").write_text(json.dumps(own))
    result = run(tmp_path, *command, "plan", "--configfile", "own.json")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()
    assert any(line.startswith("error: plan: prepare_data.resolution or channels: null") for line in last), last
    assert len(last) < 9, last


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_the_first_image_tells_the_channels_of_a_folder(tmp_path: Path, mode: str, channels: int) -> None:
    colour = (200, 90, 10) if mode == "RGB" else 90
    for number in range(12):
        Image.new(mode, (16, 16), colour).save(tmp_path / f"{number}.png")
    own: dict[str, Any] = {"prepare_data": {"source": "folder", "path": str(tmp_path)}}
    own |= {"measure_latency": {"source": "none"}, "assemble": {"time": None, "macs": 0.5}}
    params = validate_params(lay_over(preset_params("digits"), own), "params.yaml")
    assert read_setup(params).shape[0] == channels
