"""Assemble the architecture: one sub-block per block and stage, by the local rule or under budgets."""

from pathlib import Path
from typing import Any

from stages.command import run_command


def assemble(
    params: dict[str, Any], *, threads: int, teacher: Path, clusters: Path, search: list[Path], output: Path
) -> None:
    """Write architecture.json; takes seconds and needs no training, so that another budget is cheap to try."""
    from stages.diffusion.process import VPProcess
    from stages.diffusion.sampling import steps_per_stage
    from stages.files import read_checked_json, write_checked_json
    from stages.models.pipelines import load_teacher
    from stages.search.architecture import assemble_architecture

    plan, sampling = read_checked_json(clusters, "cluster_timesteps"), params["sampling"]
    boundaries, process, unet = plan["boundaries"], VPProcess(params["diffusion"]), load_teacher(teacher)
    process.check_stages(plan, clusters)
    steps = steps_per_stage(process, sampling["scheduler"], sampling["steps"], boundaries)
    results = {path.stem: read_checked_json(path, "search_block") for path in search}
    architecture = assemble_architecture(unet, results, steps, params["assemble"])
    extra = {"boundaries": boundaries, "steps_per_stage": steps, "sampler": sampling, "params": params}
    write_checked_json(output, architecture | extra)
    expected = architecture["expected"]
    print(
        f"assemble: {expected['macs_ratio']:.3f} of the teacher's MACs, {expected['params_ratio']:.3f} of its parameters "
        f"in total, {expected['params_active_ratio']:.3f} active"
    )


if __name__ == "__main__":
    run_command(assemble)
