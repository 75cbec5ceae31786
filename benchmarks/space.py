"""What each kind of choice in the search space is worth at a budget of time: the smallest sum of scores with it and without it.

python benchmarks/space.py --preset digits --seeds 10 11 --output benchmarks/results/space.json

Searches SPACE, which has all kinds, with one decoder (K = 1), and once more without each kind; all else is the same. In each
case the integer programme finds the smallest sum of scores at every budget. A kind without which that sum rises at no budget is
on no front of error against time. Means over the seeds are printed; the file of results gathers the presets that were run.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from compression_methods import changed
from shared_inputs import LATENCY, ONE_THREAD, Shared, cpu_params, preset_file, work_folder, write

ALL = "(all kinds)"
SPACE = {
    "channels": 1.0,
    "widths": [0.25, 0.5, 0.75, 1.0],
    "stream": [0.5, 0.75, 1.0],
    "channel_multiple": 16,
    "kernels": [1, 3],
    "drop_layers": True,
    "drop_attention": True,
}
# What leaves a kind out of the space.
KINDS: dict[str, dict[str, Any]] = {
    "layers dropped": {"drop_layers": False},
    "attentions dropped": {"drop_attention": False},
    "inner widths": {"widths": [1.0]},
    "layers that read and write less": {"stream": [1.0]},
    "kernels 1x1": {"kernels": [3]},
}


class Searches(Shared):
    """The searches of a preset, a folder of results for each kind that is left out."""

    without = ALL

    def results_name(self, params: dict[str, Any]) -> str:
        """The folder of results."""
        return f"search without {self.without}" if self.without != ALL else "search"


def searched_params(preset: Path, seed: int, steps: int | None, without: str, table: Path | None) -> dict[str, Any]:
    """The preset's params with the space less one kind, one decoder and a budget of time.

    Args:
        table: latencies that were measured before; None to measure them.
    """
    latency = {"source": "measure"} if table is None else {"source": "path", "path": str(table)}
    space = SPACE | KINDS.get(without, {}) | ({} if steps is None else {"steps": steps})
    sections = {
        "cluster_timesteps": {"intervals": 1},
        "search_block": space,
        "measure_latency": latency,
        "assemble": {"rule": "budget", "macs": None, "time": 1.0, "params": None, "params_active": None},
    }
    return changed(cpu_params(preset) | {"seed": seed}, sections)


def smallest_errors(shared: Shared, params: dict[str, Any], budgets: list[float]) -> dict[str, float | None]:
    """The smallest sum of scores at every budget of time; None where it is infeasible."""
    from stagecraft.config.sections import Assemble
    from stagecraft.networks.pipelines import load_teacher
    from stagecraft.search.architecture import assemble_architecture
    from stagecraft.search.latency import LatencyTable
    from stagecraft.search.results import read_results

    results, teacher = read_results(shared.results(params)), load_teacher(shared.teacher)
    latency = LatencyTable.read(shared.results(params) / LATENCY)
    found: dict[str, float | None] = {}
    for budget in budgets:
        settings = Assemble.model_construct(**params["assemble"] | {"time": budget})
        try:
            plan = assemble_architecture(teacher, results, [1], settings, 0, latency)
        except ValueError:
            found[f"{budget}"] = None
            continue
        chosen = plan["chosen"].values()
        found[f"{budget}"] = sum((c["nmse"] * c["output"][0]) ** 0.5 for c in chosen)
    return found


def print_table(preset: str, smallest: dict[str, list[dict[str, float | None]]]) -> None:
    """A preset's mean sums over seeds, those without a kind as multiples of that with all."""
    budgets = list(smallest[ALL][0])
    print(f"\n{preset}\n\n| without | " + " | ".join(f"time {budget}" for budget in budgets) + " |")
    print("| --- |" + " ---: |" * len(budgets))
    best = {budget: mean_of(smallest[ALL], budget) for budget in budgets}
    print("| (sum of scores with all) | " + " | ".join(written(best[budget], "{:.4g}") for budget in budgets) + " |")
    for kind in KINDS:
        if kind in smallest:
            found = {budget: mean_of(smallest[kind], budget) for budget in budgets}
            cells = [written(ratio(found[b], best[b]), "{:.2f}") for b in budgets]
            print(f"| {kind} | " + " | ".join(cells) + " |")


def mean_of(seeds: list[dict[str, float | None]], budget: str) -> float | None:
    """Mean over the seeds that meet a budget."""
    values = [value for seed in seeds if (value := seed[budget]) is not None]
    return statistics.mean(values) if values else None


def ratio(value: float | None, best: float | None) -> float | None:
    """A sum as a multiple of the one with all kinds."""
    return None if value is None or best is None else value / best


def written(value: float | None, form: str) -> str:
    """A number, or a dash."""
    return "-" if value is None else form.format(value)


def main() -> None:
    """Search what is missing, solve, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--teacher", type=Path, help="a diffusers folder to take the teacher from; else it is trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10])
    parser.add_argument("--steps", type=int, help="search_block.steps; else the preset's")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.65, 0.5, 0.35])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    preset = preset_file(arguments.preset)
    shared = Searches(preset, (arguments.work or work_folder(preset)) / "shared", arguments.teacher)
    shared.prepare()
    smallest: dict[str, list[dict[str, float | None]]] = {}
    table: Path | None = None
    for seed in arguments.seeds:
        for kind in (ALL, *KINDS):
            shared.without = kind
            params = searched_params(preset, seed, arguments.steps, kind, table)
            if table is None:
                table = shared.results(params) / LATENCY
            smallest.setdefault(kind, []).append(smallest_errors(shared, params, arguments.budgets))
            print_table(preset.stem, smallest)
    if arguments.output:
        known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        write(arguments.output, known | {preset.stem: {"seeds": arguments.seeds, "smallest": smallest}})


if __name__ == "__main__":
    import os

    os.environ |= ONE_THREAD
    main()
