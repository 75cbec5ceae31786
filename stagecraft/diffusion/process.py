"""The noise process as one object: x_t = s_t (x0 + sigma_t eps) and all that follows from it.

Nothing outside this file knows which process runs.
"""

import itertools
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecraft.diffusion.keys import OPTIONAL_KEYS, PROCESS_KEYS, SAMPLERS
from stagecraft.diffusion.stated import check_stated, check_steps, fit_solver, kept_settings, spacing_of
from stagecraft.runtime.files import pipeline_file, run_again

VP_KEYS = PROCESS_KEYS["vp"] + OPTIONAL_KEYS["vp"]
EDM_KEYS = tuple(key for key in PROCESS_KEYS["edm"] if not key.startswith("p_"))  # those of schedulers, not of training
# Clipping x0 to the images' range helps DDPM's noisy steps and biases DDIM's, which keep the old eps beside the clipped x0.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),  # which clips
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm_solver": ("DPMSolverMultistepScheduler", {}),
    "edm_euler": ("EDMEulerScheduler", {}),
    "edm_dpm_solver": ("EDMDPMSolverMultistepScheduler", {}),
}
# What the scheduler of a pipeline folder has beside, unless the teacher was given with a scheduler of its own.
SAVED: dict[str, dict[str, Any]] = {"vp": {"timestep_spacing": "linspace"}, "edm": {}}


def unclipped(scheduler: Any) -> Any:
    """The scheduler without clipping to the range of images, which latents do not keep to."""
    return (
        type(scheduler).from_config(scheduler.config, clip_sample=False)
        if "clip_sample" in scheduler.config
        else scheduler
    )


def make_process(settings: dict[str, Any], stated: dict[str, Any] | None = None) -> "Process":
    """The process that the `diffusion` section of the params describes; `stated` as in `Process`."""
    kinds: dict[str, type[Process]] = {"vp": VPProcess, "edm": EDMProcess}
    return kinds[settings["process"]](settings, stated)


class Process(ABC):
    """Noise levels, noised batches, training targets, and t <-> sigma.

    t is the network's time input; it rises with sigma_t. A network is trained by the mean square error of its output to `target`,
    unweighted: where a process weights its loss, the weight is in the scale of the target.

    Args:
        settings: the `diffusion` section of the params.
        stated: the scheduler config of a given teacher, whose settings samplers keep; None for a teacher that has none.
    """

    name: str
    keys: tuple[str, ...]  # of the settings and of diffusers' scheduler configs
    low: float  # least t
    high: float  # t is below this

    def __init__(self, settings: dict[str, Any], stated: dict[str, Any] | None = None) -> None:
        self.settings, self.kept = settings, kept_settings(stated, self.name)
        self.config = {key: settings[key] for key in self.keys if key in settings}
        self.saved = SAVED[self.name] if stated is None else {}

    @abstractmethod
    def draw(
        self, n: int, generator: torch.Generator, lo: float | None = None, hi: float | None = None
    ) -> torch.Tensor:
        """n values of t from the training distribution, given that they lie in [lo, hi) when these are given; (n,)."""

    @abstractmethod
    def scale_sigma(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(s_t, sigma_t) in float64, of the shape of t and on the CPU; (0, infinity) where x_t is noise alone."""

    @abstractmethod
    def t_of(self, sigma: torch.Tensor) -> torch.Tensor:
        """The t of a noise level, of the shape of sigma; the nearest for a process of discrete levels."""

    @abstractmethod
    def as_t(self, value: float) -> float:
        """A number as a t that the process has, so a boundary stays what it is in files and on devices."""

    @abstractmethod
    def at_share(self, share: float) -> float:
        """The t at a share, 0 to 1, of the way from low to high; a uniform share gives a uniform t."""

    @abstractmethod
    def above(self, t: float) -> float:
        """The least boundary above t."""

    @abstractmethod
    def share(self, lo: float, hi: float) -> float:
        """Probability that a training draw lies in [lo, hi)."""

    @abstractmethod
    def target_factors(self, s: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, b) of the training target a x0 + b eps, each of the shape of s; b is 0 where x_t is noise alone."""

    def grid(self, n: int) -> np.ndarray:
        """At most n values of t, ascending and evenly spaced over [low, high)."""
        return np.unique([self.as_t(t) for t in np.linspace(self.low, self.at_share(1), n)])

    def edges(self, boundaries: list[float]) -> list[list[float]]:
        """[lo, hi) of every stage."""
        return [list(pair) for pair in itertools.pairwise([self.low, *boundaries, self.high])]

    def sigma_of(self, t: torch.Tensor) -> torch.Tensor:
        """The noise level sigma_t in float64, of the shape of t."""
        return self.scale_sigma(t)[1]

    def sigmas_of(self, boundaries: list[float]) -> list[float | None]:
        """The noise levels of boundaries, for files; None for infinity, which JSON has no number for."""
        sigmas: list[float] = self.sigma_of(torch.tensor(boundaries)).tolist()
        return [sigma if math.isfinite(sigma) else None for sigma in sigmas]

    def noise(self, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = s_t (x0 + sigma_t eps), the network's input, of the shape of x0 (N,C,H,W); t is (N,)."""
        s, sigma = self._per_sample(t, x0)
        return s * x0 + noise_share(s, sigma) * eps

    def image_factors(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(p, q) of the image p y + q x_t that a prediction y implies at x_t, in float64 of the shape of t and on the CPU."""
        s, sigma = self.scale_sigma(t)
        a, b = self.target_factors(s, sigma)
        p = torch.where(sigma.isinf(), 1 / a, sigma / (a * sigma - b))
        return p, -b / noise_share(s, sigma) * p

    def image_factor(self, t: torch.Tensor) -> torch.Tensor:
        """How far an error of the prediction moves the denoised image at t, float32 of the shape of t and on the CPU; at most 1.

        It is |p| of `image_factors`: sigma for eps, which says nothing about an image under much noise, s sigma for v, c_out for
        EDM.
        """
        return self.image_factors(t)[0].abs().clamp(max=1).float()

    def target(self, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network is trained to return at (x_t, t), of the shape of x0."""
        a, b = self.target_factors(*self._per_sample(t, x0))
        return b * eps + a * x0

    def scheduler(self, name: str | None = None) -> Any:
        """A diffusers scheduler of this process, by the name that `sampling.scheduler` uses.

        With None the one that a pipeline folder holds: the process's first, from whose config other solvers of diffusers start at
        the noisiest timestep. Its own `leading` would keep them from it.
        """
        import diffusers

        scheduler, extra = SCHEDULERS[name or SAMPLERS[self.name][0]]
        kept = fit_solver(self.kept) if name == "dpm_solver" else self.kept
        saved = self.saved if name is None else {}
        return getattr(diffusers, scheduler).from_config(extra | saved | kept | self.config)

    def check_same_as(self, scheduler_config: dict[str, Any] | None, folder: str) -> None:
        """Raise a ValueError when a teacher's own scheduler config, if it has one, states another process than the params do."""
        check_stated(scheduler_config, pipeline_file(folder, "scheduler", "scheduler_config.json"), self.settings)

    def check_steps(self, sampling: dict[str, Any]) -> None:
        """Raise a ValueError when the `sampling` section asks for steps that are no different timesteps of this process."""
        check_steps(sampling, self.settings, self.kept)

    def check_stages(self, clusters: dict[str, Any], path: Path) -> None:
        """Raise a ValueError unless the stages of clusters.json, at `path`, divide the noise levels of this process."""
        edges = [self.low, *clusters["boundaries"], self.high]
        if edges != sorted({*edges}) or clusters["stages"] != self.edges(clusters["boundaries"]):
            raise ValueError(
                f"{path}: the stages {clusters['stages']} with boundaries {clusters['boundaries']} do not divide the "
                f"timesteps {self.low} to {self.high}; {run_again('cluster_timesteps', path)}"
            )

    def _per_sample(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (-1,) + (1,) * (like.ndim - 1)
        s, sigma = (value.to(like.device, like.dtype).reshape(shape) for value in self.scale_sigma(t))
        return s, sigma


def noise_share(s: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Standard deviation s sigma of the noise in x_t; 1 where x_t is noise alone."""
    return torch.where(sigma.isinf(), torch.ones_like(s), s * sigma)


class VPProcess(Process):
    """The variance-preserving process of DDPM (Ho et al. 2020) on diffusers' discrete schedule.

    s_t = sqrt(abar_t), sigma_t = sqrt((1 - abar_t) / abar_t); t is an integer in [0, T), uniform in training; the target is
    eps, v = s_t eps - sqrt(1 - abar_t) x0 (Salimans & Ho 2022), or x0. With `rescale_betas_zero_snr` abar is 0 at the last
    timestep (Lin et al., arXiv 2305.08891).
    """

    name, keys = "vp", VP_KEYS

    def __init__(self, settings: dict[str, Any], stated: dict[str, Any] | None = None) -> None:
        from diffusers import DDPMScheduler

        super().__init__(settings, stated)
        self.prediction_type = settings["prediction_type"]
        noise = DDPMScheduler(**self.config)
        self.abar_T = noise.alphas_cumprod.double()
        self.low, self.high = 0, len(self.abar_T)
        if settings["beta_schedule"] == "sigmoid":  # which diffusers' other schedulers know by its betas only
            plain = DDPMScheduler(**self.config | {"rescale_betas_zero_snr": False})
            self.config["trained_betas"] = plain.betas.tolist()
        if settings.get("rescale_betas_zero_snr"):
            self.kept = {"timestep_spacing": spacing_of("ddpm", settings, {})} | self.kept

    def draw(
        self, n: int, generator: torch.Generator, lo: float | None = None, hi: float | None = None
    ) -> torch.Tensor:
        """n timesteps, int64, uniform over the integers in [lo, hi)."""
        least, most = (limit if bound is None else bound for limit, bound in ((self.low, lo), (self.high, hi)))
        return torch.randint(int(least), int(most), (n,), generator=generator)

    def scale_sigma(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(s_t, sigma_t) of integer timesteps."""
        abar = self.abar_T[t.cpu().long()]
        return abar.sqrt(), ((1 - abar) / abar).sqrt()

    def t_of(self, sigma: torch.Tensor) -> torch.Tensor:
        """The timestep whose noise level is nearest in ln sigma, int64."""
        levels = self.sigma_of(torch.arange(len(self.abar_T))).log()
        distance = (sigma.double().cpu().log()[..., None] - levels).abs()
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

    def target_factors(self, s: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(0, 1) for eps, (-sqrt(1 - abar), s) for v, (1, 0) for x0."""
        if self.prediction_type == "epsilon":
            return torch.zeros_like(s), torch.ones_like(s)
        if self.prediction_type == "sample":
            return torch.ones_like(s), torch.zeros_like(s)
        return -noise_share(s, sigma), s


class EDMProcess(Process):
    """The process of Karras et al. 2022 with its preconditioning: D(x; sigma) = c_skip x + c_out F(c_in x, c_noise).

    The network's input c_in (x0 + sigma eps) is x_t with s_t = c_in, its time input t is c_noise = ln(sigma) / 4, and its target
    (x0 - c_skip (x0 + sigma eps)) / c_out. The loss weight lambda(sigma) c_out^2 on it is 1 for all sigma (their eq. 8). In
    training ln sigma ~ N(p_mean, p_std^2); sampling runs from sigma_max to sigma_min, so that is what [low, high) spans, and
    draws beyond belong to the first and the last stage.
    """

    name, keys = "edm", EDM_KEYS

    def __init__(self, settings: dict[str, Any], stated: dict[str, Any] | None = None) -> None:
        super().__init__(settings, stated)
        self.sigma_data, self.p_mean, self.p_std = (settings[key] for key in ("sigma_data", "p_mean", "p_std"))
        self.low, self.high = (self.as_t(math.log(settings[key]) / 4) for key in ("sigma_min", "sigma_max"))

    def draw(
        self, n: int, generator: torch.Generator, lo: float | None = None, hi: float | None = None
    ) -> torch.Tensor:
        """n values of c_noise, float32."""
        least, most = self._bounds(lo, hi)
        u = torch.rand(n, generator=generator, dtype=torch.float64) * (self._below(most) - self._below(least))
        z = torch.special.ndtri((u + self._below(least)).clamp(1e-12, 1 - 1e-12))
        t = ((self.p_mean + self.p_std * z) / 4).float()
        end = torch.nextafter(torch.tensor(most), torch.tensor(-math.inf)).item() if most < math.inf else most
        return t.clamp(least, end)

    def _bounds(self, lo: float | None, hi: float | None) -> tuple[float, float]:
        """The first stage has no lower end in training, the last no upper."""
        return (
            -math.inf if lo is None or lo <= self.low else lo,
            math.inf if hi is None or hi >= self.high else hi,
        )

    def _below(self, t: float) -> float:
        """Probability of a training draw below t."""
        return 0.5 * (1 + math.erf((4 * t - self.p_mean) / (self.p_std * math.sqrt(2))))

    def scale_sigma(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(c_in, sigma)."""
        sigma = (4 * t.double().cpu()).exp()
        return (sigma**2 + self.sigma_data**2).rsqrt(), sigma

    def t_of(self, sigma: torch.Tensor) -> torch.Tensor:
        """c_noise = ln(sigma) / 4, float32."""
        return (sigma.double().cpu().log() / 4).float()

    def as_t(self, value: float) -> float:
        """The value in float32, which networks see."""
        return float(np.float32(value))

    def at_share(self, share: float) -> float:
        """Linear in t, so in ln sigma."""
        return self.as_t(self.low + (self.high - self.low) * share)

    def above(self, t: float) -> float:
        """The next float32."""
        return float(np.nextafter(np.float32(t), np.float32(np.inf)))

    def share(self, lo: float, hi: float) -> float:
        """Probability under the lognormal distribution of sigma."""
        least, most = self._bounds(lo, hi)
        return self._below(most) - self._below(least)

    def target_factors(self, s: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From c_skip = (sigma_data s)^2 and c_out = sigma sigma_data s."""
        return sigma * s / self.sigma_data, -self.sigma_data * s
