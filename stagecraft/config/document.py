"""What is written of the params' types: the JSON schema, and a page that lists all params.

python -m stagecraft.config.document   writes workflow/schemas/params.schema.yaml and docs/params.md
"""

import json
from collections.abc import Iterator
from typing import Any

from stagecraft.config.messages import WORDS, Schema, choices_of, description, flat, full_schema
from stagecraft.config.params import EXAMPLE, PROJECT, read_params
from stagecraft.config.sections import CHOICES

SCHEMA = PROJECT / "workflow" / "schemas" / "params.schema.yaml"
PAGE = PROJECT / "docs" / "params.md"
COMMAND = "python -m stagecraft.config.document"
HEAD = f"""# Params

All keys of `params.yaml`, section by section, with their defaults there; it has to hold them all. Written from
`stagecraft/config/sections.py` by `{COMMAND}`.
"""
TABLE = ("| key | value | default | what it does |", "| --- | --- | --- | --- |")
ABSENT = object()
LIMITS = {"minimum": "from {}", "exclusiveMinimum": "above {}", "maximum": "to {}", "exclusiveMaximum": "below {}"}
LENGTHS = {"minItems": "at least {}", "maxItems": "at most {}", "uniqueItems": "no two alike"}


def schema_text() -> str:
    """The JSON schema in YAML, for editors, a line for each model."""
    schema = shortened(full_schema())
    models = [f"  {name}: {json.dumps(model)}" for name, model in schema.pop("$defs").items()]
    rest = [f"{key}: {json.dumps(value)}" for key, value in schema.items()]
    return "\n".join([f"# Written by: {COMMAND}", *rest, "$defs:", *models]) + "\n"


def shortened(value: Any) -> Any:
    """A schema without the titles that pydantic makes of names, and each text on one line."""
    if isinstance(value, list):
        return [shortened(item) for item in value]
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items() if key != "title"}
    return " ".join(value.split()) if isinstance(value, str) else value


def page_text() -> str:
    """The page that lists all params."""
    defaults = read_params(EXAMPLE)
    plain = [name for name, value in defaults.items() if not isinstance(value, dict)]
    plain = [name for name, value in defaults.items() if not isinstance(value, dict)]
    lines = [HEAD, "## The whole run", "", *TABLE]
    lines += [row_of(name, full_schema()["properties"][name], defaults[name]) for name in plain]
    for section in [name for name in defaults if name not in plain]:
        lines += [
            "",
            f"## {section}",
            "",
            f"{description((section,))}.",
            "",
            *TABLE,
            *rows_of(section, defaults[section]),
        ]
    return "\n".join(lines) + "\n"


def rows_of(section: str, defaults: dict[str, Any]) -> Iterator[str]:
    """The rows of a section's keys, those of params.yaml first; one for each choice for which a key is another."""
    deciding = CHOICES[section].key if section in CHOICES else ""
    forms = [form["properties"] for form in flat([full_schema()["properties"][section]])]
    for key in dict.fromkeys([*defaults, *(key for form in forms for key in form)]):
        having: dict[str, list[Any]] = {}
        for form in [form for form in forms if key in form]:
            tags = choices_of(form[deciding]) if deciding else [""]
            having.setdefault(json.dumps(shortened(form[key])), []).extend(tags)
        for text, tags in having.items():
            label = key if len(having) == 1 and all(key in form for form in forms) else f"{key} ({', '.join(tags)})"
            default = defaults.get(key, ABSENT) if defaults.get(deciding, "") in tags else ABSENT
            yield row_of(key if key == deciding else label, json.loads(text), default)


def row_of(label: str, schema: Schema, default: Any) -> str:
    """A row of a table."""
    values = ", ".join(value_text(form) for form in flat([schema]))
    shown = "" if default is ABSENT else f"`{json.dumps(default)}`"
    return f"| `{label}` | {values} | {shown} | {' '.join(schema['description'].split())} |"


def value_text(form: Schema) -> str:
    """Which values a form admits."""
    if choices := choices_of(form):
        return ", ".join("`null`" if choice is None else f"`{choice}`" for choice in choices)
    text = WORDS[form["type"]].removeprefix("a ")
    if "items" in form:
        text += f" of {', '.join(value_text(item) for item in flat([form['items']]))}"
    limits = [words.format(form[key]) for key, words in {**LIMITS, **LENGTHS}.items() if key in form]
    return f"{text}, {' '.join(limits)}" if limits else text


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
    PAGE.write_text(page_text(), encoding="utf-8")
