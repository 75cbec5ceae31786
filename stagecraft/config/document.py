"""Documents generated from the params' types: the JSON schema, and a page that lists all params.

python -m stagecraft.config.document   writes workflow/schemas/params.schema.yaml and docs/params.md
"""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from stagecraft.config.messages import WORDS, Schema, choices_of, flat, full_schema
from stagecraft.config.params import EXAMPLE, PROJECT, Params, read_params
from stagecraft.config.sections import CHOICES

SCHEMA = PROJECT / "workflow" / "schemas" / "params.schema.yaml"
PAGE = PROJECT / "docs" / "params.md"
COMMAND = "python -m stagecraft.config.document"
HEAD = f"""# Params

All keys of `params.yaml`, section by section, with their defaults there; it has to hold them all. Written from
`stagecraft/config/sections.py` by `{COMMAND}`.
"""
TABLE = ("| key | value | default | what it does |", "| --- | --- | --- | --- |")
LIMITS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}"}
LIMITS |= {"minItems": "at least {}", "maxItems": "at most {}", "uniqueItems": "no two alike"}


def schema_text() -> str:
    """The JSON schema in YAML, for editors, a line for each model."""
    schema = untitled(full_schema())
    models = [f"  {name}: {json.dumps(model)}" for name, model in schema.pop("$defs").items()]
    rest = [f"{key}: {json.dumps(value)}" for key, value in schema.items()]
    return "\n".join([f"# Written by: {COMMAND}", *rest, "$defs:", *models]) + "\n"


def untitled(value: Any) -> Any:
    """A schema without the titles that pydantic makes of names."""
    if isinstance(value, list):
        return [untitled(item) for item in value]
    if isinstance(value, dict):
        return {key: untitled(item) for key, item in value.items() if key != "title"}
    return value


def page_text() -> str:
    """The page that lists all params."""
    defaults = read_params(EXAMPLE)
    plain = {name: value for name, value in defaults.items() if not isinstance(value, dict)}
    lines = [HEAD, "## The whole run", "", *TABLE, *rows_of([{name: schema_of(name) for name in plain}], "", plain)]
    for section in [name for name in defaults if name not in plain]:
        models = [form["properties"] for form in flat(schema_of(section))]
        deciding = CHOICES[section].key if section in CHOICES else ""
        rows = rows_of(models, deciding, defaults[section])
        lines += ["", f"## {section}", "", schema_of(section)["description"], "", *TABLE, *rows]
    return "\n".join(lines) + "\n"


def schema_of(name: str) -> Schema:
    """The schema of a section or single value."""
    return full_schema()["properties"][name]


def rows_of(models: list[dict[str, Schema]], deciding: str, defaults: Params) -> Iterator[str]:
    """The rows of all keys, those that have defaults first; one for each choice for which a key is another."""
    for key in dict.fromkeys([*defaults, *chain.from_iterable(models)]):
        having: dict[tuple[str, str], list[Any]] = {}
        for model in [model for model in models if key in model]:
            cells = (", ".join(map(value_text, flat(model[key]))), model[key]["description"])
            having.setdefault(cells, []).extend(choices_of(model[deciding]) if deciding else [""])
        same = key == deciding or (len(having) == 1 and all(key in model for model in models))
        for (values, said), tags in having.items():
            label = key if same else f"{key} ({', '.join(tags)})"
            known = key in defaults and defaults.get(deciding, "") in tags
            yield f"| `{label}` | {values} | {f'`{json.dumps(defaults[key])}`' if known else ''} | {said} |"


def value_text(form: Schema) -> str:
    """Which values a form admits."""
    if choices := choices_of(form):
        return ", ".join("`null`" if choice is None else f"`{choice}`" for choice in choices)
    text = WORDS[form["type"]].removeprefix("a ")
    if "items" in form:
        text += f" of {', '.join(map(value_text, flat(form['items'])))}"
    limits = [words.format(form[key]) for key, words in LIMITS.items() if key in form]
    return f"{text}, {' '.join(limits)}" if limits else text


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    PAGE.write_text(page_text(), encoding="utf-8")
