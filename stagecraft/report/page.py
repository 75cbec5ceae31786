"""results/report.html: one self-contained page of what a run made and how it compares with the teacher."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Literal, NotRequired, TypedDict

import jinja2
import numpy as np
from markupsafe import Markup

from stagecraft.clustering.record import Clusters, Curves, Spread
from stagecraft.config.stages import Report, Retrain, TrainTeacher
from stagecraft.elastic.kinds import describe_choice, place_of_layer
from stagecraft.evaluation.metrics import Metrics, student_steps
from stagecraft.networks.family import Architecture, Entry, Spec
from stagecraft.networks.jobs import Job
from stagecraft.report import charts
from stagecraft.report.table import feature_name, measured_with, table_rows, with_margin
from stagecraft.search.record import Scored, Search
from stagecraft.training.assembled import AssembledStudent, ChosenBlock
from stagecraft.training.log import TrainingLog
from stagecraft.training.schedule import passes_per_step

PACKAGES = (
    "stagecraft",
    "torch",
    "diffusers",
    "torch-fidelity",
    "thop",
    "numpy",
    "scipy",
    "scikit-learn",
    "safetensors",
    "pillow",
    "snakemake",
    "dvc",
)
COLUMNS = 8
Searches = dict[str, Search]  # by job
Logs = dict[str, TrainingLog]  # by stage
CostKind = Literal["time", "macs"]
BUDGETS: dict[CostKind, str] = {"time": "time", "macs": "MACs"}


def render_report(
    metrics: Metrics,
    samples: dict[str, np.ndarray],
    clusters: Clusters,
    architecture: AssembledStudent,
    searches: Searches,
    logs: Logs,
    params: Report,
) -> str:
    """The page as HTML text, the same for the same inputs and versions.

    Args:
        metrics, clusters, architecture: contents of the JSON files of those names.
        samples: `teacher`, `student`, `real`, uint8 (N, H, W, C), and the student's path, as evaluation/path.py has it.
        searches: contents of results/search/*.json by block job name.
        logs: contents of results/logs/*.json by stage.
        params: the params of the stage `report`; `report.images` samples are shown of each set.

    Raises:
        ValueError: the architecture was made from other clusters or searches.
    """
    check_same_run(clusters, architecture, searches)
    sources = [metrics, clusters, architecture, *searches.values(), *logs.values()]
    made_with = [source["params"] for source in sources] + [params.as_given()]
    return open_template("page.html.j2", autoescape=True).render(
        **parts_of_metrics(metrics),
        **parts_of_architecture(architecture, searches),
        pictures=pictures(samples, params.report.images),
        path=path_steps(samples, architecture),
        path_samples=samples["path_sample"].shape[1],
        steps=student_steps(metrics["protocol"]),
        intervals=interval_table(architecture, metrics),
        clusters=cluster_charts(clusters),
        spent=costs(metrics, searches, logs),
        losses=loss_charts(logs, searches),
        params=[(section, flat(value)) for section, value in merged_params(made_with).items()],
        own_params=params.as_given(),
        versions=versions(),
    )


def parts_of_metrics(metrics: Metrics) -> dict[str, object]:
    """The parts of the page that come from metrics.json alone, by the template's names."""
    return {
        "verdict": verdict(metrics),
        "tiles": tiles(metrics),
        "rows": figure_rows(metrics),
        "comparisons": comparisons(metrics),
        "times": time_table(metrics),
        "measured_with": measured_with(metrics["protocol"]),
        "held_out_reason": metrics["held_out"].get("reason"),
        "samplers": sampler_table(metrics),
        "autoencoder": metrics["autoencoder"],
        "protocol": flat(metrics["protocol"]),
    }


def parts_of_architecture(architecture: AssembledStudent, searches: Searches) -> dict[str, object]:
    """The parts of the page on the architecture and its candidates, by the template's names."""
    return {
        "architecture": architecture_rows(architecture, searches),
        "shared": shared_text(architecture["unet"]),
        "expected": architecture["expected"],
        "stream": [len(level) for level in architecture["unet"].get("stream", [])],
        "rule": architecture["rule"],
        "score": architecture["score"],
        "interval_count": len(architecture["steps_per_interval"]),
        "candidates": candidate_charts(architecture, searches),
    }


def open_template(name: str, *, autoescape: bool = False, keep_trailing_newline: bool = False) -> jinja2.Template:
    """A template of this folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=autoescape,
        keep_trailing_newline=keep_trailing_newline,
    )
    return environment.get_template(name)


def check_same_run(clusters: Clusters, architecture: AssembledStudent, searches: Searches) -> None:
    """Raise ValueError unless an architecture was made from these clusters and searches."""
    hashes = {name: search["weights_sha256"] for name, search in searches.items()}
    if architecture["clustered"] != clusters["boundaries"] or architecture["supernets"] != hashes:
        remedy = "run assemble again (snakemake --forcerun assemble)"
        raise ValueError(f"architecture.json: made from other clusters.json or search results; {remedy}")


def verdict(metrics: Metrics) -> str:
    """The result in words: costs, steps where the student has its own, FIDs, and that of the teacher in fewer steps."""
    ratio = metrics["ratio"]
    teacher, student = (
        with_margin(metrics[name]["fid"], metrics[name]["fid_margin"]) for name in ("teacher", "student")
    )
    return (
        f"The student takes {ratio['time']:.2f} of the teacher's time and {ratio['macs']:.2f} of its MACs per sampling step, and "
        f"has {ratio['params']:.2f} of its parameters, {ratio['params_active']:.2f} active at any one step. "
        f"{steps_in_words(metrics)}"
        f"Its FID ({feature_name(metrics)}) is {student}, the teacher's {teacher} from the same seeds: "
        f"{judge_difference(ratio['fid_difference'], ratio['fid_difference_margin'])}.{control_in_words(metrics)}"
    )


def control_in_words(metrics: Metrics) -> str:
    """The student beside the teacher in as many steps as take its time or MACs; nothing where those are not fewer."""
    control = metrics["fewer_steps"]
    if control is None:
        return ""
    return (
        f" In {control['steps']} steps, which take about the student's {BUDGETS[control['budget_of']]}, the teacher has "
        f"{with_margin(control['fid'], control['fid_margin'])}; beside that the student: "
        f"{judge_difference(control['fid_difference'], control['fid_difference_margin'])}."
    )


def steps_in_words(metrics: Metrics) -> str:
    """What an image takes where the student is sampled in other steps than the teacher, else nothing."""
    ratio = metrics["ratio"]
    steps = metrics["protocol"]["steps"]
    own = student_steps(metrics["protocol"])
    if own == steps:
        return ""
    return (
        f"Sampled in {own} steps where the teacher takes {steps}, it needs {1 / ratio['images_per_second']:.2f} of the teacher's "
        f"time for an image, and {ratio['macs'] * own / steps:.2f} of its MACs. "
    )


def figure_rows(metrics: Metrics) -> list[list[str]]:
    """The rows of the table, without those of which neither model has a value."""
    rows = [
        [cell.replace("x ", "× ", 1) if cell.startswith("x ") else cell for cell in row] for row in table_rows(metrics)
    ]
    return [row for row in rows if row[1:3] != ["-", "-"]]


def judge_difference(difference: float, margin: float) -> str:
    """Whether one FID differs from another by more than the choice of images explains."""
    if abs(difference) <= margin:
        return f"no difference beyond the margin of {margin:.2g}"
    return f"{with_margin(abs(difference), margin)} {'worse' if difference > 0 else 'better'}"


def comparisons(metrics: Metrics) -> list[tuple[str, str, str, str]]:
    """FIDs of equal numbers of images against each other: (what, images, difference, what to make of it)."""
    ratio = metrics["ratio"]
    protocol = metrics["protocol"]
    found = {
        "student − teacher, same seeds": (protocol["samples"], ratio["fid_difference"], ratio["fid_difference_margin"])
    }
    control = metrics["fewer_steps"]
    if control is not None:
        what = f"student − teacher in {control['steps']} steps, same seeds"
        found[what] = (protocol["samples"], control["fid_difference"], control["fid_difference_margin"])
    count = protocol["equal_count"]
    if count is not None:
        real = metrics["held_out"]
        for name in ("student", "teacher"):
            difference = metrics[name]["fid_equal"] - real["fid_equal"]
            margin = math.hypot(metrics[name]["fid_equal_margin"], real["fid_equal_margin"])
            found[f"{name} − held-out real images"] = (count, difference, margin)
    return [
        (what, f"{images:,}", with_margin(difference, margin, "+"), "no" if abs(difference) <= margin else "yes")
        for what, (images, difference, margin) in found.items()
    ]


def tiles(metrics: Metrics) -> list[tuple[str, str, str]]:
    """The headline figures: (name, value, note)."""
    ratio = metrics["ratio"]
    teacher = metrics["teacher"]
    student = metrics["student"]

    def against(key: Literal["milliseconds", "macs", "params", "params_active"]) -> str:
        return f"{charts.number(student[key])} against {charts.number(teacher[key])}"

    difference, _, margin = with_margin(ratio["fid_difference"], ratio["fid_difference_margin"], "+").partition(" ± ")
    predicted = f"; predicted × {ratio['time_predicted']:.2f}" if "time_predicted" in ratio else ""
    return [
        ("Time per step", f"× {ratio['time']:.2f}", f"{against('milliseconds')} ms an image{predicted}"),
        ("MACs per step", f"× {ratio['macs']:.2f}", against("macs")),
        ("Parameters", f"× {ratio['params']:.2f}", against("params")),
        ("Active parameters", f"× {ratio['params_active']:.2f}", against("params_active")),
        (
            f"FID difference, {feature_name(metrics)}",
            difference,
            f"± {margin}; {student['fid']:.3g} against {teacher['fid']:.3g}",
        ),
    ]


def pictures(samples: dict[str, np.ndarray], count: int) -> list[tuple[str, str, str]]:
    """Sheets of samples: (title, text alternative, data URI)."""
    shown = {name: images[:count] for name, images in samples.items()}
    titles = {"teacher": "Teacher", "student": "Student, same seeds", "real": "Real training images"}
    return [
        (title, f"{len(shown[name])} images, {title.lower()}", charts.image_grid(shown[name], COLUMNS))
        for name, title in titles.items()
    ]


class PathStep(TypedDict):
    """One step of the sampler: its t, the interval whose decoder is in charge, and the samples below each other as a data URI."""

    t: str
    interval: int
    picture: str


def path_steps(samples: dict[str, np.ndarray], architecture: AssembledStudent) -> list[PathStep]:
    """The student's path from noise: at each step every sample, and below it the image predicted from it."""
    intervals = interval_numbers(samples["path_t"], architecture["boundaries"])
    pairs = zip(samples["path_sample"], samples["path_image"], strict=True)
    sheets = [np.concatenate(pair) for pair in pairs]
    return [
        {
            "t": f"{t:.4g}",
            "interval": int(interval),
            "picture": charts.image_grid(charts.shrink(sheet), len(sheet) // 2),
        }
        for t, interval, sheet in zip(samples["path_t"], intervals, sheets, strict=True)
    ]


def interval_numbers(t: np.ndarray, boundaries: Sequence[float]) -> list[int]:
    """The interval of each t, the number of boundaries at or below it, both as the float32 that a network compares."""
    found: list[int] = np.searchsorted(np.asarray(boundaries, np.float32), t.astype(np.float32), side="right").tolist()
    return found


class Interval(TypedDict):
    """A row of the table of intervals; `share` is that of the timesteps."""

    range: str
    sigma: str
    steps: int
    training: str
    share: float


def interval_table(architecture: AssembledStudent, metrics: Metrics) -> list[Interval]:
    """One row per interval: timesteps, noise levels at its ends, how often sampling and training are there, its length in t."""
    # None in the file is a boundary at the noise level infinity.
    sigmas = [None, *(math.inf if sigma is None else sigma for sigma in architecture["boundaries_sigma"]), None]
    intervals = architecture["intervals"]
    shares = metrics["protocol"]["training_shares"]
    total = intervals[-1][1] - intervals[0][0]
    return [
        {
            "range": f"{low:g} ≤ t < {high:g}",
            "sigma": sigma_range(sigmas[s], sigmas[s + 1]),
            "steps": metrics["protocol"]["steps_per_interval"][s],
            "training": f"{shares[s]:.3f}",
            "share": (high - low) / total,
        }
        for s, (low, high) in enumerate(intervals)
    ]


def time_table(metrics: Metrics) -> list[tuple[str, str, str, str]]:
    """Milliseconds that an image takes in each kind of operation: (kind, teacher, student, ratio), with their sum at the end."""
    models = [metrics["teacher"], metrics["student"]]
    whole = [1000 / model["images_per_second"] for model in models]
    kinds = {kind: [model["time_by_operation"][kind] for model in models] for kind in models[0]["time_by_operation"]}
    times = {kind: [w * share for w, share in zip(whole, shares, strict=True)] for kind, shares in kinds.items()}
    return [
        (kind, f"{a:.3g} ms", f"{b:.3g} ms", f"× {b / a:.2f}" if a else "")
        for kind, (a, b) in (dict(sorted(times.items(), key=lambda item: -item[1][0])) | {"sum": whole}).items()
    ]


def sampler_table(metrics: Metrics) -> list[tuple[str, str, str, str]]:
    """MACs per sample in training, and per step of every sampler of the process: (what, teacher, student, ratio)."""
    teacher = metrics["teacher"]
    student = metrics["student"]
    pairs = {"training, one forward pass": (teacher["macs_training"], student["macs_training"])}
    pairs |= {name: (macs, student["macs_of_samplers"][name]) for name, macs in teacher["macs_of_samplers"].items()}
    return [(what, f"{a:,.0f}", f"{b:,.0f}", f"× {b / a:.3f}") for what, (a, b) in pairs.items()]


def spread_text(spread: Spread) -> str:
    """Boundaries over seeds in a sentence, empty when there is nothing to say."""
    known = [boundaries for boundaries in spread["boundaries"] if boundaries is not None]
    if len(known) < 2 or not spread["std"]:
        return ""
    columns = zip(*known, strict=True)
    each = [
        f"{min(c):g} to {max(c):g} (standard deviation {std:.3g})"
        for c, std in zip(columns, spread["std"], strict=True)
    ]
    return f"Over {len(known)} seeds the boundaries are {', '.join(each)}."


def reasons(missing: dict[str, str]) -> list[str]:
    """One sentence for each reason why something of the clustering could not be computed."""
    names: dict[str, list[str]] = {}
    for name, reason in missing.items():
        names.setdefault(reason, []).append(name)
    return [f"Not computed: {', '.join(same)} ({reason})." for reason, same in names.items()]


def sigma_range(low: float | None, high: float | None) -> str:
    """A range of noise levels, open where an end is None."""
    start = "" if low is None else f"{low:.3g} ≤ "
    return f"{start}σ" + ("" if high is None else f" < {high:.3g}")


class ClusterCharts(TypedDict):
    """The part of the page on the clustering: method, sentences, charts; None for what the method did not compute."""

    method: str
    spread: str
    missing: list[str]
    heat_map: Markup | None
    range: str
    silhouette: Markup | None
    curves: Markup | None
    curves_key: Markup | None


def cluster_charts(clusters: Clusters) -> ClusterCharts:
    """Heat map, silhouette and S0/S1 curves; None for what the method did not compute."""
    cuts = ", ".join(f"{b:g}" for b in clusters["boundaries"]) or "none"
    matrix = clusters["similarity"]
    curves = clusters["curves"]
    return {
        "method": clusters["method"],
        "spread": spread_text(clusters["spread"]),
        "missing": reasons(clusters.get("missing", {})),
        "heat_map": heat_map(clusters, matrix, cuts) if matrix else None,
        "range": f"{np.min(matrix):.2f} (light) to {np.max(matrix):.2f} (dark)" if matrix else "",
        "silhouette": silhouette_chart(clusters["silhouette"]),
        "curves": curve_chart(clusters, curves, cuts) if curves else None,
        "curves_key": charts.key(["S0", "S1"]) if curves else None,
    }


def heat_map(clusters: Clusters, matrix: list[list[float]], cuts: str) -> Markup:
    """The similarity matrix; `cuts` are the boundaries in words."""
    alt = f"Similarity of the optimal denoisers between timesteps; interval boundaries at {cuts}"
    return charts.heat_map(matrix, clusters["grid"], clusters["boundaries"], alt)


def silhouette_chart(silhouette: dict[str, float | None]) -> Markup | None:
    """Silhouettes over K; None where there are none."""
    points = sorted((float(k), value) for k, value in silhouette.items() if value is not None)
    if not points:
        return None
    return charts.line_chart(
        {"silhouette": points},
        x_label="number of intervals K",
        y_label="silhouette",
        alt="Silhouette over K: " + ", ".join(f"{k:g}: {value:.3f}" for k, value in points),
        dots=True,
    )


def curve_chart(clusters: Clusters, curves: Curves, cuts: str) -> Markup:
    """S0 and S1 over t; `cuts` are the boundaries in words."""
    return charts.line_chart(
        {
            "S0": list(zip(curves["t"], curves["s0"], strict=True)),
            "S1": list(zip(curves["t"], curves["s1"], strict=True)),
        },
        x_label="timestep t",
        y_label="share of coordinates",
        alt=f"S0 and S1 over timesteps; interval boundaries at {cuts}",
        marks=clusters["boundaries"],
    )


def shared_text(architecture: Architecture) -> str:
    """Which intervals share which up blocks, in a sentence; empty where there is one interval."""
    ranges = {name: [entry["range"] for entry in entries] for name, entries in architecture["blocks"].items()}
    decoder = {name: parts for name, parts in ranges.items() if name.startswith("up_blocks")}
    if all(len(part) == 1 for parts in decoder.values() for part in parts):
        several = any(len(parts) > 1 for parts in decoder.values())
        return "Every interval has up blocks of its own." if several else ""
    shared = [(part, name) for name, parts in decoder.items() for part in parts if len(part) > 1]
    text = ", ".join(f"intervals {' and '.join(map(str, part))} share {name}" for part, name in shared)
    return f"{text.capitalize()}."


class DrawnLayer(TypedDict):
    """A layer of a block: its width as a share of the teacher's, its choice in words, its kind."""

    share: float
    text: str
    kind: str


class DrawnBlock(TypedDict):
    """A block's layers, and its costs in words, none where it was not searched."""

    layers: list[DrawnLayer]
    costs: list[str]


class BlockRow(TypedDict):
    """A block of the teacher, and the chosen ones with the intervals that share each."""

    name: str
    teacher: DrawnBlock
    chosen: list[tuple[DrawnBlock, list[int]]]


def architecture_rows(architecture: AssembledStudent, searches: Searches) -> list[BlockRow]:
    """One row per block, from input to output: the teacher's block and the chosen ones, one for each range of an up block."""
    chosen = architecture["chosen"]
    identities = {name: entries[0]["spec"] for name, entries in architecture["identity"]["blocks"].items()}
    blocks = architecture["unet"]["blocks"]
    names = identities if "native" in architecture["unet"] else blocks
    return [
        block_row(name, identities[name], whole_entries(identities[name], blocks.get(name)), chosen, searches)
        for name in names
    ]


def whole_entries(identity: Spec, entries: list[Entry] | None) -> list[Entry]:
    """The entries of a block with all of the teacher's layers, as dropped those that a native student has not."""
    dropped: Spec = dict.fromkeys(identity)
    return [{**entry, "spec": {**dropped, **entry["spec"]}} for entry in entries or [{"range": [0], "spec": dropped}]]


def block_row(
    name: str, identity: Spec, entries: list[Entry], chosen: Mapping[str, ChosenBlock], searches: Searches
) -> BlockRow:
    """The teacher's block and the chosen ones, with their costs when they were searched, and which intervals share them."""
    teacher: DrawnBlock = {"layers": draw_layers(identity, identity), "costs": []}
    blocks: list[tuple[DrawnBlock, list[int]]] = []
    for entry in entries:
        block: DrawnBlock = {"layers": draw_layers(entry["spec"], identity), "costs": []}
        job = name if name in chosen else Job(name, tuple(entry["range"])).name
        if job in chosen:
            block["costs"] = cost_texts(chosen[job], searches[job])
            teacher["costs"] = cost_texts(teacher_costs(searches[job]), None)
        blocks.append((block, entry["range"]))
    return {"name": name, "teacher": teacher, "chosen": blocks}


class BlockCosts(TypedDict):
    """Costs of a block; `time`, in milliseconds an image, where layers were timed."""

    macs: int
    params: int
    time: NotRequired[float]


def teacher_costs(search: Search) -> BlockCosts:
    """The costs of the teacher's block, whose time is that of the candidate of its shape."""
    costs: BlockCosts = {"macs": search["teacher_macs"], "params": search["teacher_params"]}
    for candidate in search["candidates"]:
        if candidate["spec"] == search["identity"] and "time" in candidate:
            costs["time"] = candidate["time"]
    return costs


def cost_texts(costs: BlockCosts | ChosenBlock, search: Search | None) -> list[str]:
    """Time, MACs and parameters in words, with their ratios to the teacher's block when its search is given."""
    whole = costs if search is None else teacher_costs(search)
    pairs = {
        "ms": (costs.get("time"), whole.get("time")),
        "MACs": (costs["macs"], whole["macs"]),
        "parameters": (costs["params"], whole["params"]),
    }
    return [
        f"{charts.number(cost)}{'' if search is None else f' (× {cost / teacher:.2f})'} {unit}"
        for unit, (cost, teacher) in pairs.items()
        if cost is not None and teacher
    ]


def draw_layers(spec: Spec, identity: Spec) -> list[DrawnLayer]:
    """The layers of a block for the drawing, as they run: width as a share of the teacher's, and the choice in words."""
    layers: list[DrawnLayer] = []
    for name in sorted(spec, key=place_of_layer):
        layer = describe_choice(name, spec[name], identity[name])
        layers.append({"share": layer.share, "text": layer.text, "kind": name.partition(".")[0]})
    return layers


def candidate_charts(architecture: AssembledStudent, searches: Searches) -> list[tuple[str, str, Markup]]:
    """NMSE over time, or over MACs where layers were not timed, for every searched block: (name, note, chart)."""
    return [
        (name, *candidate_chart(name, search, architecture["chosen"].get(name)))
        for name, search in sorted(searches.items())
    ]


def candidate_chart(name: str, search: Search, chosen: ChosenBlock | None) -> tuple[str, Markup]:
    """Note and chart of one search; what was chosen, if anything was, is marked where its NMSE is known."""
    whole = teacher_costs(search)
    kind = cost_kind(whole)
    unit = BUDGETS[kind]
    points = [candidate_point(candidate, whole, kind) for candidate in search["candidates"]]
    note = f"{len(points)} candidates; none chosen"
    if chosen is not None:
        measured = f", NMSE {chosen['nmse']:.3g}" if "nmse" in chosen else ""
        note = f"{len(points)} candidates; chosen: × {cost_share(chosen, whole, kind):.2f} {unit}{measured}"
    chart = charts.candidate_chart(
        points,
        None if chosen is None or "nmse" not in chosen else candidate_point(chosen, whole, kind),
        [spec_text(candidate["spec"], search["identity"]) for candidate in search["candidates"]],
        f"{name}: {note}",
        x_label=f"{unit} / teacher's block",
    )
    return note, chart


def cost_kind(whole: BlockCosts) -> CostKind:
    """The horizontal axis of the charts of candidates: time where layers were timed."""
    return "time" if whole.get("time") else "macs"


def cost_share(block: Scored | ChosenBlock, whole: BlockCosts, kind: CostKind) -> float:
    """A cost of a block as a share of the teacher's."""
    return block[kind] / whole[kind]


def candidate_point(block: Scored | ChosenBlock, whole: BlockCosts, kind: CostKind) -> tuple[float, float]:
    """A block's cost as a share of the teacher's, and its NMSE."""
    return cost_share(block, whole, kind), block["nmse"]


def costs(metrics: Metrics, searches: Searches, logs: Logs) -> list[tuple[str, str, str]]:
    """MACs that student and teacher took to make: (what, MACs, share of the teacher's training when that was done here)."""
    if not searches:
        return []
    spent = macs_of_search(metrics["teacher"]["macs"], list(searches.values()))
    spent["the search in all"] = sum(spent.values())
    spent |= macs_of_retraining(metrics, logs["retrain"])
    made_with = TrainTeacher.of(logs["train_teacher"]["params"]).train_teacher
    trained = 3 * made_with.steps * made_with.batch_size * metrics["teacher"]["macs_training"]
    if made_with.source == "path":
        return [(what, f"{macs:.3g}", "") for what, macs in spent.items()]
    return [
        (what, f"{macs:.3g}", f"{macs / trained:.1%}")
        for what, macs in (spent | {"the teacher's training": trained}).items()
    ]


def macs_of_search(teacher_macs: float, searches: list[Search]) -> dict[str, float]:
    """MACs of the parts of a search; one teacher pass takes `teacher_macs` for a sample."""
    passes = searches[0]["triples"] + 3 * searches[0]["stream_triples"]
    spent = {"teacher passes for the features and the importance of channels": passes * teacher_macs}
    spent["training the supernets"] = sum(search["macs_spent"]["training"] for search in searches)
    spent["scoring candidates"] = sum(search["macs_spent"]["scoring"] for search in searches)
    return spent


def macs_of_retraining(metrics: Metrics, log: TrainingLog) -> dict[str, float]:
    """MACs of the parts of a student's retraining, whose results/logs/retrain.json is `log`."""
    student = metrics["student"]
    teacher = metrics["teacher"]
    settings = Retrain.of(log["params"]).retrain
    images = settings.steps * settings.batch_size
    (own, taught) = passes_per_step(settings)
    return {
        "retraining the student": 3 * own * images * student["macs_training"],
        "the teacher's predictions for it": taught * images * teacher["macs_training"],
    }


def spec_text(spec: Spec, identity: Spec) -> str:
    """A block spec in one line."""
    return "; ".join(layer["text"] for layer in draw_layers(spec, identity))


def loss_charts(logs: Logs, searches: Searches) -> list[tuple[str, Markup, Markup]]:
    """Losses over steps of every training that has a history: (name, key, chart)."""
    histories = {name: log["history"] for name, log in sorted(logs.items())}
    histories |= {f"search {name}": search["log"] for name, search in sorted(searches.items())}
    return [(name, *loss_chart(name, history)) for name, history in histories.items() if history]


def loss_chart(name: str, history: list[dict[str, float]]) -> tuple[Markup, Markup]:
    """Key and chart of one history; the total first, then its parts where there are several."""
    names = ["loss", *sorted({key for entry in history for key in entry} - {"loss", "step"})]
    series = {key: [(entry["step"], entry[key]) for entry in history if key in entry] for key in names}
    series = {key: points for key, points in series.items() if points and (key == "loss" or points != series["loss"])}
    last = ", ".join(f"{key} {points[-1][1]:.4g}" for key, points in series.items())
    chart = charts.line_chart(series, x_label="step", y_label="loss", alt=f"{name}: {last} at the end", log=True)
    return charts.key(list(series)), chart


def merged_params(sources: Sequence[Mapping[str, object]]) -> dict[str, Mapping[str, object]]:
    """All sections of params that the artifacts were made with; plain values are gathered under `run`."""
    plain: dict[str, object] = {}
    sections: dict[str, Mapping[str, object]] = {"run": plain}
    for source in sources:
        for name, value in source.items():
            if isinstance(value, dict):
                sections[name] = value
            else:
                plain[name] = value
    return dict(sorted(sections.items()))


def flat(value: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as sorted (dotted key, text) pairs."""
    pairs: list[tuple[str, str]] = []
    for key, item in sorted(value.items()):
        if isinstance(item, dict):
            pairs += flat(item, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, "none" if item is None else f"{item}"))
    return pairs


def versions() -> list[tuple[str, str]]:
    """Python and the main packages that are installed."""
    installed = [("Python", python_version())]
    for package in PACKAGES:
        try:
            installed.append((package, version(package)))
        except PackageNotFoundError:
            continue
    return installed
