"""Threads and memory of a stage's process, which libraries read once, as they are imported. Light: no torch, no NumPy."""

import contextlib
import ctypes
import os
from collections.abc import Sequence


def prepare_process(arguments: Sequence[str]) -> None:
    """Set this process up as the arguments of a stage's command say; to be called before torch or NumPy are imported.

    A `--threads` that is none is left to the parser of the command.
    """
    keep_freed_memory()
    with contextlib.suppress(ValueError, IndexError):
        set_threads(threads_of_process(int(arguments[arguments.index("--threads") + 1])))


def threads_of_process(threads: int) -> int:
    """The threads of one of the processes that share a stage's."""
    return max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def set_threads(threads: int) -> None:
    """Tell OpenMP and MKL, which read it when torch or NumPy are first imported, and fix what else torch reads then."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    # OpenMP threads that spin for long while they wait make jobs on shared cores up to twenty times slower than in turn;
    # threads that sleep at once halve the speed of a job that has its cores to itself.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep freed blocks of up to 1 GiB for the next tensor; elsewhere there is nothing to tell.

    Otherwise it gives large ones back to the system, which clears every page again: with one thread a quarter of the time of
    sampling.
    """
    trim_threshold, mmap_threshold = -1, -3  # mallopt(3)
    with contextlib.suppress(AttributeError, OSError, TypeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(trim_threshold, 2**31 - 1)
        allocator.mallopt(mmap_threshold, 2**30)


def own_cores() -> list[int]:
    """Numbers of the cores that this process may run on."""
    allowed = getattr(os, "sched_getaffinity", None)
    return sorted(allowed(0)) if allowed else list(range(os.cpu_count() or 1))


def measure_other_work(seconds: float = 0.5) -> float:
    """How many of this process's cores others keep busy, while it waits for so long."""
    import psutil

    percents = psutil.cpu_percent(seconds, percpu=True)
    return sum(percents[core] for core in own_cores()) / 100


def note_other_work(cores: int, busy: float) -> str | None:
    """One line when jobs on `cores` cores would share them with other work; None when enough are free.

    The number of threads does not follow the load by itself, as it decides the last bits of every result.
    """
    free = len(own_cores()) - busy
    if cores < 2 or free > cores - 0.5:
        return None
    fewer = max(1, round(free))
    return (
        f"note: other work keeps {busy:.1f} of {len(own_cores())} cores busy, and threads that wait for each other can be "
        f"slower than one alone; try --cores {fewer} (results then differ in their last bits)"
    )
