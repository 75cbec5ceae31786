"""Checkpoints of the training loop: written aside and renamed, refused when made with other params."""

from pathlib import Path
from typing import Any

import torch

from stages.files import atomic_path


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and strings; the old checkpoint stays until the new one is complete."""
    with atomic_path(path) as aside:
        torch.save(state, aside)


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read a checkpoint, or None when there is none.

    Raises:
        ValueError: the file is damaged, or was made with other params or inputs than `fingerprint` says.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: unreadable checkpoint ({type(error).__name__}); delete it to start again") from error
    if state["fingerprint"] != fingerprint:
        raise ValueError(f"{path}: checkpoint was made with other params or inputs; delete it to start again")
    return state
