"""The training split as latents of the autoencoder; nothing but an index when the diffusion runs in pixels."""

from pathlib import Path

from stagecraft.config.stages import EncodeLatents
from stagecraft.data.prepared import PreparedData
from stagecraft.runtime.command import run_command
from stagecraft.runtime.files import read_checked_json, sha256_file, write_checked_json


def encode_latents(params: EncodeLatents, *, threads: int, data: Path, autoencoder: Path, output: Path) -> None:
    """Write latents.npy, float32 (N,c,h,w) in the order of the training split, and index.json."""
    prepared = PreparedData.load(data)
    index: dict[str, object] = {"data": prepared.meta["sha256"], "sha256": None, "params": params.as_given()}
    made = read_checked_json(autoencoder / "index.json", "train_autoencoder")
    if made["source"] != "none":
        # Heavy, and of no use to runs in pixels.
        from stagecraft.networks.autoencoder import write_latents
        from stagecraft.runtime.device import pick_device

        path = output / "latents.npy"
        shape = write_latents(path, autoencoder, prepared.train_images, pick_device(params.device, threads))
        index |= {"sha256": sha256_file(path), "shape": shape}
    write_checked_json(output / "index.json", index)


if __name__ == "__main__":
    run_command(encode_latents)
