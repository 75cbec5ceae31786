"""Measure the latency of every layer shape in the search space: python -m stages.measure_latency --params JSON ..."""

from pathlib import Path

from stagecraft.config.stages import MeasureLatency
from stagecraft.networks.pipelines import load_teacher
from stagecraft.networks.stream import narrowed_teacher
from stagecraft.preflight.jobs import latency_files
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import read_checked_json, write_checked_json
from stagecraft.search.importance import choose_stream
from stagecraft.search.latency import DESCRIPTION, LatencyTable, Stopwatch, layers_of, pairs_to_measure, within_network
from stagecraft.search.native import native_pairs_to_measure
from stagecraft.search.space import covering_specs


def measure_latency(params: MeasureLatency, *, threads: int, teacher: Path, importance: Path, output: Path) -> None:
    """Write latency.json, measured here or taken from the table that the params name.

    With source `none`, or a given architecture, it holds no layers.
    """
    settings = params.measure_latency
    if settings.source == "none" or params.architecture == "given":
        write_checked_json(output, {"source": "none", "layers": {}, "params": params.as_given()})
        return

    unet = load_teacher(teacher)
    ranked = read_checked_json(importance, "rank_channels")
    stream = choose_stream(
        unet, params.search_block.channels, ranked["stream_importance"], params.search_block.channel_multiple
    )
    student = narrowed_teacher(unet, stream)
    whole = layers_of(unet)
    if params.assemble.native:
        pairs = native_pairs_to_measure(unet, params.search_block)
    else:
        pairs = pairs_to_measure(whole, layers_of(student), covering_specs(student, params.search_block))
    if settings.source == "measure":
        device = pick_device(params.device, min(threads, settings.threads))
        stopwatch = Stopwatch(device, settings.batch_size, settings.repeats, params.precision)
        content = {**stopwatch.describe(), **within_network(stopwatch.measure(pairs), whole)}
    else:
        table = LatencyTable.read(Path(*latency_files(settings)))
        table.check_has(pairs)
        content = {key: value for key, value in table.content.items() if key in DESCRIPTION}
        content |= {"layers": {key: table.layers[key] for key in pairs}, "overhead": table.overhead}
    write_checked_json(output, content | {"source": settings.source, "params": params.as_given()})


if __name__ == "__main__":
    run_command(measure_latency)
