"""The rules of the workflow as Snakemake reads them with the committed params, without starting it."""

import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Rule:
    """One rule: files as they stand in it (`{block}` for a wildcard), params keys by section, and the raw rule."""

    inputs: set[str]
    code: set[str]
    outputs: set[str]
    params: set[str]
    raw: Any


def read_rule(raw: Any) -> Rule:
    def plain(paths: Any) -> set[str]:
        # A function gives files of the same stage, by wildcard, or only looks.
        return {re.sub(r"{(\w+),[^}]*}", r"{\1}", str(path)) for path in paths if not callable(path)}

    code = plain(getattr(raw.input, "code", []))
    params = json.loads(raw.params.config(None)) if "config" in dict(raw.params.items()) else {}
    return Rule(plain(raw.input) - code, code, plain(raw.output), set(params), raw)


@pytest.fixture(scope="session")
def rules() -> dict[str, Rule]:
    """All rules by name."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import ResourceSettings

    # The results of this folder are left alone, and so is the environment.
    with contextlib.chdir(ROOT), mock.patch.dict(os.environ, STAGECRAFT_SETTLING="1"), SnakemakeApi() as api:
        workflow = api.workflow(ResourceSettings(cores=1), snakefile=ROOT / "workflow" / "Snakefile")._workflow
        return {raw.name: read_rule(raw) for raw in workflow.rules}
