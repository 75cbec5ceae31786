"""The teacher with whole ResNet layers and attentions dropped by their effect on its output, as BK-SDM and LAPTOP-Diff do.

The effect of a set is taken for the sum of its members' (arXiv 2404.11098), which are measured one by one, so that the best set
under a budget is that of an integer programme.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from diffusers import UNet2DModel
from matching import TOLERANCE, Evaluation, Meter

from stagecraft.networks.specs import identity_architecture
from stagecraft.training.student import build_student, warm_start


class Site(NamedTuple):
    """A layer that may go: its block (`down_blocks.0`), the key of the block's spec and its place there."""

    block: str
    key: str
    index: int


def sites_of(teacher: UNet2DModel) -> list[Site]:
    """All ResNet layers and attentions of a UNet's blocks."""
    found = []
    for name, spec in specs_by_block(identity_architecture(teacher)).items():
        found += [Site(name, "layers", index) for index in range(len(spec["layers"]))]
        found += [Site(name, "attentions", index) for index, there in enumerate(spec["attentions"]) if there]
    return found


def specs_by_block(architecture: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The specs of an architecture of one interval by block."""
    found = {f"down_blocks.{i}": spec for i, spec in enumerate(architecture["down_blocks"])}
    if architecture["mid_block"] is not None:
        found["mid_block"] = architecture["mid_block"]
    return found | {f"up_blocks.{i}": spec for i, spec in enumerate(architecture["decoders"][0])}


def without(teacher: UNet2DModel, sites: Sequence[Site]) -> Any:
    """A copy of the teacher without some layers; what is left has the teacher's weights."""
    architecture = identity_architecture(teacher)
    specs = specs_by_block(architecture)
    for site in sites:
        specs[site.block][site.key][site.index] = None if site.key == "layers" else False
    net = build_student(teacher, architecture, [], 0)
    warm_start(net, teacher)
    return net.eval()


@dataclass(frozen=True)
class Effects:
    """What dropping each of the teacher's sites does alone.

    Args:
        sites: in the order of the other two.
        errors: mean square difference of the output from the teacher's.
        savings: what becomes free of the teacher's cost, as a share of it.
        whole: the share that a net takes of which nothing is dropped.
    """

    sites: list[Site]
    errors: list[float]
    savings: list[float]
    whole: float

    @classmethod
    def measure(cls, teacher: UNet2DModel, error_of: Callable[[Any], float], meter: Meter) -> "Effects":
        """Measure all sites of a teacher; `error_of` gives the error of a net's output."""
        sites = sites_of(teacher)
        nets = [without(teacher, [site]) for site in sites]
        whole, *shares = meter.shares([Evaluation(net, 0) for net in (without(teacher, []), *nets)])
        return cls(sites, [error_of(net) for net in nets], [whole - share for share in shares], whole)

    def choose(self, budget: float) -> list[Site]:
        """The sites with the least sum of errors without which the teacher takes the budget.

        It is met from below to within the tolerance where some set does, so that no method is compared at half of its budget.

        Raises:
            ValueError: too few can be dropped.
        """
        needed = self.whole - budget
        if needed <= 0:
            return []
        chosen = self.solve(needed, needed + TOLERANCE * budget) or self.solve(needed, np.inf)
        if chosen is None:
            least = self.whole - sum(saving for saving in self.savings if saving > 0)
            raise ValueError(f"depth: budget {budget:g} cannot be met (the smallest feasible is {least:.3f}); raise it")
        return chosen

    def solve(self, least: float, most: float) -> list[Site] | None:
        """The sites with the least sum of errors whose savings add up to a number between two; None when there are none."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        # Scaled, since the solver's tolerances are absolute.
        within = LinearConstraint(np.array(self.savings) / least, 1.0, most / least)
        errors = np.array(self.errors) / max(self.errors)
        choice = milp(errors, constraints=[within], integrality=np.ones(len(errors)), bounds=Bounds(0, 1))
        if choice.x is None:
            return None
        return [site for site, dropped in zip(self.sites, choice.x, strict=True) if dropped > 0.5]
