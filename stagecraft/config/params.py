"""Params files, read without hiding what they say. Light, as a Snakefile imports it: no torch, no NumPy."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from stagecraft.config.messages import show

PROJECT = Path(__file__).parents[2]
EXAMPLE = PROJECT / "params.yaml"

Params = dict[str, Any]  # sections by their names, and single values, as YAML has them


def read_params(path: Path) -> Params:
    """Read a YAML mapping; ValueError, with the line, when it is none or would not be read as it is written."""
    try:
        text = path.read_text(encoding="utf-8")
        params = yaml.load(text, PlainLoader)
        # A file for --configfile may be JSON, in which 1e-3 is a number.
        params = json.loads(text) if path.suffix == ".json" else params
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not found; {remedy(path)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"{path}:{place} not valid YAML: {problem}") from error
    if not isinstance(params, dict):
        raise ValueError(f"{path}: holds {show(params)} instead of sections; {remedy(path)}")
    return params


def remedy(path: Path) -> str:
    """Where to get a params file from."""
    return "restore it from Git" if path.absolute() == EXAMPLE else f"copy {os.path.relpath(EXAMPLE)} to it"


class PlainLoader(yaml.SafeLoader):
    """The safe loader without what hides values: keys given twice, of which the last would win, and aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node that is no alias; a few aliases can stand for more values than memory holds."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"*{event.anchor} is an alias; write the value out"
            raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Construct a mapping whose keys differ."""
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def typed(value: Any) -> Any:
    """Give nested texts the types that YAML gives them, as Snakemake's --config leaves them all texts."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError, RecursionError):
        return value
