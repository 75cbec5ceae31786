"""What each kind of choice in the search space is worth at a budget of time: the least sum of scores with it and without it.

python benchmarks/space.py --preset digits --seed 10 --output benchmarks/results/space.json

Searches SPACE, which has all kinds, with one decoder (K = 1), measures the latency of all layers, and solves the integer
programme at every budget: once with all candidates, then with those alone that make no use of a kind. A kind without which the
error rises at no budget is on no front of error against time. The file of results gathers the presets that were run.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from compression_methods import changed
from shared_inputs import LATENCY, ONE_THREAD, Shared, cpu_params, preset_file, work_folder, write

Spec = dict[str, Any]
SPACE = {
    "channels": 1.0,
    "widths": [0.25, 0.5, 0.75, 1.0],
    "heads": [0.5, 1.0],
    "stream": [0.5, 0.75, 1.0],
    "channel_multiple": 8,
    "kernels": [1, 3],
    "ranks": [0.25, 0.5, 1.0],
    "drop_layers": True,
    "drop_attention": True,
    "upsampler_kernels": [1, 3],
}


def of_layers(uses: Callable[[Spec, Spec], bool]) -> Callable[[Spec, Spec], bool]:
    """Whether any layer that is kept makes use of a kind; `uses` takes a layer and the teacher's."""

    def anywhere(spec: Spec, identity: Spec) -> bool:
        pairs = zip(spec["layers"], identity["layers"], strict=True)
        return any(layer is not None and uses(layer, whole) for layer, whole in pairs)

    return anywhere


# Whether a spec makes use of a kind of choice, beside the teacher's.
KINDS: dict[str, Callable[[Spec, Spec], bool]] = {
    "layers dropped": lambda spec, _: None in spec["layers"],
    "attentions dropped": lambda spec, identity: any(
        was and not kept for kept, was in zip(spec["attentions"], identity["attentions"], strict=True)
    ),
    "attentions with fewer heads": lambda spec, _: any(isinstance(kept, dict) for kept in spec["attentions"]),
    "inner widths": of_layers(lambda layer, whole: layer["width"] < whole["width"]),
    "kernels 1x1": of_layers(lambda layer, _: 1 in layer["kernels"]),
    "low ranks": of_layers(lambda layer, _: "ranks" in layer),
    "layers that read less": of_layers(lambda layer, _: "reads" in layer),
    "layers that write less": of_layers(lambda layer, _: "writes" in layer),
    "upsampler 1x1": lambda spec, _: spec.get("upsampler") == 1,
}


def searched_params(preset: Path, seed: int, steps: int | None) -> dict[str, Any]:
    """The preset's params with the whole space, one decoder and a budget of time."""
    sections = {
        "cluster_timesteps": {"stages": 1},
        "search_block": SPACE | ({} if steps is None else {"steps": steps}),
        "measure_latency": {"source": "measure", "threads": 1},
        "assemble": {
            "rule": "budget",
            "score": "output",
            "macs": None,
            "time": 1.0,
            "params": None,
            "params_active": None,
        },
    }
    return changed(cpu_params(preset) | {"seed": seed}, sections)


def least_error(parts: dict[str, Any], budget: float, kind: str | None) -> float | None:
    """The least sum of scores at a budget of time without a kind; None where the budget cannot be met."""
    from stages.search.architecture import assemble_architecture

    results = parts["results"]
    if kind is not None:
        results = {name: without(result, kind) for name, result in results.items()}
    settings = parts["settings"] | {"time": budget}
    try:
        plan = assemble_architecture(parts["teacher"], results, [1], settings, 0, parts["latency"])
    except ValueError:
        return None
    return sum(candidate["output"][0] for candidate in plan["chosen"].values())


def without(result: dict[str, Any], kind: str) -> dict[str, Any]:
    """A search result whose candidates make no use of a kind."""
    uses = KINDS[kind]
    kept = [one for one in result["candidates"] if not uses(one["spec"], result["identity"])]
    return result | {"candidates": kept}


def measure(shared: Shared, params: dict[str, Any], budgets: list[float]) -> dict[str, Any]:
    """Least errors by budget: with all kinds, and without each."""
    from stages.models.pipelines import load_teacher
    from stages.search.latency import LatencyTable
    from stages.search.results import read_results

    folder = shared.results(params)
    parts = {
        "results": read_results(folder),
        "teacher": load_teacher(shared.teacher),
        "latency": LatencyTable.read(folder / LATENCY),
        "settings": params["assemble"],
    }
    return {f"{b}": {str(kind): least_error(parts, b, kind) for kind in (None, *KINDS)} for b in budgets}


def print_table(preset: str, errors: dict[str, Any]) -> None:
    """A preset's least errors as multiples of that with all kinds."""
    print(f"\n{preset}\n\n| without | " + " | ".join(f"time {budget}" for budget in errors) + " |")
    print("| --- |" + " ---: |" * len(errors))
    print("| (sum of scores with all) | " + " | ".join(f"{row['None']:.4g}" for row in errors.values()) + " |")
    for kind in KINDS:
        found = [(row[kind], row["None"]) for row in errors.values()]
        print(f"| {kind} | " + " | ".join("-" if e is None else f"{e / best:.2f}" for e, best in found) + " |")


def main() -> None:
    """Search what is missing, solve, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--teacher", type=Path, help="a diffusers folder to take the teacher from; else it is trained")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--steps", type=int, help="search_block.steps; else the preset's")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.65, 0.5, 0.35])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    preset = preset_file(arguments.preset)
    shared = Shared(preset, (arguments.work or work_folder(preset)) / "shared", arguments.teacher)
    shared.prepare()
    errors = measure(shared, searched_params(preset, arguments.seed, arguments.steps), arguments.budgets)
    print_table(preset.stem, errors)
    if arguments.output:
        known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        write(arguments.output, known | {preset.stem: {"seed": arguments.seed, "least": errors}})


if __name__ == "__main__":
    import os

    os.environ |= ONE_THREAD
    main()
