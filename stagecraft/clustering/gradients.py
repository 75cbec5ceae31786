"""Gradients of a network's loss at each noise level, for gradient-based clustering (Go et al. 2023, arXiv 2306.00354)."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.losses import predict
from stagecraft.diffusion.process import Process
from stagecraft.networks.activations import bounded_activations
from stagecraft.networks.families import condition_names
from stagecraft.networks.family import Module
from stagecraft.runtime.seeds import generator_for

BATCH = 256  # pairs at once, at most
SKETCH = 2**16  # numbers kept of each gradient


class Sketch:
    """Count sketch (Charikar et al. 2002) of vectors of `size` numbers: cosines stay, but for an error of about 1 / 256."""

    def __init__(self, size: int) -> None:
        generator = generator_for(0, "sketch", 0)
        self.whole = size <= SKETCH
        self.where = torch.randint(SKETCH, (size,), generator=generator)
        self.signs = torch.randint(2, (size,), generator=generator) * 2.0 - 1.0

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        """(size,) to at most 65,536 numbers; a vector no longer than that stays as it is."""
        return vector if self.whole else torch.zeros(SKETCH).index_add_(0, self.where, self.signs * vector)


def bounded_gradients(
    unet: Module, process: Process, data: TrainingSet, draws: int, t: np.ndarray, seed: int
) -> np.ndarray:
    """`loss_gradients` of a teacher, of as many pairs at once as memory allows."""
    with bounded_activations(unet, data.shape, BATCH) as at_once:
        return loss_gradients(unet, process, data, draws, t, seed, at_once)


def loss_gradients(
    model: Any, process: Process, data: TrainingSet, draws: int, t: np.ndarray, seed: int, batch_size: int = BATCH
) -> np.ndarray:
    """Gradient of the mean denoising loss over `draws` pairs (x0, eps), the same at every t.

    Args:
        model: a UNet on its device, class-conditional or not.
        t: (T,).

    Returns:
        (T, p) float32.
    """
    device = next(model.parameters()).device
    known = data.only(condition_names(model))
    rows = torch.randint(len(data), (draws,), generator=generator_for(seed, "gradients", 0))
    eps = torch.randn((draws, *data.shape), generator=generator_for(seed, "gradients", 1))
    sketch = Sketch(sum(p.numel() for p in model.parameters()))
    sketches = []
    for value in torch.from_numpy(np.asarray(t)):
        model.zero_grad(set_to_none=True)
        for batch in torch.arange(draws).split(batch_size):
            x0 = data.x0(rows[batch])
            noise = eps[batch]
            times = value.expand(len(batch))
            condition = known.condition(rows[batch]).to(device)
            x_t = process.noise(x0, noise, times)
            target = process.target(x0, noise, times)
            output = predict(model, x_t.to(device), times.to(device), condition)
            (F.mse_loss(output, target.to(device)) * (len(batch) / draws)).backward()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        sketches.append(sketch(torch.cat([grad.flatten() for grad in grads]).cpu()))
    model.zero_grad(set_to_none=True)
    return torch.stack(sketches).numpy()
