"""How near the predicted time of whole networks, the sum of their layers' latencies, comes to the measured one.

python benchmarks/latency.py --presets digits fashion-mnist --output benchmarks/results/latency.json

Draws random architectures of a preset's space with random weights, measures the latency of their layers one by one as the stage
measure_latency does, then each network as a whole, in turn with the teacher. Nothing else should run meanwhile.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from shared_inputs import cpu_params, preset_file, write

from stagecraft.config.sections import SearchSpace
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.elastic.block import natural_orders
from stagecraft.evaluation.cost import interval_timesteps
from stagecraft.evaluation.speed import sampling_seconds, time_in_turn
from stagecraft.networks.pipelines import load_given_teacher
from stagecraft.networks.unet.student import Module
from stagecraft.preflight.params import validate_params
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.threads import keep_freed_memory
from stagecraft.search.latency import LatencyTable, Stopwatch, layers_of, pairs_to_measure, within_network
from stagecraft.search.space import BlockSpace
from stagecraft.training.student import build_student
from stagecraft.training.teacher import build_teacher

ROOT = Path(__file__).parents[1]
CHANNELS = {"digits": 1, "fashion-mnist": 1}
TURNS = 20  # of whole networks


def teacher_of(preset: str, params: dict[str, Any]) -> Module:
    """The committed teacher of a preset, or one of its params with random weights."""
    committed = ROOT / "benchmarks" / "teachers" / preset
    if committed.is_dir():
        return load_given_teacher(committed)
    return build_teacher(
        validate_params(params, preset).train_teacher, params["prepare_data"]["resolution"] or 8, 1, 0
    ).eval()


def draw_architecture(
    unet: Module, settings: dict[str, Any], intervals: int, rng: np.random.Generator
) -> dict[str, Any]:
    """A random spec for every block, and for each interval in the decoder."""

    architecture = identity_architecture(unet, intervals)
    for name, entries in architecture["blocks"].items():
        block = unet.get_submodule(name)
        space = BlockSpace(block, SearchSpace.model_construct(**settings), natural_orders(block))
        for entry in entries:
            entry["spec"] = space.draw(rng)
    return architecture


def blocks_of(architecture: dict[str, Any], interval: int) -> list[tuple[str, Any]]:
    """Name and spec of the blocks that run in one interval."""
    return [
        (name, entry["spec"])
        for name, entries in architecture["blocks"].items()
        for entry in entries
        if interval in entry["range"]
    ]


def measure_whole(
    models: dict[str, Module], shape: tuple[int, ...], times: list[float], turns: int
) -> dict[str, float]:
    """Milliseconds an image of each model, the mean over the times, all in turn."""
    x_NCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seconds = sampling_seconds(time_in_turn(models, x_NCHW, times, turns), dict.fromkeys(models, [1] * len(times)))
    return {name: 1000 * taken / len(times) / shape[0] for name, taken in seconds.items()}


def compare(preset: str, count: int, threads: int, batch: int, repeats: int, seed: int) -> dict[str, Any]:
    """Predicted and measured times of random architectures of a preset, every interval alike."""
    params = cpu_params(preset_file(preset))
    device = pick_device("cpu", threads)
    unet = teacher_of(preset, params)
    rng = np.random.default_rng(seed)
    intervals = params["cluster_timesteps"]["intervals"]
    boundaries = [round(1000 * (i + 1) / intervals) for i in range(intervals - 1)]
    drawn = [draw_architecture(unet, params["search_block"], intervals, rng) for _ in range(count)]
    layers = layers_of(unet)
    specs = [pair for one in drawn for interval in range(intervals) for pair in blocks_of(one, interval)]
    stopwatch = Stopwatch(device, batch, repeats, "fp32")
    begun = time.monotonic()
    measured_layers = stopwatch.measure(pairs_to_measure(layers, layers, specs))
    table = LatencyTable({**within_network(measured_layers, layers)}, preset)
    seconds = time.monotonic() - begun
    fixed = table.milliseconds(layers.fixed())
    whole = table.of_teacher()
    config = unet.config
    shape = (batch, config["in_channels"], config["sample_size"], config["sample_size"])
    found = []
    for architecture in drawn:
        student = build_student(unet, architecture, boundaries, 0).eval()
        models = {"teacher": unet, "student": student}
        teacher, ours = measure_whole(models, shape, interval_timesteps(boundaries), TURNS).values()
        blocks = [layers.block(*pair) for interval in range(intervals) for pair in blocks_of(architecture, interval)]
        predicted = fixed + sum(map(table.milliseconds, blocks)) / intervals
        found.append({"predicted": predicted / whole, "measured": ours / teacher, "milliseconds": [predicted, ours]})
    errors = [abs(one["predicted"] / one["measured"] - 1) for one in found]
    return {
        "preset": preset,
        "seed": seed,
        "layers": len(table.layers),
        "seconds_to_measure_layers": round(seconds, 1),
        "teacher_milliseconds": [whole, teacher],
        "architectures": found,
        "median_error": median(errors),
        "worst_error": max(errors),
    } | stopwatch.describe()


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["digits", "fashion-mnist"])
    parser.add_argument("--architectures", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    how = (arguments.architectures, arguments.threads, arguments.batch, arguments.repeats, arguments.seed)
    results = [compare(preset, *how) for preset in arguments.presets]
    for result in results:
        print(f"{result['preset']}: median {result['median_error']:.3f}, worst {result['worst_error']:.3f}")
    if arguments.output:
        write(arguments.output, {"results": results})
    else:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
