"""The methods that benchmarks/compression.py compares: what their names say, and the params of their runs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_inputs import cpu_params

PRUNED = {"magnitude": "magnitude", "taylor": "taylor", "diff-pruning": "diff-pruning", "pruned-random": "random"}
DEPTH, LONGER = "depth", "teacher-longer"
FEWER_STEPS = ("fewer-steps", "fewer-steps-student")
FEATURE_REUSE = ("feature-reuse", "feature-reuse-student")
OF_STUDENT = (FEWER_STEPS[1], FEATURE_REUSE[1])  # of the student that `search` has retrained
EIGHTHS = [count / 8 for count in range(1, 9)]
WIDTHS = {"widths": EIGHTHS}  # what the supernets of `uniform` learn
# What a method changes in the preset.
SEARCHED: dict[str, dict[str, dict[str, Any]]] = {
    "search": {},
    "scratch": {"retrain": {"init": "scratch"}},
    "uniform": {"assemble": {"rule": "uniform"}, "search_block": WIDTHS},
    "random": {"assemble": {"rule": "random"}},
    "random-scored": {"assemble": {"rule": "random"}},
    "largest": {"assemble": {"rule": "largest"}},
    "local-rule": {"assemble": {"rule": "local"}},
    "local-score": {"assemble": {"score": "local"}},
    "output-score": {"assemble": {"score": "output"}},
    "combined-score": {"assemble": {"score": "combined"}},
    "joint-linear": {"retrain": {"joint_loss": "linear"}},
    "joint-constant": {"retrain": {"joint_loss": "constant"}},
    "joint-none": {"retrain": {"joint_loss": "none"}},
    "one-interval": {"cluster_timesteps": {"intervals": 1}},
    "native": {
        "cluster_timesteps": {"intervals": 1},
        "assemble": {"native": True},
        "search_block": {"channels": 1.0},
    },
}
ONE_INTERVAL = {"retrain": {"interval_probabilities": "density"}}  # what is right for a net without intervals
NO_BLOCKS = {"retrain": {"joint_loss": "none", "interval_probabilities": "density"}}
PLAIN = {"retrain": {"joint_loss": "none", "output_weight": 0.0, "jacobian_weight": 0.0}}
NATIVE = "native"  # whose residual stream is chosen by the search
OWN_STREAM = ("uniform", "random", "random-scored", "largest", NATIVE)
SEARCH_STREAM = frozenset(SEARCHED) - frozenset(OWN_STREAM)
REFERENCES = ("teacher", "held-out")
UNTRAINED = (*REFERENCES, FEWER_STEPS[0], FEATURE_REUSE[0])
METHODS = (*SEARCHED, *PRUNED, DEPTH, *FEWER_STEPS, *FEATURE_REUSE, LONGER, *REFERENCES)
# Rules whose layers are not among the candidates, so that they have no predicted time; they are given MACs.
UNTIMED_RULES = ("uniform", "uniform_rank", "largest")
BUDGETS_OF = ("time", "macs")
Channels = float | list[float]  # search_block.channels


@dataclass(frozen=True)
class Options:
    """What the runs of one comparison have in common.

    Args:
        budget_of: what budgets are shares of, the teacher's `time` or its `macs`.
        channels: `search_block.channels` of the budget; None leaves the preset's.
        steps: `retrain.steps`; None leaves the preset's.
        samples: `evaluate.samples`; None leaves the preset's.
        student_budget: budget of the student that the methods of `OF_STUDENT` start from.
    """

    budget_of: str = "time"
    channels: Channels | None = None
    steps: int | None = None
    samples: int | None = None
    student_budget: float | None = None


@dataclass(frozen=True)
class Method:
    """What the name of a method says: `random-2-plain` is draw 2 of `random`, retrained without distillation terms.

    Raises:
        ValueError: there is no such method.
    """

    full: str

    def __post_init__(self) -> None:
        retrained = self.name in SEARCHED or self.name in PRUNED or self.name == DEPTH
        if self.name not in METHODS or (self.draw and self.name != "random") or (self.plain and not retrained):
            raise ValueError(f"{self.full}: not one of {', '.join(METHODS)}, with -plain or random-<draw>")

    @property
    def name(self) -> str:
        """Without what follows it."""
        return re.sub(r"-\d+$", "", self.full.removesuffix("-plain"))

    @property
    def row(self) -> str:
        """The row of the table."""
        return self.name + ("-plain" if self.plain else "")

    @property
    def plain(self) -> bool:
        """Whether it is retrained without distillation terms."""
        return self.full.endswith("-plain")

    @property
    def draw(self) -> int:
        """The number of the draw; 0 where there is but one."""
        found = re.search(r"-(\d+)$", self.full.removesuffix("-plain"))
        return int(found[1]) if found else 0


def changed(params: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The params with some keys of some sections exchanged."""
    return params | {section: params[section] | values for section, values in changes.items()}


def shares(text: str) -> Channels:
    """`search_block.channels` as --channels takes it: 0.75, or 0.75,0.5 for a share of each level."""
    numbers = [float(part) for part in text.split(",")]
    return numbers if len(numbers) > 1 else numbers[0]


def written(channels: Channels) -> str:
    """What `shares` reads."""
    return ",".join(map(str, channels if isinstance(channels, list) else [channels]))


def limits_of(rule: str, budget: float, budget_of: str) -> dict[str, float | None]:
    """The budgets of the `assemble` section: time or MACs, and at most the teacher's parameters.

    Rules without predicted times get a share of the MACs, and no limit of parameters, which they cannot choose.
    """
    key = "macs" if rule in UNTIMED_RULES else budget_of
    params = None if rule in UNTIMED_RULES else 1.0
    return {"macs": None, "time": None, "params_active": None, "params": params} | {key: budget}


def params_of(preset: Path, method: Method, budget: float, seed: int, options: Options | None = None) -> dict[str, Any]:
    """The params of one run, whose retraining knows the method as well."""
    options = options or Options()
    params = cpu_params(preset) | {"seed": seed}
    if options.channels is not None:
        params = changed(params, {"search_block": {"channels": options.channels}})
    if options.steps is not None:
        params = changed(params, {"retrain": {"steps": options.steps}})
    if options.samples is not None:
        params = changed(params, {"evaluate": {"samples": options.samples}})
    params = changed(params, SEARCHED.get(method.name, {}))
    params = changed(params, {"assemble": limits_of(params["assemble"]["rule"], budget, options.budget_of)})
    if method.name == DEPTH:
        params = changed(params, ONE_INTERVAL)
    return changed(params, PLAIN) if method.plain else params


def next_larger(budget: float, budgets: Sequence[float]) -> float | None:
    """The smallest of some budgets that is larger than this one, None where there is none."""
    return min((other for other in budgets if other > budget), default=None)
