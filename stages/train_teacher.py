"""The teacher as a diffusers pipeline folder: trained here (`source: train`) or taken from a folder (`source: path`)."""

from pathlib import Path

import torch

from stagecraft.config.stages import TrainTeacher
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.process import Process
from stagecraft.diffusion.registry import make_process
from stagecraft.networks.autoencoder import downscaling, open_autoencoder
from stagecraft.networks.families import condition_names
from stagecraft.networks.family import Module
from stagecraft.networks.given import Space, check_own_teacher
from stagecraft.networks.given_teacher import open_given_teacher
from stagecraft.networks.pipelines import save_pipeline
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
    vae = open_autoencoder(autoencoder)
    channels, resolution, _ = images.shape
    space = Space(resolution, channels, None if vae is None else downscaling(vae))
    checkpoint = output.parent / "checkpoints" / "train_teacher.pt"
    if settings.source == "path":
        teacher, stated = open_given_teacher(settings.path, images, diffusion, space)
        process = make_process(diffusion, stated or {})
        history: list[dict[str, float]] = []
    else:
        process = make_process(diffusion)
        check_own_teacher(settings.as_dict(), space, images.class_numbers)
        teacher, history = train_from_params(params, images, process, pick_device(params.device, threads), checkpoint)
    if not is_main():
        return
    given = settings.source == "path"
    save_pipeline(output, teacher, process.scheduler(), params.as_given(), vae, given=given, prompts=images.encoder)
    write_log(log, {"stage": "train_teacher", "history": history, "params": params.as_given()})
    checkpoint.unlink(missing_ok=True)


def train_from_params(
    params: TrainTeacher, images: TrainingSet, process: Process, device: torch.device, checkpoint: Path
) -> tuple[Module, list[dict[str, float]]]:
    """A teacher as the params describe it, trained on images or latents, and its loss history."""
    settings = params.train_teacher
    channels, resolution, _ = images.shape
    classes = images.classes() if settings.class_conditional else None
    sizes = images.prompts.sizes if images.prompts else None
    teacher = build_teacher(settings, resolution, channels, params.seed, classes, sizes).to(device)
    names = condition_names(teacher)
    flip = settings.horizontal_flip
    batches = NoisyBatches(images.only(names), process, settings.batch_size, device, flip, conditional=bool(names))
    loss = DenoisingLoss(teacher, batches, params.precision)
    train_settings = TrainSettings.of(settings, params.seed)
    made_from = {"params": params.as_given(), "data": images.sha256}
    result = train(teacher, loss, train_settings, checkpoint=checkpoint, fingerprint=made_from, label="train_teacher")
    assert result.ema is not None
    teacher.load_state_dict(result.ema)
    return teacher, result.history


if __name__ == "__main__":
    run_command(train_teacher)
