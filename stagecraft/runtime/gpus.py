"""A GPU of its own for each job of a machine with several: claimed by a lock that ends with the process.

Snakemake counts GPUs but does not number them. So a job locks one file per GPU in the folder for temporary files before CUDA
starts, and shows CUDA those GPUs alone. The kernel gives the locks back however the process ends.
"""

import fcntl
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

WAIT_SECONDS = 1.0
# Held until the process ends.
held: list[int] = []


def claim_gpus(device: str, wanted: int) -> None:
    """Wait for `wanted` free GPUs among the visible ones and let CUDA see them alone.

    Nothing happens when `device` (of the params) is `cpu`, and when no GPU is visible.

    Raises:
        ValueError: fewer GPUs are visible.
    """
    visible = {} if device == "cpu" else visible_gpus(os.environ)
    if not visible:
        return
    if wanted > len(visible):
        raise ValueError(f"processes: {wanted} want a GPU each but {len(visible)} are visible; lower the resource gpu")
    chosen = try_to_claim(visible, wanted)
    if not chosen:
        print(f"waiting for {wanted} of {len(visible)} GPUs, which other jobs hold", file=sys.stderr, flush=True)
    while not chosen:
        # Jobs that want several each, and look at the same moment, would otherwise stand in each other's way for ever.
        time.sleep(WAIT_SECONDS * random.uniform(0.5, 1))
        chosen = try_to_claim(visible, wanted)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)


def visible_gpus(environment: Mapping[str, str]) -> dict[str, str]:
    """The GPUs that CUDA would see: as CUDA_VISIBLE_DEVICES names them (Slurm sets it), and their UUIDs where known."""
    uuids = list_uuids()
    names = environment.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return {uuid: uuid for uuid in uuids}
    numbered = {str(number): uuid for number, uuid in enumerate(uuids)}
    listed = [name.strip() for name in names.split(",")]
    return {name: numbered.get(name, name) for name in listed if re.fullmatch(r"\d+|(GPU|MIG)-.+", name)}


def list_uuids() -> list[str]:
    """UUIDs of the machine's NVIDIA GPUs, or of those that Slurm lets this job see; none without a driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return re.findall(r"^GPU \d+: .*\(UUID: (GPU-[^)]+)\)", listing, flags=re.MULTILINE)


def try_to_claim(visible: Mapping[str, str], wanted: int) -> list[str]:
    """Lock `wanted` of the GPUs, given by name and UUID, and return their names; no lock and no name when too few are free."""
    locks: dict[str, int] = {}
    for name, uuid in visible.items():
        lock = try_to_lock(Path(tempfile.gettempdir(), f"stagecraft-{uuid}.lock"))
        if lock is not None:
            locks[name] = lock
        if len(locks) == wanted:
            held.extend(locks.values())
            return [*locks]
    for lock in locks.values():
        os.close(lock)
    return []


def try_to_lock(path: Path) -> int | None:
    """An exclusive lock on a file that all users may lock, as an open file descriptor; None when another process has it."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        file = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
        os.fchmod(file, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
