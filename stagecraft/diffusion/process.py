"""The noise process as one object: x_t = alpha_t x0 + sigma_t eps and all that follows from it.

Nothing outside this folder knows which process runs; registry.py has the processes by name.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from stagecraft.diffusion.stated import check_stated, check_steps, kept_settings
from stagecraft.runtime.files import pipeline_file, run_again

Pair = tuple[torch.Tensor, torch.Tensor]


class Process(ABC):
    """Noised batches, training targets, and the network's time input t <-> noise level.

    The noise level is sigma_t / alpha_t, what other texts call sigma; files and plots give it. t rises with it, and is a float32
    unless a process says otherwise. A network is trained by the mean square error of its output to `target`, unweighted: where a
    process weights its loss, the weight is in the scale of the target.

    Args:
        settings: the `diffusion` section of the params.
        stated: the scheduler config of a given teacher, whose settings samplers keep; None for a teacher that has none.
    """

    name: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]  # of the settings and of diffusers' scheduler configs
    # diffusers' class by the name that `sampling.scheduler` uses, with the settings that differ from its defaults; the first is
    # the one that a pipeline folder holds.
    schedulers: ClassVar[dict[str, tuple[str, Mapping[str, object]]]]
    # What the scheduler of a pipeline folder has beside, unless the teacher was given with a scheduler of its own.
    saved: ClassVar[Mapping[str, object]] = {}
    low: float  # smallest t
    high: float  # t is below this

    def __init__(self, settings: Mapping[str, object], stated: Mapping[str, object] | None = None) -> None:
        self.settings = settings
        self.stated = stated
        self.kept = kept_settings(stated, self.name)
        self.config = {key: settings[key] for key in self.keys if key in settings}

    @abstractmethod
    def draw(
        self, n: int, generator: torch.Generator, lo: float | None = None, hi: float | None = None
    ) -> torch.Tensor:
        """n values of t from the training distribution, given that they lie in [lo, hi) when these are given; (n,)."""

    @abstractmethod
    def alpha_sigma(self, t: torch.Tensor, dtype: torch.dtype = torch.float64) -> Pair:
        """(alpha_t, sigma_t), of the shape of t and on the CPU, finite for every t.

        Args:
            dtype: in which sigma_t is computed, where it is a product, and in which both are given.
        """

    @abstractmethod
    def t_of(self, level: torch.Tensor) -> torch.Tensor:
        """The t of a noise level, of the shape of `level`; the nearest for a process of discrete levels."""

    @abstractmethod
    def share(self, lo: float, hi: float) -> float:
        """Probability that a training draw lies in [lo, hi)."""

    @abstractmethod
    def target_factors(self, alpha: torch.Tensor, sigma: torch.Tensor) -> Pair:
        """(a, b) of the training target a x0 + b eps, each of the shape of alpha."""

    def as_t(self, value: float) -> float:
        """A number as a t that the process has, so a boundary stays what it is in files and on devices."""
        return float(np.float32(value))

    def at_share(self, share: float) -> float:
        """The t at a share, 0 to 1, of the way from low to high; a uniform share gives a uniform t."""
        return self.as_t(self.low + (self.high - self.low) * share)

    def above(self, t: float) -> float:
        """The smallest boundary above t."""
        return float(np.nextafter(np.float32(t), np.float32(np.inf)))

    def grid(self, n: int) -> np.ndarray:
        """At most n values of t, ascending and evenly spaced over [low, high)."""
        return np.unique([self.as_t(t) for t in np.linspace(self.low, self.at_share(1), n)])

    def edges(self, boundaries: list[float]) -> list[list[float]]:
        """[lo, hi) of every interval."""
        return [list(pair) for pair in itertools.pairwise([self.low, *boundaries, self.high])]

    def noise_level(self, t: torch.Tensor) -> torch.Tensor:
        """sigma_t / alpha_t in float64, of the shape of t and on the CPU; infinite where x_t is noise alone."""
        alpha, sigma = self.alpha_sigma(t)
        return sigma / alpha

    def noise_levels(self, boundaries: list[float]) -> list[float | None]:
        """The noise levels of boundaries, for files; None for infinity, which JSON has no number for."""
        levels: list[float] = self.noise_level(torch.tensor(boundaries)).tolist()
        return [level if math.isfinite(level) else None for level in levels]

    def noise(self, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = alpha_t x0 + sigma_t eps, the network's input, of the shape of x0 (N,C,H,W); t is (N,)."""
        alpha, sigma = self._per_sample(t, x0)
        return alpha * x0 + sigma * eps

    def image_factors(self, t: torch.Tensor) -> Pair:
        """(p, q) of the image p y + q x_t that a prediction y implies at x_t, in float64 of the shape of t and on the CPU."""
        alpha, sigma = self.alpha_sigma(t)
        a, b = self.target_factors(alpha, sigma)
        determinant = a * sigma - b * alpha
        return sigma / determinant, -b / determinant

    def image_factor(self, t: torch.Tensor) -> torch.Tensor:
        """How far an error of the prediction moves the denoised image at t, float32 of the shape of t and on the CPU; at most 1.

        It is |p| of `image_factors`: the noise level for eps, which says nothing about an image under much noise, sigma for v and
        for the velocity of a rectified flow, c_out for EDM.
        """
        return self.image_factors(t)[0].abs().clamp(max=1).float()

    def target(self, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network is trained to return at (x_t, t), of the shape of x0."""
        a, b = self.target_factors(*self._per_sample(t, x0))
        return b * eps + a * x0

    def scheduler(self, name: str | None = None) -> Any:
        """A diffusers scheduler of this process, by the name that `sampling.scheduler` uses.

        With None the one that a pipeline folder holds, from whose config other solvers of diffusers start at the noisiest
        timestep. Its own `leading` would keep them from it.
        """
        import diffusers

        kind, extra = self.schedulers[name or next(iter(self.schedulers))]
        saved = self.saved if name is None and self.stated is None else {}
        return getattr(diffusers, kind).from_config({**extra, **saved, **self.kept_for(name), **self.config})

    def kept_for(self, name: str | None) -> Mapping[str, object]:
        """What a sampler, or with None the scheduler of a pipeline folder, keeps of a given teacher's scheduler config."""
        return self.kept

    def check_same_as(self, scheduler_config: Mapping[str, object] | None, folder: str) -> None:
        """Raise a ValueError when a teacher's own scheduler config, if it has one, states another process than the params do."""
        check_stated(scheduler_config, pipeline_file(folder, "scheduler", "scheduler_config.json"), self.settings)

    def check_steps(self, sampling: Mapping[str, object]) -> None:
        """Raise a ValueError when the `sampling` section asks for steps that are no different timesteps of this process."""
        check_steps(sampling, self.settings, self.kept)

    def check_intervals(self, clusters: Mapping[str, Any], path: Path) -> None:
        """Raise a ValueError unless the intervals of clusters.json, at `path`, divide the noise levels of this process."""
        edges = [self.low, *clusters["boundaries"], self.high]
        if edges != sorted({*edges}) or clusters["intervals"] != self.edges(clusters["boundaries"]):
            raise ValueError(
                f"{path}: the intervals {clusters['intervals']} with boundaries {clusters['boundaries']} do not divide the "
                f"timesteps {self.low} to {self.high}; {run_again('cluster_timesteps', path)}"
            )

    def _per_sample(self, t: torch.Tensor, like: torch.Tensor) -> Pair:
        shape = (-1,) + (1,) * (like.ndim - 1)
        alpha, sigma = (value.to(like.device).reshape(shape) for value in self.alpha_sigma(t, like.dtype))
        return alpha, sigma
