"""A folder of image files: which files are read, their classes, and splits that lie in folders of their own. Light: no NumPy."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from stagecraft.data.classes import are_named, brief, describe_missing, number_classes
from stagecraft.data.images import Contents

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp")
# Endings of what lies beside images and is none; all other files that are not read are counted and named.
TEXTS = (
    ".txt",
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".xml",
    ".yaml",
    ".yml",
    ".md",
    ".rst",
    ".html",
    ".htm",
    ".pdf",
    ".tex",
)
COMPANIONS = frozenset(
    (*TEXTS, ".py", ".ipynb", ".sh", ".log", ".ini", ".cfg", ".toml", ".db", ".md5", ".sha256", ".dvc")
)
DOCUMENTS = frozenset(("README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CHANGELOG", "MAKEFILE"))
NO_SUFFIX = "without an ending"
HIDDEN = (".", "__MACOSX")
# Folder names of splits in lower case, by what the split is for.
SPLITS = {
    "train": ("train", "training", "trainval"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
    "eval": ("eval", "evaluation"),
    "dev": ("dev", "development"),
}
SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
HELD_OUT = ("test", "val", "eval", "dev")  # the first of these that is there is held out
# Words beside that of the split, as in training_set, train_images, val2017 and train_32x32; numbers are too.
FILLERS = frozenset(("set", "data", "dataset", "image", "images", "img", "imgs", "split", "x"))


@dataclass(frozen=True)
class Listing:
    """The files and folders below a folder, without hidden ones.

    Args:
        files: (posix path relative to `folder`, entry) of the images that are read, sorted by the path.
        folders: relative posix paths of all folders, sorted.
        left_out: number of files, perhaps images of other kinds, by their ending.
    """

    folder: Path
    files: list[tuple[str, os.DirEntry[str]]]
    folders: list[str]
    left_out: dict[str, int]

    @property
    def names(self) -> list[str]:
        """Relative paths of the images that are read."""
        return [name for name, _ in self.files]

    def filled_folders(self) -> set[str]:
        """The folders below which images are read."""
        filled: set[str] = set()
        for folder in {name.rpartition("/")[0] for name in self.names}:
            while folder and folder not in filled:
                filled.add(folder)
                folder = folder.rpartition("/")[0]
        return filled

    def empty_folders(self) -> list[str]:
        """The folders below which no image is read, sorted."""
        return sorted({*self.folders} - self.filled_folders())

    def below(self, prefix: str) -> list[str]:
        """Names of the folders directly below `prefix`, which is empty or ends with a slash."""
        inside = [folder.removeprefix(prefix) for folder in self.folders if folder.startswith(prefix)]
        return [name for name in inside if "/" not in name]


@dataclass(frozen=True)
class FolderLayout:
    """The images of a folder that are used, as relative posix paths in the order of their rows, and what they are."""

    names: list[str]
    contents: Contents


def list_folder(folder: Path) -> Listing:
    """List a folder and all below it; ValueError when it holds no images, or what cannot be followed."""
    files: list[tuple[str, os.DirEntry[str]]] = []
    folders: list[str] = []
    left_out: Counter[str] = Counter()
    pending = [("", str(folder), {os.path.realpath(folder)})]
    while pending:
        prefix, current, above = pending.pop()
        with os.scandir(current) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith(HIDDEN):
                    continue
                if entry.is_dir():
                    folders.append(prefix + entry.name)
                    pending.append((f"{prefix}{entry.name}/", entry.path, above | {checked_folder(entry.path, above)}))
                elif suffix in SUFFIXES:
                    files.append((prefix + entry.name, checked_file(entry)))
                elif suffix not in COMPANIONS and entry.name.upper() not in DOCUMENTS:
                    left_out[suffix or NO_SUFFIX] += 1
    if not files:
        raise ValueError(f"{folder}: {without_images(left_out)}")
    return Listing(folder, sorted(files, key=lambda item: item[0]), sorted(folders), dict(sorted(left_out.items())))


def without_images(left_out: dict[str, int]) -> str:
    """The message for a folder in which nothing can be read."""
    if left_out:
        return f"holds no images that can be read, only {count_by_suffix(left_out)}; convert them to PNG, JPEG or WebP"
    return "holds no images; put PNG, JPEG or WebP files there or correct prepare_data.path"


def count_by_suffix(left_out: dict[str, int]) -> str:
    """Numbers of files by their endings, on one line."""
    return brief(f"{count} {suffix}" for suffix, count in sorted(left_out.items()))


def checked_folder(path: str, above: set[str]) -> str:
    """Return the real path of a folder that is not among those it lies in, as a link back would be read without end."""
    real = os.path.realpath(path)
    if real in above:
        raise ValueError(f"{path}: is a link to a folder that it lies in; remove it")
    return real


def checked_file(entry: os.DirEntry[str]) -> os.DirEntry[str]:
    """Return an entry that is a file; opening a pipe would wait for ever."""
    if not entry.is_file():
        raise ValueError(f"{entry.path}: is no file, or a link to none; remove it")
    return entry


# --- Classes and splits ---


def read_layout(folder: Path) -> FolderLayout:
    """Find the classes and splits of a folder by the names of what lies in it.

    First-level folders are classes; when all that hold images are well-known splits (`train`, `test`, ...), the second-level
    folders are, and the first of the splits in `HELD_OUT` is held out. Images at the top level have no labels, nor have those
    of a single class folder whose name is no number.

    Raises:
        ValueError: the folder holds no images, or they can be understood in two ways.
    """
    listing = list_folder(folder)
    check_nested_splits(listing)
    splits = find_splits(listing)
    layout = split_layout(listing, splits) if splits else whole_layout(listing)
    return add_notes(layout, note_left_out(listing))


def add_notes(layout: FolderLayout, *notes: str | None) -> FolderLayout:
    """The layout with more notes; None adds none."""
    more = tuple(note for note in notes if note is not None)
    return replace(layout, contents=replace(layout.contents, notes=layout.contents.notes + more))


def note_left_out(listing: Listing) -> str | None:
    """A line about the files that are not read, if there are any."""
    if not listing.left_out:
        return None
    return f"left out: {count_by_suffix(listing.left_out)}; convert them to PNG, JPEG or WebP to have them read"


def read_split(name: str) -> tuple[str | None, list[str]]:
    """The split that one word of a folder's name is, None for none or several, and the words that say something else."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]+", name)]
    splits = [SPLIT_OF.get(word, SPLIT_OF.get(word.removesuffix("set"))) for word in words]
    rest = [word for word, split in zip(words, splits, strict=True) if not (split or word in FILLERS or word.isdigit())]
    known = [split for split in splits if split is not None]
    return (known[0] if len(known) == 1 else None), rest


def name_splits(folders: list[str]) -> dict[str, str]:
    """The split that each of these sibling folders is, where it is one.

    Names that are well known are splits. Those that hold such a word among others are when one of them is to train on: with
    words that say nothing, or where all folders have the other words in common, as in cars_train and cars_test.
    """
    exact = {name: SPLIT_OF[name.lower()] for name in folders if name.lower() in SPLIT_OF}
    read = {name: read_split(name) for name in folders}
    plain = {name: split for name, (split, rest) in read.items() if split is not None and not rest}
    alike = {name: split for name, (split, _) in read.items() if split is not None}
    if len(alike) == len(folders) > 1 and all(rest == read[folders[0]][1] for _, rest in read.values()):
        plain = alike
    return exact | plain if "train" in plain.values() and len(plain) > 1 else exact


def check_nested_splits(listing: Listing) -> None:
    """Raise ValueError when a folder below the first level holds splits, as test images would be trained on."""
    inside: dict[str, list[str]] = {}
    for path in sorted(listing.filled_folders()):
        parent, _, name = path.rpartition("/")
        inside.setdefault(parent, []).append(name)
    inside.pop("", None)
    for parent, names in inside.items():
        splits = [*name_splits(names)]
        if len(splits) > 1 or splits == names:
            raise ValueError(
                f"{listing.folder}: splits ({brief(splits)}) lie inside {parent}; set prepare_data.path: "
                f"{listing.folder / parent} to use them alone, or make the splits the first level ({splits[0]}/{parent})"
            )


def check_one_set(folder: Path, names: list[str]) -> None:
    """Raise ValueError when all folders are splits by a word in their names, and by the others of several sets."""
    splits = [read_split(name)[0] for name in names]
    if len(names) > 1 and "train" in splits and None not in splits:
        raise ValueError(
            f"{folder}: holds splits of several sets ({brief(names)}); name them train and test, with class folders in them, or "
            "rename them if they are classes"
        )


def find_splits(listing: Listing) -> dict[str, str]:
    """The first-level folders that are splits, by what they are for; none when there are none."""
    filled = sorted({name.split("/")[0] for name in listing.names})
    named = {name: SPLIT_OF[name.lower()] for name in listing.below("") if name.lower() in SPLIT_OF} | name_splits(
        filled
    )
    if any("/" not in name for name in listing.names):
        return {}
    if not named:
        check_one_set(listing.folder, filled)
        return {}
    others = sorted({*filled} - {*named})
    if others:
        raise ValueError(
            f"{listing.folder}: splits ({brief(named)}) lie beside other folders with images ({brief(others)}); move the others "
            "away, or rename the splits if they are classes"
        )
    splits: dict[str, str] = {}
    for name, split in sorted(named.items()):
        other = splits.setdefault(split, name)
        if other != name:
            raise ValueError(
                f"{listing.folder}: {other} and {name} are both the split {split}; merge them, or rename them if they are classes"
            )
    if "train" not in splits:
        raise ValueError(
            f"{listing.folder}: holds splits ({brief(named)}) but none to train on; rename one train, or set "
            f"prepare_data.path: {listing.folder / next(iter(named))} to use its images alone"
        )
    return splits


def whole_layout(listing: Listing, prefix: str = "") -> FolderLayout:
    """All images below `prefix`, in classes or not."""
    names = [name for name in listing.names if name.startswith(prefix)]
    folders = class_folders(listing, prefix)
    if folders is None:
        return FolderLayout(names, Contents(len(names)))
    classes = number_classes(listing.below(prefix), str(listing.folder / prefix))
    if len(classes) == 1 and are_named(classes):
        return FolderLayout(names, Contents(len(names), notes=note_single_class(listing, f"{prefix}{folders[0]}")))
    labels = [classes[name] for name in folders]
    return add_notes(FolderLayout(names, Contents(len(names), labels, classes)), describe_missing(classes, {*labels}))


def note_single_class(listing: Listing, folder: str) -> tuple[str, ...]:
    """A line about folders below a single class folder, which are no classes, if there are any."""
    if not listing.below(f"{folder}/"):
        return ()
    place = listing.folder / folder
    return (
        f"{folder} is the only class folder, so images have no labels; set prepare_data.path: {place} for classes in it",
    )


def class_folders(listing: Listing, prefix: str) -> list[str] | None:
    """The class folder of each image below `prefix`; None when they lie in none."""
    names = [name.removeprefix(prefix) for name in listing.names if name.startswith(prefix)]
    top = next((name for name in names if "/" not in name), None)
    nested = next((name for name in names if "/" in name), None)
    if top is not None and nested is not None:
        raise ValueError(
            f"{listing.folder / prefix}: images lie at the top level ({top}) and in class folders ({nested}); "
            "use one or the other"
        )
    return [name.split("/")[0] for name in names] if top is None else None


def split_layout(listing: Listing, splits: dict[str, str]) -> FolderLayout:
    """The images of the split to train on, followed by those of the split that is held out."""
    train = splits["train"]
    held_out = next((splits[split] for split in HELD_OUT if split in splits), None)
    counts = {name: sum(path.startswith(f"{name}/") for path in listing.names) for name in splits.values()}
    for name in (train, held_out):
        if name is not None and not counts[name]:
            raise ValueError(
                f"{listing.folder / name}: a split that holds no images; put PNG, JPEG or WebP files there"
            )
    layout = whole_layout(listing, f"{train}/")
    if held_out is None:
        return add_notes(
            layout, f"all images are those of {train}/, of which prepare_data.held_out says the share to hold out"
        )
    return add_notes(hold_out(listing, layout, train, held_out), note_split(counts, train, held_out))


def note_split(counts: dict[str, int], train: str, held_out: str) -> str:
    """A line about what becomes of each split, `counts` images of each."""
    rest = [f"{name}/ ({count} images)" for name, count in counts.items() if name not in (train, held_out)]
    line = f"held out: {held_out}/ ({counts[held_out]} images), so prepare_data.held_out is not used"
    return f"{line}; left out: {brief(rest)}" if rest else line


def hold_out(listing: Listing, layout: FolderLayout, train: str, held_out: str) -> FolderLayout:
    """A layout of the split to train on with the images of another split behind, held out."""
    known = class_folders(listing, f"{train}/")
    others = class_folders(listing, f"{held_out}/")
    if (known is None) != (others is None):
        with_classes, without = (train, held_out) if others is None else (held_out, train)
        raise ValueError(
            f"{listing.folder}: images lie in class folders in {with_classes} but not in {without}; use one or the other, or set "
            f"prepare_data.path: {listing.folder / train} to hold out a share of its images"
        )
    if unknown := sorted({*(others or [])} - {*(known or [])}):
        raise ValueError(
            f"{listing.folder / held_out / unknown[0]}: a class without images in {train}; put some there or remove it"
        )
    contents = layout.contents
    names = [name for name in listing.names if name.startswith(f"{held_out}/")]
    labels = contents.labels
    classes = contents.classes
    if classes is not None and labels is not None and others is not None:
        labels = [*labels, *(classes[name] for name in others)]
    count = contents.count + len(names)
    both = replace(contents, count=count, labels=labels, held_out=range(contents.count, count))
    return FolderLayout([*layout.names, *names], both)
