"""What the runs of benchmarks/compression.py come to: means, differences, correlations, a table and a plot."""

import json
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from compression_methods import REFERENCES, SEARCH_STREAM, UNTRAINED, Channels, Method, written

LEAST_DRAWS = 5  # that a correlation is made of
PIXELS_APART = 36  # from the first method to the last in the plot, at one budget
# What the table has the mean of: the heading, and the digits.
AVERAGED = {
    "time_ratio": ("time", 3),
    "macs_ratio": ("MACs", 3),
    "params_ratio": ("parameters", 3),
    "error": ("error", 5),
}
COSTS = ("time_ratio", "macs_ratio", "params_ratio")  # that the plot has FID against
UNMATCHED = "*"  # behind a time that is not within 3 % of the budget


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, by budget and method, the best first; also of the difference from `search`."""
    found = of_seeds(runs)
    searched = {(one["budget"], one["seed"]): one["fid"] for one in found if one["row"] == "search"}
    rows: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for one in found:
        rows.setdefault((one["budget"], one["row"]), []).append(one)
    summary: dict[str, Any] = {}
    for (budget, row), seeds in rows.items():
        fid = {name: [one["fid"][name] for one in seeds] for name in seeds[0]["fid"]}
        compared = [one for one in seeds if row != "search" and (budget, one["seed"]) in searched]
        above = {name: [one["fid"][name] - searched[budget, one["seed"]][name] for one in compared] for name in fid}
        summary.setdefault(f"{budget}", {})[row] = {
            "seeds": [one["seed"] for one in seeds],
            "runs": sum(one["draws"] for one in seeds),
            "channels": seeds[-1]["channels"],
            "matched": all(one["matched"] for one in seeds),
            **{key: [one[key] for one in seeds] for key in AVERAGED},
            "fid": fid,
            "mean": {name: statistics.mean(values) for name, values in fid.items()},
            "std": {name: deviation(values) for name, values in fid.items()},
            "above_search": {
                name: {"mean": statistics.mean(values), "std": deviation(values), "seeds": len(values)}
                for name, values in above.items()
                if values
            },
        }
    return {
        budget: dict(sorted(methods.items(), key=lambda pair: next(iter(pair[1]["mean"].values()))))
        for budget, methods in summary.items()
    }


def of_seeds(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each budget, row and seed; where a seed has several draws, with their means."""
    groups: dict[tuple[float, str, int], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["budget"], Method(run["method"]).row, run["seed"]), []).append(run)
    return [
        {
            "budget": budget,
            "row": row,
            "seed": seed,
            "draws": len(draws),
            "channels": draws[0].get("channels"),
            "matched": all(run.get("matched", True) for run in draws),
            "fid": {
                name: statistics.mean(run["fidelity"][name]["fid"] for run in draws) for name in draws[0]["fidelity"]
            },
            **{key: statistics.mean(run[key] for run in draws) if key in draws[0] else None for key in AVERAGED},
        }
        for (budget, row, seed), draws in groups.items()
    ]


def made_otherwise(folder: Path, samples: int, steps: int, budget_of: str) -> Path | None:
    """A result in the folder of budgets of something else, of another number of samples, on which FID depends, or of other steps.

    Real images have a number of their own, and what is not retrained has no steps. Results of older versions of this program do
    not say what their budgets are shares of.
    """
    for path in sorted(folder.glob("*-seed*.json")):
        run = json.loads(path.read_text())
        scored = run["method"] == "held-out" or run.get("samples") == samples
        trained = run["method"] in UNTRAINED or run.get("steps") == steps
        if not (scored and trained and run.get("budget_of") == budget_of):
            return path
    return None


def searched_otherwise(folder: Path, widths: dict[float, Channels], methods: Sequence[str]) -> Path | None:
    """A result in the folder of another width of the residual stream than its budget's, where that is among these.

    Of the rows of these methods; where one of them is the search or exchanges a part of it, of all such.
    """
    rows = {Method(method).row for method in methods}
    with_search = any(Method(method).name in SEARCH_STREAM for method in methods)
    for path in sorted(folder.glob("*-seed*.json")):
        run = json.loads(path.read_text())
        method = Method(run["method"])
        asked = method.row in rows or (with_search and method.name in SEARCH_STREAM)
        if asked and "channels" in run and run["channels"] != widths.get(run["budget"], run["channels"]):
            return path
    return None


def not_joined(
    folder: Path,
    params: dict[str, Any],
    methods: list[str],
    budgets: list[float],
    channels: list[Channels] | None,
    budget_of: str,
) -> str | None:
    """What to say of a result in the folder that these params would not make for these methods, if there is one."""
    samples, steps = params["evaluate"]["samples"], params["retrain"]["steps"]
    if other := made_otherwise(folder, samples, steps, budget_of):
        return (
            f"{other}: not of budgets of {budget_of}, {samples} samples (evaluate.samples) and {steps} steps of retraining; give "
            "its --budget-of, --samples and --steps, move it away, or give --output"
        )
    widths = channels or [params["search_block"]["channels"]] * len(budgets)
    if other := searched_otherwise(folder, dict(zip(budgets, widths, strict=True)), methods):
        return f"{other}: of a residual stream of another width; give its --channels, move it away, or give --output"
    return None


def deviation(values: list[float]) -> float | None:
    """Standard deviation of a sample; None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def correlations(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spearman's correlation of the scores before retraining with FID and error after it, over the draws of one seed.

    The draws are those of `random`, and `fid` is that of the first extractor.
    """
    from scipy.stats import spearmanr

    found = []
    for budget, seed in sorted({(run["budget"], run["seed"]) for run in runs}):
        draws = [r for r in runs if (r["budget"], r["seed"], Method(r["method"]).row) == (budget, seed, "random")]
        if len(draws) < LEAST_DRAWS:
            continue
        entry: dict[str, Any] = {"budget": budget, "seed": seed, "architectures": len(draws), "scores": {}}
        for score in draws[0]["scores"]:
            entry["scores"][score] = {}
            for figure in ("fid", "error"):
                test = spearmanr([run["scores"][score] for run in draws], [run[figure] for run in draws])
                entry["scores"][score][figure] = {"spearman": float(test.statistic), "p": float(test.pvalue)}
        found.append(entry)
    return found


def draw(runs: list[dict[str, Any]], target: Path) -> None:
    """FID against time, MACs and parameters, a row of panels per extractor, for every distilled method.

    The search comes first, then the others from the best to the worst, each at the budgets at which it has all seeds of the
    search; of the teacher a dashed line has the mean.
    """
    from curves import panel, write_figure

    found = of_seeds(runs)
    shown = arms_of([one for one in found if not (Method(one["row"]).plain or one["row"] in REFERENCES)])
    if not shown:
        return
    names = list(found[0]["fid"])

    def mean_fid(row: str) -> float:
        return statistics.mean(one["fid"][names[0]] for points in shown[row] for one in points)

    order = sorted(shown, key=lambda row: (row != "search", mean_fid(row)))
    panels = []
    for name, key in product(names, COSTS):
        curves = {
            row: [[(one[key], one["fid"][name]) for one in points if one[key] is not None] for points in shown[row]]
            for row in order
        }
        teacher = [one["fid"][name] for one in found if one["row"] == "teacher"]
        levels = {"teacher": statistics.mean(teacher)} if teacher else {}
        labels = (f"{AVERAGED[key][0]} / the teacher's", "FID (log)")
        apart = PIXELS_APART / len(order)
        panels.append(panel(curves, f"FID ({name})", *labels, levels=levels, zero=False, apart=apart))
    write_figure(panels, order, target, across=len(COSTS))


def arms_of(found: list[dict[str, Any]]) -> dict[str, list[list[dict[str, Any]]]]:
    """For each row of the table a list of points by budget for each seed of `search` (of all, where there is no `search`).

    A row has the budgets at which it has all these seeds; one without any is left out.
    """
    seeds = {one["seed"] for one in found if one["row"] == "search"} or {one["seed"] for one in found}
    points = {(one["row"], one["budget"], one["seed"]): one for one in found}
    arms = {}
    for row in dict.fromkeys(one["row"] for one in found):
        budgets = sorted({budget for name, budget, _ in points if name == row})
        whole = [budget for budget in budgets if all((row, budget, seed) in points for seed in seeds)]
        if whole:
            arms[row] = [[points[row, budget, seed] for budget in whole] for seed in sorted(seeds)]
    return arms


def table(summary: dict[str, Any]) -> str:
    """The summary as Markdown."""
    lines = []
    for budget, methods in summary.items():
        names = list(next(iter(methods.values()))["mean"])
        figures = [heading for heading, _ in AVERAGED.values()]
        figures += [column for name in names for column in (f"FID ({name})", "less search's")] + ["runs"]
        lines += [f"Budget {budget}", "", f"| {' | '.join(['method', 'stream', *figures])} |"]
        lines.append(f"| --- | --- |{' ---: |' * len(figures)}")
        for method, entry in methods.items():
            known = {key: [value for value in entry[key] if value is not None] for key in AVERAGED}
            stream = "" if entry["channels"] is None else written(entry["channels"])
            cells = [method, stream]
            cells += [f"{statistics.mean(v):.{AVERAGED[key][1]}f}" if v else "" for key, v in known.items()]
            cells[2] += "" if entry["matched"] else UNMATCHED
            for name in names:
                cells.append(with_spread(entry["mean"][name], entry["std"][name]))
                less = entry["above_search"].get(name)
                cells.append(with_spread(less["mean"], less["std"], "+") if less else "")
            lines.append(f"| {' | '.join([*cells, str(entry['runs'])])} |")
        lines.append("")
    return "\n".join(lines)


def with_spread(mean: float, deviation: float | None, sign: str = "") -> str:
    """A figure and its standard deviation."""
    return f"{mean:{sign}.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")
