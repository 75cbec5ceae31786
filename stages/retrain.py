"""Retrain the assembled student with the dynamic joint loss, distilled from the teacher."""

from pathlib import Path

from stagecraft.config.stages import Retrain
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.registry import make_process
from stagecraft.networks.autoencoder import open_autoencoder
from stagecraft.networks.pipelines import load_teacher, read_stated, save_pipeline
from stagecraft.networks.weights import WEIGHTS
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import sha256_file
from stagecraft.runtime.processes import is_main
from stagecraft.training.assembled import read_architecture
from stagecraft.training.joint import JointLoss
from stagecraft.training.log import write_log
from stagecraft.training.loop import TrainSettings, train
from stagecraft.training.student import (
    cast_teacher,
    check_teacher,
    start_student,
    student_batches,
    supernet_loader,
    to_saved_class,
)


def retrain(
    params: Retrain,
    *,
    threads: int,
    data: Path,
    latents: Path,
    prompts: Path,
    autoencoder: Path,
    teacher: Path,
    architecture: Path,
    search: Path,
    output: Path,
    log: Path,
) -> None:
    """Write results/student and the loss history."""
    device = pick_device(params.device, threads)
    images = TrainingSet.load(data, latents, prompts)
    unet = load_teacher(teacher)
    vae = open_autoencoder(autoencoder)
    stated = read_stated(teacher)
    process = make_process(params.diffusion.as_dict(), stated)
    assembled = read_architecture(architecture)
    check_teacher(unet, assembled, architecture)
    load_supernet = supernet_loader(search, assembled["supernets"], architecture)
    student = start_student(unet, assembled, params.retrain.init, params.seed, load_supernet).to(device)
    batches = student_batches(images, process, unet, assembled["boundaries"], params.retrain, device)
    checkpoint = output.parent / "checkpoints" / "retrain.pt"
    made_from = {**hash_inputs(architecture, teacher), "params": params.as_given(), "data": images.sha256}
    loss = JointLoss(student, cast_teacher(unet, device, params.precision), batches, params.retrain, params.precision)
    train_settings = TrainSettings.of(params.retrain, params.seed)
    result = train(student, loss, train_settings, checkpoint=checkpoint, fingerprint=made_from, label="retrain")
    if not is_main():
        return
    assert result.ema is not None
    student.load_state_dict(result.ema)
    saved = to_saved_class(student.cpu(), unet)
    scheduler = process.scheduler(saved_scheduler(params, images))
    save_pipeline(output, saved, scheduler, params.as_given(), vae, given=stated is not None, prompts=images.encoder)
    write_log(log, {"stage": "retrain", "history": result.history, "params": params.as_given()})
    checkpoint.unlink(missing_ok=True)


def saved_scheduler(params: Retrain, images: TrainingSet) -> str | None:
    """The scheduler saved with the student: the evaluation's where there are prompts, None for the process's default."""
    return params.sampling.scheduler if images.encoder else None


def hash_inputs(architecture: Path, teacher: Path) -> dict[str, str]:
    """Hashes of an architecture.json and of a teacher's weights."""
    return {"architecture": sha256_file(architecture), "teacher": sha256_file(teacher / "unet" / WEIGHTS)}


if __name__ == "__main__":
    run_command(retrain)
