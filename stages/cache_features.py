"""One teacher pass over (x0, t, eps) triples: the tensors at all block sites as safetensors shards."""

from pathlib import Path

from stagecraft.clustering.record import read_clusters
from stagecraft.config.stages import CacheFeatures
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.registry import make_process
from stagecraft.networks.pipelines import load_teacher
from stagecraft.networks.weights import WEIGHTS
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import sha256_file, write_checked_json
from stagecraft.search.features import FeatureWriter


def cache_features(
    params: CacheFeatures,
    *,
    threads: int,
    data: Path,
    latents: Path,
    prompts: Path,
    teacher: Path,
    clusters: Path,
    output: Path,
) -> None:
    """Write the feature shards and their index, after predicting their size; the index alone when nothing is searched."""
    if params.architecture == "given":
        write_checked_json(output / "index.json", {"intervals": [], "sha256": {}, "params": params.as_given()})
        return

    device = pick_device(params.device, threads)
    images = TrainingSet.load(data, latents, prompts)
    process = make_process(params.diffusion.as_dict())
    clustering = read_clusters(clusters)
    process.check_intervals(clustering, clusters)
    unet = load_teacher(teacher).to(device)
    writer = FeatureWriter(unet, process, images, clustering["intervals"], params.cache_features, params.seed, device)
    pieces = writer.write(
        output.parent / "checkpoints" / "cache_features",
        params.as_given(),
        data=images.sha256,
        teacher=sha256_file(teacher / "unet" / WEIGHTS),
        clusters=sha256_file(clusters),
    )
    pieces.move(output)


if __name__ == "__main__":
    run_command(cache_features)
