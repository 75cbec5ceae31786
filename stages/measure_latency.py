"""Measure the latency of every layer shape among the candidates: python -m stages.measure_latency --params JSON ..."""

from pathlib import Path
from typing import Any

from stages.command import run_command


def measure_latency(params: dict[str, Any], *, threads: int, teacher: Path, search: Path, output: Path) -> None:
    """Write latency.json, measured here or taken from the table that the params name; nothing but its source for `none`."""
    from stages.files import write_checked_json

    settings = params["measure_latency"]
    if settings["source"] == "none":
        write_checked_json(output, {"source": "none", "layers": {}, "params": params})
        return

    from stages.device import pick_device
    from stages.models.pipelines import load_teacher
    from stages.models.stream import narrowed_teacher
    from stages.search.latency import DESCRIPTION, LatencyTable, LayersOf, Stopwatch, pairs_to_measure
    from stages.search.results import read_results, stream_of

    results, unet = read_results(search), load_teacher(teacher)
    specs = [(result["block"], candidate["spec"]) for result in results.values() for candidate in result["candidates"]]
    student = LayersOf(narrowed_teacher(unet, stream_of(results)))
    pairs = pairs_to_measure(LayersOf(unet), student, specs)
    if settings["source"] == "measure":
        device = pick_device(params["device"], min(threads, settings["threads"]))
        stopwatch = Stopwatch(device, settings["batch_size"], settings["repeats"], params["precision"])
        content = {"layers": stopwatch.measure(pairs)} | stopwatch.describe()
    else:
        table = LatencyTable.read(Path(settings["path"]))
        table.milliseconds(layer for layer, _ in pairs.values())
        content = {key: value for key, value in table.content.items() if key in DESCRIPTION}
        content["layers"] = {key: table.layers[key] for key in pairs}
    write_checked_json(output, content | {"source": settings["source"], "params": params})


if __name__ == "__main__":
    run_command(measure_latency)
