"""Assemble the architecture: one sub-block per block and interval, by the local rule or under budgets."""

from pathlib import Path

from stagecraft.config.stages import Assemble
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import snap, steps_per_interval
from stagecraft.networks.pipelines import load_teacher, read_stated
from stagecraft.runtime.command import run_command
from stagecraft.runtime.files import read_checked_json, write_checked_json
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
    plan = read_checked_json(clusters, "cluster_timesteps")
    sampling = params.sampling
    settings = params.assemble
    boundaries = plan["boundaries"]
    unet = load_teacher(teacher)
    process = make_process(params.diffusion.as_dict(), read_stated(teacher))
    process.check_intervals(plan, clusters)
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
    intervals = process.edges(boundaries)
    how = {
        "boundaries": boundaries,
        "boundaries_sigma": process.noise_levels(boundaries),
        "clustered": plan["boundaries"],
        "snapped": settings.snap_boundaries,
        "intervals": intervals,
        "density": [process.share(*edges) for edges in intervals],
        "steps_per_interval": steps,
        "sampler": sampling.as_dict(),
    }
    write_checked_json(output, {**architecture, **how, "params": params.as_given()})
    print(f"assemble: {costs_in_words(architecture['expected'])}")


def costs_in_words(expected: dict[str, float]) -> str:
    """What a student is expected to cost, as shares of the teacher."""
    predicted = f", {expected['time_ratio']:.3f} of its time (predicted)" if "time_ratio" in expected else ""
    return (
        f"{expected['macs_ratio']:.3f} of the teacher's MACs, {expected['params_ratio']:.3f} of its parameters in total, "
        f"{expected['params_active_ratio']:.3f} active{predicted}"
    )


if __name__ == "__main__":
    run_command(assemble)
