"""Checkpoints of the training loop: written aside and renamed, refused when damaged or made with other params."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from stages.files import atomic_path, sha256_file

DIGEST_BYTES = 32
PIECE = 2**20


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and strings, then the hash of these bytes; the old checkpoint stays until that is done."""
    with atomic_path(path) as aside:
        torch.save(state, aside)
        digest = bytes.fromhex(sha256_file(aside))
        with open(aside, "ab") as file:
            file.write(digest)


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read a checkpoint, or None when there is none.

    Raises:
        ValueError: the file is damaged, or was made with other params or inputs than `fingerprint` says.
    """
    if not path.exists():
        return None
    if not ends_in_own_hash(path):
        raise ValueError(f"{path}: damaged checkpoint, as its hash is another; delete it to start again")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["fingerprint"] != fingerprint:
        raise ValueError(f"{path}: checkpoint was made with other params or inputs; delete it to start again")
    return state


def ends_in_own_hash(path: Path) -> bool:
    """Whether the last bytes of a file are the hash of all before; torch.load does not check what it reads."""
    digest, left = hashlib.sha256(), max(path.stat().st_size - DIGEST_BYTES, 0)
    with open(path, "rb") as file:
        while piece := file.read(min(left, PIECE)):
            digest.update(piece)
            left -= len(piece)
        return file.read() == digest.digest()
