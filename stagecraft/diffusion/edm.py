"""The process of EDM (Karras et al. 2022), with its preconditioning."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch

from stagecraft.config.keys import PROCESS_KEYS
from stagecraft.config.sections import EDM
from stagecraft.diffusion.process import Pair, Process


class EDMProcess(Process):
    """The process of Karras et al. 2022 with its preconditioning: D(x; level) = c_skip x + c_out F(c_in x, c_noise).

    The network's input c_in (x0 + level eps) is x_t with alpha_t = c_in, its time input t is c_noise = ln(level) / 4, and its
    target (x0 - c_skip (x0 + level eps)) / c_out. The loss weight lambda(level) c_out^2 on it is 1 for all levels (their eq. 8).
    In training ln level ~ N(p_mean, p_std^2); sampling runs from sigma_max to sigma_min, so that is what [low, high) spans, and
    draws beyond belong to the first and the last interval.
    """

    name = "edm"
    keys = tuple(key for key in PROCESS_KEYS["edm"] if not key.startswith("p_"))  # without those of training alone
    schedulers: ClassVar[dict[str, tuple[str, Mapping[str, object]]]] = {
        "edm_euler": ("EDMEulerScheduler", {}),
        "edm_dpm_solver": ("EDMDPMSolverMultistepScheduler", {}),
    }

    def __init__(self, settings: Mapping[str, object], stated: Mapping[str, object] | None = None) -> None:
        super().__init__(settings, stated)
        own = EDM.model_construct(None, **settings)
        self.sigma_data = own.sigma_data
        self.p_mean = own.p_mean
        self.p_std = own.p_std
        self.low, self.high = (self.as_t(math.log(level) / 4) for level in (own.sigma_min, own.sigma_max))

    def draw(
        self, n: int, generator: torch.Generator, lo: float | None = None, hi: float | None = None
    ) -> torch.Tensor:
        """n values of c_noise, float32."""
        lowest, highest = self._bounds(lo, hi)
        u = torch.rand(n, generator=generator, dtype=torch.float64) * (self._below(highest) - self._below(lowest))
        z = torch.special.ndtri((u + self._below(lowest)).clamp(1e-12, 1 - 1e-12))
        t = ((self.p_mean + self.p_std * z) / 4).float()
        end = torch.nextafter(torch.tensor(highest), torch.tensor(-math.inf)).item() if highest < math.inf else highest
        return t.clamp(lowest, end)

    def _bounds(self, lo: float | None, hi: float | None) -> tuple[float, float]:
        """The first interval has no lower end in training, the last no upper."""
        return (
            -math.inf if lo is None or lo <= self.low else lo,
            math.inf if hi is None or hi >= self.high else hi,
        )

    def _below(self, t: float) -> float:
        """Probability of a training draw below t."""
        return 0.5 * (1 + math.erf((4 * t - self.p_mean) / (self.p_std * math.sqrt(2))))

    def alpha_sigma(self, t: torch.Tensor, dtype: torch.dtype = torch.float64) -> Pair:
        """(c_in, c_in times the noise level)."""
        level = self.noise_level(t)
        alpha = (level**2 + self.sigma_data**2).rsqrt().to(dtype)
        return alpha, alpha * level.to(dtype)

    def noise_level(self, t: torch.Tensor) -> torch.Tensor:
        """exp(4 t)."""
        return (4 * t.double().cpu()).exp()

    def t_of(self, level: torch.Tensor) -> torch.Tensor:
        """c_noise = ln(level) / 4, float32."""
        return (level.double().cpu().log() / 4).float()

    def share(self, lo: float, hi: float) -> float:
        """Probability under the lognormal distribution of the noise level."""
        lowest, highest = self._bounds(lo, hi)
        return self._below(highest) - self._below(lowest)

    def target_factors(self, alpha: torch.Tensor, sigma: torch.Tensor) -> Pair:
        """From c_skip = (sigma_data alpha)^2 and c_out = sigma_data sigma."""
        return sigma / self.sigma_data, -self.sigma_data * alpha
