"""The teacher: a network built from params and trained on the noise process."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from stagecraft.config.sections import Teacher
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.losses import predict
from stagecraft.networks.configs import CONFIGS, class_trained
from stagecraft.networks.families import teacher_class
from stagecraft.networks.family import Module
from stagecraft.runtime.device import autocast
from stagecraft.runtime.processes import own_rows


def build_teacher(
    settings: Teacher,
    resolution: int,
    channels: int,
    seed: int,
    classes: int | None = None,
    prompts: tuple[int, int] | None = None,
) -> Module:
    """A network with random weights, as the `train_teacher` section describes it.

    Args:
        classes: number of classes of a class-conditional network.
        prompts: tokens and width of the prompts that it is conditioned on; None for none.
    """
    torch.manual_seed(seed)
    kind = class_trained(prompts is not None)
    teacher = teacher_class(kind)(
        sample_size=resolution,
        in_channels=channels,
        out_channels=channels,
        num_class_embeds=classes,
        **CONFIGS[kind].trained(settings, prompts and prompts[1]),
    )
    if prompts is not None:
        teacher.prompt_tokens = prompts[0]
    return teacher


class DenoisingLoss:
    """Mean square error to the process's target (Ho et al. 2020, eq. 14), for the training loop."""

    def __init__(self, model: torch.nn.Module, batches: NoisyBatches, precision: str) -> None:
        self.model = model
        self.batches = batches
        self.precision = precision

    def __call__(self, step: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
        batch = self.batches(generator)
        own = batch.rows(own_rows(len(batch.t)))
        with autocast(self.batches.device, self.precision):
            prediction = predict(self.model, own.x_t, own.t, own.condition)
        yield "noise", F.mse_loss(prediction.float(), own.target) * (len(prediction) / len(batch.t))
