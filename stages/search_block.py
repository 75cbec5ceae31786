"""Search one block (and, for a decoder block, one stage): train its supernet on teacher features, score its sub-blocks."""

from pathlib import Path
from typing import Any

from stages.command import run_command


def search_block(
    params: dict[str, Any], *, threads: int, name: str, teacher: Path, features: Path, output: Path, weights: Path
) -> None:
    """Write every candidate with its score and costs, and the supernet's weights."""
    import numpy as np
    from safetensors.torch import save_file

    from stages.device import pick_device
    from stages.files import atomic_path, sha256_file, write_checked_json
    from stages.models.borders import border_of_job
    from stages.models.elastic import ElasticBlock
    from stages.models.pipelines import load_teacher
    from stages.models.specs import block_macs, parameter_count
    from stages.pieces import Pieces
    from stages.search.features import Features
    from stages.search.space import BlockSpace
    from stages.search.supernet import SandwichLoss, score, sort_channels
    from stages.training.loop import TrainSettings, train

    settings = params["search_block"]
    device = pick_device(params["device"], threads)
    unet = load_teacher(teacher)
    border, stage = border_of_job(unet, name)
    block, inputs = unet.get_submodule(border.block), len(border.inputs)
    resolution = unet.config["sample_size"] >> border.level
    cache = Features(features, [*border.inputs, *border.outputs], None if stage is None else [stage])
    space = BlockSpace(block, settings)
    supernet = ElasticBlock(block, border.kind, settings["kernels"]).to(device)
    sort_channels(supernet, cache, inputs)
    checkpoint = output.parent.parent / "checkpoints" / f"{name}.pt"
    fingerprint = {"params": params, "features": sha256_file(features / "index.json")}
    result = train(
        supernet,
        SandwichLoss(supernet, space, cache, inputs, settings["batch_size"], params["precision"]),
        TrainSettings.of(settings, params["seed"]),
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        label=f"search_block {name}",
    )
    pieces = Pieces(checkpoint.with_suffix(""), fingerprint)
    specs = space.candidates(settings["candidates"], np.random.default_rng(params["seed"]))
    report = {
        "block": border.block,
        "stage": stage,
        "kind": border.kind,
        "identity": space.identity,
        "space_size": len(space),
        "teacher_macs": block_macs(block, resolution),
        "teacher_params": parameter_count(block),
        "candidates": score(supernet, specs, cache, inputs, resolution, pieces),
        "log": result.history,
        "params": params,
    }
    with atomic_path(weights) as aside:
        save_file({key: value.contiguous().cpu() for key, value in supernet.state_dict().items()}, aside)
    write_checked_json(output, report | {"weights_sha256": sha256_file(weights)})
    checkpoint.unlink(missing_ok=True)
    pieces.remove()


if __name__ == "__main__":
    run_command(search_block)
