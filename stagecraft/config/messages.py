"""What is wrong with params, in one line: the key, the value, and what to do."""

import difflib
import json
import math
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stagecraft.config.sections import CHOICES, Everything

Schema = dict[str, Any]
Path = tuple[int | str, ...]

WORDS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
WORDS |= {"array": "a list", "object": "a section of keys", "null": "null"}
UNKNOWN = ("extra_forbidden", "invalid_key")


def first_problem(error: ValidationError, params: Any) -> str:
    """`key: what is wrong` for the first error: an unknown key, as a misspelt one is also missing, then a whole section."""
    errors = sorted(
        error.errors(include_url=False), key=lambda one: (one["type"] not in UNKNOWN, len(place_of(one)) > 1)
    )
    first = errors[0]
    place = place_of(first)[:2]
    forms = forms_at(place)
    if place_of(first) == place or len(forms) < 2:
        return describe(first, params)
    # Of a value that may be of several forms, that which it comes nearest to.
    rivals = [one for one in errors if place_of(one)[:2] == place]
    nearest = max(rivals, key=lambda one: (len(path_of(one, params)), not is_other_form(one)))
    if not is_other_form(nearest) or len(path_of(nearest, params)) > 2:
        return describe(nearest, params)
    plain = not any(choices_of(form) for form in forms)
    sentence = f"is not {type_name(forms)}" if plain else f"is not allowed: {description(place)}"
    return f"{key_name(place)}: {show(nearest['input'])} {sentence}"


def is_other_form(error: ErrorDetails) -> bool:
    """Whether a value is of another type or no choice."""
    return error["type"].endswith("_type") or error["type"] == "literal_error"


def describe(error: ErrorDetails, params: Any) -> str:
    """`key: what is wrong` for one error."""
    kind = error["type"]
    value = error["input"]
    given = error.get("ctx", {})
    path = path_of(error, params)
    if kind == "value_error":
        return f"{key_name(path)}: {show(value)} {given['error']}" if path else str(given["error"])
    if kind.startswith("union_tag"):
        key = given["discriminator"].strip("'")
        path = (*path, key)
        value = value.get(key)
    if kind in UNKNOWN:
        sentence = why_unknown(path, params)
    elif kind in ("missing", "union_tag_not_found"):
        sentence = f"missing; add it{needed_by(path, params)} ({description(path)})"
    elif kind in ("none_required", "string_type") and path[-1] == "path" and (value is None or kind == "none_required"):
        sentence = why_no_path(path, params, value)
    else:
        sentence = f"{show(value)} {describe_value(kind, value, forms_at(path), [*given.values()])}"
    return f"{key_name(path)}: {sentence}"


def describe_value(kind: str, value: Any, forms: list[Schema], given: list[Any]) -> str:
    """What is wrong with a value of which the schema allows some forms, and which is beyond the first limit given."""
    limit = next((size for size in given if isinstance(size, int | float)), 0)
    sentences = {
        "literal_error": f"is unknown, {offer(choice for form in forms for choice in choices_of(form))}",
        "greater_than_equal": f"is too small, the least is {limit:g}",
        "less_than_equal": f"is too large, the most is {limit:g}",
        "greater_than": f"is too small, it must be above {limit:g}",
        "less_than": f"is too large, it must be below {limit:g}",
        "too_short": f"is too short, the least length is {limit:g}",
        "too_long": f"is too long, the greatest length is {limit:g}",
        "string_too_short": "is empty; fill it in",
    }
    sentences["union_tag_invalid"] = sentences["literal_error"]
    return sentences.get(kind, f"is not {type_name(forms)}{as_number(value, forms)}")


def why_unknown(path: Path, params: Any) -> str:
    """Why a key is none: it belongs to another choice, or to none."""
    *section, key = path
    known = [name for form in forms_at(tuple(section)) for name in form.get("properties", {})]
    if key in known:
        choice = CHOICES[str(section[0])].key
        return f"unused by {choice} {params[section[0]][choice]}; remove it"
    return f"unknown key, {suggest(key, dict.fromkeys(known))}"


def needed_by(path: Path, params: Any) -> str:
    """Which choice needs a key, when others do not."""
    choice = CHOICES.get(str(path[0])) if len(path) > 1 else None
    if choice is None or all(path[1] in member.model_fields for member in choice.members.values()):
        return ""
    return f", as {choice.key} {params[path[0]][choice.key]} needs it"


def why_no_path(path: Path, params: Any, value: Any) -> str:
    """Why a path is not for the source that was chosen."""
    choice = CHOICES[str(path[0])]
    source = params[path[0]]["source"]
    if value is None:
        return f"null, but source {source} needs one; set it"
    others = [tag for tag, member in choice.members.items() if member.model_fields["path"].annotation is not type(None)]
    return f"{show(value)} is unused by source {source}; set source to {' or '.join(others)}, or path to null"


# --- What the schema says ---


@cache
def full_schema() -> Schema:
    """The JSON schema of all params."""
    return Everything.model_json_schema()


def schemas_at(path: Path) -> list[Schema]:
    """What the schema says of the value at a path, once for each choice that has it."""
    forms_at = [full_schema()]
    for part in path:
        forms = [*flat(forms_at)]
        names = ["items"] if isinstance(part, int) else ["properties", part]
        forms_at = [inner for form in forms if (inner := look_up(form, names)) is not None]
    return forms_at


def look_up(schema: Schema, names: list[Any]) -> Any:
    """The value under names, one within the other; None where there is none."""
    value: Any = schema
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def flat(schemas: Iterable[Schema]) -> Iterator[Schema]:
    """Schemas with each of their alternatives by itself."""
    for schema in schemas:
        inner = schema.get("anyOf") or schema.get("oneOf")
        if "$ref" in schema:
            inner = [full_schema()["$defs"][schema["$ref"].rpartition("/")[2]]]
        yield from flat(inner) if inner else [schema]


def forms_at(path: Path) -> list[Schema]:
    """The forms that the value at a path may have."""
    return [*flat(schemas_at(path))]


def choices_of(form: Schema) -> list[Any]:
    """The values that a form lists."""
    return form.get("enum", [form["const"]] if "const" in form else [None] if form.get("type") == "null" else [])


def description(path: Path) -> str:
    """What a key or section does, without the full stop."""
    texts = [schema["description"] for schema in [*schemas_at(path), *forms_at(path)] if "description" in schema]
    return " ".join(texts[0].split()).rstrip(".")


# --- Words ---


def place_of(error: ErrorDetails) -> Path:
    """Where pydantic says that an error is, without the name of what a section chose."""
    loc = error["loc"]
    return (loc[0], *loc[2:]) if len(loc) > 1 and loc[0] in CHOICES else loc


def path_of(error: ErrorDetails, params: Any) -> Path:
    """Where an error is: pydantic's place without the names of alternatives."""
    path: list[int | str] = []
    value = params
    for number, part in enumerate(place_of(error), start=1):
        names_key = number == len(place_of(error)) and error["type"] in ("missing", *UNKNOWN)
        if (
            names_key
            or (isinstance(value, dict) and part in value)
            or (isinstance(value, list) and isinstance(part, int))
        ):
            path.append(part)
            value = None if names_key else value[part]
    return tuple(path)


def key_name(path: Iterable[Any]) -> str:
    """A path as text: section.key[index]."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return " ".join(text.removeprefix(".").split()) or "params"


def suggest(name: Any, known: Iterable[str]) -> str:
    """A question with the closest known name, or all known names."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]}?" if close else offer(known)


def offer(values: Iterable[Any]) -> str:
    """The values that may be used."""
    names = ["null" if value is None else str(value) for value in values]
    return f"use {'one of ' if len(names) > 1 else ''}{', '.join(names)}"


def show(value: Any) -> str:
    """A value as the user would write it, on one line and not too long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = text if text.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def type_name(forms: list[Schema]) -> str:
    """Types of JSON in plain words."""
    return " or ".join(dict.fromkeys(WORDS[form["type"]] for form in forms))


def as_number(value: Any, forms: list[Schema]) -> str:
    """A hint for 1e-3, which is text in YAML, and for 3.0 where a whole number is wanted."""
    wanted = {form["type"] for form in forms}
    try:
        number = float(value) if isinstance(value, str | float) else math.nan
    except ValueError:
        number = math.nan
    if number.is_integer() and {"integer", "number"} & wanted:
        return f"; write {int(number)}"
    return f"; write {number}" if math.isfinite(number) and "number" in wanted else ""
