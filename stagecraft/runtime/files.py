"""Files written aside and renamed, so that a killed job leaves the old file or none, and checked when they are read."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONTENT_HASH = "content_sha256"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` on success, remove it on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named_in_failures(path, aside):
            yield aside
            share(aside)
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`; it replaces `path` on success and is removed on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with named_in_failures(path, aside):
            aside.mkdir()
            yield aside
            for file in aside.rglob("*"):
                share(file)
            shutil.rmtree(path, ignore_errors=True)
            os.replace(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def named_in_failures(path: Path, aside: Path) -> Iterator[None]:
    """Turn what is raised when `aside` cannot be written into an OSError that names `path`.

    A full disk leaves Python's own writers without the name of a file, and torch and safetensors without an OSError.
    """
    try:
        yield
    except Exception as error:
        reason = write_failure(error, aside)
        if reason is None:
            raise
        raise OSError(
            f"{path}: cannot be written ({reason}), and is as it was before; free space or allow writing, then run again"
        ) from error


def write_failure(error: Exception, aside: Path) -> str | None:
    """Why a file at or in `aside` could not be written; None when the error says something else."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error
    of_torch = isinstance(error, RuntimeError) and "inline_container" in str(error)
    of_safetensors = type(error).__name__ == "SafetensorError"
    if of_torch or of_safetensors or isinstance(error, OSError):
        known = cause.filename if isinstance(cause, OSError) else None
        if known is None or Path(known).is_relative_to(aside):
            return getattr(cause, "strerror", None) or str(cause)
    return None


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete what killed jobs were writing aside for files of this name (a pattern) in `folder`."""
    for aside in folder.glob(f".{name}.*.tmp"):
        aside.unlink(missing_ok=True)


def share(path: Path) -> None:
    """Give a file or folder the permissions that the umask asks for; safetensors writes for the owner only."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as sorted, indented JSON; NaN and infinity are refused with a ValueError."""
    text = json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n"
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def read_json(path: Path, remedy: str = "replace it") -> dict[str, Any]:
    """Read a JSON object; anything else is a ValueError that names the file and ends in `remedy`."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: missing; {remedy}")
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); {remedy}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds no JSON object; {remedy}")
    return data


def write_checked_json(path: Path, data: Mapping[str, object]) -> None:
    """Write `data` with the hash of its own content, for `read_checked_json`."""
    write_json(path, {**data, CONTENT_HASH: sha256_content(data)})


def read_checked_json(path: Path, stage: str) -> dict[str, Any]:
    """Read what `stage` wrote with `write_checked_json`; ValueError, with the command that mends it, when it was altered."""
    data = read_json(path, run_again(stage, path))
    check_content(path, data, stage)
    return data


def check_content(path: Path, data: dict[str, object], stage: str) -> None:
    """Take the hash of its own content out of `data`; ValueError unless it is that of the rest."""
    said = data.pop(CONTENT_HASH, None)
    check_same_hash(path, sha256_content(data), said, f"its {CONTENT_HASH}", run_again(stage, path))


def check_file(path: Path, sha256: str, where: Path | str, stage: str) -> None:
    """Raise ValueError unless a file that `stage` wrote is there and has the hash that `where` says."""
    remedy = run_again(stage, path)
    if not path.is_file():
        raise ValueError(f"{path}: missing; {remedy}")
    check_same_hash(path, sha256_file(path), sha256, where, remedy)


def check_same_hash(path: Path, found: str, said: Any, where: Path | str, remedy: str) -> None:
    """Raise ValueError with both hashes unless they are the same."""
    if found != said:
        raise ValueError(f"{path}: sha256 {found[:12]}..., but {where} says {str(said)[:12]}...; {remedy}")


def run_again(stage: str, path: Path) -> str:
    """Advice for a damaged output of `stage`; each block has a search job of its own, which its file names."""
    return f"run {stage} again (snakemake --forcerun {path if stage == 'search_block' else stage})"


def sha256_content(data: Mapping[str, object]) -> str:
    """Hex SHA-256 of what a JSON object says, however it is laid out."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tensor(tensor: Any) -> str:
    """Hex SHA-256 of a contiguous CPU tensor: data type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.numpy())
    return digest.hexdigest()


def pipeline_file(folder: Path | str, part: str, name: str) -> Path:
    """`<part>/<name>` of a diffusers pipeline folder, or `<name>` of one that holds the part's files itself.

    google/ddpm-cifar10-32 and its like are of the second kind.
    """
    nested = Path(folder) / part / name
    flat = Path(folder) / name
    return flat if flat.is_file() and not nested.exists() else nested
