"""The boundaries of intervals that params give, checked against the noise process. Light: no torch, no NumPy."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from stagecraft.diffusion.stated import betas_of

Config = Mapping[str, Any]


def check_ascending(settings: Config, boundaries: Sequence[float], low: float, high: float) -> None:
    """Raise ValueError unless the given boundaries, as values of t, ascend between the ends of the process.

    Args:
        settings: the `cluster_timesteps` section of the params.
    """
    edges = [low, *boundaries, high]
    if not all(lower < upper for lower, upper in itertools.pairwise(edges)):
        raise ValueError(
            f"cluster_timesteps.boundaries: {settings['boundaries']} in {settings['boundaries_in']} are t = {[*boundaries]}, "
            f"which do not ascend between {low} and {high}; change them"
        )


def check_given(settings: Config, diffusion: Config) -> None:
    """The same of the `diffusion` section, before there is a process to ask; it computes in other precision than the process."""
    given = settings["boundaries"]
    in_sigma = settings["boundaries_in"] == "sigma"
    if diffusion["process"] == "edm":
        low, high = (math.log(diffusion[key]) / 4 for key in ("sigma_min", "sigma_max"))
        check_ascending(settings, [log(value) / 4 for value in given] if in_sigma else given, low, high)
        return
    if diffusion["process"] == "flow":
        low, high = flow_range(diffusion)
        levels = [max(value, 0) for value in given]
        check_ascending(settings, [high * x / (1 + x) for x in levels] if in_sigma else given, low, high)
        return
    count = diffusion["num_train_timesteps"]
    times = nearest_timesteps(given, diffusion) if in_sigma else [math.floor(value + 0.5) for value in given]
    check_ascending(settings, times, 0, count)


def flow_range(diffusion: Config) -> tuple[float, float]:
    """The t between which process flow is sampled: the lowest and the highest level that diffusers' scheduler knows."""
    count: int = diffusion["num_train_timesteps"]
    return count * shifted(1 / count, diffusion["shift"]), float(count)


def shifted(share: Any, shift: float) -> Any:
    """The time shift of rectified flows (arXiv 2403.03206, eq. 23) of a number or a tensor in [0, 1], whose ends it keeps."""
    return shift * share / (1 + (shift - 1) * share)


def log(value: float) -> float:
    """The natural logarithm; minus infinity for what has none."""
    return math.log(value) if value > 0 else -math.inf


def nearest_timesteps(sigmas: Sequence[float], diffusion: Config) -> list[int]:
    """The timesteps of process vp whose noise levels are nearest in ln sigma."""
    levels = [log(sigma) for sigma in sigmas_of(diffusion)]
    return [min(range(len(levels)), key=lambda t: distance(levels[t], log(sigma))) for sigma in sigmas]


def distance(a: float, b: float) -> float:
    """How far two logarithms are from each other; infinity is at no distance from itself."""
    return 0.0 if a == b else abs(a - b)


def sigmas_of(diffusion: Config) -> list[float]:
    """The noise level of each timestep of process vp, sqrt((1 - abar) / abar)."""
    abar = [*itertools.accumulate((1 - beta for beta in betas_of(diffusion)), lambda product, alpha: product * alpha)]
    if diffusion.get("rescale_betas_zero_snr"):  # arXiv 2305.08891, algorithm 1
        first = abar[0] ** 0.5
        last = abar[-1] ** 0.5
        abar = [((share**0.5 - last) * first / (first - last)) ** 2 for share in abar]
    return [math.sqrt((1 - share) / share) if share > 0 else math.inf for share in abar]
