"""Ranges of dependencies: none admits a version with a known advisory, the docs say why, the lock keeps to them."""

import re
import tomllib
from itertools import chain

import pytest
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
RANGES = {
    canonicalize_name(requirement.name): requirement.specifier
    for requirement in map(Requirement, chain(PROJECT["project"]["dependencies"], *EXTRAS.values()))
}


def locked() -> dict[str, str]:
    pins = (line.split(";")[0].strip().split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
    return {canonicalize_name(name): version for name, version in pins}


def documented() -> dict[str, tuple[str, str]]:
    rows = re.findall(r"^\| ([\w-]+) \| (.*?) ?\| (.+) \|$", (ROOT / "docs" / "security.md").read_text(), re.MULTILINE)
    return {name: (spec.strip(" `"), reason) for name, spec, reason in rows if name not in ("package", "---")}


def test_the_lock_keeps_to_the_ranges() -> None:
    pins = locked()
    assert {name: pins.get(name) for name, allowed in RANGES.items() if pins.get(name) not in allowed} == {}


def test_the_docs_name_every_range_and_what_sets_it() -> None:
    rows = documented()
    assert {name: set(filter(None, spec.split(","))) for name, (spec, _) in rows.items()} == {
        name: set(map(str, allowed)) for name, allowed in RANGES.items()
    }
    for name, (_, reason) in rows.items():
        assert re.search(r"CVE-\d{4}-\d{4,}|^none known; \w", reason), name


@pytest.mark.parametrize(
    ("name", "affected", "first"),
    [
        ("accelerate", "1.14.0", "1.15.0"),
        ("diffusers", "0.37.1", "0.38.0"),
        ("filelock", "3.20.2", "3.20.3"),
        ("jinja2", "3.1.5", "3.1.6"),
        ("onnx", "1.21.0", "1.22.0"),
        ("pillow", "12.3.0", "13.0.0"),
        ("pytest", "9.0.2", "9.0.3"),
        ("scikit-learn", "1.4.2", "1.5.0"),
        ("setuptools", "78.1.0", "78.1.1"),
        ("torch", "2.10.0", "2.12.1"),
        ("tqdm", "4.66.2", "4.66.3"),
        ("transformers", "5.2.0", "5.3.0"),
    ],
)
def test_affected_versions_are_not_admitted(name: str, affected: str, first: str) -> None:
    assert affected not in RANGES[name] and first in RANGES[name]


def test_the_build_needs_the_same_setuptools() -> None:
    (build,) = map(Requirement, PROJECT["build-system"]["requires"])
    assert build.name == "setuptools" and "78.1.0" not in build.specifier and locked()["setuptools"] in build.specifier


def test_no_stage_calls_what_is_open_in_torch() -> None:
    code = {path: path.read_text() for path in (ROOT / "stagecraft").rglob("*.py")}
    assert len(code) > 50
    assert [path for path, text in code.items() if re.search(r"jit\.(script|trace)\b|import transformers", text)] == []
