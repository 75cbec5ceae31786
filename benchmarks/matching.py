"""Nets of one measured cost: network evaluations as shares of the teacher's, and the knob that brings a net to a budget."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from filelock import FileLock

from stagecraft.evaluation.cost import count_macs, interval_timesteps, weighted_mean
from stagecraft.evaluation.speed import time_evaluation

TOLERANCE = 0.03  # how far from the budget a net may be, as a share of it
WARM_UP = 2
LEAST_PAIRS, MOST_PAIRS = 11, 101
PRECISION = 0.005  # of a share: its standard error at which measuring ends
ROUNDS, SECANT_ROUNDS = 8, 4
MOST_FAILURES = 2  # settings without a net, once there was one, after which the knob is left
GROWTH = 1.1  # of the setting while there is no net
FINEST = 1.002  # bounds of the knob as near as this are one
Try = tuple[float, float | None]  # a setting and the share of its net, None where it has none


class Evaluation(NamedTuple):
    """One network evaluation: a net called as net(x_t, t), and its timestep."""

    net: Any
    timestep: float


class Meter(Protocol):
    """Measures network evaluations of a batch `x`, N,C,H,W, as shares of the teacher's."""

    x: torch.Tensor

    def shares(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """The share of each evaluation."""


class Clock:
    """Shares of the teacher's time, on the threads that this process has.

    An evaluation takes turns with the teacher's until the median of their ratios is known to 0.5 %, or 101 times. Of the
    processes that use one lock only one measures at a time; what else they do goes on meanwhile, and reaches both sides of a
    ratio.

    Args:
        teacher: a UNet in eval mode on the CPU.
        shape: C, H, W of an image.
        lock: a file for all processes on this machine.
    """

    def __init__(self, teacher: Any, shape: tuple[int, int, int], batch: int, lock: Path) -> None:
        self.teacher, self.lock = teacher, lock
        self.x = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(0))

    def shares(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """The median ratio of each evaluation to the teacher's at the same timestep."""
        with FileLock(self.lock), torch.no_grad():
            return [self.share(*evaluation) for evaluation in evaluations]

    def share(self, net: Any, timestep: float) -> float:
        """The same of one evaluation; the caller holds the lock."""
        for _ in range(WARM_UP):
            self.ratio(net, timestep)
        ratios: list[float] = []
        while len(ratios) < LEAST_PAIRS or (len(ratios) < MOST_PAIRS and error_of_median(ratios) > PRECISION):
            ratios.append(self.ratio(net, timestep))
        return statistics.median(ratios)

    def ratio(self, net: Any, timestep: float) -> float:
        """Seconds of one evaluation as a multiple of those of the teacher's just before."""
        theirs = time_evaluation(self.teacher, self.x, timestep)
        return time_evaluation(net, self.x, timestep) / theirs


def error_of_median(values: Sequence[float]) -> float:
    """Standard error of a sample's median, from the distance of its quartiles, as for normal values."""
    low, _, high = statistics.quantiles(values, n=4)
    return 0.93 * (high - low) / math.sqrt(len(values))


class Counter:
    """Shares of the teacher's MACs, counted by thop for one image."""

    def __init__(self, teacher: Any, shape: tuple[int, int, int]) -> None:
        self.x, self.shape = torch.zeros(1, *shape), shape
        self.whole = count_macs(teacher, shape, 0)

    def shares(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """MACs of each evaluation as a share of the teacher's."""
        return [count_macs(net, self.shape, timestep) / self.whole for net, timestep in evaluations]


def evaluations_of(net: Any, boundaries: Sequence[float]) -> list[Evaluation]:
    """An evaluation of a net in each of its intervals."""
    return [Evaluation(net, timestep) for timestep in interval_timesteps(boundaries)]


def share_of(meter: Meter, net: Any, boundaries: Sequence[float], steps: Sequence[int]) -> float:
    """What a net takes of the teacher's cost with the sampler's `steps` in each interval."""
    return weighted_mean(meter.shares(evaluations_of(net, boundaries)), steps)


def is_within(share: float, budget: float) -> bool:
    """Whether a share is the budget's to within the tolerance."""
    return abs(share / budget - 1) <= TOLERANCE


@dataclass(frozen=True)
class Knob:
    """A setting of a method and the share of the teacher's cost that its net takes.

    Args:
        tried: (setting, share) of every round, the share None where there is no such net.
    """

    setting: float
    share: float
    tried: list[Try]


def turn_knob(measure: Callable[[float], float], budget: float, most: float) -> Knob:
    """Find the setting whose net takes the budget: by secants, then by bisection, until it is within the tolerance.

    Args:
        measure: the share that the net of a setting takes, rising with the setting; ValueError where no net has this setting,
            which a larger one may have.
        most: the largest setting.

    Returns:
        The setting within the tolerance, else the nearest of those tried.

    Raises:
        ValueError: no setting tried has a net.
    """
    tried: list[Try] = []
    low, high, setting = 0.0, most, min(budget, most)
    failure = ValueError(f"no setting of {most} or less")
    while len(tried) < ROUNDS:
        share = None
        try:
            share = measure(setting)
        except ValueError as error:
            failure = error
        tried.append((setting, share))
        if share is not None and is_within(share, budget):
            break
        low, high = (setting, high) if share is None or share < budget else (low, setting)
        if high <= low * FINEST or failures_after_a_net(tried) == MOST_FAILURES:
            break
        setting = next_setting(tried, budget, low, high)
    known = [(abs(share - budget), setting, share) for setting, share in tried if share is not None]
    if not known:
        raise failure
    _, setting, share = min(known)
    return Knob(setting, share, tried)


def failures_after_a_net(tried: Sequence[Try]) -> int:
    """How many settings had no net after the first one that had."""
    first = next((number for number, (_, share) in enumerate(tried) if share is not None), len(tried))
    return sum(share is None for _, share in tried[first:])


def next_setting(tried: Sequence[Try], budget: float, low: float, high: float) -> float:
    """The setting to try next between two bounds: a little above the last while there is no net, then by secant or bisection."""
    if all(share is None for _, share in tried):
        return min(low * GROWTH, high)
    guess = secant(tried, budget) if len(tried) <= SECANT_ROUNDS else None
    return guess if guess is not None and low < guess < high else (low + high) / 2


def secant(tried: Sequence[Try], budget: float) -> float | None:
    """Where the line through the last two nets, or through one and the origin, meets the budget; None unless it rises."""
    known = [(0.0, 0.0), *((setting, share) for setting, share in tried if share is not None)]
    (x0, y0), (x1, y1) = known[-2:]
    return x1 + (budget - y1) * (x1 - x0) / (y1 - y0) if (x1 - x0) * (y1 - y0) > 0 else None
