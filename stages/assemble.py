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
    from stages.files import read_json, write_json
    from stages.models.pipelines import load_teacher
    from stages.search.architecture import assemble_architecture

    boundaries, sampling = read_json(clusters)["boundaries"], params["sampling"]
    process, unet = VPProcess(params["diffusion"]), load_teacher(teacher)
    steps = steps_per_stage(process, sampling["scheduler"], sampling["steps"], boundaries)
    results = {path.stem: read_json(path) for path in search}
    architecture = assemble_architecture(unet, results, steps, params["assemble"])
    extra = {"boundaries": boundaries, "steps_per_stage": steps, "sampler": sampling, "params": params}
    write_json(output, architecture | extra)
    expected = architecture["expected"]
    print(
        f"assemble: {expected['macs_ratio']:.3f} of the teacher's MACs, {expected['params_ratio']:.3f} of its parameters "
        f"in total, {expected['params_active_ratio']:.3f} active"
    )


if __name__ == "__main__":
    run_command(assemble)
