"""Cluster the timesteps into stages by how alike the optimal denoisers are: data and noise process to clusters.json."""

from pathlib import Path
from typing import Any

from stages.command import run_command


def cluster_timesteps(params: dict[str, Any], *, threads: int, data: Path, output: Path) -> None:
    """Write the stage boundaries, the similarity matrix and the silhouettes."""
    from stages.clustering.stages import cluster
    from stages.datasets.prepared import PreparedData
    from stages.diffusion.process import VPProcess
    from stages.files import write_checked_json
    from stages.pieces import Pieces

    prepared = PreparedData.load(data)
    process = VPProcess(params["diffusion"])
    fingerprint = {"params": params, "data": prepared.meta["sha256"]}
    pieces = Pieces(output.parent / "checkpoints" / "cluster_timesteps", fingerprint)
    clusters = cluster(prepared.train_images, process, params["cluster_timesteps"], params["seed"], pieces)
    write_checked_json(output, clusters | {"params": params})
    pieces.remove()
    print(f"cluster_timesteps: {clusters['method']}, boundaries {clusters['boundaries']}")


if __name__ == "__main__":
    run_command(cluster_timesteps)
