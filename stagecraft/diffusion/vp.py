"""The variance-preserving process of DDPM, on diffusers' discrete schedules."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch

from stagecraft.config.keys import OPTIONAL_KEYS, PROCESS_KEYS
from stagecraft.config.sections import VP
from stagecraft.diffusion.process import Pair, Process
from stagecraft.diffusion.stated import fit_solver, spacing_of


class VPProcess(Process):
    """The variance-preserving process of DDPM (Ho et al. 2020) on diffusers' discrete schedule.

    alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t); t is an integer in [0, T), uniform in training; the target is eps,
    v = alpha_t eps - sigma_t x0 (Salimans & Ho 2022), or x0. With `rescale_betas_zero_snr` abar is 0 at the last timestep
    (Lin et al., arXiv 2305.08891).
    """

    name = "vp"
    keys = PROCESS_KEYS["vp"] + OPTIONAL_KEYS["vp"]
    # Clipping x0 to the images' range helps DDPM's noisy steps and biases DDIM's, which keep the old eps beside the clipped x0.
    schedulers: ClassVar[dict[str, tuple[str, Mapping[str, object]]]] = {
        "ddpm": ("DDPMScheduler", {}),  # which clips
        "ddim": ("DDIMScheduler", {"clip_sample": False}),
        "dpm_solver": ("DPMSolverMultistepScheduler", {}),
    }
    saved: ClassVar[Mapping[str, object]] = {"timestep_spacing": "linspace"}

    def __init__(self, settings: Mapping[str, object], stated: Mapping[str, object] | None = None) -> None:
        from diffusers import DDPMScheduler

        super().__init__(settings, stated)
        own = VP.model_construct(None, **settings)
        self.prediction_type = own.prediction_type
        self.abar_T = DDPMScheduler(**self.config).alphas_cumprod.double()
        self.low = 0
        self.high = len(self.abar_T)
        if own.beta_schedule == "sigmoid":  # which diffusers' other schedulers know by its betas only
            plain = DDPMScheduler(**self.config | {"rescale_betas_zero_snr": False})
            self.config["trained_betas"] = plain.betas.tolist()
        if own.rescale_betas_zero_snr:
            self.kept = {"timestep_spacing": spacing_of("ddpm", settings, {})} | self.kept

    def draw(
        self, n: int, generator: torch.Generator, lo: float | None = None, hi: float | None = None
    ) -> torch.Tensor:
        """n timesteps, int64, uniform over the integers in [lo, hi)."""
        lowest, highest = (limit if bound is None else bound for limit, bound in ((self.low, lo), (self.high, hi)))
        return torch.randint(int(lowest), int(highest), (n,), generator=generator)

    def alpha_sigma(self, t: torch.Tensor, dtype: torch.dtype = torch.float64) -> Pair:
        """(alpha_t, sigma_t) of integer timesteps; sigma_t as alpha_t times the noise level, rounded as ever."""
        alpha = self.abar_T[t.cpu().long()].sqrt().to(dtype)
        sigma = alpha * self.noise_level(t).to(dtype)
        return alpha, sigma.nan_to_num(nan=1.0)  # 0 times infinity at a timestep without signal, where abar is 0

    def noise_level(self, t: torch.Tensor) -> torch.Tensor:
        """sqrt((1 - abar_t) / abar_t)."""
        abar = self.abar_T[t.cpu().long()]
        return ((1 - abar) / abar).sqrt()

    def t_of(self, level: torch.Tensor) -> torch.Tensor:
        """The timestep whose noise level is nearest in ln sigma, int64."""
        levels = self.noise_level(torch.arange(len(self.abar_T))).log()
        distance = (level.double().cpu().log()[..., None] - levels).abs()
        return distance.nan_to_num(nan=0, posinf=math.inf).argmin(-1)  # infinity is at no distance from itself

    def as_t(self, value: float) -> int:
        """The nearest timestep, halves upwards."""
        return math.floor(value + 0.5)

    def at_share(self, share: float) -> int:
        """The timestep that the share falls into."""
        return min(math.floor(self.high * share), int(self.high) - 1)

    def above(self, t: float) -> float:
        """The next timestep."""
        return math.floor(t) + 1

    def share(self, lo: float, hi: float) -> float:
        """Share of the timesteps."""
        return (hi - lo) / (self.high - self.low)

    def target_factors(self, alpha: torch.Tensor, sigma: torch.Tensor) -> Pair:
        """(0, 1) for eps, (-sigma, alpha) for v, (1, 0) for x0."""
        if self.prediction_type == "epsilon":
            return torch.zeros_like(alpha), torch.ones_like(alpha)
        if self.prediction_type == "sample":
            return torch.ones_like(alpha), torch.zeros_like(alpha)
        return -sigma, alpha

    def kept_for(self, name: str | None) -> Mapping[str, object]:
        """Keep of the teacher's config only what DPM-Solver accepts."""
        return fit_solver(self.kept) if name == "dpm_solver" else self.kept
