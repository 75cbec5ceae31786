"""The processes that share one stage's work: which of them this is, and what they tell one another.

launch.py starts several; a stage that was started alone is the one process of one.
"""

import os
from datetime import timedelta
from typing import Any

# Where the processes that launch.py starts leave word of their failure; not set in a stage started alone.
FAILURES = "STAGECRAFT_FAILURES"
# Longer than rank 0 may need alone, to time the models or to write a checkpoint, while the others wait.
PATIENCE = timedelta(hours=2)


def is_worker() -> bool:
    """Whether this process is one of several."""
    return FAILURES in os.environ and "LOCAL_RANK" in os.environ


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ["RANK"]) if is_worker() else 0


def world_size() -> int:
    """How many processes share the work."""
    return int(os.environ["WORLD_SIZE"]) if is_worker() else 1


def is_main() -> bool:
    """Whether this process writes the files and shows the progress."""
    return rank() == 0


def join(kind: str) -> Any:
    """Meet the other processes, over NCCL on `cuda` and over gloo on `cpu`; returns the torch.device of this one."""
    from accelerate import PartialState

    return PartialState(cpu=kind == "cpu", timeout=PATIENCE).device


def leave() -> None:
    """Part from the other processes."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def own_rows(n: int) -> slice:
    """This process's rows of a batch of n; the shares of all processes differ by one row at most."""
    return slice(n * rank() // world_size(), n * (rank() + 1) // world_size())


def add_up(tensor: Any) -> Any:
    """The sum of a tensor over all processes, in place."""
    from torch import distributed

    if world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def from_main(value: Any) -> Any:
    """The value of rank 0, for which the others wait."""
    from torch import distributed

    box = [value]
    if world_size() > 1:
        distributed.broadcast_object_list(box)
    return box[0]


def to_main(value: Any) -> list[Any]:
    """The values of all processes, by rank; an empty list on all ranks but 0."""
    from torch import distributed

    if world_size() == 1:
        return [value]
    gathered = [None] * world_size() if is_main() else None
    distributed.gather_object(value, gathered)
    return gathered or []
