"""Finished pieces of long work, so that a job that was killed makes only those that are missing."""

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from stagecraft.runtime.files import atomic_path, read_json, remove_leftovers, sha256_file, write_json

JOURNAL = "pieces.json"
T = TypeVar("T")


class Pieces:
    """Files of unfinished work in a folder of their own, each with its hash in `pieces.json`.

    The folder must hold no output of the workflow, as Snakemake deletes those of a killed job.

    Args:
        folder: where the pieces lie.
        fingerprint: what they are made from (params, hashes of inputs) as JSON; pieces made from anything else are deleted.

    Raises:
        ValueError: `pieces.json` cannot be read.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, object]) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.sha256: dict[str, str] = {}
        if not (folder / JOURNAL).is_file():
            return
        journal = read_json(folder / JOURNAL, "delete it to start anew")
        if journal["fingerprint"] == fingerprint:
            self.sha256 = journal["sha256"]
            remove_leftovers(folder)
        else:
            print(f"{folder}: made with other params or inputs; not used, starting anew", file=sys.stderr, flush=True)
            shutil.rmtree(folder)

    def path(self, name: str) -> Path:
        """Where a piece lies or will lie."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether a piece is finished; ValueError when its bytes are no longer those that were written."""
        path = self.path(name)
        if name not in self.sha256 or not path.is_file():
            return False
        if sha256_file(path) != self.sha256[name]:
            raise ValueError(
                f"{path}: damaged, its hash is not that of {path.parent / JOURNAL}; delete it to make it again"
            )
        return True

    def add(self, name: str) -> None:
        """Say that the file of a piece is complete."""
        self.sha256[name] = sha256_file(self.path(name))
        write_json(self.folder / JOURNAL, {"fingerprint": self.fingerprint, "sha256": self.sha256})

    def move(self, folder: Path) -> None:
        """Move all finished pieces to where they belong."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.sha256:
            shutil.move(self.path(name), folder / name)
        self.remove()

    def remove(self) -> None:
        """Delete the folder, once the whole is stored elsewhere."""
        shutil.rmtree(self.folder, ignore_errors=True)


def kept_array(pieces: Pieces | None, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of a piece; `make` is called when there is none yet, and its array kept when there are pieces."""
    array = find_array(pieces, name)
    return keep_array(pieces, name, make()) if array is None else array


def find_array(pieces: Pieces | None, name: str) -> np.ndarray | None:
    """The array of a finished piece, or None."""
    return np.load(pieces.path(name), allow_pickle=False) if pieces and pieces.has(name) else None


def keep_array(pieces: Pieces | None, name: str, array: np.ndarray) -> np.ndarray:
    """Store an array as a piece, when there are pieces; returns it."""
    if pieces:
        with atomic_path(pieces.path(name)) as aside, open(aside, "wb") as file:
            np.save(file, array)
        pieces.add(name)
    return array


def kept_record(pieces: Pieces | None, name: str, make: Callable[[], T]) -> T:
    """`kept_array` for values that JSON can hold."""
    if pieces and pieces.has(name):
        kept: T = read_json(pieces.path(name))["record"]
        return kept
    record = make()
    if pieces:
        write_json(pieces.path(name), {"record": record})
        pieces.add(name)
    return record
