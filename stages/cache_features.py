"""One teacher pass over (x0, t, eps) triples: the tensors at all block borders as safetensors shards."""

from pathlib import Path
from typing import Any

from stages.command import run_command


def cache_features(
    params: dict[str, Any], *, threads: int, data: Path, teacher: Path, clusters: Path, output: Path
) -> None:
    """Write the feature shards and their index, after predicting their size."""
    from stages.datasets.prepared import PreparedData
    from stages.device import pick_device
    from stages.diffusion.process import VPProcess
    from stages.files import read_checked_json, sha256_file
    from stages.models.pipelines import WEIGHTS, load_teacher
    from stages.search.features import FeatureWriter

    device, prepared = pick_device(params["device"], threads), PreparedData.load(data)
    process, plan = VPProcess(params["diffusion"]), read_checked_json(clusters, "cluster_timesteps")
    process.check_stages(plan, clusters)
    unet = load_teacher(teacher).to(device)
    writer = FeatureWriter(
        unet, process, prepared.train_images, plan["stages"], params["cache_features"], params["seed"], device
    )
    pieces = writer.write(
        output.parent / "checkpoints" / "cache_features",
        params,
        data=prepared.meta["sha256"],
        teacher=sha256_file(teacher / "unet" / WEIGHTS),
        clusters=sha256_file(clusters),
    )
    pieces.move(output)


if __name__ == "__main__":
    run_command(cache_features)
