"""The baselines of the benchmark, and the table that it makes."""

import json
import sys
from itertools import product

import pytest
import torch
from helpers import ROOT, section_with, tiny_unet
from torch import nn

from stagecraft.config.sections import Retrain
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.registry import make_process
from stagecraft.evaluation.cost import count_macs
from stagecraft.preflight.params import validate_params
from stagecraft.runtime.seeds import generator_for
from stagecraft.training.joint import JointLoss

sys.path.insert(0, str(ROOT / "benchmarks"))

import baselines
import compression
import compression_makers
import compression_methods
import compression_table
from compression_methods import Method, Options
from remembered import RememberedJointLoss
from shared_inputs import Shared, preset_file

SHAPE = (1, 8, 8)


@pytest.fixture
def teacher():
    return tiny_unet(block_out_channels=(32, 64), norm_num_groups=8)


@pytest.fixture
def data(digits):
    return TrainingSet.of_images(digits)


@pytest.mark.parametrize("criterion", ["random", "magnitude", "taylor", "diff-pruning"])
def test_a_pruned_teacher_has_the_macs_asked_for_and_runs(teacher, data, diffusion_settings, criterion, monkeypatch):
    monkeypatch.setattr(baselines, "INTERVALS", 4)
    monkeypatch.setattr(baselines, "BATCH", 8)
    process = make_process(diffusion_settings)
    importance = baselines.importance_of(criterion, teacher, process, data, 0)
    net = baselines.pruned(teacher, 0.5, importance)
    ratio = count_macs(net, SHAPE, 0) / count_macs(teacher, SHAPE, 0)
    assert 0.49 <= ratio <= 0.5
    assert net(torch.randn(2, *SHAPE), torch.tensor([1, 900])).sample.shape == (2, *SHAPE)
    norms = zip(net.modules(), teacher.modules(), strict=True)
    assert all(a.num_groups == b.num_groups for a, b in norms if isinstance(a, nn.GroupNorm))
    assert all(p.grad is None for p in net.parameters())


def test_magnitude_keeps_the_large_channels_of_a_layer(teacher):
    conv = teacher.down_blocks[1].resnets[0].conv1
    with torch.no_grad():
        conv.weight.mul_(torch.linspace(0.1, 3, 64)[:, None, None, None])
    importance = baselines.importance_of("magnitude", teacher, None, None, 0)
    net = baselines.pruned(teacher, 0.6, importance)
    kept = net.down_blocks[1].resnets[0].norm2.num_channels
    largest = conv.bias.view(8, 8)[:, -kept // 8 :].flatten()
    assert kept < 64
    torch.testing.assert_close(net.down_blocks[1].resnets[0].conv1.bias, largest)


def test_diff_pruning_stops_where_the_loss_is_small(teacher, data, diffusion_settings, monkeypatch):
    monkeypatch.setattr(baselines, "INTERVALS", 10)
    monkeypatch.setattr(baselines, "BATCH", 4)
    losses = iter([0.5, 1.0, 0.2, 0.04, 0.9])
    weight = next(teacher.parameters())
    monkeypatch.setattr(baselines, "noise_loss", lambda *_: next(losses) + 0 * weight.sum())
    assert baselines.accumulate_by_time(teacher, make_process(diffusion_settings), data, 0) == 3


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_of_the_noise_does_not_depend_on_what_is_predicted(data, diffusion_settings, prediction):
    process = make_process(diffusion_settings | {"prediction_type": prediction})
    x0, eps, t = torch.randn(4, *SHAPE), torch.randn(4, *SHAPE), torch.tensor([10, 300, 600, 900])
    guess = eps + 0.1
    x_t = process.noise(x0, eps, t)
    alpha, sigma = (v.float()[:, None, None, None] for v in process.alpha_sigma(t))
    implied_x0 = (x_t - sigma * guess) / alpha
    batch = baselines.Batch(x_t, t, process.target(x0, eps, t))
    output = process.target(implied_x0, guess, t)
    net = lambda x, time: type("Output", (), {"sample": output})  # noqa: E731
    assert float(baselines.noise_loss(net, process, batch)) == pytest.approx(0.01, rel=1e-3)


def test_every_method_has_params_that_are_valid():
    from stagecraft.preflight.params import validate_params

    names = [*compression_methods.METHODS, *(f"{m}-plain" for m in (*compression_methods.PRUNED, "depth", "search"))]
    for method, budget_of in product(names, compression_methods.BUDGETS_OF):
        options = Options(budget_of, samples=600)
        params = compression_methods.params_of(preset_file("digits"), Method(method), 0.3, 2, options)
        validate_params(params, method)
        assert params["seed"] == 2 and params["evaluate"]["samples"] == 600
        if method.endswith("-plain"):
            assert params["retrain"]["joint_loss"] == "none" and params["retrain"]["output_weight"] == 0


def test_a_prediction_of_the_teacher_is_computed_once_for_runs_with_the_same_batches(
    teacher, data, diffusion_settings, tmp_path
):
    settings = section_with(Retrain, joint_loss="linear", ramp=0.5, steps=10, output_weight=1.0, jacobian_weight=0.0)
    batches = NoisyBatches(data, make_process(diffusion_settings), 4, torch.device("cpu"))
    calls, student = [], tiny_unet(block_out_channels=(32, 64), norm_num_groups=8)
    teacher.register_forward_hook(lambda *_: calls.append(1))
    kept = [RememberedJointLoss(student, teacher, batches, settings, "fp32", folder=tmp_path) for _ in range(2)]
    losses = [*kept, JointLoss(student, teacher, batches, settings, "fp32")]
    first, second, plain = (dict(loss(7, generator_for(0, "train", 7)))["end_to_end"].item() for loss in losses)
    assert first == second == plain and len(calls) == 2
    assert dict(kept[1](8, generator_for(0, "train", 8)))["end_to_end"].item() != first and len(calls) == 3


def test_the_table_is_in_the_order_of_the_mean_and_has_the_difference_seed_by_seed():
    def run(method, seed, fid):
        return {
            "method": method,
            "budget": 0.5,
            "seed": seed,
            "time_ratio": 0.49,
            "matched": seed < 2,
            "macs_ratio": 0.5,
            "params_ratio": 0.6,
            "error": 0.002 * (seed + 1),
            "fidelity": {"classifier": {"fid": fid}},
        } | ({"channels": [0.75, 0.5]} if method == "search" else {})

    uniform = [run("uniform", 0, 3.0), run("uniform", 1, 3.5), run("uniform", 2, 9.1)]
    summary = compression_table.summarise(
        [*uniform, run("search", 0, 1.0), run("search", 1, 2.0), run("random", 0, 1.25), run("random-1", 0, 1.75)]
    )
    assert list(summary["0.5"]) == ["search", "random", "uniform"]
    assert summary["0.5"]["search"]["mean"]["classifier"] == 1.5
    lines = compression_table.table(summary).splitlines()
    columns = ["time", "MACs", "parameters", "error", "FID (classifier)", "less search's", "runs"]
    assert f"| method | stream | {' | '.join(columns)} |" in lines and "| --- | --- |" + 7 * " ---: |" in lines
    assert "| search | 0.75,0.5 | 0.490 | 0.500 | 0.600 | 0.00300 | 1.5000 ± 0.7071 |  | 2 |" in lines
    assert "| random |  | 0.490 | 0.500 | 0.600 | 0.00200 | 1.5000 | +0.5000 | 2 |" in lines
    assert "| uniform |  | 0.490* | 0.500 | 0.600 | 0.00400 | 5.2000 ± 3.3867 | +1.7500 ± 0.3536 | 3 |" in lines


def test_results_of_another_number_of_samples_or_steps_are_not_joined(tmp_path):
    runs = {
        "search-0.5": {"samples": 20, "steps": 3},
        "held-out-1.0": {"samples": 7},
        "teacher-1.0": {"samples": 20},
        "feature-reuse-0.5": {"samples": 20},
    }
    for name, content in runs.items():
        about = {"method": name.rsplit("-", 1)[0], "budget_of": "time"}
        (tmp_path / f"{name}-seed0.json").write_text(json.dumps(about | content))
    assert compression_table.made_otherwise(tmp_path, 20, 3, "time") is None
    assert compression_table.made_otherwise(tmp_path, 20, 4, "time") == tmp_path / "search-0.5-seed0.json"
    assert compression_table.made_otherwise(tmp_path, 50, 3, "time") is not None


def test_results_of_budgets_of_something_else_are_not_joined(tmp_path):
    about = {"method": "search", "samples": 20, "steps": 3}
    path = tmp_path / "search-0.5-seed0.json"
    for content, other in ((about | {"budget_of": "time"}, "macs"), (about, "time"), (about, "macs")):
        path.write_text(json.dumps(content))
        assert compression_table.made_otherwise(tmp_path, 20, 3, other) == path


def test_results_of_another_width_of_the_stream_are_not_joined(tmp_path):
    for name, content in (("search", {"channels": 0.6}), ("magnitude", {})):
        (tmp_path / f"{name}-0.3-seed0.json").write_text(json.dumps({"method": name, "budget": 0.3} | content))
    search = tmp_path / "search-0.3-seed0.json"
    assert compression_table.searched_otherwise(tmp_path, {0.3: 0.6}, ["search", "magnitude"]) is None
    assert compression_table.searched_otherwise(tmp_path, {0.5: 0.75}, ["search", "uniform"]) is None
    assert compression_table.searched_otherwise(tmp_path, {0.3: 0.75}, ["search"]) == search
    assert compression_table.searched_otherwise(tmp_path, {0.3: 0.75}, ["scratch"]) == search
    assert compression_table.searched_otherwise(tmp_path, {0.3: 0.75}, ["magnitude"]) is None


def test_a_control_may_have_a_residual_stream_of_its_own(tmp_path):
    for name, channels in (("search", 0.6), ("uniform", 0.5)):
        run = {"method": name, "budget": 0.3, "channels": channels}
        (tmp_path / f"{name}-0.3-seed0.json").write_text(json.dumps(run))
    assert compression_table.searched_otherwise(tmp_path, {0.3: 0.6}, ["search", "scratch"]) is None
    assert compression_table.searched_otherwise(tmp_path, {0.3: 0.5}, ["uniform", "random"]) is None
    assert (
        compression_table.searched_otherwise(tmp_path, {0.3: 0.6}, ["uniform"]) == tmp_path / "uniform-0.3-seed0.json"
    )


def test_runs_may_be_shorter_than_the_preset(tmp_path, monkeypatch, capsys):
    preset = preset_file("digits")
    own, short = (compression_methods.params_of(preset, Method("search"), 0.5, 0, Options(steps=n)) for n in (None, 30))
    assert short == own | {"retrain": own["retrain"] | {"steps": 30}} and own["retrain"]["steps"] != 30
    run = {"method": "search", "budget": 0.5, "samples": own["evaluate"]["samples"], "steps": 30, "budget_of": "time"}
    (tmp_path / "search-0.5-seed0.json").write_text(json.dumps(run))
    for params in (own, short):
        found = compression_table.not_joined(tmp_path, params, ["search"], [0.5], None, "time")
        assert (found is None) == (params is short)
    refusals = {"--steps": "--steps 0: give 1 or more", "--samples": "--samples 0: give 1 or more"}
    for flag, message in refusals.items():
        monkeypatch.setattr("sys.argv", ["compression.py", "--preset", "smoke", flag, "0"])
        with pytest.raises(SystemExit) as stopped:
            compression.main()
        assert stopped.value.code != 0 and message in capsys.readouterr().err


def test_too_few_samples_are_refused_before_anything_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        "sys.argv", ["compression.py", "--preset", "smoke", "--samples", "3", "--output", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as stopped:
        compression.main()
    assert stopped.value.code != 0 and "evaluate.samples: 3 are too few" in capsys.readouterr().err


def test_uniform_has_supernets_of_widths_alone(tmp_path, monkeypatch):
    preset = preset_file("fashion-mnist")
    shared = Shared(preset, tmp_path)
    monkeypatch.setattr(shared, "_search", lambda params, folder: None)
    found = {}
    for name in ("search", "random", "scratch", "uniform"):
        params = compression_methods.params_of(preset, Method(name), 0.3, 0)
        found[name] = shared.results(params).name
    of_widths = compression_methods.params_of(preset_file("digits"), Method("uniform"), 0.5, 0)
    for settings in (params["search_block"], of_widths["search_block"]):
        assert settings["widths"] == [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    native = compression_methods.params_of(preset_file("digits"), Method("native"), 0.5, 0, Options(channels=0.75))
    assert validate_params(native, "params.yaml").assemble.native
    assert Shared(preset_file("digits"), tmp_path).results_name(native) == "search-1.0-native"
    assert found.pop("uniform") == "search-1.0-widths" and set(found.values()) == {"search-1.0"}


def test_a_method_is_told_by_its_name():
    method = Method("random-2-plain")
    assert (method.name, method.draw, method.plain, method.row) == ("random", 2, True, "random-plain")
    assert Method("one-interval").row == "one-interval"
    assert Method("fewer-steps-student").name == "fewer-steps-student" and Method("depth-plain").plain
    for wrong in ("rndom", "search-1", "-plain", "teacher-plain", "feature-reuse-plain", "uncalibrated"):
        with pytest.raises(ValueError, match="not one of"):
            Method(wrong)


def test_a_random_choice_is_not_among_those_that_were_bred():
    bred = {"space_size": 1000, "candidates": list(range(30))}
    assert compression_makers.drawn_of(bred, 30) == list(range(8))
    whole = {"space_size": 30, "candidates": list(range(30))}
    assert compression_makers.drawn_of(whole, 30) == list(range(30))


def test_scores_are_correlated_with_fid_and_error_of_the_draws_of_one_seed():
    def run(draw, seed=0, method="random"):
        scores = {"local": float(draw), "output": -float(draw)}
        return {
            "method": f"{method}-{draw}",
            "budget": 0.5,
            "seed": seed,
            "scores": scores,
            "fid": draw**2,
            "error": 1 / (draw + 1),
        }

    runs = [*map(run, range(6)), *(run(draw, seed=1) for draw in range(4))]
    (found,) = compression_table.correlations(runs)
    assert found["architectures"] == 6 and found["seed"] == 0
    for score, sign in (("local", 1), ("output", -1)):
        assert found["scores"][score]["fid"]["spearman"] == pytest.approx(sign)
        assert found["scores"][score]["error"]["spearman"] == pytest.approx(-sign)


def test_a_budget_may_have_a_residual_stream_of_its_own(tmp_path, monkeypatch, capsys):
    preset = preset_file("fashion-mnist")
    own, given = (
        compression_methods.params_of(preset, Method("search"), 0.3, 1, Options(channels=c)) for c in (None, 0.5)
    )
    assert own["search_block"]["channels"] == 1.0 and given["search_block"]["channels"] == 0.5
    assert given["assemble"]["time"] == 0.3 and given["seed"] == 1
    shared = Shared(preset, tmp_path)
    monkeypatch.setattr(shared, "_search", lambda params, folder: None)
    of_levels = Options(channels=compression_methods.shares("0.75,0.5"))
    levels = compression_methods.params_of(preset, Method("search"), 0.3, 1, of_levels)
    assert levels["search_block"]["channels"] == [0.75, 0.5] and compression_methods.written([0.75, 0.5]) == "0.75,0.5"
    folders = [shared.results(params) for params in (own, given, levels)]
    assert {folder.parent for folder in folders} == {shared.search(own)} and len({*folders}) == 3
    monkeypatch.setattr(
        "sys.argv", ["compression.py", "--preset", "smoke", "--budgets", "0.3", "0.5", "--channels", "0.6"]
    )
    with pytest.raises(SystemExit) as stopped:
        compression.main()
    assert stopped.value.code != 0 and "--channels [0.6]: give one for each of the 2 budgets" in capsys.readouterr().err


def test_a_search_is_limited_in_time_and_parameters_and_one_width_in_macs():
    preset = preset_file("fashion-mnist")
    keys = ("macs", "time", "params", "params_active")

    def limits(name, budget_of):
        params = compression_methods.params_of(preset, Method(name), 0.3, 0, Options(budget_of))
        return [params["assemble"][key] for key in keys]

    for name in ("search", "random", "scratch", "local-rule", "teacher-longer"):
        assert limits(name, "time") == [None, 0.3, 1.0, None]
        assert limits(name, "macs") == [0.3, None, 1.0, None]
    for name in ("uniform", "largest"):
        assert limits(name, "time") == limits(name, "macs") == [0.3, None, None, None]


def jobs(*flags):
    arguments = compression.parser_of_arguments().parse_args(["--preset", "smoke", "--seeds", "1", *flags])
    return arguments, compression.jobs_of(arguments)


def test_what_needs_a_student_runs_last_and_where_there_is_one():
    methods = ["fewer-steps-student", "search", "fewer-steps"]
    budgets = ["0.65", "0.35", "0.5"]
    arguments, (first, last) = jobs("--budgets", *budgets, "--methods", *methods)
    assert {job[2] for job in first} == {"search", "fewer-steps"} and len(first) == 6
    assert last == [(0, 0.35, "fewer-steps-student"), (0, 0.5, "fewer-steps-student")]
    assert [compression.options_at(arguments, job[1]).student_budget for job in last] == [0.5, 0.65]
    arguments, (_, last) = jobs("--budgets", "0.5", "--methods", *methods, "--student-budget", "0.7")
    assert last == [(0, 0.5, "fewer-steps-student")] and compression.options_at(arguments, 0.5).student_budget == 0.7


def test_a_single_run_is_told_the_options_of_its_budget():
    arguments, _ = jobs("--budgets", "0.5", "0.3", "--channels", "1.0", "0.75,0.5", "--samples", "50")
    options = compression.options_at(arguments, 0.3)
    assert options == Options("time", [0.75, 0.5], None, 50, 0.5)
    again = compression.parser_of_arguments().parse_args(["--preset", "smoke", *compression.as_flags(options)])
    assert (again.budget_of, again.channels, again.steps, again.samples) == ("time", [[0.75, 0.5]], None, 50)
    assert again.student_budget == 0.5


def test_a_target_out_of_reach_of_pruning_is_given_up(teacher, monkeypatch):
    monkeypatch.setattr(baselines, "MOST_LEFT_OUT", 3)
    importance = baselines.importance_of("magnitude", teacher, None, None, 0)
    with pytest.raises(ValueError, match=r"no pruning of this teacher has 0\.01 of its MACs"):
        baselines.pruned(teacher, 0.01, importance)
