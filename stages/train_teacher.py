"""The teacher as a diffusers pipeline folder: trained here (`source: train`) or taken from a folder (`source: path`)."""

from pathlib import Path

from stagecraft.config.stages import TrainTeacher
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.registry import make_process
from stagecraft.networks.autoencoder import downscaling, open_autoencoder
from stagecraft.networks.families import condition_names
from stagecraft.networks.given import Space, check_own_teacher
from stagecraft.networks.given_teacher import open_given_teacher
from stagecraft.networks.pipelines import save_teacher
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.processes import is_main
from stagecraft.training.log import write_log
from stagecraft.training.loop import TrainSettings, train
from stagecraft.training.teacher import DenoisingLoss, build_teacher


def train_teacher(
    params: TrainTeacher,
    *,
    threads: int,
    data: Path,
    latents: Path,
    prompts: Path,
    autoencoder: Path,
    output: Path,
    log: Path,
) -> None:
    """Write results/teacher and the loss history."""
    settings = params.train_teacher
    diffusion = params.diffusion.as_dict()
    images = TrainingSet.load(data, latents, prompts)
    encoder = prompts if images.prompts else None
    vae = open_autoencoder(autoencoder)
    channels, resolution, _ = images.shape
    space = Space(resolution, channels, None if vae is None else downscaling(vae))
    if settings.source == "path":
        if is_main():
            given, stated = open_given_teacher(settings.path, images, diffusion, space)
            process = make_process(diffusion, stated or {})
            save_teacher(output, given, process.scheduler(), params.as_given(), vae, given=True, prompts=encoder)
            write_log(log, {"stage": "train_teacher", "history": [], "params": params.as_given()})
        return

    process = make_process(diffusion)
    check_own_teacher(settings.as_dict(), space, images.class_numbers)
    device = pick_device(params.device, threads)
    flip = settings.horizontal_flip
    classes = images.classes() if settings.class_conditional else None
    sizes = images.prompts.sizes if images.prompts else None
    teacher = build_teacher(settings, resolution, channels, params.seed, classes, sizes).to(device)
    names = condition_names(teacher)
    batches = NoisyBatches(images.only(names), process, settings.batch_size, device, flip, conditional=bool(names))
    checkpoint = output.parent / "checkpoints" / "train_teacher.pt"
    loss = DenoisingLoss(teacher, batches, params.precision)
    how = TrainSettings.of(settings, params.seed)
    made_from = {"params": params.as_given(), "data": images.sha256}
    result = train(teacher, loss, how, checkpoint=checkpoint, fingerprint=made_from, label="train_teacher")
    if not is_main():
        return
    assert result.ema is not None
    teacher.load_state_dict(result.ema)
    save_teacher(output, teacher, process.scheduler(), params.as_given(), vae, prompts=encoder)
    write_log(log, {"stage": "train_teacher", "history": result.history, "params": params.as_given()})
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    run_command(train_teacher)
