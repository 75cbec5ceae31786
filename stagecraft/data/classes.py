"""Numbers of classes: what a class-conditional network's embedding is indexed by. Light: loads no NumPy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from textwrap import shorten

Classes = dict[str, int]  # class number by name

MAX_NUMBER = 2**63 - 1  # int64
MAX_EMBEDDINGS = 1_000_000


def number_classes(names: Iterable[str], folder: str) -> Classes:
    """Number class folders: names that are all whole numbers are the numbers, others count from 0 in their sorted order.

    Raises:
        ValueError: two names are one number, or a number is too large to store; `folder` opens the message.
    """
    ordered = sorted(names)
    if not all(map(is_number, ordered)):
        return {name: number for number, name in enumerate(ordered)}
    by_number: dict[int, str] = {}
    for name in ordered:
        other = by_number.setdefault(int(name), name)
        if other != name:
            raise ValueError(f"{folder}: class folders {other} and {name} are both class {int(name)}; merge them")
        if int(name) > MAX_NUMBER:
            raise ValueError(f"{folder}: class folder {name} is too large a class number; rename it")
    return {by_number[number]: number for number in sorted(by_number)}


def is_number(name: str) -> bool:
    """Whether the name of a class is a non-negative whole number."""
    return name.isascii() and name.isdigit()


def are_named(classes: Classes) -> bool:
    """Whether the names are more than numbers, so that the numbers follow from the order of the names alone."""
    return not all(map(is_number, classes))


def count_embeddings(classes: Classes) -> int:
    """How many embeddings a network for these classes has: one for each number up to the largest."""
    return max(classes.values()) + 1


def describe_missing(classes: Classes, present: set[int]) -> str | None:
    """One line about the classes that no image is of, `present` being the numbers that images have; None when there are none."""
    if are_named(classes):
        empty = [f"{name} ({number})" for name, number in classes.items() if number not in present]
        return f"class folders without images: {brief(empty)}" if empty else None
    gaps = [*gaps_between(sorted({*present, count_embeddings(classes)}))]
    return f"classes without images: {brief(gaps)}" if gaps else None


def gaps_between(numbers: list[int]) -> Iterator[str]:
    """The ranges of numbers from 0 on that are left out of `numbers`, ascending."""
    previous = -1
    for number in numbers:
        if number - previous > 1:
            first = previous + 1
            last = number - 1
            yield str(first) if first == last else f"{first} to {last}"
        previous = number


def brief(names: Iterable[str]) -> str:
    """Names on one line that is not too long."""
    return shorten(", ".join(names), 200, placeholder=" ...")


def check_trained(classes: Classes | None) -> int:
    """How many embeddings a class-conditional teacher trained for these classes has; ValueError when none can be trained."""
    if classes is None:
        raise ValueError(
            "train_teacher.class_conditional: true, but the images have no labels; give class sub-folders or set it to false"
        )
    if count_embeddings(classes) > MAX_EMBEDDINGS:
        raise ValueError(
            f"train_teacher.class_conditional: true, but the largest class number is {max(classes.values())}, and all up to it "
            "get an embedding; number the classes from 0 or set it to false"
        )
    return count_embeddings(classes)


def check_told(with_texts: bool, classes: Classes | None, names: Sequence[str] | None, template: str) -> Classes:
    """The classes that prompts are made of.

    Raises:
        ValueError: images have neither these nor texts, names are not as many, or the template has no place for one.
    """
    if with_texts:
        return classes or {}
    if classes is None:
        raise ValueError(
            "encode_prompts: the images have neither texts nor classes; give a metadata.jsonl, a metadata.csv or class "
            "sub-folders, or set source: none"
        )
    if names is not None and len(names) != len(classes):
        raise ValueError(f"encode_prompts.names: {len(names)} for {len(classes)} classes; give one for each")
    if template.count("{}") != 1:
        raise ValueError(
            f"encode_prompts.template: {template!r} has not one {{}}, which a class stands for; write it once"
        )
    return classes


def check_known(classes: Classes | None, known: int, where: str) -> None:
    """Raise ValueError unless the images' classes are those of a teacher with `known` of them.

    Args:
        where: what says how many, as `config.json: num_class_embeds is`; it opens messages.
    """
    says = f"{where} {known} but"
    if classes is None:
        raise ValueError(f"{says} the images have no labels; give class sub-folders or another teacher")
    if are_named(classes):
        check_names(classes, known, says)
    largest = max(classes, key=lambda name: classes[name])
    if classes[largest] >= known:
        raise ValueError(
            f"{says} the images have the class {largest}; give images of its classes 0 to {known - 1} or another teacher"
        )


def check_names(classes: Classes, known: int, says: str) -> None:
    """Raise ValueError unless named classes are all that a teacher knows, in an order that no number among them denies."""
    remedy = f"name the class folders by the teacher's class numbers, 0 to {known - 1}"
    if len(classes) != known:
        raise ValueError(
            f"{says} the images have {len(classes)} named classes ({brief(classes)}), which leaves open which they are; "
            f"{remedy}, or give all {known}"
        )
    for name, number in classes.items():
        if is_number(name) and int(name) != number:
            raise ValueError(f"{says} the class folder {name} is its class {number} in the order of names; {remedy}")
    for name, other in zip(classes, sorted(classes, key=split_numbers), strict=True):
        if name != other:
            raise ValueError(
                f"{says} whether {name} or {other} is its class {classes[name]} depends on whether names are sorted as text or "
                f"by the numbers in them; {remedy}"
            )


def split_numbers(name: str) -> list[tuple[int, str]]:
    """A key that sorts names by the numbers in them, class_2 before class_10."""
    return [(int(part), "") if is_number(part) else (-1, part) for part in re.split(r"([0-9]+)", name)]
