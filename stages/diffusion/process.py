"""The noise process as one object: x_t = s_t (x0 + sigma_t eps) and all that follows from it.

Nothing outside this file knows which process runs.
"""

import itertools
from pathlib import Path
from typing import Any

import torch

from stages.files import run_again

PROCESS_KEYS = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
# What diffusers takes for keys that a scheduler_config.json does not hold.
DIFFUSERS_DEFAULTS = dict(zip(PROCESS_KEYS, (1000, "linear", 0.0001, 0.02, "epsilon"), strict=True))
# Schedulers of the discrete VP process, all of whose noise levels follow from PROCESS_KEYS when the other keys have these values.
VP_SCHEDULERS = (
    "DDPM DDIM DDIMInverse PNDM DPMSolverMultistep DPMSolverSinglestep DEISMultistep UniPCMultistep EulerDiscrete"
)
VP_VALUES = {
    "_class_name": (None, *(f"{name}Scheduler" for name in VP_SCHEDULERS.split())),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (None, False),
}
# Clipping x0 to the images' range helps DDPM's noisy steps and biases DDIM's, which keep the old eps beside the clipped x0.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {"clip_sample": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpm_solver": ("DPMSolverMultistepScheduler", {}),
}


class VPProcess:
    """The variance-preserving process of DDPM (Ho et al. 2020) on diffusers' discrete schedule.

    s_t = sqrt(abar_t), sigma_t = sqrt((1 - abar_t) / abar_t); the network's time input is the integer t in [0, T); its target is
    eps, or v = s_t eps - sqrt(1 - abar_t) x0 (Salimans & Ho 2022).

    Args:
        settings: the `diffusion` section of the params.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        from diffusers import DDPMScheduler

        self.config = {key: settings[key] for key in PROCESS_KEYS}
        self.prediction_type = settings["prediction_type"]
        self.abar_T = DDPMScheduler(**self.config).alphas_cumprod.double()
        self.timesteps = len(self.abar_T)

    def draw(self, n: int, generator: torch.Generator, lo: int = 0, hi: int | None = None) -> torch.Tensor:
        """n timesteps, uniform over the integers in [lo, hi); hi is T when not given."""
        return torch.randint(lo, self.timesteps if hi is None else hi, (n,), generator=generator)

    def scale_sigma(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(s_t, sigma_t) in float64, of the shape of t and on the CPU."""
        abar = self.abar_T[t.cpu()]
        return abar.sqrt(), ((1 - abar) / abar).sqrt()

    def sigma_of(self, t: torch.Tensor) -> torch.Tensor:
        """The noise level sigma_t in float64, of the shape of t."""
        return self.scale_sigma(t)[1]

    def noise(self, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = s_t (x0 + sigma_t eps), of the shape of x0 (N,C,H,W); t is (N,)."""
        s, sigma = self._per_sample(t, x0)
        return s * x0 + (s * sigma) * eps

    def target(self, x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the network is trained to return at (x_t, t), of the shape of x0."""
        if self.prediction_type == "epsilon":
            return eps
        s, sigma = self._per_sample(t, x0)
        return s * eps - (s * sigma) * x0

    def scheduler(self, name: str = "ddpm") -> Any:
        """A diffusers scheduler of this process, by the name that `sampling.scheduler` uses."""
        import diffusers

        scheduler, extra = SCHEDULERS[name]
        return getattr(diffusers, scheduler).from_config(self.config | extra)

    def check_same_as(self, scheduler_config: dict[str, Any] | None, folder: str) -> None:
        """Raise a ValueError when a teacher's own scheduler config, if it has one, states another process than the params do."""
        if scheduler_config is None:
            return
        path = f"{folder}/scheduler/scheduler_config.json"
        for key, known in VP_VALUES.items():
            if scheduler_config.get(key) not in known:
                raise ValueError(
                    f"{path}: {key} is {scheduler_config[key]!r}, no process of diffusion.process: vp; give another teacher"
                )
        for key in PROCESS_KEYS:
            theirs = scheduler_config.get(key, DIFFUSERS_DEFAULTS[key])
            if theirs != self.config[key]:
                raise ValueError(
                    f"{path}: {key} is {theirs!r} but params say diffusion.{key}: "
                    f"{self.config[key]!r}; set diffusion.{key} to the teacher's value"
                )

    def check_stages(self, clusters: dict[str, Any], path: Path) -> None:
        """Raise a ValueError unless the stages of clusters.json, at `path`, divide the timesteps of this process."""
        edges = [0, *clusters["boundaries"], self.timesteps]
        if edges != sorted({*edges}) or clusters["stages"] != [list(pair) for pair in itertools.pairwise(edges)]:
            raise ValueError(
                f"{path}: the stages {clusters['stages']} with boundaries {clusters['boundaries']} do not divide the "
                f"{self.timesteps} timesteps; {run_again('cluster_timesteps', path)}"
            )

    def _per_sample(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (-1,) + (1,) * (like.ndim - 1)
        s, sigma = (value.to(like.device, like.dtype).reshape(shape) for value in self.scale_sigma(t))
        return s, sigma
