"""Cluster the timesteps into intervals by how alike the optimal denoisers are: data and noise process to clusters.json."""

from functools import partial
from pathlib import Path

from stagecraft.clustering.cluster import cluster
from stagecraft.clustering.gradients import bounded_gradients
from stagecraft.config.stages import ClusterTimesteps
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.registry import make_process
from stagecraft.networks.pipelines import load_teacher
from stagecraft.networks.weights import WEIGHTS
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import sha256_file, write_checked_json
from stagecraft.runtime.journal import Pieces


def cluster_timesteps(
    params: ClusterTimesteps, *, threads: int, data: Path, latents: Path, prompts: Path, teacher: Path, output: Path
) -> None:
    """Write the interval boundaries, their spread, the similarity matrix, the silhouettes and the curves.

    Only the method `gradient` loads the teacher.
    """
    settings = params.cluster_timesteps
    process = make_process(params.diffusion.as_dict())
    images = TrainingSet.load(data, latents, prompts)
    gradients = None
    fingerprint: dict[str, object] = {"params": params.as_given(), "data": images.sha256}
    if settings.method == "gradient":
        unet = load_teacher(teacher).to(pick_device(params.device, threads))
        gradients = partial(bounded_gradients, unet, process, images, settings.draws)
        fingerprint["teacher"] = sha256_file(teacher / "unet" / WEIGHTS)
    pieces = Pieces(output.parent / "checkpoints" / "cluster_timesteps", fingerprint)
    y = images.flat(settings.image_range)
    clusters = cluster(y, process, settings, params.seed, gradients, pieces)
    clusters["params"] = params.as_given()
    write_checked_json(output, clusters)
    pieces.remove()
    print(f"cluster_timesteps: {clusters['method']}, boundaries {clusters['boundaries']}")


if __name__ == "__main__":
    run_command(cluster_timesteps)
