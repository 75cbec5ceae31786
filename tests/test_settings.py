"""Two more whole runs, in this process, in which every setting is another than in the smoke preset."""

import json
import shutil
import typing
from pathlib import Path

import numpy as np
import pytest
import yaml
from diffusers import DiffusionPipeline
from helpers import FILES_IN_LATENTS, preset_params, run_stages

from stagecraft.clustering.record import Clusters, read_clusters
from stagecraft.data.prepared import Meta, PreparedData
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import evaluation_timesteps
from stagecraft.evaluation.metrics import Metrics, read_metrics
from stagecraft.evaluation.samples import load_samples
from stagecraft.runtime.files import write_checked_json, write_json
from stagecraft.training.assembled import AssembledStudent, read_architecture
from stagecraft.training.log import TrainingLog, read_log, write_log

LATENT_EDM = {
    "diffusion": {
        "process": "edm",
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "sigma_data": 1.0,
        "rho": 7.0,
        "p_mean": -1.2,
        "p_std": 1.2,
    },
    "sampling.scheduler": "edm_dpm_solver",
    "prepare_data.resolution": 16,
    "train_autoencoder.source": "train",
    "train_autoencoder.steps": 40,
    "train_autoencoder.block_out_channels": [8, 16],
    "train_autoencoder.warmup_steps": 5,
    "train_teacher.class_conditional": True,
    "cluster_timesteps.method": "gradient",
    "cluster_timesteps.seeds": 2,
}
GIVEN_DECODERS = {
    "architecture": "given",
    "sampling.scheduler": "dpm_solver",
    "sampling.steps": 18,
    "cluster_timesteps.method": "threshold",
    "cluster_timesteps.intervals": 3,
    "cluster_timesteps.eta": 0.05,
    "assemble.decoder_widths": [1.5, 0.5, 1.0],
    "assemble.snap_boundaries": True,
    "retrain.init": "teacher",
    "retrain.joint_loss": "none",
    "retrain.interval_probabilities": "uniform",
}


def finish(folder: Path, changes: dict) -> Path:
    """A folder in which all stages have run with the smoke preset, changed."""
    params = preset_params("smoke")
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (params[section] if section else params)[name] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run_stages(folder, params)
    return folder


@pytest.fixture(scope="module")
def latent_edm(tmp_path_factory) -> Path:
    return finish(tmp_path_factory.mktemp("latent"), LATENT_EDM)


@pytest.fixture(scope="module")
def given_decoders(tmp_path_factory) -> Path:
    return finish(tmp_path_factory.mktemp("given"), GIVEN_DECODERS)


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def check_costs(folder: Path) -> dict:
    """The metrics of a run, whose costs must be those that the architecture promised."""
    metrics, plan = read(folder, "results/metrics.json"), read(folder, "results/architecture.json")
    assert plan["teacher"]["macs"] == metrics["teacher"]["macs"]
    for key in ("macs", "params", "params_active"):
        assert plan["expected"][key] == pytest.approx(metrics["student"][key], rel=1e-9), key
    steps, per_interval = plan["steps_per_interval"], metrics["student"]["macs_per_interval"]
    mean = np.average(per_interval, weights=steps)
    sampler = metrics["protocol"]["sampler"]
    assert metrics["student"]["macs"] == metrics["student"]["macs_of_samplers"][sampler] == pytest.approx(mean)
    shares = metrics["protocol"]["training_shares"]
    assert sum(shares) == pytest.approx(1)
    assert metrics["student"]["macs_training"] == pytest.approx(np.average(per_interval, weights=shares))
    return metrics


def draw(folder: Path, elsewhere: Path, **how) -> np.ndarray:
    """Images of a pipeline folder that was moved, by diffusers."""
    shutil.copytree(folder, elsewhere)
    pipeline = DiffusionPipeline.from_pretrained(elsewhere, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(num_inference_steps=3, output_type="np", **how).images


def check_fields(record: object, kind: object, where: str) -> None:
    """The record has the fields of its type, no fewer and no more, and so have the records in it."""
    if typing.is_typeddict(kind):
        assert kind.__required_keys__ <= record.keys() <= kind.__required_keys__ | kind.__optional_keys__, where
        for name, field in typing.get_type_hints(kind).items():
            if name in record:
                check_fields(record[name], field, f"{where}.{name}")
        return
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    if type(None) in typing.get_args(kind) and record is not None and len(parts) == 1:
        check_fields(record, parts[0], where)
    elif typing.get_origin(kind) is list:
        for item in record:
            check_fields(item, parts[0], where)
    elif typing.get_origin(kind) is dict:
        for name, item in record.items():
            check_fields(item, parts[1], f"{where}.{name}")


@pytest.mark.parametrize("run", ["latent_edm", "given_decoders"])
def test_records_have_the_fields_of_their_files_and_are_written_as_they_were_read(run, request, tmp_path):
    folder = request.getfixturevalue(run)
    results = folder / "results"
    log = results / "logs" / "retrain.json"
    meta = folder / "data" / "prepared" / "meta.json"
    cases = [
        (results / "metrics.json", read_metrics, write_json, Metrics),
        (results / "clusters.json", read_clusters, write_checked_json, Clusters),
        (results / "architecture.json", read_architecture, write_checked_json, AssembledStudent),
        (log, read_log, write_log, TrainingLog),
        (meta, lambda path: PreparedData.load(path.parent).meta, write_checked_json, Meta),
    ]
    for path, read_record, write, kind in cases:
        record = read_record(path)
        check_fields(record, kind, path.name)
        write(tmp_path / path.name, record)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_class_conditional_latent_edm_run_ends_with_what_was_asked(latent_edm):
    metrics = check_costs(latent_edm)
    assert metrics["autoencoder"]["decoder_macs"] > 0 and metrics["ratio"]["macs"] <= 0.7
    assert set(metrics["student"]["macs_of_samplers"]) == {"edm_euler", "edm_dpm_solver"}
    latents = np.load(latent_edm / "data" / "latents" / "latents.npy")
    assert latents.shape[1:] == (4, 8, 8) and latents.std() == pytest.approx(1, abs=0.01)
    assert read(latent_edm, "results/teacher/unet/config.json")["num_class_embeds"] == 10
    images, _ = load_samples(latent_edm / "results" / "samples.npz")
    assert {images[name].shape[1:] for name in ("teacher", "student", "real")} == {(16, 16, 1)}
    assert images["path_sample"].shape[2:] == images["path_image"].shape[2:] == (16, 16, 1)
    assert read(latent_edm, "results/logs/train_autoencoder.json")["history"]
    assert all((latent_edm / name).is_file() for names in FILES_IN_LATENTS.values() for name in names)


def test_gradients_of_the_teacher_cluster_the_noise_levels_of_edm(latent_edm):
    clusters, params = (
        read(latent_edm, "results/clusters.json"),
        yaml.safe_load((latent_edm / "params.yaml").read_text()),
    )
    assert clusters["method"] == "gradient" and clusters["process"] == "edm" and len(clusters["intervals"]) == 2
    make_process(params["diffusion"]).check_intervals(clusters, Path())
    assert clusters["spread"]["seeds"] == [0, 1] and len(clusters["spread"]["boundaries"]) == 2
    (boundary,), (sigma,) = clusters["boundaries"], clusters["boundaries_sigma"]
    assert sigma == pytest.approx(np.exp(4 * boundary))


@pytest.mark.parametrize("model", ["teacher", "student"])
def test_diffusers_alone_draws_classes_through_the_autoencoder(latent_edm, tmp_path, model):
    images = draw(latent_edm / "results" / model, tmp_path / model, class_labels=[3, 7, 7])
    assert images.shape == (3, 16, 16, 1)


def test_a_run_with_given_decoders_searches_nothing_and_ends_with_what_was_asked(given_decoders):
    metrics, plan = check_costs(given_decoders), read(given_decoders, "results/architecture.json")
    assert plan["rule"] == "given" and plan["chosen"] == {} and metrics["autoencoder"] is None
    assert not list((given_decoders / "results" / "features").glob("*.safetensors"))
    assert read(given_decoders, "results/student/unet/config.json")["_class_name"] == "MultiDecoderUNet2DModel"
    wide, narrow, same = metrics["student"]["macs_per_interval"]
    assert narrow < same == metrics["teacher"]["macs"] < wide
    assert metrics["ratio"]["params"] > 1.5 and metrics["protocol"]["training_shares"] == pytest.approx([1 / 3] * 3)
    assert {"ddim", "ddpm", "dpm_solver"} == set(metrics["student"]["macs_of_samplers"])


def test_boundaries_are_snapped_to_the_sampler_and_its_solver_restarts_there(given_decoders):
    plan, clusters = read(given_decoders, "results/architecture.json"), read(given_decoders, "results/clusters.json")
    params = yaml.safe_load((given_decoders / "params.yaml").read_text())
    nodes = evaluation_timesteps(make_process(params["diffusion"]), "dpm_solver", 18).tolist()
    assert plan["clustered"] == clusters["boundaries"] and plan["snapped"]
    assert {boundary - 1 for boundary in plan["boundaries"]} <= set(nodes) and plan["boundaries"] != plan["clustered"]
    assert read(given_decoders, "results/student/unet/config.json")["boundaries"] == plan["boundaries"]
    assert read(given_decoders, "results/metrics.json")["protocol"]["restarts"] is True


def test_diffusers_alone_draws_with_given_decoders(given_decoders, tmp_path):
    assert draw(given_decoders / "results" / "student", tmp_path / "student", batch_size=2).shape == (2, 8, 8, 1)


def test_the_report_of_each_run_is_one_page_that_needs_nothing_else(latent_edm, given_decoders):
    for folder, words in ((latent_edm, ("autoencoder", "edm_dpm_solver")), (given_decoders, ("S0", "S1"))):
        page = (folder / "results" / "report.html").read_text()
        assert all(word in page for word in words) and "data:image/png;base64," in page
        assert "http" not in page.replace("http://www.w3.org", "")
