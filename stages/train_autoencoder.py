"""The autoencoder of latent diffusion: trained here, taken from a folder, or none when the diffusion runs in pixels."""

from pathlib import Path

from stagecraft.config.stages import TrainAutoencoder
from stagecraft.data.prepared import PreparedData
from stagecraft.data.training import TrainingSet
from stagecraft.networks.autoencoder import build_autoencoder, check_fits, encode_all, load_given_autoencoder
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import atomic_folder, sha256_file, write_checked_json
from stagecraft.training.autoencoder import ReconstructionLoss
from stagecraft.training.log import write_log
from stagecraft.training.loop import TrainSettings, train


def train_autoencoder(params: TrainAutoencoder, *, threads: int, data: Path, output: Path, log: Path) -> None:
    """Write results/autoencoder, of which index.json says what there is, and the loss history."""
    settings = params.train_autoencoder
    if settings.source == "none":
        write_checked_json(output / "index.json", {"source": "none", "sha256": {}, "params": params.as_given()})
        write_log(log, {"stage": "train_autoencoder", "history": [], "params": params.as_given()})
        return

    prepared = PreparedData.load(data)
    device = pick_device(params.device, threads)
    checkpoint = output.parent / "checkpoints" / "train_autoencoder.pt"
    history = []
    if settings.source == "path":
        vae = load_given_autoencoder(Path(settings.path))
        check_fits(vae, settings.path, prepared.resolution, prepared.channels)
    else:
        images = TrainingSet.of_images(prepared.train_images)
        vae = build_autoencoder(settings.as_dict(), prepared.channels, prepared.resolution, params.seed).to(device)
        result = train(
            vae,
            ReconstructionLoss(vae, images, settings, device, params.precision),
            TrainSettings.of(settings, params.seed),
            checkpoint=checkpoint,
            fingerprint={"params": params.as_given(), "data": prepared.meta["sha256"]},
            label="train_autoencoder",
        )
        assert result.ema is not None
        vae.load_state_dict(result.ema)
        history = result.history
        latents = encode_all(vae, images, device)
        vae.register_to_config(scaling_factor=float(1 / latents.std()))
    with atomic_folder(output) as aside:
        vae.cpu().save_pretrained(aside, safe_serialization=True)
        hashes = {file.name: sha256_file(file) for file in sorted(aside.iterdir())}
        write_checked_json(
            aside / "index.json", {"source": settings.source, "sha256": hashes, "params": params.as_given()}
        )
    write_log(log, {"stage": "train_autoencoder", "history": history, "params": params.as_given()})
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    run_command(train_autoencoder)
