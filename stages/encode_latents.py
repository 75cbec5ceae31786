"""The training split as latents of the autoencoder; nothing but an index when the diffusion runs in pixels."""

from pathlib import Path

import numpy as np

from stagecraft.config.stages import EncodeLatents
from stagecraft.data.prepared import PreparedData, save_array
from stagecraft.data.training import TrainingSet
from stagecraft.networks.autoencoder import encode_all, open_autoencoder
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import atomic_path, read_checked_json, sha256_file, write_checked_json


def encode_latents(params: EncodeLatents, *, threads: int, data: Path, autoencoder: Path, output: Path) -> None:
    """Write latents.npy, float32 (N,c,h,w) in the order of the training split, and index.json."""
    prepared = PreparedData.load(data)
    index: dict[str, object] = {"data": prepared.meta["sha256"], "sha256": None, "params": params.as_given()}
    made = read_checked_json(autoencoder / "index.json", "train_autoencoder")
    if made["source"] != "none":
        device = pick_device(params.device, threads)
        vae = open_autoencoder(autoencoder)
        assert vae is not None
        latents = encode_all(vae.to(device), TrainingSet.of_images(prepared.train_images), device)
        with atomic_path(output / "latents.npy") as aside:
            save_array(aside, latents.numpy().astype(np.float32))
        index |= {"sha256": sha256_file(output / "latents.npy"), "shape": list(latents.shape)}
    write_checked_json(output / "index.json", index)


if __name__ == "__main__":
    run_command(encode_latents)
