"""Checkpoints of the training loop: written aside and renamed, checked and used only by the run that they belong to."""

import hashlib
import sys
from pathlib import Path
from typing import Any, TypedDict

import torch

from stagecraft.runtime.files import atomic_path, remove_leftovers, sha256_file
from stagecraft.runtime.processes import is_main

DIGEST_BYTES = 32
PIECE = 2**20


class TrainState(TypedDict):
    """A training between two steps: losses of past steps in `history`, of the present stretch of it in `stretch`."""

    fingerprint: str
    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    ema: dict[str, torch.Tensor] | None
    history: list[dict[str, float]]
    stretch: dict[str, list[float]]


def save_checkpoint(path: Path, state: TrainState) -> None:
    """Write tensors, numbers and strings, then the hash of these bytes; the old checkpoint stays until that is done."""
    with atomic_path(path) as aside:
        # Given the name alone, torch would not say why it cannot write.
        with open(aside, "wb") as file:
            torch.save(state, file)
        digest = bytes.fromhex(sha256_file(aside))
        with open(aside, "ab") as file:
            file.write(digest)


def load_checkpoint(path: Path, fingerprint: str) -> TrainState | None:
    """Read a checkpoint; None when there is none, or one made with other params or inputs than `fingerprint` says.

    Raises:
        ValueError: the file is damaged.
    """
    if is_main():
        remove_leftovers(path.parent, path.name)
    if not path.exists():
        return None
    if not ends_in_own_hash(path):
        raise ValueError(f"{path}: damaged checkpoint, as its hash is another; delete it to start again")
    try:
        state: TrainState = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: unreadable checkpoint ({type(error).__name__}); delete it to start again") from error
    if state["fingerprint"] != fingerprint:
        if is_main():
            print(
                f"{path}: made with other params or inputs; not used, starting from step 0", file=sys.stderr, flush=True
            )
        return None
    return state


def ends_in_own_hash(path: Path) -> bool:
    """Whether the last bytes of a file are the hash of all before; torch.load does not check what it reads."""
    digest = hashlib.sha256()
    left = max(path.stat().st_size - DIGEST_BYTES, 0)
    with open(path, "rb") as file:
        while piece := file.read(min(left, PIECE)):
            digest.update(piece)
            left -= len(piece)
        return file.read() == digest.digest()
