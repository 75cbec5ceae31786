"""What the benchmarks conclude from their curves."""

import html
import json
import re
import statistics
import sys

import pytest
from helpers import ROOT, preset_params

sys.path.insert(0, str(ROOT / "benchmarks"))

import compression_table
import multistage
import numpy as np
import search_cost
import space
from curves import mean_curve, panel, write_figure
from shared_inputs import Shared

from stagecraft.data.training import TrainingSet
from stagecraft.networks.given import Space
from stagecraft.networks.given_teacher import open_given_teacher
from stagecraft.preflight.params import validate_params
from stagecraft.report.page import comparisons
from stagecraft.report.table import table_rows
from stagecraft.training.teacher import build_teacher

RESULTS = ROOT / "benchmarks" / "results"


def curve(*points):
    return [{"step": i, "training_macs": macs, "fid": fid} for i, (macs, fid) in enumerate(points)]


def test_what_a_curve_needs_to_reach_a_fid_lies_between_its_points():
    points = curve((100, 4.0), (200, 2.0), (400, 1.0))
    assert multistage.reached(points, 3.0) == pytest.approx(150)
    assert multistage.reached(points, 2.0) == pytest.approx(200)
    assert multistage.reached(points, 5.0) == 100
    assert multistage.reached(points, 0.5) is None


def test_curves_cross_where_the_other_stays_below_to_the_end():
    one = curve((0, 4.0), (400, 4.0))
    assert multistage.crossing(one, curve((0, 6.0), (200, 4.0), (400, 2.0))) == pytest.approx(200, abs=2)
    assert multistage.crossing(one, curve((0, 2.0), (400, 6.0))) is None
    assert multistage.crossing(one, curve((0, 2.0), (400, 3.0))) == 0


def run(arm, seed, *points):
    costs = {"macs_training_ratio": 0.8, "macs_sampling_ratio": 0.7, "boundaries": [1.0]}
    return {"process": "vp", "arm": arm, "seed": seed, "points": curve(*points)} | costs


def test_a_summary_compares_runs_of_the_same_seed():
    runs = [
        run("unified", 0, (100, 3.0), (200, 2.0)),
        run("unified", 1, (100, 3.0), (200, 1.0)),
        run("multistage", 0, (100, 2.0), (200, 1.5)),
        run("multistage", 1, (100, 2.0), (200, 1.5)),
    ]
    found = multistage.summarise(runs)["vp"]
    assert found["unified"]["mean"] == 1.5 and found["multistage"]["std"] == 0
    assert found["multistage"]["share_for_unified_fid"] == [0.5, None]
    assert found["multistage"]["crossing_share"][0] == pytest.approx(0.5, abs=0.01)
    assert "share_for_unified_fid" not in found["unified"]


def test_a_figure_has_a_line_for_every_seed_and_one_for_their_mean(tmp_path):
    curves = [[(0.5, 2.0), (1.0, 1.0)], [(0.7, 4.0), (1.0, 3.0)]]
    assert mean_curve(curves) == [(0.6, 3.0), (1.0, 2.0)]
    write_figure([panel({"ours": curves}, "VP", "MACs", "FID")], ["ours"], tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert text.count('class="seed c0"') == 2 and text.count('<polyline class="mean c0"') == 2
    assert "ours" in text


def test_the_plot_leaves_out_what_lacks_a_seed_and_has_the_teacher_as_a_level(tmp_path):
    def run(method, budget, seed, fid):
        fidelity = {"classifier": {"fid": fid}}
        return {
            "method": method,
            "budget": budget,
            "seed": seed,
            "time_ratio": budget,
            "macs_ratio": budget,
            "params_ratio": 0.7,
            "fid": fid,
            "fidelity": fidelity,
        }

    runs = [
        run(method, budget, seed, fid + seed)
        for method, fid, seeds in (("scratch", 9.0, (0, 1)), ("search", 2.0, (0, 1)), ("uniform", 1.0, (0,)))
        for budget in (0.3, 0.5)
        for seed in seeds
    ]
    runs += [run("teacher", 1.0, 0, 3.0), run("teacher", 1.0, 1, 5.0), run("random", 0.3, 0, 4.0)]
    runs += [run("fewer-steps-student", 0.3, seed, 12.0) for seed in (0, 1)]
    runs += [run("search-plain", budget, seed, 4.0) for budget in (0.3, 0.5) for seed in (0, 1)]
    compression_table.draw(runs, tmp_path / "fid.svg")
    text = (tmp_path / "fid.svg").read_text()
    of_costs = [
        ("search", "2.5"),
        ("search", "2.5"),
        ("scratch", "9.5"),
        ("scratch", "9.5"),
        ("fewer-steps-student", "12"),
    ]
    assert re.findall(r"<title>([a-z-]+): ([0-9.]+)</title>", text) == 3 * of_costs
    assert text.count('class="level"') == 3 and "teacher: 4<" in text
    assert all(f"{cost} / the teacher's" in html.unescape(text) for cost in ("time", "MACs", "parameters"))
    assert "uniform" not in text and "random" not in text and "plain" not in text


def test_what_runs_share_is_made_once_and_refused_with_other_params(tmp_path):
    made = []

    def train_extractor(params, *, threads, output):
        made.append(params.train_extractor.steps)
        output.write_text("weights")

    shared, params = Shared(ROOT / "presets" / "smoke.yaml", tmp_path), preset_params("smoke")
    for _ in range(2):
        shared.make(train_extractor, params, tmp_path / "extractor", output=tmp_path / "extractor")
    assert made == [params["train_extractor"]["steps"]]
    params["train_extractor"]["steps"] += 1
    with pytest.raises(ValueError, match="not made with the params of"):
        shared.make(train_extractor, params, tmp_path / "extractor", output=tmp_path / "extractor")
    assert (tmp_path / "extractor").read_text() == "weights"


def test_a_search_is_a_share_of_the_teachers_training():
    one = {"teacher_step": 0.1, "features": 1.0, "searches": 8.0, "searches_two_at_once": 4.4, "selection": 1.0}
    rounds = [one | {"pair": 2.0, "pair_at_once": 1.0}, one | {"pair": 2.0, "pair_at_once": 1.2}]
    found = search_cost.summarise(rounds, {"features": 1.0, "training": 3.0, "teacher": 50.0}, 1000)
    assert found["macs_share"] == pytest.approx(0.08)
    assert found["seconds_share"]["mean"] == pytest.approx(0.1)
    assert found["two_at_once_share"]["mean"] == pytest.approx(0.55)
    assert found["pair_at_once_share"]["mean"] == pytest.approx(0.55)


def test_the_kept_teacher_is_one_of_its_preset():
    params = preset_params("fashion-mnist")
    images = TrainingSet.of_images(np.zeros((2, 16, 16, 1), np.uint8))
    folder = str(ROOT / "benchmarks" / "teachers" / "fashion-mnist")
    kept, _ = open_given_teacher(folder, images, params["diffusion"], Space(16, 1))
    made = build_teacher(validate_params(params, "fashion-mnist").train_teacher, 16, 1, 0, None).state_dict()
    assert {name: value.shape for name, value in kept.state_dict().items()} == {n: v.shape for n, v in made.items()}


def section_of(heading):
    """A section of the page of benchmarks."""
    return (ROOT / "docs" / "benchmarks.md").read_text().split(f"## {heading}\n")[1].split("\n##")[0]


def runs_of(name, budget=None):
    """The committed runs of a benchmark, a file for each, or those at one budget."""
    runs = [json.loads(path.read_text()) for path in sorted((RESULTS / name).glob("*-seed*.json"))]
    return runs if budget is None else [run for run in runs if run["budget"] == budget]


def cells_of(section, heading):
    """The cells of the rows of the table whose heading has these words, by the row's name."""
    table = next(part for part in section.split("\n\n") if part.startswith("|") and heading in part.splitlines()[0])
    rows = (line.strip("| ").split(" | ") for line in table.splitlines()[2:])
    return {name.strip("`"): cells for name, *cells in rows}


def spread(values, digits, sign=""):
    assert len(values) > 1
    return f"{statistics.mean(values):{sign}.{digits}f} ± {statistics.stdev(values):.{digits}f}"


@pytest.mark.parametrize("name", ["digits"])
def test_the_docs_have_the_figures_of_the_comparison_by_the_clock(name):
    summary = compression_table.summarise(runs_of(f"compression-{name}"))
    rows = cells_of(section_of("Does the search pay?"), f"{name}, 0.5 of the time")
    assert set(rows) == set(summary["0.5"]) >= {"search", "teacher", "depth", "random", "diff-pruning", "fewer-steps"}
    for method, (*costs, error, fid) in rows.items():
        found = summary["0.5"][method]
        assert found["seeds"] == [0, 1, 2]
        assert costs == [f"{statistics.mean(found[f'{key}_ratio']):.2f}" for key in ("time", "macs", "params")]
        assert error == ("-" if None in found["error"] else spread(found["error"], 4))
        assert fid == spread(found["fid"]["classifier"], 4)


@pytest.mark.parametrize(
    ("folder", "heading", "budget", "network", "methods"),
    [
        (
            "fashion-mnist",
            "Fashion-MNIST",
            0.5,
            "fashion-cnn",
            {"teacher", "search", "search, Muon", "depth", "diff-pruning", "uniform"},
        ),
        ("fashion-mnist", "Fashion-MNIST", 0.35, "fashion-cnn", {"search, Muon", "fewer-steps-student of 0.65, Muon"}),
        ("cifar10-latent", "CIFAR-10 in latents", 0.5, "cifar-resnet", {"teacher", "one-interval, Muon"}),
    ],
)
def test_the_docs_have_every_seed_of_a_comparison_by_two_networks(folder, heading, budget, network, methods):
    rows = cells_of(section_of("Does the search pay?"), f"{heading}, {budget} of the time")
    runs: dict[str, list] = {}
    for run in runs_of(f"compression-{folder}", budget):
        student = f" of {run['student_budget']}" if "student_budget" in run else ""
        optimizer = ", Muon" if run.get("optimizer") == "muon" else ""
        runs.setdefault(run["method"] + student + optimizer, []).append(run)
    assert set(rows) == {*runs} >= {"fewer-steps"} | methods

    def listed(values, digits=2):
        texts = [f"{value:.{digits}f}" for value in values]
        return texts[0] if len({*texts}) == 1 else ", ".join(texts)

    for method, found in runs.items():
        costs = [listed(run[f"{key}_ratio"] for run in found) for key in ("time", "macs", "params")]
        own, other = ([run["fidelity"][name]["fid"] for run in found] for name in ("classifier", network))
        seeds = ", ".join(str(run["seed"]) for run in found)
        assert rows[method] == [seeds, *costs, listed(own, 3), listed(other)], method


@pytest.mark.parametrize(
    ("budget", "below", "above"),
    [
        (
            0.5,
            "below the teacher with 12 steps by {}, and by {} by the other network",
            "above its teacher by {}, and by {}",
        ),
        (
            0.35,
            "below the teacher with 9 steps in every seed, by {}, and by {} by the other network",
            "above the teacher with all of its steps by {} and {}",
        ),
    ],
)
def test_the_docs_have_the_margins_of_both_means_together(budget, below, above):
    found = [*runs_of("compression-fashion-mnist", budget), *runs_of("compression-fashion-mnist", 0.5)]
    teachers = {(run["method"], run["seed"]): run for run in reversed(found)}
    students = {run["seed"]: run for run in reversed(found) if run.get("student_budget") == 0.65}

    def differences(other, sign):
        for network, digits in (("classifier", 3), ("fashion-cnn", 2)):
            pairs = [(teachers[other, seed]["fidelity"], students[seed]["fidelity"]) for seed in range(3)]
            yield spread([sign * (a[network]["fid"] - b[network]["fid"]) for a, b in pairs], digits)

    text = " ".join(section_of("Does the search pay?").split())
    assert below.format(*differences("fewer-steps", 1)) in text
    assert above.format(*differences("teacher", -1)) in text


def test_the_docs_have_the_figures_of_longer_retraining():
    section = section_of("Does the search pay?")
    runs = runs_of("compression-fashion-mnist", 0.5)
    both = [run for run in runs if (run["method"], run["seed"]) == ("search", 2)]
    by_optimizer = {run.get("optimizer", "adamw"): run for run in both}
    compared = (by_optimizer["muon"], by_optimizer["adamw"])
    figures = [(run["error"], *(run["fidelity"][name]["fid"] for name in run["fidelity"])) for run in compared]
    pairs = [f"{a:.{digits}f} for {b:.{digits}f}" for a, b, digits in zip(*figures, (4, 3, 2), strict=True)]
    assert "error {}, FID {}, by the other network {}.".format(*pairs) in " ".join(section.split())
    runs = runs_of("longer-fashion-mnist")
    for run in runs:
        steps = f"{run['steps']:,}" if "steps" in run else "-"
        costs = " | ".join(f"{run[f'{key}_ratio']:.2f}" for key in ("time", "macs", "params"))
        error = f"{run['error']:.4f}" if "error" in run else "-"
        fids = f"{run['fidelity']['classifier']['fid']:.3f} | {run['fidelity']['fashion-cnn']['fid']:.2f}"
        optimizer = run.get("optimizer", "adamw") if "steps" in run else "-"
        assert f"| `{run['method']}` | {optimizer} | {steps} | {costs} | {error} | {fids} |" in section
    assert len(runs) == 8


def test_the_docs_have_the_figures_of_the_choices():
    networks = json.loads((RESULTS / "choices.json").read_text())["networks"]
    rows = cells_of(section_of("What pays in time"), "MACs | time")
    for at, network in enumerate(networks.values()):
        found = {row["choice"]: [f"{row['macs']:.2f}", f"{row['time']['1']:.2f}"] for row in network["rows"]}
        assert found == {choice: cells[2 * at : 2 * at + 2] for choice, cells in rows.items()}


def test_the_docs_have_the_figures_of_the_kinds_of_choices():
    smallest = json.loads((RESULTS / "space.json").read_text())["digits"]["smallest"]
    rows = cells_of(section_of("What pays in time"), "time 0.65")
    best = {budget: space.mean_of(smallest[space.ALL], budget) for budget in ("0.65", "0.5", "0.35")}
    for kind, cells in rows.items():
        wanted = [space.ratio(space.mean_of(smallest[kind], budget), value) for budget, value in best.items()]
        assert cells == [space.written(value, "{:.2f}") for value in wanted]


@pytest.mark.parametrize(
    ("folder", "heading", "some"),
    [
        ("recipes-digits", "| recipe", {"linear-9", "none-9", "none", "teacher"}),
        ("recipes-optimizer-digits", "| by optimizer", {"linear-9", "linear-9-muon", "teacher"}),
    ],
)
def test_the_docs_have_the_figures_of_the_recipes(folder, heading, some):
    runs: dict[str, list] = {}
    for run in runs_of(folder):
        runs.setdefault(run["recipe"], []).append(run)
    rows = cells_of(section_of("How to retrain"), heading)
    assert set(rows) == {*runs} and some <= set(rows)
    for recipe, (seeds, error, fid) in rows.items():
        found = runs[recipe]
        assert seeds == str(len(found))
        assert error == f"{statistics.mean(run['error'] for run in found):.4f}"
        assert fid == f"{statistics.mean(run['fid']['classifier'] for run in found):.4f}"


def test_the_docs_show_the_curves_of_the_results():
    assert (ROOT / "docs/images/multistage.svg").read_bytes() == (RESULTS / "multistage/curves.svg").read_bytes()


def test_the_readme_has_the_figures_of_the_default_run():
    metrics = json.loads((ROOT / "results" / "metrics.json").read_text())
    rows = cells_of((ROOT / "README.md").read_text(), "teacher | student | ratio")
    forms = {
        "milliseconds": ("milliseconds", "{:.3f}", f"{metrics['ratio']['time']:.3f}"),
        "MACs": ("macs", "{:,.0f}", f"{metrics['ratio']['macs']:.3f}"),
        "parameters, total": ("params", "{:,}", f"{metrics['ratio']['params']:.3f}"),
        "parameters, active": ("params_active", "{:,}", f"{metrics['ratio']['params_active']:.3f}"),
    }
    assert len(rows) == len(forms) + 3
    for (name, cells), (start, (key, form, ratio)) in zip(rows.items(), forms.items(), strict=False):
        assert name.startswith(start)
        assert cells[:3] == [form.format(metrics["teacher"][key]), form.format(metrics["student"][key]), ratio]
    written = {name: cells for name, *cells in table_rows(metrics)}
    assert rows["FID of 5,000 images (classifier features)"] == written["FID (classifier features)"]
    assert rows["FID of 359 images each"] == written["FID of 359 images each (classifier features)"]
    control = written[f"FID, the teacher in {metrics['fewer_steps']['steps']} steps (classifier features)"]
    assert rows["the same, teacher in 13 steps, about the student's time"] == control
    beyond = {what: said for what, *_, said in comparisons(metrics)}
    assert beyond.pop("student − teacher in 13 steps, same seeds") == "yes" and set(beyond.values()) == {"no"}
