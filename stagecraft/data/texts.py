"""Texts of images, as Hugging Face's imagefolder has them: metadata.jsonl beside the images or their splits. Light: no NumPy."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

METADATA = "metadata.jsonl"


def metadata_files(folder: Path) -> list[Path]:
    """The files of texts, of the folder and of each folder directly in it."""
    return [file for file in (folder / METADATA, *sorted(folder.glob(f"*/{METADATA}"))) if file.is_file()]


def read_texts(folder: Path, names: Sequence[str]) -> list[str] | None:
    """The text of each image of a folder, by its relative posix path; None when the folder has no texts.

    Raises:
        ValueError: a line is none of a file_name and a text, or an image has no text.
    """
    files = metadata_files(folder)
    if not files:
        return None
    texts: dict[str, str] = {}
    for name, text in chain.from_iterable(read_lines(folder, file) for file in files):
        if texts.setdefault(name, text) != text:
            raise ValueError(f"{folder / name}: metadata.jsonl gives it two texts; leave one")
    for name in names:
        if name not in texts:
            raise ValueError(f"{folder / name}: no line of metadata.jsonl gives its text; add one, or remove the image")
    return [texts[name] for name in names]


def read_lines(folder: Path, file: Path) -> Iterator[tuple[str, str]]:
    """Each image's path, relative to the folder, and its text."""
    for number, line in enumerate(file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, text = entry["file_name"], entry["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{file} line {number}: no JSON object with file_name and text; write {{"file_name": "1.png", "text": "..."}}'
            ) from error
        if not (isinstance(name, str) and isinstance(text, str)):
            raise ValueError(f"{file} line {number}: file_name and text are to be texts; correct them")
        if not all(map(is_whole, (name, text))):
            raise ValueError(f"{file} line {number}: holds half of a character (a surrogate); correct it")
        yield (file.parent.relative_to(folder) / name).as_posix(), text


def is_whole(text: str) -> bool:
    """Whether a text can be written; JSON can say half of a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
