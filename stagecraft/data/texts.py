"""Texts of images, as Hugging Face's imagefolder has them: metadata.jsonl or metadata.csv beside the images or their splits.

Light: no NumPy.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

METADATA = ("metadata.jsonl", "metadata.csv")
EXAMPLES = {
    ".jsonl": 'a JSON object, {"file_name": "1.png", "text": "..."}',
    ".csv": 'columns, "file_name,text" in line 1, and quote texts with commas',
}


def metadata_files(folder: Path) -> list[Path]:
    """The files of texts, of the folder and of each folder directly in it."""
    return [file for name in METADATA for file in (folder / name, *sorted(folder.glob(f"*/{name}"))) if file.is_file()]


def read_texts(folder: Path, names: Sequence[str]) -> list[str] | None:
    """The text of each image of a folder, by its relative posix path; None when the folder has no texts.

    Raises:
        ValueError: a line gives no file_name and text, or an image has no text.
    """
    entries = {file: list((read_csv if file.suffix == ".csv" else read_json)(file)) for file in metadata_files(folder)}
    # Such files may hold other things alone, as classes.
    telling = [file for file in entries if any(not isinstance(one, dict) or "text" in one for _, one in entries[file])]
    if not telling:
        return None
    texts: dict[str, str] = {}
    for name, text in chain.from_iterable(check_lines(folder, file, entries[file]) for file in telling):
        if texts.setdefault(name, text) != text:
            raise ValueError(f"{folder / name}: {' or '.join(METADATA)} gives it two texts; leave one")
    for name in names:
        if name not in texts:
            files = " or ".join(sorted({file.name for file in telling}))
            raise ValueError(f"{folder / name}: no line of {files} gives its text; add one, or remove the image")
    return [texts[name] for name in names]


def check_lines(folder: Path, file: Path, entries: Iterable[tuple[int, object]]) -> Iterator[tuple[str, str]]:
    """Each image's path, relative to the folder, and its text."""
    for number, entry in entries:
        name, text = (entry.get(key) if isinstance(entry, dict) else None for key in ("file_name", "text"))
        if not (isinstance(name, str) and isinstance(text, str)):
            raise ValueError(f"{file} line {number}: no file_name and text; write them as {EXAMPLES[file.suffix]}")
        if not all(map(is_whole, (name, text))):
            raise ValueError(f"{file} line {number}: holds half of a character (a surrogate); correct it")
        yield (file.parent.relative_to(folder) / name).as_posix(), text


def read_json(file: Path) -> Iterator[tuple[int, object]]:
    """The lines of a file of JSON, by their numbers; None for one that is not JSON."""
    for number, line in enumerate(file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def read_csv(file: Path) -> Iterator[tuple[int, object]]:
    """The rows of a table, by the numbers of their last lines; None for one of more cells than columns."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines, strict=True)
            columns = rows.fieldnames or ()
            if len({*columns}) < len(columns):
                raise ValueError(f"{file} line 1: a column stands there twice; rename one")
            for row in rows:
                yield rows.line_num, None if None in row else row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: no table in UTF-8: {error}") from error


def is_whole(text: str) -> bool:
    """Whether a text can be written; JSON can say half of a character."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
