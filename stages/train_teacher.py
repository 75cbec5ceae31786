"""The teacher as a diffusers pipeline folder: trained here (`source: train`) or taken from a folder (`source: path`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.command import run_command

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from stages.datasets.training import TrainingSet
    from stages.diffusion.process import Process


def train_teacher(
    params: dict[str, Any], *, threads: int, data: Path, latents: Path, autoencoder: Path, output: Path, log: Path
) -> None:
    """Write results/teacher and the loss history."""
    from stages.datasets.training import TrainingSet
    from stages.device import pick_device
    from stages.diffusion.losses import NoisyBatches
    from stages.diffusion.process import make_process
    from stages.diffusion.stated import says_nothing
    from stages.files import write_checked_json
    from stages.models.autoencoder import open_autoencoder
    from stages.models.pipelines import read_scheduler_config, save_teacher
    from stages.processes import is_main
    from stages.training.loop import TrainSettings, train
    from stages.training.teacher import DenoisingLoss, build_teacher

    settings = params["train_teacher"]
    images, vae = TrainingSet.load(data, latents), open_autoencoder(autoencoder)
    channels, resolution, _ = images.shape
    if settings["source"] == "path":
        if is_main():
            stated = read_scheduler_config(Path(settings["path"])) or {}
            process = make_process(params["diffusion"], stated)
            given = given_teacher(settings["path"], images, process, vae is not None)
            if stated and says_nothing(stated, process.name):
                print(f"train_teacher: {stated['_class_name']} states no noise process; params say it (diffusion)")
            save_teacher(output, given, process.scheduler(), params, vae, given=True)
            write_checked_json(log, {"stage": "train_teacher", "history": [], "params": params})
        return

    process = make_process(params["diffusion"])
    device = pick_device(params["device"], threads)
    conditional, flip = settings["class_conditional"], settings["horizontal_flip"]
    classes = images.classes() if conditional else None
    teacher = build_teacher(settings, resolution, channels, params["seed"], classes).to(device)
    batches = NoisyBatches(images, process, settings["batch_size"], device, flip, labels=conditional)
    checkpoint = output.parent / "checkpoints" / "train_teacher.pt"
    result = train(
        teacher,
        DenoisingLoss(teacher, batches, params["precision"]),
        TrainSettings.of(settings, params["seed"]),
        checkpoint=checkpoint,
        fingerprint={"params": params, "data": images.sha256},
        label="train_teacher",
    )
    if not is_main():
        return
    assert result.ema is not None
    teacher.load_state_dict(result.ema)
    save_teacher(output, teacher, process.scheduler(), params, vae)
    write_checked_json(log, {"stage": "train_teacher", "history": result.history, "params": params})
    checkpoint.unlink(missing_ok=True)


def given_teacher(path: str, images: "TrainingSet", process: "Process", latent: bool) -> "UNet2DModel":
    """The teacher of a diffusers folder.

    Raises:
        ValueError: it does not fit the images (or the latents, when `latent`), their classes or the noise process.
    """
    from stages.models.pipelines import (
        check_classes,
        check_fits,
        is_class_conditional,
        load_given_teacher,
        read_scheduler_config,
    )

    channels, resolution, _ = images.shape
    teacher = load_given_teacher(Path(path))
    check_fits(teacher, path, resolution, channels, latent)
    if is_class_conditional(teacher):
        check_classes(teacher, path, None if images.labels is None else images.classes())
    process.check_same_as(read_scheduler_config(Path(path)), path)
    return teacher


if __name__ == "__main__":
    run_command(train_teacher)
