"""Assemble the architecture: one sub-block per block and interval, by the local rule or under budgets."""

from pathlib import Path

from stagecraft.clustering.record import read_clusters
from stagecraft.config.stages import Assemble
from stagecraft.diffusion.process import Process
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import snap, steps_per_interval
from stagecraft.networks.pipelines import load_teacher, read_stated
from stagecraft.runtime.command import run_command
from stagecraft.runtime.files import write_checked_json
from stagecraft.search.architecture import assemble_architecture, given_architecture
from stagecraft.search.latency import LatencyTable
from stagecraft.search.results import read_results


def assemble(
    params: Assemble,
    *,
    threads: int,
    teacher: Path,
    clusters: Path,
    search: Path,
    latency: Path,
    output: Path,
) -> None:
    """Write architecture.json; takes seconds and needs no training, so that another budget is cheap to try."""
    clustering = read_clusters(clusters)
    sampling = params.sampling
    settings = params.assemble
    boundaries = clustering["boundaries"]
    unet = load_teacher(teacher)
    process = make_process(params.diffusion.as_dict(), read_stated(teacher))
    process.check_intervals(clustering, clusters)
    process.check_steps(sampling.as_dict())
    sampler = (process, sampling.scheduler, sampling.steps)
    if settings.snap_boundaries:
        boundaries = snap(*sampler, boundaries)
    steps = steps_per_interval(*sampler, boundaries)
    if params.architecture == "given":
        architecture = given_architecture(unet, steps, settings.decoder_widths or [])
    else:
        results = read_results(search)
        table = LatencyTable.of_stage(latency)
        architecture = assemble_architecture(unet, results, steps, settings, params.seed, table)
    made_for = {
        "clustered": clustering["boundaries"],
        "snapped": settings.snap_boundaries,
        "steps_per_interval": steps,
        "sampler": sampling.as_dict(),
        "params": params.as_given(),
    }
    write_checked_json(output, {**architecture, **describe_intervals(process, boundaries), **made_for})
    print(f"assemble: {costs_in_words(architecture['expected'])}")


def describe_intervals(process: Process, boundaries: list[float]) -> dict[str, object]:
    """The intervals, and how often training draws each."""
    intervals = process.edges(boundaries)
    return {
        "boundaries": boundaries,
        "boundaries_sigma": process.noise_levels(boundaries),
        "intervals": intervals,
        "density": [process.share(*edges) for edges in intervals],
    }


def costs_in_words(expected: dict[str, float]) -> str:
    """What a student is expected to cost, as shares of the teacher."""
    predicted = f", {expected['time_ratio']:.3f} of its time (predicted)" if "time_ratio" in expected else ""
    return (
        f"{expected['macs_ratio']:.3f} of the teacher's MACs, {expected['params_ratio']:.3f} of its parameters in total, "
        f"{expected['params_active_ratio']:.3f} active{predicted}"
    )


if __name__ == "__main__":
    run_command(assemble)
