"""Training and sampling of tiny models, by one process or shared by several: python tests/shared_work.py RESULTS.json BATCH."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from helpers import section_with, tiny_unet

from stagecraft.config.sections import Retrain
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.sampling import Sampler, sample
from stagecraft.diffusion.vp import VPProcess
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.runtime import processes
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.journal import Pieces
from stagecraft.training.joint import JointLoss
from stagecraft.training.loop import TrainSettings, train
from stagecraft.training.student import build_student
from stagecraft.training.teacher import DenoisingLoss

DIFFUSION = {
    "process": "vp",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
}
PROCESS = DIFFUSION | {"prediction_type": "epsilon"}
# Blocks alone, then both, then end to end alone, with a decoder that few samples of a batch reach.
JOINT = section_with(Retrain, joint_loss="linear", ramp=0.6, steps=10, output_weight=0.5, jacobian_weight=0.5)
BOUNDARY = 900
SETTINGS = TrainSettings(steps=10, learning_rate=1e-3, weight_decay=0.1, ema_decay=0.9, gradient_clip=0.5, seed=3)


def batches(size: int, device: torch.device) -> NoisyBatches:
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    return NoisyBatches(TrainingSet.of_images(images), VPProcess(PROCESS), size, device, flip=True)


def train_teacher(size: int, device: torch.device) -> list[dict[str, float]]:
    unet = tiny_unet()
    return train(unet, DenoisingLoss(unet, batches(size, device), "fp32"), SETTINGS).history


def retrain(size: int, device: torch.device, checkpoint: Path | None = None) -> list[dict[str, float]]:
    unet = tiny_unet()
    student = build_student(unet, identity_architecture(unet, 2), [BOUNDARY], seed=0)
    loss = JointLoss(student, unet, batches(size, device), JOINT, "fp32")
    return train(student, loss, SETTINGS, checkpoint=checkpoint).history


def draw(device: torch.device, folder: Path) -> list[int]:
    """Images of five batches, of which the second was there before."""
    pieces = Pieces(folder, {}) if processes.is_main() else None
    sampler = Sampler(VPProcess(PROCESS), "ddim", 4, 1, (1, 8, 8), device, batch_size=4)
    if pieces:
        images = torch.zeros((4, 8, 8, 1), dtype=torch.uint8).numpy()
        np.save(folder / "samples-00001.npy", images)
        pieces.add("samples-00001.npy")
    return sample(tiny_unet(), sampler, range(18), pieces=pieces).flatten().tolist()


def results(size: int) -> dict:
    """All of them; on other processes than rank 0 of no use."""
    device = pick_device("cpu", 1)
    with tempfile.TemporaryDirectory() as folder:
        images = draw(device, Path(folder))
    return {"teacher": train_teacher(size, device), "student": retrain(size, device), "images": images}


if __name__ == "__main__":
    found = results(int(sys.argv[2]))
    if processes.is_main():
        Path(sys.argv[1]).write_text(json.dumps(found))
