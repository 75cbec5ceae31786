"""The methods that benchmarks/compression.py compares: what their names say, and the params of their runs."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_inputs import cpu_params, preset_file

PRUNED = {"magnitude": "magnitude", "taylor": "taylor", "diff-pruning": "diff-pruning", "pruned-random": "random"}
FOLDED = "diff-pruning-folded"
PRUNED[FOLDED] = "diff-pruning"
EIGHTHS = [count / 8 for count in range(1, 9)]
WIDTHS = {"widths": EIGHTHS, "ranks": [1.0]}  # what the supernets of `uniform` learn
SPACE = (
    "widths",
    "heads",
    "stream",
    "channel_multiple",
    "kernels",
    "ranks",
    "drop_layers",
    "drop_attention",
    "upsampler_kernels",
)
OF_RANKS = cpu_params(preset_file("fashion-mnist"))["search_block"]
# What a method changes in the preset.
SEARCHED: dict[str, dict[str, dict[str, Any]]] = {
    "search": {},
    "scratch": {"retrain": {"init": "scratch"}},
    "uniform": {"assemble": {"rule": "uniform"}, "search_block": WIDTHS},
    "uniform-rank": {"assemble": {"rule": "uniform_rank"}},
    "random": {"assemble": {"rule": "random"}},
    "random-scored": {"assemble": {"rule": "random"}},
    "largest": {"assemble": {"rule": "largest"}},
    "local-rule": {"assemble": {"rule": "local"}},
    "local-score": {"assemble": {"score": "local"}},
    "output-score": {"assemble": {"score": "output"}},
    "combined-score": {"assemble": {"score": "combined"}},
    "ranks-only": {"assemble": {"score": "output"}, "search_block": {key: OF_RANKS[key] for key in SPACE}},
    "joint-linear": {"retrain": {"joint_loss": "linear"}},
    "joint-step": {"retrain": {"joint_loss": "step"}},
    "joint-constant": {"retrain": {"joint_loss": "constant"}},
    "joint-none": {"retrain": {"joint_loss": "none"}},
    "uncalibrated": {"retrain": {"calibrate": "none"}},
    "one-stage": {"cluster_timesteps": {"stages": 1}},
}
NO_BLOCKS = {"retrain": {"joint_loss": "none", "stage_probabilities": "density"}}
PLAIN = {"retrain": {"joint_loss": "none", "output_weight": 0.0, "calibrate": "none"}}
OWN_STREAM = ("uniform", "uniform-rank", "random", "random-scored", "largest")
SEARCH_STREAM = frozenset(SEARCHED) - frozenset(OWN_STREAM)
REFERENCES = ("teacher", "teacher-calibrated", "held-out")
METHODS = (*SEARCHED, *PRUNED, *REFERENCES)
UNLIMITED = 100.0
Channels = float | list[float]  # search_block.channels


@dataclass(frozen=True)
class Method:
    """What the name of a method says: `random-2-plain` is draw 2 of `random`, retrained without distillation terms.

    Raises:
        ValueError: there is no such method.
    """

    full: str

    def __post_init__(self) -> None:
        if self.name not in METHODS or (self.draw and self.name != "random"):
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


def params_of(
    preset: Path,
    method: Method,
    budget: float,
    seed: int,
    channels: Channels | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """The params of one run. The budget is that of the MACs alone; what it takes in parameters is in the result.

    Args:
        channels: `search_block.channels`; None leaves the preset's.
        steps: `retrain.steps`; None leaves the preset's.
    """
    budgets = {"assemble": {"macs": budget, "params": UNLIMITED, "params_active": UNLIMITED}}
    params = changed(cpu_params(preset) | {"seed": seed}, budgets)
    if channels is not None:
        params = changed(params, {"search_block": {"channels": channels}})
    if steps is not None:
        params = changed(params, {"retrain": {"steps": steps}})
    params = changed(params, SEARCHED.get(method.name, {}))
    return changed(params, PLAIN) if method.plain else params
