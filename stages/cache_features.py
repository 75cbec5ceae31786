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
    from stages.files import read_checked_json
    from stages.models.pipelines import load_teacher
    from stages.search.features import FeatureWriter

    device = pick_device(params["device"], threads)
    images = PreparedData.load(data).train_images
    process, plan = VPProcess(params["diffusion"]), read_checked_json(clusters, "cluster_timesteps")
    process.check_stages(plan, clusters)
    unet = load_teacher(teacher).to(device)
    writer = FeatureWriter(unet, process, images, plan["stages"], params["cache_features"], params["seed"], device)
    output.mkdir(parents=True, exist_ok=True)
    writer.check_room(output)
    writer.write(output, params)


if __name__ == "__main__":
    run_command(cache_features)
