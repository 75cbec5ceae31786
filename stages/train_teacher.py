"""The teacher as a diffusers pipeline folder: trained here (`source: train`) or taken from a folder (`source: path`)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.command import run_command

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from stages.datasets.training import TrainingSet
    from stages.models.given import Space


def train_teacher(
    params: dict[str, Any], *, threads: int, data: Path, latents: Path, autoencoder: Path, output: Path, log: Path
) -> None:
    """Write results/teacher and the loss history."""
    from stages.datasets.training import TrainingSet
    from stages.device import pick_device
    from stages.diffusion.losses import NoisyBatches
    from stages.diffusion.process import make_process
    from stages.files import write_checked_json
    from stages.models.autoencoder import downscaling, open_autoencoder
    from stages.models.given import Space, check_own_teacher
    from stages.models.pipelines import save_teacher
    from stages.processes import is_main
    from stages.training.loop import TrainSettings, train
    from stages.training.teacher import DenoisingLoss, build_teacher

    settings = params["train_teacher"]
    images, vae = TrainingSet.load(data, latents), open_autoencoder(autoencoder)
    channels, resolution, _ = images.shape
    space = Space(resolution, channels, None if vae is None else downscaling(vae))
    if settings["source"] == "path":
        if is_main():
            given, stated = given_teacher(settings["path"], images, params["diffusion"], space)
            process = make_process(params["diffusion"], stated or {})
            save_teacher(output, given, process.scheduler(), params, vae, given=True)
            write_checked_json(log, {"stage": "train_teacher", "history": [], "params": params})
        return

    process = make_process(params["diffusion"])
    check_own_teacher(settings, space, images.class_numbers)
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


def given_teacher(
    path: str, images: "TrainingSet", diffusion: dict[str, Any], space: "Space"
) -> "tuple[UNet2DModel, dict[str, Any] | None]":
    """The teacher of a diffusers folder, and what its scheduler config states.

    Args:
        diffusion: the `diffusion` section of the params.
        space: what the teacher is to draw.

    Raises:
        ValueError: it does not fit the images (or the latents), their classes or the noise process.
    """
    from stages.datasets.classes import check_known
    from stages.diffusion.stated import check_stated, says_nothing
    from stages.files import pipeline_file
    from stages.models.given import (
        check_teacher_fits,
        check_teacher_folder,
        has_learned_variance,
        read_scheduler_config,
    )
    from stages.models.pipelines import fit_teacher, load_given_teacher

    config, file = check_teacher_folder(Path(path))
    check_teacher_fits(config, file, space, diffusion["process"])
    if config.get("num_class_embeds") is not None:
        check_known(images.class_numbers, config["num_class_embeds"], str(file))
    stated = read_scheduler_config(Path(path))
    check_stated(stated, pipeline_file(path, "scheduler", "scheduler_config.json"), diffusion)
    teacher = load_given_teacher(Path(path))
    if has_learned_variance(config):
        print(f"train_teacher: {file}: out_channels is twice in_channels, a learned variance; only the mean is used")
    if stated is not None and says_nothing(stated, diffusion["process"]):
        print(f"train_teacher: {stated['_class_name']} states no noise process; params say it (diffusion)")
    assert space.side is not None, "the images are known"
    return fit_teacher(teacher, space.side), stated


if __name__ == "__main__":
    run_command(train_teacher)
