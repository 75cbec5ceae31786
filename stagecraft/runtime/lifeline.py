"""Processes that end with the one that started them, and locks of runs that were killed."""

import fcntl
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

PARENT = "STAGECRAFT_PARENT"
POLL = 0.25  # seconds


def end_with(pid: int) -> None:
    """End this process, at once and without cleaning up, soon after process `pid` has ended.

    Else a job outlives a Snakemake that is killed, and writes its results beside those of the next run.
    """
    import psutil

    def watch(parent: psutil.Process) -> None:
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(POLL)
        os._exit(1)

    try:
        threading.Thread(target=watch, args=[psutil.Process(pid)], daemon=True).start()
    except psutil.NoSuchProcess:
        os._exit(1)


def name_parent() -> None:
    """Tell the processes that this one starts whom to end with."""
    os.environ[PARENT] = f"{os.getpid()}@{socket.gethostname()}"


def end_with_parent() -> None:
    """End with the process that named itself the parent, if one did on this machine."""
    pid, _, host = os.environ.get(PARENT, "").partition("@")
    if host == socket.gethostname():
        end_with(int(pid))


def check_writable(folder: Path) -> None:
    """Raise a ValueError when a folder is not there and cannot be made, or cannot be written."""
    existing = next(path for path in (folder, folder.parent) if path.is_dir())
    if not os.access(existing, os.W_OK):
        here = Path.cwd()
        raise ValueError(f"{here}: cannot be written, so no run can keep {folder} there; name another with --directory")


def clear_dead_locks(folder: Path, patience: float = 8 * POLL) -> Any:
    """Remove the locks that killed runs left in a .snakemake folder.

    Returns a file to keep open while this run lasts: its shared lock, which the kernel takes back from a killed process, tells
    other runs that this one lives. None where the file system has no such locks; then `snakemake --unlock` is needed.
    """
    folder.mkdir(exist_ok=True)
    alive = open(folder / "alive", "w")  # noqa: SIM115
    waiting_ends = time.monotonic() + patience
    try:
        while (folder / "locks").is_dir() and not lock_alone(alive) and time.monotonic() < waiting_ends:
            time.sleep(POLL)
        if lock_alone(alive):
            shutil.rmtree(folder / "locks", ignore_errors=True)
        fcntl.flock(alive, fcntl.LOCK_SH)
    except OSError:
        return None
    return alive


def lock_alone(file: Any) -> bool:
    """Take the lock of a file for this process alone; False when another holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
