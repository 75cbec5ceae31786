"""What a scheduler_config.json states: the noise process, which the params must state too, and how to sample from it. Light.

Also the timesteps at which a sampler evaluates the network, as far as diffusers' own rules for them decide what is possible.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stagecraft.config.keys import OPTIONAL_KEYS, PROCESS_KEYS

Config = Mapping[str, Any]

# diffusers' schedulers of the discrete VP process, all of whose noise levels follow from the keys of `diffusion`.
SAMPLING_NAMES = (
    *(
        "DDPM",
        "DDPMParallel",
        "DDIM",
        "DDIMParallel",
        "DDIMInverse",
        "PNDM",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
    ),
    *("DPMSolverMultistepInverse", "DPMSolverSDE", "DEISMultistep", "UniPCMultistep", "EulerDiscrete", "HeunDiscrete"),
    *(
        "EulerAncestralDiscrete",
        "KDPM2Discrete",
        "KDPM2AncestralDiscrete",
        "LMSDiscrete",
        "LCM",
        "TCD",
        "SASolver",
        "RePaint",
    ),
)
VP_SCHEDULERS = {f"{name}Scheduler" for name in SAMPLING_NAMES}
EDM_SCHEDULERS = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
FLOW_SCHEDULERS = {f"FlowMatch{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "LCM")}
SCHEDULERS = {"vp": VP_SCHEDULERS, "edm": EDM_SCHEDULERS, "flow": FLOW_SCHEDULERS}
# Schedulers whose config holds no betas: of a VP process they say nothing.
SILENT = EDM_SCHEDULERS | {
    f"{name}Scheduler" for name in ("CosineDPMSolverMultistep", "IPNDM", "CMStochasticIterative", "KarrasVe")
}
BETA_KEYS = ("beta_schedule", "beta_start", "beta_end", "trained_betas")
# Beginnings of the names of schedulers of other processes.
OTHERS = {"FlowMatch": "flow matching", "ScoreSdeVe": "variance exploding", "ScoreSdeVp": "of continuous time"}
# What diffusers takes for keys that a scheduler_config.json does not hold; of schedulers, so without the density of training.
DEFAULTS: dict[str, dict[str, object]] = {
    "vp": dict(
        zip((*PROCESS_KEYS["vp"], *OPTIONAL_KEYS["vp"]), (1000, "linear", 0.0001, 0.02, "epsilon", False), strict=True)
    ),
    "edm": dict(zip(PROCESS_KEYS["edm"], (0.002, 80.0, 0.5, 7.0), strict=False)),
    "flow": dict(zip(PROCESS_KEYS["flow"], (1000, 1.0), strict=True)),
}
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
SOLVER_ALGORITHMS = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
SPACINGS = ("linspace", "leading", "trailing")
LEVELS_OF_FLOW = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
TIME_SHIFTS = ("exponential", "linear")
NEAR = 1e-4  # relative difference of betas that float32 explains
ZERO_SNR_OF_EPSILON = (
    "but at the last timestep, which has no signal, the noise says nothing about the image (prediction_type epsilon)"
)


def check_stated(stated: Config | None, path: Path | str, settings: Config) -> None:
    """Raise ValueError when a teacher's scheduler config, if it has one, states another process than the params do.

    Args:
        stated: content of the scheduler_config.json at `path`.
        settings: the `diffusion` section of the params.
    """
    process = settings["process"]
    if stated is None or says_nothing(stated, process):
        return
    if (reason := why_another_process(stated, process)) is not None:
        raise ValueError(f"{path}: {reason}, no process of diffusion.process: {process}; give another teacher")
    theirs = {key: stated.get(key, default) for key, default in DEFAULTS[process].items()}
    for key, value in theirs.items():
        if not can_say(key, value):
            raise ValueError(f"{path}: {key} is {value!r}, which diffusion.{key} cannot say; give another teacher")
    if (reason := why_impossible(stated, theirs)) is not None:
        raise ValueError(f"{path}: {reason}; give another teacher")
    ours = DEFAULTS[process] | dict(settings)
    cosine = theirs.get("beta_schedule") == "squaredcos_cap_v2"  # which has no use for the two betas
    differ = [key for key in theirs if theirs[key] != ours[key] and not (cosine and key in ("beta_start", "beta_end"))]
    if differ:
        first = differ[0]
        remedies = ", ".join(f"diffusion.{key}: {as_yaml(theirs[key])}" for key in differ)
        raise ValueError(
            f"{path}: {first} is {theirs[first]!r} but params say diffusion.{first}: {ours[first]!r}; set {remedies}"
        )


def says_nothing(stated: Config, process: str) -> bool:
    """Whether a scheduler only samples, its config silent about a VP process, so that the params alone state it."""
    silent = str(stated.get("_class_name")) in SILENT and all(stated.get(key) is None for key in BETA_KEYS)
    return process == "vp" and silent


def why_another_process(stated: Config, process: str) -> str | None:
    """What in a scheduler config no `diffusion` section of this process could say; None for nothing."""
    kind = stated.get("_class_name")
    if kind is not None and str(kind) not in SCHEDULERS[process]:
        family = next((f" ({name})" for start, name in OTHERS.items() if str(kind).startswith(start)), "")
        return f"_class_name is {kind!r}{family}"
    if stated.get("use_flow_sigmas"):
        return "use_flow_sigmas is true (flow matching)"
    if process == "edm" and stated.get("prediction_type") not in (None, "epsilon"):
        return f"prediction_type is {stated['prediction_type']!r}"
    if process == "flow":
        # A shift by the number of pixels, and s counted from the noise.
        other = next((key for key in ("use_dynamic_shifting", "invert_sigmas") if stated.get(key)), None)
        return None if other is None else f"{other} is {stated[other]!r}"
    return None


def why_impossible(stated: Config, theirs: Config) -> str | None:
    """Why values that params could hold one by one make no process; None when they do."""
    if theirs.get("beta_schedule") != "squaredcos_cap_v2" and theirs.get("beta_start", 0) >= theirs.get("beta_end", 1):
        return f"beta_start is {theirs['beta_start']}, not below beta_end {theirs['beta_end']}"
    if theirs.get("sigma_min", 0) >= theirs.get("sigma_max", 1):
        return f"sigma_min is {theirs['sigma_min']}, not below sigma_max {theirs['sigma_max']}"
    if theirs.get("rescale_betas_zero_snr") and theirs["prediction_type"] == "epsilon":
        return f"rescale_betas_zero_snr is true, {ZERO_SNR_OF_EPSILON}"
    if stated.get("timestep_spacing") not in (None, *SPACINGS):
        return f"timestep_spacing is {stated['timestep_spacing']!r}, none of {', '.join(SPACINGS)}"
    if not isinstance(stated.get("steps_offset", 0), int):
        return f"steps_offset is {stated['steps_offset']!r}, no whole number"
    if stated.get("trained_betas") is not None and not are_betas(stated["trained_betas"], theirs):
        return (
            "trained_betas are none of a beta_schedule, and params hold no lists of betas (beta_schedule is "
            f"{theirs.get('beta_schedule')!r})"
        )
    return why_no_flow(stated) if "shift" in theirs else None


def why_no_flow(stated: Config) -> str | None:
    """Why diffusers' flow-matching scheduler does not sample with a config; None when it does."""
    levels = [key for key in LEVELS_OF_FLOW if stated.get(key)]
    if len(levels) > 1:
        return f"{levels[0]} and {levels[1]} are true, of which a scheduler takes one"
    if stated.get("time_shift_type", TIME_SHIFTS[0]) not in TIME_SHIFTS:
        return f"time_shift_type is {stated['time_shift_type']!r}, none of {', '.join(TIME_SHIFTS)}"
    terminal = stated.get("shift_terminal")
    if terminal is not None and not (is_number(terminal) and 0 < terminal < 1):
        return f"shift_terminal is {terminal!r}, not between 0 and 1"
    return None


def can_say(key: str, value: Any) -> bool:
    """Whether a `diffusion` section can hold this value of a key."""
    choices: dict[str, tuple[Any, ...]] = {
        "beta_schedule": BETA_SCHEDULES,
        "prediction_type": PREDICTION_TYPES,
        "rescale_betas_zero_snr": (True, False),
    }
    if key in choices:
        return any(value is choice or (isinstance(value, str) and value == choice) for choice in choices[key])
    if not is_number(value):
        return False
    if key == "num_train_timesteps":
        return isinstance(value, int) and 2 <= value <= 100_000
    if key == "shift":
        return 0.001 <= value <= 1000
    return 0 < value < (1 if key in ("beta_start", "beta_end") else math.inf)


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def betas_of(settings: Config) -> list[float]:
    """The betas of a beta_schedule (see diffusers' DDPMScheduler), before any rescaling."""
    count = settings["num_train_timesteps"]
    low = settings["beta_start"]
    high = settings["beta_end"]

    def bar(share: float) -> float:
        return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2

    def beta(i: int) -> float:
        share = i / (count - 1)
        if settings["beta_schedule"] == "squaredcos_cap_v2":
            return min(1 - bar((i + 1) / count) / bar(i / count), 0.999)
        if settings["beta_schedule"] == "scaled_linear":
            return float((low**0.5 + (high**0.5 - low**0.5) * share) ** 2)
        if settings["beta_schedule"] == "sigmoid":
            return float((high - low) / (1 + math.exp(6 - 12 * share)) + low)
        return float(low + (high - low) * share)

    return [beta(i) for i in range(count)]


def are_betas(given: Any, settings: Config) -> bool:
    """Whether a list of betas is that of the beta_schedule."""
    known = isinstance(given, list) and len(given) == settings["num_train_timesteps"]
    if not known or not all(isinstance(b, int | float) for b in given):
        return False
    return all(math.isclose(b, beta, rel_tol=NEAR) for b, beta in zip(given, betas_of(settings), strict=True))


def kept_settings(stated: Config | None, process: str) -> dict[str, object]:
    """What teacher and student are sampled with of a teacher's scheduler config; its learned variance has become a fixed one."""
    if stated is None or says_nothing(stated, process):
        return {}
    kept = {key: value for key, value in stated.items() if not key.startswith("_")}
    return kept | ({"variance_type": "fixed_small"} if str(kept.get("variance_type")).startswith("learned") else {})


def fit_solver(kept: Config) -> dict[str, object]:
    """Settings that DPM-Solver can have: DEIS, SA-Solver and configs from before final_sigmas_type say algorithms it refuses."""
    algorithm = kept.get("algorithm_type", "dpmsolver++")
    if algorithm not in SOLVER_ALGORITHMS:
        return {key: value for key, value in kept.items() if key != "algorithm_type"}
    if algorithm.endswith("++") or kept.get("final_sigmas_type", "zero") != "zero":
        return {**kept}
    return {**kept, "final_sigmas_type": "sigma_min"}


def as_yaml(value: Any) -> str:
    """A scalar as params.yaml would hold it."""
    return str(yaml.safe_dump(value).splitlines()[0])


# --- The timesteps of a sampler ---


def check_steps(sampling: Config, settings: Config, kept: Config, key: str = "sampling.steps") -> None:
    """Raise ValueError when a sampler's steps are not as many different timesteps of the process.

    diffusers then divides by zero, takes the last timestep for one below the first, or looks beyond the last.

    Args:
        sampling: the `sampling` section of the params.
        settings: the `diffusion` section.
        kept: see `kept_settings`.
        key: what the number of steps is called in the params.
    """
    steps = sampling["steps"]
    name = sampling["scheduler"]
    if steps == 1 and settings["process"] == "flow" and kept.get("shift_terminal") is not None:
        raise ValueError(
            f"{key}: 1 step of {name} cannot both start at noise and end at shift_terminal "
            f"{kept['shift_terminal']}; set {key}: 2"
        )
    if settings["process"] != "vp" or are_different(name, steps, settings, kept):
        return
    fewer = next((n for n in range(min(steps, 1000) - 1, 0, -1) if are_different(name, n, settings, kept)), None)
    remedy = "give another teacher" if fewer is None else f"set {key}: {fewer}"
    spacing = spacing_of(name, settings, kept)
    raise ValueError(
        f"{key}: {steps} steps of {name} with timestep_spacing {spacing} are not as many different ones of the "
        f"{settings['num_train_timesteps']} timesteps; {remedy}"
    )


def are_different(name: str, steps: int, settings: Config, kept: Config) -> bool:
    """Whether the timesteps of a sampler of process vp are `steps` different ones of the process."""
    if any(kept.get(f"use_{kind}") for kind in ("karras_sigmas", "lu_lambdas", "exponential_sigmas", "beta_sigmas")):
        return True  # by rules of the scheduler's own, for dpm_solver; the others have none
    count = settings["num_train_timesteps"]
    times = timesteps_of(name, steps, count, spacing_of(name, settings, kept), kept.get("steps_offset", 0))
    return len(times) == len({*times}) == steps and times[-1] >= 0 and times[0] < count


def spacing_of(name: str, settings: Config, kept: Config) -> str:
    """The timestep_spacing of a sampler of process vp: the teacher's; else, so that sampling starts where nothing is left of
    an image when there is such a timestep, `trailing` (arXiv 2305.08891, section 3.3); else the scheduler's own.
    """
    usual = "linspace" if name == "dpm_solver" else "leading"
    spacing = kept.get("timestep_spacing", "trailing" if settings.get("rescale_betas_zero_snr") else usual)
    return str(spacing)


def timesteps_of(name: str, steps: int, count: int, spacing: str, offset: int) -> list[int]:
    """The timesteps at which diffusers' ddim, ddpm or dpm_solver evaluate the network, descending, of `count` there are."""
    if spacing == "trailing":
        ratio = count / steps
        return [round(count - i * ratio) - 1 for i in range(math.ceil(count / ratio))]
    solver = name == "dpm_solver"  # which has one timestep more, the last, at which it does not evaluate
    total = steps + solver
    if spacing == "leading":
        times = [i * (count // total) + offset for i in range(total)]
    else:
        times = [round(i * ((count - 1) / max(total - 1, 1))) for i in range(total)]
    return times[solver:][::-1]
