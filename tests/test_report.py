"""The table and the page: what they say of a run's files."""

import re
from typing import Any

import numpy as np
import pytest

from stagecraft.config.stages import Report
from stagecraft.evaluation.comparison import compute_ratios
from stagecraft.report import charts, table
from stagecraft.report import page as report

TEACHER = {"fid": 0.05, "kid": 0.001, "precision": 0.9, "recall": 0.8, "macs": 1e6, "macs_with_attention": 1.1e6}
TEACHER |= {
    "params": 4e5,
    "params_active": 4e5,
    "images_per_second": 100.0,
    "milliseconds": 0.2,
    "peak_memory_mib": None,
}
TEACHER |= {"fid_margin": 0.004, "fid_equal": 0.11, "fid_equal_margin": 0.01}
TEACHER |= {"time_by_operation": {"convolution": 0.75, "other": 0.25}}
TEACHER |= {"macs_training": 1e6, "macs_of_samplers": {"ddim": 1e6, "ddpm": 1e6}}
HELD_OUT_MARGINS = {"fid_margin": 0.05, "fid_equal": 0.2, "fid_equal_margin": 0.05}
WHOLE = {"width": 32, "kernels": [3, 3]}
IDENTITY = {"resnets.0": WHOLE, "resnets.1": WHOLE, "attentions.0": {}, "attentions.1": {}}
SMALLER = {"resnets.0": {"width": 16, "kernels": [3, 1]}, "resnets.1": None, "attentions.0": {}, "attentions.1": None}
BLOCKS = ("down_blocks.0", "mid_block", "up_blocks.0.interval_0", "up_blocks.0.interval_1", "up_blocks.0.interval_2")


def make_metrics(**changes: float) -> dict[str, Any]:
    student = TEACHER | {
        "macs": 4.8e5,
        "macs_with_attention": 5e5,
        "params": 3.8e5,
        "params_active": 1.9e5,
        "milliseconds": 0.1,
    }
    student |= {"macs_training": 4.5e5, "macs_of_samplers": {"ddim": 4.8e5, "ddpm": 4.7e5}} | changes
    return {
        "teacher": TEACHER,
        "student": student | {"macs_per_interval": [4e5, 5e5, 5.4e5]},
        "autoencoder": None,
        "held_out": {"fid": 0.2, "kid": -0.0001, "precision": 0.91, "recall": 0.92, **HELD_OUT_MARGINS},
        "fewer_steps": None,
        "ratio": compute_ratios(TEACHER, student) | {"fid_difference_margin": 0.002},
        "protocol": {
            "samples": 2000,
            "sampler": "ddim",
            "steps": 50,
            "steps_per_interval": [10, 15, 25],
            "equal_count": 300,
            "training_shares": [0.2, 0.3, 0.5],
            "seed": 0,
            "device": "cpu",
            "threads": 2,
            "speed_batch": 64,
            "extractor": {"name": "classifier", "kind": "rotation", "training_accuracy": 0.99, "sha256": "cd" * 32},
            "reference": {"source": "digits", "split": "train", "count": 1438, "sha256": "ab" * 32},
        },
        "params": {"seed": 0, "sampling": {"scheduler": "ddim", "steps": 50}},
    }


TRAINED = {"source": "train", "steps": 1000, "batch_size": 64}
RETRAINED = {
    "steps": 500,
    "batch_size": 64,
    "joint_loss": "none",
    "ramp": 0.5,
    "output_weight": 9.0,
    "jacobian_weight": 0.0,
}


def make_clusters() -> dict[str, Any]:
    grid = list(range(0, 1000, 20))
    return {
        "method": "agglomerative",
        "boundaries": [200, 500],
        "boundaries_sigma": [0.7, 3.2],
        "intervals": [[0, 200], [200, 500], [500, 1000]],
        "spread": {"seeds": [0, 1], "boundaries": [[200, 500], [220, 500]], "std": [14.1, 0.0]},
        "grid": grid,
        "similarity": [[1 - abs(a - b) / 1000 for b in grid] for a in grid],
        "silhouette": {"2": 0.5, "3": 0.6, "4": 0.4},
        "curves": {"t": grid, "s0": [1 - t / 1000 for t in grid], "s1": [t / 1000 for t in grid]},
        "params": {"seed": 0, "cluster_timesteps": {"intervals": 3}},
    }


def table_of(*blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """An architecture of three intervals with a down block, a mid block and an up block, one spec for each of their ranges."""
    names = ("down_blocks.0", "mid_block", "up_blocks.0")
    ranges = {1: [[0, 1, 2]], 3: [[0], [1], [2]]}
    return {
        "blocks": {
            name: [{"range": part, "spec": spec} for part, spec in zip(ranges[len(specs)], specs, strict=True)]
            for name, specs in zip(names, blocks, strict=False)
        }
    }


def make_architecture() -> dict[str, Any]:
    chosen = {"spec": SMALLER, "nmse": 0.02, "macs": 100, "params": 30}
    return {
        "rule": "budget",
        "score": "local",
        "boundaries": [200, 500],
        "boundaries_sigma": [0.7, 3.2],
        "clustered": [200, 500],
        "intervals": [[0, 200], [200, 500], [500, 1000]],
        "steps_per_interval": [10, 15, 25],
        "unet": table_of([SMALLER], [SMALLER], [IDENTITY, SMALLER, SMALLER]),
        "identity": table_of([IDENTITY], [IDENTITY], [IDENTITY]),
        "chosen": dict.fromkeys(BLOCKS, chosen),
        "supernets": dict.fromkeys(BLOCKS, "ab" * 32),
        "expected": {"macs_ratio": 0.48, "params_ratio": 0.95, "params_active_ratio": 0.47},
        "params": {"seed": 0, "assemble": {"rule": "budget"}},
    }


def make_search() -> dict[str, Any]:
    random = np.random.default_rng(0)
    macs = random.integers(40, 220, 60).tolist()
    candidates = [
        {"spec": SMALLER, "macs": m, "params": m // 3, "nmse": 2 / m * float(random.uniform(1, 3))} for m in macs
    ]
    candidates.append({"spec": SMALLER, "nmse": 0.02, "macs": 100, "params": 30})
    history = [{"step": s, "loss": 1 / s} for s in range(2, 200, 2)]
    found = {"candidates": candidates, "log": history, "params": {}, "weights_sha256": "ab" * 32}
    spent = {"macs_spent": {"training": 6e9, "scoring": 1e9}, "triples": 3000, "stream_triples": 100}
    return found | spent | {"teacher_macs": 220, "teacher_params": 80, "identity": IDENTITY}


def make_logs(history: list[dict[str, float]] | None = None) -> dict[str, dict[str, Any]]:
    return {
        "retrain": {"history": history or [], "params": {"retrain": RETRAINED}},
        "train_teacher": {"history": [], "params": {"train_teacher": TRAINED}},
    }


def make_page(**changes: Any) -> str:
    random = np.random.default_rng(0)
    samples = {name: random.integers(0, 256, (48, 8, 8, 1)).astype(np.uint8) for name in ("teacher", "student", "real")}
    path = {name: random.integers(0, 256, (9, 2, 8, 8, 1)).astype(np.uint8) for name in ("path_sample", "path_image")}
    samples |= path | {"path_t": np.array([999, 800, 600, 500, 400, 200, 199, 100, 0])}
    history = [{"step": s, "loss": 3 / s, "noise": 1 / s, "blocks": 2 / s} for s in range(10, 2000, 10)]
    inputs = {
        "metrics": make_metrics(),
        "samples": samples,
        "clusters": make_clusters(),
        "architecture": make_architecture(),
        "searches": dict.fromkeys(BLOCKS, make_search()),
        "logs": make_logs(history),
        "params": Report.of({"report": {"images": 48}}),
    }
    return report.render_report(**(inputs | changes))


def test_page_says_how_many_channels_pass_between_layers() -> None:
    architecture = make_architecture()
    assert "Between layers pass" not in make_page(architecture=architecture)
    architecture["unet"]["stream"] = [list(range(16)), list(range(40))]
    assert "Between layers pass 16, 40 channels" in make_page(architecture=architecture)


def test_table_has_teacher_student_ratio_and_names_the_measure() -> None:
    lines = table.format_table(make_metrics()).splitlines()
    assert lines[0].split() == ["teacher", "student", "ratio", "held-out", "real"]
    macs = next(text for text in lines if text.startswith("MACs per step (thop)"))
    assert macs.split()[-4:] == ["480,000", "x", "0.480", "-"]
    assert "2,000 samples each, ddim, 50 steps, seed 0; features of classifier (rotation)" in lines[-1]


def test_table_writes_a_dash_for_what_was_not_measured() -> None:
    metrics = make_metrics() | {"held_out": {"fid": None, "reason": "9 held-out images"}}
    rows = {row[0]: row for row in table.table_rows(metrics)}
    assert rows["peak memory, MiB"][1:4] == ("-", "-", "-")
    assert rows["FID (classifier features)"][4] == "-"


def test_page_needs_nothing_from_outside() -> None:
    page = make_page()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in page
    assert "@import" not in page


def test_page_is_the_same_for_the_same_files() -> None:
    assert make_page() == make_page()


def test_page_says_the_figures_and_every_picture_in_words() -> None:
    page = make_page()
    assert "0.50 of the teacher&#39;s time and 0.48 of its MACs" in page
    assert "is 0.0500 ± 0.0040, the teacher&#39;s 0.0500 ± 0.0040" in page
    assert "no difference beyond the margin of 0.002" in page
    assert all(re.search(r'alt="[^"]+"', image) for image in re.findall(r"<img[^>]*>", page))
    assert all(re.search(r'aria-label="[^"]+"', chart) for chart in re.findall(r"<svg[^>]*>", page))


def test_predicted_time_stands_beside_measured_time() -> None:
    metrics = make_metrics()
    assert "x 0.500" in table.format_table(metrics) and "predicted" not in table.format_table(metrics)
    metrics["ratio"]["time_predicted"] = 0.47
    assert "x 0.500 (predicted 0.470)" in table.format_table(metrics)
    assert "predicted × 0.47" in make_page(metrics=metrics)


def test_page_says_which_intervals_share_blocks() -> None:
    entries = {"up_blocks.0": [[0, 1, 2]], "up_blocks.1": [[0], [1, 2]], "mid_block": [[0, 1, 2]]}
    shared = {"blocks": {name: [{"range": part} for part in ranges] for name, ranges in entries.items()}}
    said = "Intervals 0 and 1 and 2 share up_blocks.0, intervals 1 and 2 share up_blocks.1."
    assert report.shared_text(shared) == said
    assert report.shared_text(make_architecture()["unet"]) == "Every interval has up blocks of its own."
    assert report.shared_text({"blocks": {"mid_block": [{"range": [0]}], "up_blocks.0": [{"range": [0]}]}}) == ""


def test_verdict_admits_a_worse_student() -> None:
    found = report.verdict(make_metrics(fid=0.08))
    assert "is 0.0800 ± 0.0040, the teacher's 0.0500 ± 0.0040 from the same seeds: 0.0300 ± 0.0020 worse." in found
    assert "0.0100 ± 0.0020 better." in report.verdict(make_metrics(fid=0.04))


def test_a_student_of_fewer_steps_is_said_to_be_one() -> None:
    metrics = make_metrics(images_per_second=250.0)
    assert "Sampled" not in report.verdict(metrics) and "50 steps, seed" in table.measured_with(metrics["protocol"])
    metrics["protocol"]["student_steps"] = 40
    found = report.verdict(metrics)
    assert (
        "Sampled in 40 steps where the teacher takes 50, it needs 0.40 of the teacher's time for an image, and 0.38 of its MACs. "
        in found
    )
    assert "50 steps (the student 40), seed" in table.measured_with(metrics["protocol"])
    assert "of 40 steps, each with the decoder in charge" in make_page(metrics=metrics)


def test_the_teacher_in_fewer_steps_stands_beside_the_student() -> None:
    metrics = make_metrics(fid=0.06)
    assert "In 24 steps" not in report.verdict(metrics)
    metrics["fewer_steps"] = {"steps": 24, "budget_of": "time", "fid": 0.09, "fid_margin": 0.005}
    metrics["fewer_steps"] |= {"fid_difference": -0.03, "fid_difference_margin": 0.004}
    assert report.verdict(metrics).endswith(
        "worse. In 24 steps, which take about the student's time, the teacher has 0.0900 ± 0.0050; beside that the student: "
        "0.0300 ± 0.0040 better."
    )
    row = ("FID, the teacher in 24 steps (classifier features)", "0.0900 ± 0.0050", "0.0600 ± 0.0040")
    assert (*row, "-0.0300 ± 0.0040", "-") in table.table_rows(metrics)
    row = ("student − teacher in 24 steps, same seeds", "2,000", "-0.0300 ± 0.0040", "yes")
    assert report.comparisons(metrics)[1] == row
    assert "In 24 steps" in make_page(metrics=metrics)
    metrics["fewer_steps"]["budget_of"] = "macs"
    assert "take about the student's MACs, the" in report.verdict(metrics)


def test_page_escapes_what_comes_from_files() -> None:
    metrics = make_metrics()
    metrics["params"]["evaluate"] = {"extractor": "<script>alert(1)</script>"}
    assert "<script>alert" not in make_page(metrics=metrics)


def test_page_does_without_what_a_run_did_not_compute() -> None:
    clusters = make_clusters() | {"similarity": None, "silhouette": {}, "curves": None, "boundaries": []}
    clusters |= {
        "boundaries_sigma": [],
        "intervals": [[0, 1000]],
        "spread": {"seeds": [0], "boundaries": [[]], "std": []},
    }
    architecture = make_architecture()
    architecture |= {
        "boundaries": [],
        "boundaries_sigma": [],
        "clustered": [],
        "intervals": [[0, 1000]],
        "steps_per_interval": [50],
        "unet": {"blocks": {name: [{"range": [0], "spec": SMALLER}] for name in ("down_blocks.0", "up_blocks.0")}},
        "chosen": {name: architecture["chosen"][name] for name in ("down_blocks.0", "up_blocks.0.interval_0")},
    }
    metrics = make_metrics()
    metrics["protocol"]["steps_per_interval"] = [50]
    page = make_page(metrics=metrics, clusters=clusters, architecture=architecture, logs=make_logs())
    assert "Silhouette" not in page


def test_page_says_what_of_the_clustering_could_not_be_computed() -> None:
    clusters = make_clusters()
    clusters["silhouette"] |= {"4": None, "5": None}
    clusters["spread"]["seeds"].append(2)
    clusters["spread"]["boundaries"].append(None)
    clusters["missing"] = {
        "silhouette 4": "not <b>",
        "silhouette 5": "not <b>",
        "boundaries of seed 2": "too few draws",
    }
    page = make_page(clusters=clusters)
    assert "Not computed: silhouette 4, silhouette 5 (not &lt;b&gt;)." in page
    assert "Not computed: boundaries of seed 2 (too few draws)." in page and "Over 2 seeds the boundaries are" in page
    assert "Silhouette over K: 2: 0.500, 3: 0.600" in page
    clusters |= {"silhouette": dict.fromkeys("2345678"), "similarity": None, "curves": None}
    assert "<h3>Silhouette</h3>" not in make_page(clusters=clusters)
    assert "Not computed" not in make_page()


def test_what_is_narrowed_is_named() -> None:
    spec = {"resnets.0": {"width": 16, "kernels": [3, 3], "reads": [0, 1], "writes": [0, 1, 2]}, "attentions.0": {}}
    inside, attention = report.draw_layers(spec, {"resnets.0": WHOLE, "attentions.0": {}})
    assert inside["text"] == "16 · 3×3 3×3 · reads 2 groups · writes 3 groups"
    assert attention == {"kind": "attentions", "share": 1.0, "text": "attention"}
    assert report.spec_text(spec, IDENTITY) == "16 · 3×3 3×3 · reads 2 groups · writes 3 groups; attention"


def test_dropped_layers_and_attention_are_drawn_as_such() -> None:
    layers = report.draw_layers(SMALLER, IDENTITY)
    assert [layer["text"] for layer in layers] == ["16 · 3×3 1×1", "attention", "dropped", "no attention"]
    assert [layer["share"] for layer in layers] == [0.5, 1, 0, 0]


def test_pareto_front_keeps_what_nothing_beats() -> None:
    points = [(1.0, 5.0), (2.0, 6.0), (3.0, 2.0), (3.0, 1.0), (4.0, 1.5)]
    assert charts.pareto_front(points) == [(1.0, 5.0), (3.0, 1.0)]


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0], [1e-9, 1e6], [-3.0, 4.0], [0.0, 1e-12]])
@pytest.mark.parametrize("log", [False, True])
def test_scales_hold_their_values_and_have_ticks_inside(values: list[float], log: bool) -> None:
    scale = charts.scale_over(values, 0, 100, log=log)
    assert all(-1e-6 <= scale(v) <= 100 + 1e-6 for v in values)
    assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in scale.ticks())
    assert 1 <= len(scale.ticks()) <= 10


def test_what_search_and_retraining_took_stands_beside_the_teachers_training() -> None:
    searches, logs = dict.fromkeys(BLOCKS, make_search()), make_logs()
    metrics, trained = make_metrics(), 3 * 1000 * 64 * 1e6
    found = {what: (macs, share) for what, macs, share in report.costs(metrics, searches, logs)}
    passes = found["teacher passes for the features and the importance of channels"]
    assert passes == ("3.3e+09", f"{3.3e9 / trained:.1%}")
    assert found["the search in all"][1] == f"{(3.3e9 + 7e9 * len(BLOCKS)) / trained:.1%}"
    assert found["retraining the student"][1] == f"{0.5 * 0.45:.1%}"
    assert found["the teacher's predictions for it"][1] == f"{0.5 / 3:.1%}"
    given = logs | {"train_teacher": {"params": {"train_teacher": TRAINED | {"source": "path"}}}}
    assert all(share == "" for _, _, share in report.costs(metrics, searches, given))
    assert report.costs(metrics, {}, logs) == []


def test_page_says_which_fids_differ_by_more_than_chance() -> None:
    found = report.comparisons(make_metrics(fid=0.08, fid_equal=0.11))
    assert found == [
        ("student − teacher, same seeds", "2,000", "+0.0300 ± 0.0020", "yes"),
        ("student − held-out real images", "300", "-0.090 ± 0.051", "yes"),
        ("teacher − held-out real images", "300", "-0.090 ± 0.051", "yes"),
    ]
    metrics = make_metrics()
    metrics["held_out"]["fid_equal"] = 0.12
    assert [row[-1] for row in report.comparisons(metrics)] == ["no", "no", "no"]
    metrics["protocol"]["equal_count"] = None
    assert len(report.comparisons(metrics)) == 1
    assert not any("images each" in row[0] for row in table.table_rows(metrics))


def test_a_margin_says_how_many_figures_of_a_value_count() -> None:
    assert table.with_margin(0.02021, 0.0034) == "0.0202 ± 0.0034"
    assert table.with_margin(-0.00003, 0.0018, "+") == "+0.0000 ± 0.0018"
    assert table.with_margin(12.345, 0.0) == "12.35 ± 0"


def test_each_step_of_the_path_has_the_decoder_in_charge() -> None:
    steps = re.findall(r'class="step s(\d)".*?<figcaption>t = (\d+), decoder (\d)<', make_page())
    times = ("999", "800", "600", "500", "400", "200", "199", "100", "0")
    assert steps == [(decoder, t, decoder) for t, decoder in zip(times, "222211000", strict=True)]


def test_blocks_say_which_intervals_share_them_in_their_colours() -> None:
    architecture = make_architecture()
    architecture["unet"]["blocks"]["up_blocks.0"] = [
        {"range": [0, 1], "spec": SMALLER},
        {"range": [2], "spec": SMALLER},
    ]
    page = make_page(architecture=architecture)
    assert '<span class="mark s0"></span><span class="mark s1"></span>shared by 0 and 1</div>' in page
    assert '<span class="mark s2"></span>interval 2 alone</div>' in page
    assert 'colspan="2" style="--bar: var(--c0)"' in page and 'colspan="1" style="--bar: var(--c2)"' in page
    assert page.count("shared by all") == 2


def test_costs_begin_with_time() -> None:
    rows = [row[0] for row in table.table_rows(make_metrics())]
    assert rows[:2] == ["milliseconds an image and step", "images per second"]
    assert rows.index("MACs per step (thop)") < rows.index("FID (classifier features)")
    search = make_search() | {"candidates": [{"spec": IDENTITY, "macs": 220, "params": 80, "nmse": 0.1, "time": 0.5}]}
    chosen = {"spec": SMALLER, "macs": 110, "params": 20, "nmse": 0.2, "time": 0.2}
    assert report.cost_texts(chosen, search) == ["0.2 (× 0.40) ms", "110 (× 0.50) MACs", "20 (× 0.25) parameters"]
    note, chart = report.candidate_chart("mid_block", search, chosen)
    assert note == "1 candidates; chosen: × 0.40 time, NMSE 0.2" and "time / teacher" in chart


def test_large_pictures_of_the_path_are_shrunk() -> None:
    images = np.zeros((1, 130, 130, 3), np.uint8)
    images[:, :3] = 90
    assert charts.shrink(images).shape == (1, 43, 43, 3)
    assert charts.shrink(images)[0, :2, 0, 0].tolist() == [90, 0]
    assert charts.shrink(images[:, :64, :64]).shape == (1, 64, 64, 3)
