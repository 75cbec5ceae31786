"""The control that a user would try before a smaller network: the teacher in as few steps as take the student's time."""

from collections.abc import Mapping
from typing import cast

from stagecraft.diffusion.process import Process


def nearest_steps(process: Process, sampling: Mapping[str, object], wanted: float) -> int | None:
    """The number of steps next to `wanted`, two or more, that a sampler can take; None where none is fewer than its own.

    Args:
        sampling: the `sampling` section of the params.
    """
    own = cast(int, sampling["steps"])
    return next((steps for steps in range(max(2, round(wanted)), own) if can_take(process, sampling, steps)), None)


def can_take(process: Process, sampling: Mapping[str, object], steps: int) -> bool:
    """Whether so many steps of a sampler are as many different timesteps of the process."""
    try:
        process.check_steps({**sampling, "steps": steps})
    except ValueError:
        return False
    return True
