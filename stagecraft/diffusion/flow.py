"""Rectified flow, with the time shift of SD3."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch

from stagecraft.config.keys import PROCESS_KEYS
from stagecraft.config.sections import Flow
from stagecraft.diffusion.boundaries import flow_range, shifted
from stagecraft.diffusion.process import Pair, Process


class FlowProcess(Process):
    """Rectified flow (Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747): a straight line from image to noise.

    alpha = 1 - s, sigma = s for s in (0, 1]; the network's time input is t = s num_train_timesteps, its target the velocity
    eps - x0. In training s = shift u / (1 + (shift - 1) u) with u uniform (Esser et al., arXiv 2403.03206, eq. 23). diffusers'
    scheduler knows num_train_timesteps levels, the lowest of which is the end of [low, high); draws below belong to the first
    interval. At s = 1, where sampling starts, x_t is noise alone; that is in the last interval.
    """

    name = "flow"
    keys = PROCESS_KEYS["flow"]
    schedulers: ClassVar[dict[str, tuple[str, Mapping[str, object]]]] = {
        "flow_euler": ("FlowMatchEulerDiscreteScheduler", {})
    }

    def __init__(self, settings: Mapping[str, object], stated: Mapping[str, object] | None = None) -> None:
        super().__init__(settings, stated)
        own = Flow.model_construct(None, **settings)
        self.shift = own.shift
        self.low, self.high = map(self.as_t, flow_range(settings))

    def draw(
        self, n: int, generator: torch.Generator, lo: float | None = None, hi: float | None = None
    ) -> torch.Tensor:
        """n values of s num_train_timesteps, float32; high itself is in the last interval."""
        lowest, highest = self._bounds(lo, hi)
        below = self._below(lowest)
        share = self._below(highest) - self._below(lowest)
        u = below + share * (1 - torch.rand(n, generator=generator, dtype=torch.float64))
        t = (self.high * shifted(u, self.shift)).float()
        end = highest if highest == self.high else float(np.nextafter(np.float32(highest), np.float32(0)))
        return t.clamp(lowest, end)

    def _bounds(self, lo: float | None, hi: float | None) -> tuple[float, float]:
        """The first interval begins at 0 in training."""
        return (
            0.0 if lo is None or lo <= self.low else lo,
            self.high if hi is None else hi,
        )

    def _below(self, t: float) -> float:
        """Probability of a training draw below t: the shift turned round."""
        return shifted(t / self.high, 1 / self.shift)

    def alpha_sigma(self, t: torch.Tensor, dtype: torch.dtype = torch.float64) -> Pair:
        """(1 - s, s)."""
        s = t.double().cpu() / self.high
        return (1 - s).to(dtype), s.to(dtype)

    def t_of(self, level: torch.Tensor) -> torch.Tensor:
        """From s = level / (1 + level), float32."""
        return (self.high / (1 + 1 / level.double().cpu())).float()

    def share(self, lo: float, hi: float) -> float:
        """Share of the uniform u."""
        lowest, highest = self._bounds(lo, hi)
        return self._below(highest) - self._below(lowest)

    def target_factors(self, alpha: torch.Tensor, sigma: torch.Tensor) -> Pair:
        """(-1, 1)."""
        return -torch.ones_like(alpha), torch.ones_like(alpha)
