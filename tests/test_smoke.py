"""The whole pipeline, really run through Snakemake on the smoke preset: no stage is replaced by a stub."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers import run, run_stages

WEIGHTS = "results/student/unet/diffusion_pytorch_model.safetensors"


def test_every_file_of_the_contract_is_there(finished):
    for name in (
        "data/prepared/images.npy",
        "data/prepared/meta.json",
        "results/teacher/model_index.json",
        "results/student/model_index.json",
        "results/clusters.json",
        "results/search/mid_block.json",
        "results/search/up_blocks.1.interval_1.json",
        "results/architecture.json",
        "results/metrics.json",
        "results/report.html",
        "results/model/README.md",
        "logs/retrain/retrain.log",
    ):
        assert (finished / name).stat().st_size > 0, name
    assert not list(finished.rglob("*.tmp")) and not list((finished / "results").rglob("*.pt"))


def test_logs_hold_no_word_of_libraries(finished):
    logs = {path.name: path.read_text() for path in (finished / "logs").rglob("*.log")}
    assert len(logs) >= 17
    words = re.compile(r"error|warn|USDT|profiler|kineto|gpuGetDeviceCount|Traceback|site-packages", re.IGNORECASE)
    assert {name: words.findall(text) for name, text in logs.items() if words.search(text)} == {}


def test_metrics_hold_what_the_contract_says(finished):
    metrics = json.loads((finished / "results" / "metrics.json").read_text())
    measures = {"fid", "kid", "precision", "recall", "macs", "macs_with_attention", "params", "params_active"}
    for model in ("teacher", "student"):
        assert measures | {"images_per_second", "milliseconds"} <= set(metrics[model])
    assert {"macs", "params", "time", "images_per_second", "fid_difference"} <= set(metrics["ratio"])
    assert metrics["ratio"]["macs"] <= 0.7 and metrics["ratio"]["params_active"] <= 0.7
    assert metrics["protocol"]["reference"]["split"] == "train"


def test_the_teacher_in_fewer_steps_takes_the_students_macs(finished):
    metrics = json.loads((finished / "results" / "metrics.json").read_text())
    control = metrics["fewer_steps"]
    steps = metrics["protocol"]["steps"]
    assert control["budget_of"] == "macs" and "time_predicted" not in metrics["ratio"]
    assert control["steps"] == round(metrics["ratio"]["macs"] * steps) < steps
    assert control["fid"] != metrics["teacher"]["fid"]
    assert control["fid_difference"] == metrics["student"]["fid"] - control["fid"]


def test_expected_costs_are_the_measured_ones(finished):
    metrics = json.loads((finished / "results" / "metrics.json").read_text())
    architecture = json.loads((finished / "results" / "architecture.json").read_text())
    assert architecture["teacher"]["macs"] == metrics["teacher"]["macs"]
    for key in ("macs", "params", "params_active"):
        assert architecture["expected"][key] == pytest.approx(metrics["student"][key], rel=1e-9), key


def test_the_run_ends_with_the_table(finished):
    output = (finished / "output.txt").read_text()[-2500:]
    assert re.search(
        r"^FID \(classifier features\)\s+[\d.]+ ± [\d.]+\s+[\d.]+ ± [\d.]+\s+[+-][\d.]+ ± ", output, flags=re.MULTILINE
    )
    assert output.rindex("images per second") > output.rindex("Elapsed time")


def test_a_second_run_has_nothing_to_do(finished):
    result = run(finished, "snakemake")
    assert result.returncode == 0 and "Nothing to be done" in result.stdout + result.stderr


def test_diffusers_alone_loads_the_student_and_samples(finished):
    program = """
        import sys
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, DiffusionPipeline
        pipeline = DiffusionPipeline.from_pretrained("results/student", trust_remote_code=True)
        pipeline.set_progress_bar_config(disable=True)
        for scheduler in (type(pipeline.scheduler), DDIMScheduler, DPMSolverMultistepScheduler):
            pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
            print(pipeline(batch_size=2, num_inference_steps=5, output_type="np").images.shape)
        assert not any(name.split(".")[0] in ("stages", "stagecraft") for name in sys.modules)
    """
    elsewhere = finished.parent / "elsewhere"
    shutil.copytree(finished / "results" / "student", elsewhere / "results" / "student", dirs_exist_ok=True)
    result = run(elsewhere, sys.executable, "-c", textwrap.dedent(program))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-3:] == ["(2, 8, 8, 1)"] * 3


def test_a_killed_retraining_resumes_to_the_same_bytes(finished, tmp_path):
    other = Path(shutil.copytree(finished, tmp_path / "killed", symlinks=True))
    shutil.rmtree(other / "results" / "student")
    command = [
        sys.executable,
        "-m",
        "stages.retrain",
        "--threads",
        str(min(2, len(os.sched_getaffinity(0)))),  # as Snakemake gives to the run that it is compared with
        "--data",
        "data/prepared",
        "--latents",
        "data/latents",
        "--prompts",
        "data/prompts",
    ]
    command += ["--autoencoder", "results/autoencoder"]
    command += ["--teacher", "results/teacher", "--architecture", "results/architecture.json"]
    command += ["--search", "results/search", "--output", "results/student", "--log", "results/logs/retrain.json"]
    command += ["--params", (finished / "results" / "student" / "params.json").read_text()]
    checkpoint = other / "results" / "checkpoints" / "retrain.pt"
    process = subprocess.Popen(command, cwd=other, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.wait()
    if (other / WEIGHTS).exists():
        pytest.fail("the run ended before it could be killed")
    result = run(other, *command)
    assert result.returncode == 0, result.stderr
    assert (other / WEIGHTS).read_bytes() == (finished / WEIGHTS).read_bytes() and not checkpoint.exists()


SAME_BYTES = (
    "data/prepared/images.npy",
    "results/teacher/unet/diffusion_pytorch_model.safetensors",
    "results/extractor.safetensors",
    "results/clusters.json",
    "results/features/index.json",
    "results/importance.json",
    "results/search/mid_block.json",
    "results/search/up_blocks.1.interval_1.safetensors",
    "results/architecture.json",
    WEIGHTS,
)


def test_the_stages_give_the_same_bytes_in_another_folder(finished, tmp_path):
    smoke = yaml.safe_load((finished / "params.yaml").read_text())
    run_stages(tmp_path, smoke, last="retrain", threads=min(8, len(os.sched_getaffinity(0))))
    for name in SAME_BYTES:
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name


def test_the_report_is_one_page_that_needs_nothing_else(finished):
    page = (finished / "results" / "report.html").read_text()
    assert "data:image/png;base64," in page and "classifier" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_prepared_images_are_the_digits(finished):
    assert np.load(finished / "data" / "prepared" / "images.npy").shape == (1797, 8, 8, 1)


def test_a_budget_that_cannot_be_met_ends_in_one_line_with_the_least_that_can(finished, tmp_path):
    other = Path(shutil.copytree(finished, tmp_path / "budget", symlinks=True))
    before = (other / "results" / "architecture.json").read_bytes()
    params = (other / "params.yaml").read_text()
    (other / "params.yaml").write_text(params.replace("  macs: 0.7", "  macs: 0.01"))
    command = ["snakemake", "assemble", "--allowed-rules", "assemble"]
    result = run(other, *command)
    assert result.returncode != 0
    message = re.search(
        r"^error: assemble: .*assemble\.macs 0\.01 \(smallest feasible: ([\d.]+)\).*$",
        result.stdout + result.stderr,
        flags=re.MULTILINE,
    )
    assert message and "Traceback" not in result.stdout + result.stderr
    assert not list((other / "results").rglob("*.tmp"))
    least = float(message[1])
    assert 0.01 < least < 0.7
    (other / "params.yaml").write_text(params.replace("  macs: 0.7", f"  macs: {least}"))
    result = run(other, *command)
    assert result.returncode == 0, result.stderr
    assert (other / "results" / "architecture.json").read_bytes() != before
