"""Params laid over others: what a file or flag says replaces what was there, and takes along what belonged to it."""

import copy
import json
import sys
from functools import reduce
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import EDM, ROOT

from stagecraft.config.__main__ import main, with_values
from stagecraft.config.overlay import lay_over
from stagecraft.config.params import read_params
from stagecraft.config.sections import CHOICES
from stagecraft.preflight.params import load_over, load_params, validate_params

PRESETS = {path.stem: path for path in sorted((ROOT / "presets").glob("*.yaml"))}
EDM_SAMPLING = {"scheduler": "edm_euler"}
FOLDER = {"prepare_data": {"source": "folder", "path": "data/raw/mine"}}
NPZ = {"prepare_data": {"source": "npz", "path": "data/raw/mine.npz"}}
TEACHER = {"train_teacher": {"source": "path", "path": "data/teacher/t"}}
AUTOENCODER = {"train_autoencoder": {"source": "path", "path": "data/teacher/vae"}}
GIVEN = {
    "architecture": "given",
    "assemble": {"decoder_widths": [1, 1, 0.5]},
    "retrain": {"init": "scratch", "joint_loss": "none"},
}
BY_HAND = {"cluster_timesteps": {"method": "given", "boundaries": [300, 600]}}
BY_SIGMA = {"cluster_timesteps": {"method": "given", "boundaries": [0.3, 5], "boundaries_in": "sigma"}}


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    return load_params(ROOT / "params.yaml")


def look_up(params: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return params[section][name] if name else params[section]


def keys_of(params: dict[str, Any]) -> dict[str, Any]:
    """The values of a preset by `section.key`."""
    nested = {name: value if isinstance(value, dict) else {"": value} for name, value in params.items()}
    return {f"{name}.{key}".rstrip("."): value for name, keys in nested.items() for key, value in keys.items()}


@pytest.mark.parametrize(("below", "above"), [*permutations(PRESETS, 2)])
def test_every_preset_is_laid_over_every_other(below: str, above: str) -> None:
    merged = load_over(PRESETS[below], PRESETS[above])
    said = keys_of(read_params(PRESETS[above]))
    assert {key: look_up(merged, key) for key in said} == said


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_repeats_the_default_only_where_another_preset_changes_it(name: str, digits: dict[str, Any]) -> None:
    others = {key for other in PRESETS if other != name for key in keys_of(read_params(PRESETS[other]))}
    own = keys_of(read_params(PRESETS[name]))
    # What goes with a choice is said with it.
    chosen = {section for section, choice in CHOICES.items() if f"{section}.{choice.key}" in own}
    defaults = keys_of(digits)
    repeated = {key for key, value in own.items() if value == defaults.get(key)} - others
    assert {key.partition(".")[0] for key in repeated} <= chosen


def test_a_preset_for_another_process_gives_all_but_its_process() -> None:
    merged = load_over(PRESETS["edm"], PRESETS["smoke"])
    assert merged["diffusion"] == load_over(PRESETS["edm"])["diffusion"]
    assert merged["sampling"] == {"scheduler": "edm_dpm_solver", "steps": 10} and merged["retrain"]["steps"] == 30


def test_merged_params_are_printed_with_the_comments(capsys, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    before = (ROOT / "params.yaml").read_text()
    Path("params.yaml").write_text(before)
    command = ["config", *(str(PRESETS[name]) for name in ("edm", "smoke"))]
    monkeypatch.setattr(sys, "argv", command)
    main()
    text = capsys.readouterr().out
    assert Path("params.yaml").read_text() == before
    assert yaml.safe_load(text) == load_over(PRESETS["edm"], PRESETS["smoke"])
    assert "device: auto # auto | cpu | cuda\n" in text and "  intervals: 2\n" in text
    assert "  rho: 7.0\n  p_mean: -1.2\n  p_std: 1.2\n\nsampling:\n" in text
    monkeypatch.setattr(sys, "argv", [*command, "--output", "params.yaml"])
    main()
    assert Path("params.yaml").read_text() == text
    Path("params.yaml").write_text("")  # as `> params.yaml` leaves it
    with pytest.raises(
        SystemExit, match=r"^error: params\.yaml: holds null instead of sections; copy .*params\.yaml to it$"
    ):
        main()


@pytest.mark.parametrize("name", PRESETS)
def test_the_text_of_merged_params_says_what_they_are(name: str) -> None:
    params = load_over(PRESETS[name])
    assert json.dumps(yaml.safe_load(with_values((ROOT / "params.yaml").read_text(), params))) == json.dumps(params)


def test_a_preset_that_stands_for_the_params_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(PRESETS["edm"].read_bytes())
    with pytest.raises(
        ValueError, match=r"params\.yaml: holds only a part of the params, as a preset does; .*--configfile"
    ):
        load_params(file)


def test_a_whole_file_leaves_nothing_that_it_does_not_name(digits: dict[str, Any]) -> None:
    more = copy.deepcopy(digits) | {"later": {"key": 1}}
    more["prepare_data"]["optional"] = 3
    assert lay_over(more, digits) == digits
    part = copy.deepcopy(digits)
    del part["report"]
    assert lay_over(more, part) == more


@pytest.mark.parametrize(
    ("below", "above", "found"),
    [
        ({}, {"diffusion": EDM, "sampling": EDM_SAMPLING}, {"diffusion": EDM, "sampling.steps": 25}),
        ({"diffusion": EDM, "sampling": EDM_SAMPLING}, {"diffusion": {"rho": 5.0}}, {"diffusion": EDM | {"rho": 5.0}}),
        ({}, {"diffusion": {"process": "vp", "beta_end": 0.03}}, {"diffusion.num_train_timesteps": 1000}),
        (FOLDER, {"prepare_data": {"source": "digits"}}, {"prepare_data.path": None}),
        ({}, FOLDER, {"prepare_data.path": "data/raw/mine", "prepare_data.held_out": 0.2}),
        (FOLDER, NPZ, {"prepare_data.path": "data/raw/mine.npz"}),
        (FOLDER, {"prepare_data": {"resolution": 16}}, {"prepare_data.path": "data/raw/mine"}),
        (FOLDER, {"prepare_data": {"source": "folder"}}, {"prepare_data.path": "data/raw/mine"}),
        (TEACHER, {"train_teacher": {"source": "train"}}, {"train_teacher.path": None}),
        (AUTOENCODER, {"train_autoencoder": {"source": "none"}}, {"train_autoencoder.path": None}),
        (
            AUTOENCODER,
            {"train_autoencoder": {"source": "train"}, "prepare_data": {"resolution": 16}},
            {"train_autoencoder.path": None},
        ),
        (
            GIVEN,
            {"architecture": "searched"},
            {"assemble.decoder_widths": None, "retrain.init": "scratch"},
        ),
        ({}, GIVEN, {"assemble.decoder_widths": [1, 1, 0.5], "assemble.macs": None}),
        (BY_HAND, {"cluster_timesteps": {"method": "uniform"}}, {"cluster_timesteps.boundaries": None}),
        (BY_HAND, {"cluster_timesteps": {"seeds": 2}}, {"cluster_timesteps.boundaries": [300, 600]}),
        (BY_SIGMA, {"diffusion": EDM, "sampling": EDM_SAMPLING}, {"cluster_timesteps.boundaries": [0.3, 5]}),
        (BY_HAND, BY_SIGMA, {"cluster_timesteps.boundaries": [0.3, 5]}),
    ],
)
def test_parts_are_laid_over_and_belongings_go(
    digits: dict[str, Any], below: dict[str, Any], above: dict[str, Any], found: dict[str, Any]
) -> None:
    lower = lay_over(digits, below)
    before = copy.deepcopy((lower, above))
    merged = lay_over(lower, above)
    validate_params(merged, "params.yaml")
    assert {key: look_up(merged, key) for key in found} == found
    assert (lower, above) == before


@pytest.mark.parametrize(
    ("below", "above", "message"),
    [
        ({}, {"diffusion": EDM}, "sampling.scheduler: dpm_solver is no sampler of process edm, use one of edm_euler"),
        ({}, {"diffusion": {"process": "edm"}, "sampling": EDM_SAMPLING}, "diffusion.sigma_min: missing; add it, as"),
        ({}, {"diffusion": {"rho": 7.0}}, "diffusion.rho: unused by process vp; remove it"),
        (FOLDER, {"prepare_data": {"source": "npz"}}, "prepare_data.path: null, but source npz needs one"),
        ({}, {"prepare_data": {"path": "x"}}, 'prepare_data.path: "x" is unused by source digits'),
        ({}, {"architecture": "given"}, "assemble.decoder_widths: null for 3 intervals"),
        (BY_HAND, {"diffusion": EDM, "sampling": EDM_SAMPLING}, "cluster_timesteps.boundaries: null for 3 intervals"),
        (BY_HAND, {"cluster_timesteps": {"boundaries_in": "sigma"}}, "cluster_timesteps.boundaries: null for 3"),
        ({}, {"diffusion": None}, "diffusion: null is not a section of keys"),
        ({}, {"diffusion": 3, "sampling": []}, "diffusion: 3 is not a section of keys"),
        ({}, {"diffusion": {"process": ["edm"]}}, 'diffusion.process: ["edm"] is unknown'),
        ({}, {"diffusion": {"process": "ve"}}, 'diffusion.process: "ve" is unknown, use one of vp, edm, flow'),
        ({}, {"architecture": {"a": 1}}, 'architecture: {"a": 1} is unknown'),
        ({}, {"prepare_data": {"source": {}}}, "prepare_data.source: {} is unknown"),
        ({"assemble": 3}, {"architecture": "given"}, "assemble: 3 is not a section of keys"),
        ({}, {"retrian": {"steps": 3}}, "retrian: unknown key, did you mean retrain?"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_usual_words(
    digits: dict[str, Any], below: dict[str, Any], above: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        validate_params(lay_over(lay_over(digits, below), above), "params.yaml")
    assert str(error.value).startswith(f"params.yaml: {message}")


def test_the_last_of_several_wins(digits: dict[str, Any]) -> None:
    edm = {"diffusion": EDM, "sampling": EDM_SAMPLING}
    layers = [edm, {"sampling": {"steps": 7}}, read_params(PRESETS["smoke"]), FOLDER, edm, {"diffusion": {"rho": 5.0}}]
    merged = reduce(lay_over, layers, digits)
    validate_params(merged, "params.yaml")
    assert merged["diffusion"] == EDM | {"rho": 5.0} and merged["sampling"] == {"scheduler": "edm_euler", "steps": 10}
    assert merged["prepare_data"]["source"] == "folder" and merged["retrain"]["steps"] == 30


def test_numbers_of_json_stay_numbers(tmp_path: Path) -> None:
    (tmp_path / "more.json").write_text('{"retrain": {"learning_rate": 1e-3}}')
    assert read_params(tmp_path / "more.json") == {"retrain": {"learning_rate": 0.001}}
