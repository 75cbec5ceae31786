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

from stagecraft.elastic.architecture import identity_architecture
from stagecraft.training.student import build_student, warm_start


class Layer(NamedTuple):
    """A layer that may go: its block (`down_blocks.0`) and its name there (`resnets.1`)."""

    block: str
    name: str


def layers_of(teacher: UNet2DModel) -> list[Layer]:
    """All ResNet layers and attentions of a UNet's blocks."""
    blocks = identity_architecture(teacher)["blocks"]
    return [Layer(block, name) for block, (entry,) in blocks.items() for name in entry["spec"]]


def without(teacher: UNet2DModel, layers: Sequence[Layer]) -> Any:
    """A copy of the teacher without some layers; what is left has the teacher's weights."""
    architecture = identity_architecture(teacher)
    for layer in layers:
        (entry,) = architecture["blocks"][layer.block]
        entry["spec"][layer.name] = None
    net = build_student(teacher, architecture, [], 0)
    warm_start(net, teacher)
    return net.eval()


@dataclass(frozen=True)
class Effects:
    """What dropping each of the teacher's layers does alone.

    Args:
        layers: in the order of the other two.
        errors: mean square difference of the output from the teacher's.
        savings: what becomes free of the teacher's cost, as a share of it.
        whole: the share that a net takes of which nothing is dropped.
    """

    layers: list[Layer]
    errors: list[float]
    savings: list[float]
    whole: float

    @classmethod
    def measure(cls, teacher: UNet2DModel, error_of: Callable[[Any], float], meter: Meter) -> "Effects":
        """Measure all layers of a teacher; `error_of` gives the error of a net's output."""
        layers = layers_of(teacher)
        nets = [without(teacher, [layer]) for layer in layers]
        whole, *shares = meter.shares([Evaluation(net, 0) for net in (without(teacher, []), *nets)])
        return cls(layers, [error_of(net) for net in nets], [whole - share for share in shares], whole)

    def choose(self, budget: float) -> list[Layer]:
        """The layers with the smallest sum of errors without which the teacher takes the budget.

        It is met from below to within the tolerance where some set does, so that no method is compared at half of its budget.

        Raises:
            ValueError: too few can be dropped.
        """
        needed = self.whole - budget
        if needed <= 0:
            return []
        chosen = self.solve(needed, needed + TOLERANCE * budget) or self.solve(needed, np.inf)
        if chosen is None:
            smallest = self.whole - sum(saving for saving in self.savings if saving > 0)
            raise ValueError(
                f"depth: budget {budget:g} is infeasible (the smallest feasible is {smallest:.3f}); raise it"
            )
        return chosen

    def solve(self, low: float, high: float) -> list[Layer] | None:
        """The layers with the smallest sum of errors whose savings add up to a number between two; None when there are none."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        # Scaled, since the solver's tolerances are absolute.
        within = LinearConstraint(np.array(self.savings) / low, 1.0, high / low)
        errors = np.array(self.errors) / max(self.errors)
        choice = milp(errors, constraints=[within], integrality=np.ones(len(errors)), bounds=Bounds(0, 1))
        if choice.x is None:
            return None
        return [layer for layer, dropped in zip(self.layers, choice.x, strict=True) if dropped > 0.5]
