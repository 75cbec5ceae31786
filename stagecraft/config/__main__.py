"""Print params.yaml with presets laid over it, its comments kept: for `dvc repro`, which reads params.yaml alone.

python -m stagecraft.config presets/edm.yaml presets/smoke.yaml [--output params.yaml]
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from stagecraft.config.params import Params
from stagecraft.preflight.params import load_over

LINE = re.compile(r"(?P<start> *(?P<key>\w+):)(?: (?P<value>.*?))?(?P<comment> +#.*)?\n?")


def with_values(text: str, params: Params) -> str:
    """The text of a params file with other values; comments stay, keys that the params lack go, others end their section."""
    head, *sections = re.split(r"^(?=\w+:)", text, flags=re.MULTILINE)
    return head + "".join("".join(lines_of(section.splitlines(keepends=True), params)) for section in sections)


def lines_of(lines: list[str], params: Params) -> Iterator[str]:
    """The lines of a section, or of a key outside of all, with other values."""
    section = lines[0].partition(":")[0]
    left = dict(params[section]) if isinstance(params[section], dict) else {section: params[section]}
    for line in [*lines, ""]:
        found = LINE.fullmatch(line)
        if found and found["value"] and found["key"] in left:
            value = left.pop(found["key"])
            same = yaml.safe_load(found["value"]) == value
            yield line if same else f"{found['start']} {flow(value)}{found['comment'] or ''}\n"
        elif not (found and found["value"]):
            if not line.strip():
                yield from (f"  {key}: {flow(left.pop(key))}\n" for key in [*left])
            yield line


def flow(value: Any) -> str:
    """A value on one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def main() -> None:
    """Print the params, or write them to a file; end in one line for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m stagecraft.config", description=__doc__)
    parser.add_argument("presets", nargs="+", type=Path, help="params files to lay over params.yaml, the last on top")
    parser.add_argument("--output", type=Path, help="file to write, which may be params.yaml; else they are printed")
    arguments = parser.parse_args()
    base = Path("params.yaml")
    try:
        text = with_values(base.read_text(encoding="utf-8"), load_over(*arguments.presets, base=base))
        if arguments.output:
            arguments.output.write_text(text, encoding="utf-8")
        else:
            print(text, end="")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
