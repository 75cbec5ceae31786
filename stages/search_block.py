"""Search one block (and, for a decoder block, one interval): train its supernet on teacher features, score its sub-blocks."""

from pathlib import Path

from safetensors.torch import save_file

from stagecraft.config.stages import SearchBlock
from stagecraft.networks.pipelines import load_teacher
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import atomic_path, sha256_file, write_checked_json
from stagecraft.search.job import SearchJob, TrainedSupernet


def search_block(
    params: SearchBlock,
    *,
    threads: int,
    name: str,
    teacher: Path,
    features: Path,
    importance: Path,
    latency: Path,
    start: list[str],
    output: Path,
    weights: Path,
) -> None:
    """Write every candidate with its scores and costs, and the supernet's weights.

    `start`: report and weights of the search that this one is fine-tuned from; empty to start from the teacher's block.
    """
    device = pick_device(params.device, threads)
    checkpoint = output.parent.parent / "checkpoints" / f"{name}.pt"
    initial = TrainedSupernet.read(*map(Path, start)) if start else None
    job = SearchJob(params, load_teacher(teacher), name, features, device, checkpoint, importance, initial, latency)
    report = job.run()
    with atomic_path(weights) as aside:
        save_file({key: value.contiguous().cpu() for key, value in job.supernet.state_dict().items()}, aside)
    write_checked_json(output, {**report, "weights_sha256": sha256_file(weights)})
    job.clean_up()


if __name__ == "__main__":
    run_command(search_block)
