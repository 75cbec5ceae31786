"""Messages about invalid params, in one line: the key, the value, and what to do."""

import difflib
import json
import math
from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stagecraft.config.sections import CHOICES, Everything

Schema = dict[str, Any]  # a JSON schema, or one of the forms that it allows
Path = tuple[int | str, ...]

WORDS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
WORDS |= {"array": "a list", "object": "a section of keys", "null": "null"}
UNKNOWN = ("extra_forbidden", "invalid_key")
LIMITS = {
    "greater_than_equal": "is too small, the minimum is",
    "less_than_equal": "is too large, the maximum is",
    "greater_than": "is too small, it must be above",
    "less_than": "is too large, it must be below",
    "too_short": "is too short, the minimum length is",
    "too_long": "is too long, the maximum length is",
}


def first_problem(error: ValidationError, params: Any) -> str:
    """`key: what is wrong` for the first error: an unknown key, as a misspelt one is also missing, then a whole section."""
    errors = error.errors(include_url=False)
    errors.sort(key=lambda one: (one["type"] not in UNKNOWN, len(one["loc"]) > 1))
    place = path_of(errors[0], params)[:2]
    rivals = [one for one in errors if path_of(one, params)[:2] == place]
    # Of a value that may be of several forms, that which it comes nearest to.
    nearest = max(rivals, key=lambda one: (len(path_of(one, params)), not is_other_form(one)))
    path = path_of(nearest, params)
    if len(rivals) > 1 and path == place and is_other_form(nearest):
        return f"{key_name(place)}: {show(nearest['input'])} {problem_of_forms(forms_at(place))}"
    return f"{key_name(path)}: {problem_of_value(nearest, path, params)}" if path else str(nearest["ctx"]["error"])


def path_of(error: ErrorDetails, params: Any) -> Path:
    """Where an error is: pydantic's place without the names of alternatives."""
    place = error["loc"]
    if place and place[0] in CHOICES:
        place = (place[0], *place[2:])
    kind = error["type"]
    if kind.startswith("union_tag"):
        return (*place, CHOICES[str(place[0])].key)
    named = 1 if kind in ("missing", *UNKNOWN) else 0
    path: list[int | str] = []
    value: Any = params
    for part in place[: len(place) - named]:
        known = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if part in known:
            path.append(part)
            value = value[part]
    return (*path, *place[len(place) - named :])


def is_other_form(error: ErrorDetails) -> bool:
    """Whether a value is of another type or no choice."""
    return error["type"].endswith("_type") or error["type"] == "literal_error"


def problem_of_forms(forms: list[Schema]) -> str:
    """Why a value is none of several forms."""
    if any(choices_of(form) for form in forms):
        return f"is not allowed: {description(forms)}"
    return f"is not {type_name(forms)}"


def problem_of_value(error: ErrorDetails, path: Path, params: Any) -> str:
    """The fault of the value at a path."""
    kind = error["type"]
    given = error.get("ctx", {})
    forms = forms_at(path)
    value = error["input"]
    if kind in UNKNOWN:
        return why_unknown(path, params)
    if kind in ("missing", "union_tag_not_found"):
        return f"missing; add it{needed_by(path, params)} ({description(forms)})"
    if path[-1] == "path" and (kind == "none_required" or (kind == "string_type" and value is None)):
        return why_no_path(path, params, value)
    if kind == "union_tag_invalid":
        value = value[path[-1]]
    if kind == "value_error":
        return f"{show(value)} {given['error']}"
    if kind in LIMITS:
        limit = next(size for size in given.values() if isinstance(size, int | float))
        return f"{show(value)} {LIMITS[kind]} {limit:g}"
    if kind == "string_too_short":
        return f"{show(value)} is empty; fill it in"
    if kind in ("literal_error", "union_tag_invalid"):
        return f"{show(value)} is unknown, {offer(choice for form in forms for choice in choices_of(form))}"
    return f"{show(value)} is not {type_name(forms)}{as_number(value, forms)}"


def why_unknown(path: Path, params: Any) -> str:
    """Why a key is none: it belongs to another choice, or to none."""
    *section, key = path
    known = {name: None for form in forms_at(tuple(section)) for name in form.get("properties", {})}
    if key in known:
        choice = CHOICES[str(section[0])].key
        return f"unused by {choice} {params[section[0]][choice]}; remove it"
    return f"unknown key, {suggest(key, known)}"


def needed_by(path: Path, params: Any) -> str:
    """Which choice needs a key, when others do not."""
    choice = CHOICES.get(str(path[0])) if len(path) > 1 else None
    if choice is None or all(path[1] in member.model_fields for member in choice.members.values()):
        return ""
    return f", as {choice.key} {params[path[0]][choice.key]} needs it"


def why_no_path(path: Path, params: Any, value: Any) -> str:
    """Why a path is not for the source that was chosen."""
    source = params[path[0]]["source"]
    if value is None:
        return f"null, but source {source} needs one; set it"
    members = CHOICES[str(path[0])].members.items()
    others = [tag for tag, member in members if member.model_fields["path"].annotation is not type(None)]
    return f"{show(value)} is unused by source {source}; set source to {' or '.join(others)}, or path to null"


@cache
def full_schema() -> Schema:
    """The JSON schema of all params."""
    return Everything.model_json_schema()


def flat(schema: Schema) -> list[Schema]:
    """The forms that a schema allows, each with what is said of the whole."""
    inner = schema.get("anyOf") or schema.get("oneOf") or []
    if "$ref" in schema:
        inner = [full_schema()["$defs"][schema["$ref"].rpartition("/")[2]]]
    said = {"description": schema["description"]} if "description" in schema else {}
    return [form | said for one in inner for form in flat(one)] or [schema]


def forms_at(path: Path) -> list[Schema]:
    """The forms that the value at a path may have, in each choice that has it."""
    forms = flat(full_schema())
    for part in path:
        inner = [form.get("items") if isinstance(part, int) else form.get("properties", {}).get(part) for form in forms]
        forms = [form for schema in inner if schema for form in flat(schema)]
    return forms


def choices_of(form: Schema) -> list[Any]:
    """The values that a form lists."""
    return form.get("enum", [form["const"]] if "const" in form else [None] if form.get("type") == "null" else [])


def description(forms: list[Schema]) -> str:
    """The description of a key or section, without the full stop."""
    return str(forms[0]["description"]).rstrip(".")


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
