"""The autoencoder of latent diffusion: trained here, taken from a folder, or none when the diffusion runs in pixels."""

from pathlib import Path

from stagecraft.config.stages import TrainAutoencoder
from stagecraft.data.prepared import PreparedData
from stagecraft.runtime.command import run_command
from stagecraft.runtime.files import atomic_folder, sha256_file, write_checked_json
from stagecraft.training.log import write_log


def train_autoencoder(params: TrainAutoencoder, *, threads: int, data: Path, output: Path, log: Path) -> None:
    """Write results/autoencoder, of which index.json says what there is, and the loss history."""
    index = {"source": params.train_autoencoder.source, "sha256": {}, "params": params.as_given()}
    if params.train_autoencoder.source == "none":
        write_checked_json(output / "index.json", index)
        write_log(log, {"stage": "train_autoencoder", "history": [], "params": params.as_given()})
        return
    # Heavy, and of no use to runs in pixels.
    from stagecraft.runtime.device import pick_device
    from stagecraft.training.autoencoder import make_autoencoder

    checkpoint = output.parent / "checkpoints" / "train_autoencoder.pt"
    vae, history = make_autoencoder(params, PreparedData.load(data), pick_device(params.device, threads), checkpoint)
    with atomic_folder(output) as aside:
        vae.save_pretrained(aside, safe_serialization=True)
        hashes = {file.name: sha256_file(file) for file in sorted(aside.iterdir())}
        write_checked_json(aside / "index.json", index | {"sha256": hashes})
    write_log(log, {"stage": "train_autoencoder", "history": history, "params": params.as_given()})
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    run_command(train_autoencoder)
