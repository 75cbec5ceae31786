"""Fingerprints of a source's files, without opening them."""

import hashlib
import os
from collections.abc import Iterable


def digest_of(files: Iterable[tuple[str, os.stat_result]], empty_folders: Iterable[str] = ()) -> str:
    """A hash over the relative paths, sizes and times of files, and the folders without any."""
    digest = hashlib.sha256()
    for name, stat in files:
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    for name in empty_folders:
        digest.update(f"{name}/\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
