"""Params are checked before anything runs, and every mistake ends in one line that says where and what to do."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import EDM, FLOW

from stagecraft.config import document
from stagecraft.config.params import typed
from stagecraft.config.sections import CHOICES, Everything, Section
from stagecraft.config.stages import STAGE_SECTIONS, param_at, stage_params
from stagecraft.preflight.jobs import (
    autoencoder_files,
    block_names,
    extractor_files,
    needs_own_pipeline,
    refined_from,
    runs_in_latents,
    teacher_files,
)
from stagecraft.preflight.params import load_over, load_params, validate_params
from stagecraft.preflight.versions import check_carried

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def params(committed: dict[str, Any]) -> dict[str, Any]:
    """The committed params, with the numbers that the messages below quote."""
    params = copy.deepcopy(committed)
    params["retrain"]["steps"], params["evaluate"]["samples"] = 2500, 2000
    return params


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid(path: Path) -> None:
    params = validate_params(load_over(path), str(path))
    # The files of a given teacher are the user's.
    if params.train_teacher.source == "train":
        assert bool(block_names(params)) == (params.architecture == "searched")


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Every section with its model, or the models of its choices."""
    for name, field in Everything.model_fields.items():
        if name in CHOICES:
            yield from ((name, member) for member in CHOICES[name].members.values())
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield name, field.annotation


def test_every_key_is_described_and_required() -> None:
    assert (
        len({name for name, _ in sections()}) == len(Everything.model_fields) - 4
    )  # seed, device, precision, architecture
    assert [name for name, field in Everything.model_fields.items() if not field.is_required()] == []
    for section, model in sections():
        assert Everything.model_fields[section].description or model.__doc__
        for key, field in model.model_fields.items():
            assert field.description, f"{section}.{key}"
            assert field.is_required() == (
                key not in ("rescale_betas_zero_snr", "guidance", "student_steps", "clip", "gradient_checkpointing")
            ), f"{section}.{key}"


def test_the_schema_and_the_page_are_those_of_the_types() -> None:
    assert (ROOT / "workflow" / "schemas" / "params.schema.yaml").read_text() == document.schema_text()
    assert (ROOT / "docs" / "params.md").read_text() == document.page_text()


def test_the_page_lists_every_key_and_the_schema_refuses_others(committed: dict[str, Any]) -> None:
    rows = [line.split(" | ") for line in document.page_text().splitlines() if line.startswith("| `")]
    listed = {row[0].strip("| `").split(" (")[0] for row in rows}
    plain = {name for name, value in committed.items() if not isinstance(value, dict)}
    assert listed == plain | {key for _, model in sections() for key in model.model_fields}
    for name, model in yaml.safe_load(document.schema_text())["$defs"].items():
        assert model["additionalProperties"] is False and model["required"], name
    assert "`num_train_timesteps (vp)` | whole number, from 2 to 100000 | `1000` |" in document.page_text()


def test_every_section_is_read_by_some_stage(committed: dict[str, Any]) -> None:
    assert {name.partition(".")[0] for names in STAGE_SECTIONS.values() for name in names} == set(committed)
    assert all(param_at(committed, name) is not None for names in STAGE_SECTIONS.values() for name in names)
    assert stage_params(committed, "rank_channels")["search_block.channels"] == committed["search_block"]["channels"]
    assert set(stage_params(committed, "assemble")) == {"seed", "architecture", "diffusion", "sampling", "assemble"}


def test_a_result_carries_the_single_keys_that_its_stage_reads(committed: dict[str, Any], tmp_path: Path) -> None:
    carried = stage_params(committed, "rank_channels")
    result = tmp_path / "importance.json"
    result.write_text(json.dumps({"params": carried}))
    check_carried([result], committed)
    check_carried([result], committed | {"search_block": committed["search_block"] | {"steps": 3}})
    other = committed | {"search_block": committed["search_block"] | {"channels": [0.5, 0.75]}}
    with pytest.raises(ValueError, match=r"made with search_block\.channels 1\.0, not \[0\.5, 0\.75\]; make it again"):
        check_carried([result], other)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("retrain.setps", 3, "retrain.setps: unknown key, did you mean steps?"),
        ("retrian", {}, "retrian: unknown key, did you mean retrain?"),
        ("report.zzz", 1, "report.zzz: unknown key, use images"),
        ("retrain", 3, "retrain: 3 is not a section of keys"),
        ("retrain.steps", "ten", 'retrain.steps: "ten" is not a whole number'),
        ("retrain.steps", 10.0, "retrain.steps: 10.0 is not a whole number; write 10"),
        ("retrain.steps", True, "retrain.steps: true is not a whole number"),
        ("retrain.steps", 0, "retrain.steps: 0 is too small, the minimum is 1"),
        ("retrain.steps", [1, 2], "retrain.steps: [1, 2] is not a whole number"),
        ("retrain.learning_rate", "1e-3", 'retrain.learning_rate: "1e-3" is not a number; write 0.001'),
        ("retrain.learning_rate", float("nan"), "retrain.learning_rate: NaN is not a number"),
        ("retrain.learning_rate", 0, "retrain.learning_rate: 0 is too small, it must be above 0"),
        ("retrain.ema_decay", 1.0, "retrain.ema_decay: 1.0 is too large, it must be below 1"),
        (
            "retrain.warmup_steps",
            9999,
            "retrain.warmup_steps: 9999 is more than retrain.steps, which is 2500; lower it, or raise steps",
        ),
        ("device", "gpu", 'device: "gpu" is unknown, use one of auto, cpu, cuda'),
        ("seed", -1, "seed: -1 is too small"),
        ("seed", "a\nb" * 99, "is not a whole number"),
        ("prepare_data.channels", 2, "prepare_data.channels: 2 is unknown, use one of 1, 3, null"),
        ("prepare_data.path", "x", 'prepare_data.path: "x" is unused by source digits; set source to folder or npz'),
        ("prepare_data.source", "folder", "prepare_data.path: null, but source folder needs one"),
        ("measure_latency.path", None, "measure_latency.path: null, but source path needs one"),
        (
            "measure_latency.source",
            "measure",
            'measure_latency.path: "data/latency/digits.json" is unused by source measure; set source to path',
        ),
        ("assemble.time", 0, "assemble.time: 0 is too small, it must be above 0"),
        ("prepare_data.resolution", 9, "prepare_data.resolution: 9 pixels cannot be halved 1 time(s)"),
        ("train_teacher.source", "path", "train_teacher.path: null, but source path needs one"),
        ("train_teacher.attention", [True], "train_teacher.attention: 1 values for 2 levels"),
        ("train_teacher.block_out_channels", [30, 64], "block_out_channels[0]: 30 is no multiple of norm_num_groups 8"),
        ("train_teacher.attention_head_dim", 7, "block_out_channels[1]: 64 is no multiple of attention_head_dim 7"),
        ("diffusion.beta_end", 0.0001, "diffusion.beta_start: 0.0001 is not below beta_end 0.0001"),
        ("sampling.steps", 2000, "sampling.steps: 2000 is more than the 1000 timesteps"),
        ("evaluate.student_steps", 2000, "evaluate.student_steps: 2000 is more than the 1000 timesteps"),
        ("evaluate.student_steps", 1000, "evaluate.student_steps: 1000 steps of dpm_solver with"),
        ("evaluate.student_steps", 0, "evaluate.student_steps: 0 is too small, the minimum is 1"),
        ("cluster_timesteps.intervals", 9, "cluster_timesteps.intervals: 9 is too large, the maximum is 8"),
        ("cluster_timesteps.grid", 2, "cluster_timesteps.intervals: 3 is more than the grid of 2 noise levels"),
        ("cluster_timesteps.grid", 1001, "cluster_timesteps.grid: 1001 is more than the 1000 timesteps"),
        ("cluster_timesteps.image_range", [1, 0], "cluster_timesteps.image_range: [1, 0] is no range"),
        (
            "cluster_timesteps.image_range",
            [0],
            "cluster_timesteps.image_range: [0] is too short, the minimum length is 2",
        ),
        ("cache_features.held_out", 0.0001, "cache_features.held_out: 0.0001 of 2048 triples_per_interval leaves none"),
        (
            "search_block.local_triples",
            257,
            "search_block.local_triples: 257 is more than the 256 held-out triples per interval",
        ),
        (
            "search_block.output_triples",
            257,
            "search_block.output_triples: 257 is more than the 256 held-out triples per interval",
        ),
        ("search_block.kernels", [1, 4], "search_block.kernels[1]: 4 is unknown, use one of 1, 3"),
        ("search_block.widths", [0.5, 0.5], "search_block.widths: [0.5, 0.5] holds a value twice"),
        ("assemble.tau", "much", 'assemble.tau: "much" is not allowed: Error allowed'),
        ("evaluate.samples", 64, "evaluate.samples: 64 are too few for the extractor's 64 features; the minimum is 65"),
        ("evaluate.extractor", "inception-v3-compat", "evaluate.samples: 2000 are too few for the extractor's 2048"),
        ("cluster_timesteps.method", "given", "cluster_timesteps.boundaries: null for 3 intervals; give 2 ascending"),
        (
            "cluster_timesteps.boundaries",
            [1, 2],
            "cluster_timesteps.boundaries: [1, 2] is unused by method agglomerative",
        ),
        ("diffusion.sigma_data", 0.5, "diffusion.sigma_data: unused by process vp; remove it"),
        (
            "sampling.scheduler",
            "edm_euler",
            "sampling.scheduler: edm_euler is no sampler of process vp, use one of ddpm",
        ),
        ("train_autoencoder.source", "path", "train_autoencoder.path: null, but source path needs one"),
        ("train_autoencoder.path", "x", 'train_autoencoder.path: "x" is unused by source none; set source to path'),
        (
            "assemble.decoder_widths",
            [1, 1, 1],
            "assemble.decoder_widths: [1, 1, 1] is unused by a searched architecture",
        ),
        ("architecture", "given", "assemble.decoder_widths: null for 3 intervals; give one share"),
        (
            "retrain.interval_probabilities",
            [0.5, 0.5],
            "retrain.interval_probabilities: [0.5, 0.5] for 3 intervals; give one",
        ),
        ("retrain.interval_probabilities", "even", 'retrain.interval_probabilities: "even" is not allowed'),
        ("retrain.interval_probabilities", [1, 1, 0], "retrain.interval_probabilities"),
        ("train_extractor.features", 62, "train_extractor.features: 62 is not a multiple of 4; choose one"),
        ("evaluate.kid_subset_size", 2001, "evaluate.samples: 2000 are too few for kid_subset_size 2001"),
    ],
)
def test_a_mistake_is_named_in_one_line(params: dict[str, Any], key: str, value: Any, message: str) -> None:
    *section, name = key.split(".")
    (params[section[0]] if section else params)[name] = value
    with pytest.raises(ValueError) as error:
        validate_params(params, "params.yaml")
    assert str(error.value).startswith("params.yaml: ") and message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


GIVEN = {
    "architecture": "given",
    "assemble.decoder_widths": [1.5, 1.0, 0.5],
    "retrain.init": "teacher",
    "retrain.joint_loss": "none",
}
LATENT = {"train_autoencoder.source": "train", "prepare_data.resolution": 8}
EDM_PARAMS = {"diffusion": EDM, "sampling.scheduler": "edm_euler"}
FLOW_PARAMS = {"diffusion": FLOW, "sampling.scheduler": "flow_euler"}
IN_SIGMA = {"cluster_timesteps.boundaries_in": "sigma"}


def put(params: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (params[section] if section else params)[name] = copy.deepcopy(value)


@pytest.mark.parametrize(
    "changes",
    [
        EDM_PARAMS,
        EDM_PARAMS | {"cluster_timesteps.grid": 5000, "sampling.steps": 5000},
        FLOW_PARAMS | {"cluster_timesteps.grid": 5000, "sampling.steps": 5000},
        FLOW_PARAMS | IN_SIGMA | {"cluster_timesteps.method": "given", "cluster_timesteps.boundaries": [0.004, 900]},
        GIVEN,
        GIVEN | {"assemble.snap_boundaries": True, "retrain.init": "scratch"},
        LATENT,
        LATENT | EDM_PARAMS | GIVEN,
        {"retrain.interval_probabilities": [1, 2, 3]},
        {"search_block.channels": [0.75, 1]},
        {"train_extractor.features": 60, "assemble.snap_boundaries": True, "sampling.steps": 3},
        {
            "cluster_timesteps.method": "given",
            "cluster_timesteps.boundaries": [0.3, 5],
            "cluster_timesteps.boundaries_in": "sigma",
        },
        {"cluster_timesteps.method": "given", "cluster_timesteps.boundaries": [], "cluster_timesteps.intervals": 1},
    ],
)
def test_settings_that_go_together_are_valid(params: dict[str, Any], changes: dict[str, Any]) -> None:
    put(params, changes)
    checked = validate_params(params, "params.yaml")
    assert checked.as_dict() == params
    assert bool(block_names(checked)) == (params["architecture"] == "searched")
    latent, edm = "train_autoencoder.source" in changes, changes.get("diffusion") == EDM
    assert (runs_in_latents(checked), needs_own_pipeline(checked)) == (latent, latent or edm)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"measure_latency.source": "none", "measure_latency.path": None},
            "measure_latency.source: none, but assemble.time is 0.52; set measure, or assemble.time: null",
        ),
        (
            EDM_PARAMS | {"sampling.scheduler": "ddim"},
            "sampling.scheduler: ddim is no sampler of process edm, use one of edm",
        ),
        (EDM_PARAMS | {"diffusion.beta_end": 0.02}, "diffusion.beta_end: unused by process edm; remove it"),
        (EDM_PARAMS | {"diffusion.sigma_min": 80.0}, "diffusion.sigma_min: 80.0 is not below sigma_max 80.0"),
        (EDM_PARAMS | {"diffusion.p_std": 0}, "diffusion.p_std: 0 is too small, it must be above 0"),
        (FLOW_PARAMS | {"diffusion.shift": 0}, "diffusion.shift: 0 is too small, the minimum is 0.001"),
        (FLOW_PARAMS | {"diffusion.beta_end": 0.02}, "diffusion.beta_end: unused by process flow; remove it"),
        (FLOW_PARAMS | {"sampling.scheduler": "ddim"}, "ddim is no sampler of process flow, use flow_euler"),
        (
            {"diffusion": {"process": "edm"}, "sampling.scheduler": "edm_euler"},
            "diffusion.sigma_min: missing; add it, as process edm",
        ),
        ({"diffusion": {"process": "ve"}}, 'diffusion.process: "ve" is unknown, use one of vp, edm'),
        ({"diffusion": {}}, "diffusion.process: missing"),
        (
            LATENT | {"train_autoencoder.block_out_channels": [32, 60]},
            "block_out_channels[1]: 60 is no multiple of norm_num_groups 8",
        ),
        (
            LATENT | {"train_teacher.horizontal_flip": True},
            "train_teacher.horizontal_flip: true, but a mirrored latent",
        ),
        (LATENT | {"retrain.horizontal_flip": True}, "retrain.horizontal_flip: true, but a mirrored latent"),
        (LATENT | {"prepare_data.resolution": 9}, "prepare_data.resolution: 9 pixels cannot be divided by 2"),
        (LATENT | {"prepare_data.resolution": 10}, "prepare_data.resolution: 5 latents cannot be halved 1 time(s)"),
        (
            LATENT | {"train_autoencoder.warmup_steps": 9999},
            "train_autoencoder.warmup_steps: 9999 is more than train_autoencoder.steps, which is 2000",
        ),
        (LATENT | {"train_autoencoder.path": "x"}, 'train_autoencoder.path: "x" is unused by source train'),
        (GIVEN | {"assemble.decoder_widths": [1.5]}, "assemble.decoder_widths: [1.5] for 3 intervals; give one share"),
        (GIVEN | {"assemble.decoder_widths": [1, 0, 1]}, "assemble.decoder_widths[1]: 0 is too small"),
        (GIVEN | {"retrain.init": "inherit"}, "retrain.init: inherit, but a given architecture has no supernets"),
        (
            GIVEN | {"retrain.joint_loss": "linear"},
            "retrain.joint_loss: linear, but blocks of given widths imitate no teacher",
        ),
        (
            {"cluster_timesteps.method": "given", "cluster_timesteps.boundaries": [300]},
            "cluster_timesteps.boundaries: [300] for 3 intervals; give 2 ascending values in t",
        ),
        *(
            (
                {**changes, "cluster_timesteps.method": "given", "cluster_timesteps.boundaries": given},
                f"cluster_timesteps.boundaries: {given} in ",
            )
            for changes, given in (
                ({}, [500, 250]),
                ({}, [250, 250.4]),
                ({}, [0, 500]),
                ({}, [500, 1000]),
                (IN_SIGMA, [4.0, 0.3]),
                (IN_SIGMA, [0.3, 0.3]),
                (IN_SIGMA, [-1, 1]),
                (IN_SIGMA, [1e-9, 1]),
                (EDM_PARAMS, [0.25, -0.5]),
                (EDM_PARAMS, [0.25, 1.1]),
                (EDM_PARAMS | IN_SIGMA, [1, 80.0]),
                (EDM_PARAMS | IN_SIGMA, [0, 1]),
            )
        ),
        (
            {"assemble.snap_boundaries": True, "sampling.steps": 2},
            "assemble.snap_boundaries: true, but sampling.steps 2 is less than the 3 intervals; set false, or",
        ),
        (
            {"assemble.snap_boundaries": True, "sampling.steps": 25, "evaluate.student_steps": 20},
            "evaluate.student_steps: 20, but assemble.snap_boundaries moves boundaries between the sampler's 25 steps; set",
        ),
        (
            {"search_block.channels": [0.75, 0.5, 0.5]},
            "search_block.channels: [0.75, 0.5, 0.5] for 2 levels of train_teacher.block_out_channels; give one share",
        ),
        ({"search_block.channels": [0.75, 0]}, "search_block.channels[1]: 0 is too small, it must be above 0"),
        ({"search_block.channels": []}, "search_block.channels: [] is too short, the minimum length is 1"),
        ({"search_block.channels": 1.5}, "search_block.channels: 1.5 is too large, the maximum is 1"),
        ({"search_block.channels": True}, "search_block.channels: true is not a number or a list"),
        (
            {"cluster_timesteps.method": "gradient", "cluster_timesteps.grid": 2},
            "cluster_timesteps.intervals: 3 is more than the grid of 2 noise levels",
        ),
    ],
)
def test_settings_that_clash_are_named_in_one_line(
    params: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    put(params, changes)
    with pytest.raises(ValueError) as error:
        validate_params(params, "params.yaml")
    assert str(error.value).startswith("params.yaml: ") and message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_given_autoencoders_files_must_exist(params: dict[str, Any], tmp_path: Path) -> None:
    assert autoencoder_files(validate_params(params, "params.yaml").train_autoencoder) == []
    params["train_autoencoder"] |= {"source": "path", "path": str(tmp_path)}
    settings = validate_params(params, "params.yaml").train_autoencoder
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match=r"train_autoencoder\.path: .*diffusion_pytorch_model\.safetensors: not found"):
        autoencoder_files(settings)
    (tmp_path / "diffusion_pytorch_model.safetensors").touch()
    assert [Path(file).name for file in autoencoder_files(settings)] == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


def test_threshold_makes_three_intervals(params: dict[str, Any]) -> None:
    params["cluster_timesteps"] |= {"method": "threshold", "intervals": 2}
    with pytest.raises(ValueError, match="intervals: 2, but the method threshold makes 3"):
        validate_params(params, "params.yaml")


def test_a_missing_key_is_described(params: dict[str, Any]) -> None:
    del params["sampling"]["steps"]
    with pytest.raises(ValueError, match=r"sampling.steps: missing; add it \(Network evaluations per image\)"):
        validate_params(params, "params.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"retrain: {", "line 1, column 11: not valid YAML"),
        (b"", "holds null instead of sections"),
        (b"- 1", r"holds \[1\] instead of sections"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"seed: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        (b"__use_yte__: true", "__use_yte__: unknown key"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_params(tmp_path / "params.yaml")
    assert str(tmp_path / "params.yaml") in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml: not found; copy params\.yaml to it"):
        load_params(tmp_path / "nowhere.yaml")


def test_blocks_are_named_once_per_interval_in_the_up_path(params: dict[str, Any]) -> None:
    params["cluster_timesteps"]["intervals"] = 2
    params["search_block"]["ranges"] = "own"
    up = ["up_blocks.0.interval_0", "up_blocks.1.interval_0", "up_blocks.0.interval_1", "up_blocks.1.interval_1"]
    found = block_names(validate_params(params, "params.yaml"))
    assert found == ["down_blocks.0", "down_blocks.1", "mid_block", *up]


@pytest.mark.parametrize(
    ("ranges", "names", "start"),
    [
        ("own", ["0", "1", "2"], None),
        ("shared", ["0-2"], None),
        ("all", ["0", "0-1", "0-2", "1", "1-2", "2"], "0-2"),
    ],
)
def test_up_blocks_are_searched_for_the_ranges_of_intervals_asked_for(
    params: dict[str, Any], ranges, names, start
) -> None:
    params["search_block"]["ranges"] = ranges
    up = [f"up_blocks.{i}.interval_{name}" for name in names for i in range(2)]
    checked = validate_params(params, "params.yaml")
    assert block_names(checked)[3:] == up
    refined = refined_from(checked)
    assert sorted(refined) == sorted(name for name in up if start and not name.endswith(start))
    assert {*refined.values()} == ({f"up_blocks.{i}.interval_{start}" for i in range(2)} if start else set())


def test_blocks_of_a_given_teacher_are_those_of_its_config(params: dict[str, Any], tmp_path: Path) -> None:
    params["cluster_timesteps"]["intervals"] = 1
    params["train_teacher"] |= {"source": "path", "path": str(tmp_path)}
    checked = validate_params(params, "params.yaml")
    (tmp_path / "unet").mkdir()
    config, weights = tmp_path / "unet" / "config.json", tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ValueError, match=r"unet/config\.json not found"):
        block_names(checked)
    config.write_text(json.dumps({"down_block_types": ["DownBlock2D"], "mid_block_type": None}))
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors: not found"):
        teacher_files(checked.train_teacher)
    weights.touch()
    assert block_names(checked) == ["down_blocks.0", "up_blocks.0.interval_0"]
    assert teacher_files(checked.train_teacher) == [str(config), str(weights)]
    config.write_text("[]")
    with pytest.raises(ValueError, match="not the config of a diffusers UNet2DModel"):
        block_names(checked)


def test_an_extractor_file_must_exist(params: dict[str, Any], tmp_path: Path) -> None:
    params["evaluate"]["extractor"] = str(tmp_path / "net.pt")
    settings = validate_params(params, "params.yaml").evaluate
    with pytest.raises(ValueError, match="not found; use classifier, inception-v3-compat or a TorchScript file"):
        extractor_files(settings)
    (tmp_path / "net.pt").touch()
    assert extractor_files(settings) == [str(tmp_path / "net.pt")]


def test_texts_of_the_command_line_get_their_types() -> None:
    given = {"a": {"steps": "3", "path": "null", "list": ["true", "0.5"], "name": "x", "odd": "[1, 2"}, "b": 3}
    assert typed(given) == {"a": {"steps": 3, "path": None, "list": [True, 0.5], "name": "x", "odd": "[1, 2"}, "b": 3}
