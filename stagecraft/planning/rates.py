"""Seconds that a MAC takes on this machine, from a few seconds of passes of the teacher with random weights."""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from stagecraft.diffusion.losses import predict
from stagecraft.evaluation.speed import synchronize
from stagecraft.networks.costs import count_network_macs
from stagecraft.networks.families import example_condition, sites_of
from stagecraft.networks.family import Module
from stagecraft.planning.steps import BACKWARD, Work
from stagecraft.runtime.device import autocast
from stagecraft.runtime.threads import keep_freed_memory

LARGEST_IMAGE = 20e9  # MACs of the image that is timed; a larger one is timed at fewer pixels
LARGEST_PASS = 4e9  # MACs of a pass of several images
SECONDS = 1.0  # of timed passes of a kind
FEWEST, MOST = 2, 50  # timed passes of a kind


@dataclass(frozen=True)
class Rate:
    """Seconds for one MAC.

    Args:
        forward: without gradients.
        training: in a forward and a backward pass, which counts as two forward ones.
    """

    forward: float
    training: float

    def seconds(self, work: Work) -> float:
        """Seconds of some work."""
        return work.forward * self.forward + work.training * self.training


@dataclass(frozen=True)
class Machine:
    """How fast a machine is.

    Args:
        cores: on which jobs run side by side.
        rate: of a job with the threads of most rules.
        single: of a job with one thread.
        start: seconds until a job has started Python and imported its libraries.
    """

    cores: int
    rate: Rate
    single: Rate
    start: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def measure_rate(teacher: Module, batch: int, device: torch.device, precision: str, threads: int) -> Rate:
    """Time passes of a teacher.

    Args:
        teacher: on the meta device; its sample_size is that of the images.
        batch: images in a pass, at most.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    small = shrink(teacher)
    macs = count_network_macs(small)
    count = int(max(1, min(batch, LARGEST_PASS // macs)))
    net = with_random_weights(small, device)
    side = small.config["sample_size"]
    x_NCHW = torch.randn(count, small.config["in_channels"], side, side, device=device)
    condition = example_condition(net, count).to(device)

    def run() -> torch.Tensor:
        with autocast(device, precision):
            return predict(net, x_NCHW, torch.zeros(count, device=device), condition)

    def run_without_gradients() -> None:
        with torch.no_grad():
            run()

    def train() -> None:
        run().float().square().mean().backward()
        net.zero_grad(set_to_none=True)

    forward = time_call(run_without_gradients, device) / (count * macs)
    return Rate(forward, time_call(train, device) / ((1 + BACKWARD) * count * macs))


def shrink(teacher: Module) -> Module:
    """A copy of a teacher on the meta device for as many pixels as an image of `LARGEST_IMAGE` MACs has, if that are fewer."""
    small = copy.deepcopy(teacher)
    while count_network_macs(small) > LARGEST_IMAGE and all(site.side % 2 == 0 for site in sites_of(small)):
        small.register_to_config(sample_size=small.config["sample_size"] // 2)
    return small


def with_random_weights(teacher: Module, device: torch.device) -> Module:
    """A copy on a device of a network that is on the meta device."""
    net = copy.deepcopy(teacher).to_empty(device=device).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.02)
    return net


def time_call(call: Callable[[], None], device: torch.device) -> float:
    """Median seconds of a call after one to warm up, over a second of calls, but no fewer than two."""
    taken: list[float] = []
    call()
    while len(taken) < FEWEST or (sum(taken) < SECONDS and len(taken) < MOST):
        synchronize(device)
        begun = time.perf_counter()
        call()
        synchronize(device)
        taken.append(time.perf_counter() - begun)
    return median(taken)
