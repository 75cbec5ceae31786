"""The code that a stage runs: its command and the modules of this project that it imports, found without importing.

python -m stagecraft.runtime.provenance   writes the code files of every stage into dvc.yaml
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

COMMANDS = "stages"
PACKAGES = (COMMANDS, "stagecraft")
ROOT = Path(__file__).parents[2]
NAMES = r"\w+(?: as \w+)?(?:,\s+\w+(?: as \w+)?)*"
# An import statement as most are, absolute and alone on its lines; and what may be part of any.
PLAIN = rf"^ *((?:from [a-z_][\w.]* import (?:{NAMES}|\(\s*{NAMES},?\s*\))|import [a-z][\w.]*(?: as \w+)?)) *(?:#.*)?$"
PLAIN_IMPORT = re.compile(PLAIN, re.MULTILINE)
ANY_IMPORT = re.compile(r"(?:^|[;:])\s*(?:from|import)\b", re.MULTILINE)


def code_files(stage: str) -> list[str]:
    """Sorted paths, relative to the repository, of stages/<stage>.py and its transitive imports within the project.

    A template beside a module that carries its name counts as its own (page.html.j2 of page.py). Imports inside
    functions count. An import by a computed name does not, so there must be none.

    Raises:
        ValueError: the stage has no command.
    """
    if not (ROOT / COMMANDS / f"{stage}.py").is_file():
        raise ValueError(f"{COMMANDS}/{stage}.py: not found; every stage needs its command")
    found: set[Path] = set()
    waiting = [*module_files(f"{COMMANDS}.{stage}")]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += imported_files(file)
    templates = {template for file in found for template in file.parent.glob(f"{file.stem}.*.j2")}
    return sorted(file.relative_to(ROOT).as_posix() for file in found | templates)


@cache
def imported_files(file: Path) -> tuple[Path, ...]:
    """The files of this project that `file` imports."""
    names = imported_names(file.read_text(encoding="utf-8"))
    return tuple(found for name in names for found in module_files(name))


def imported_names(code: str) -> Iterator[str]:
    """Dotted names that the import statements of a file may load; `from a import b` gives a.b, which may be no module.

    Plain statements are found as text, as to parse whole files takes a second at each start of Snakemake; a file that has others,
    or words that look like them, is parsed.
    """
    plain = PLAIN_IMPORT.findall(code)
    for node in ast.walk(ast.parse("\n".join(plain) if len(plain) == len(ANY_IMPORT.findall(code)) else code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def module_files(name: str) -> tuple[Path, ...]:
    """The files that importing a dotted name runs: each package's __init__, the module; none outside this project."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return ()
    prefixes = [ROOT.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    files = (file for prefix in prefixes for file in (prefix / "__init__.py", prefix.with_suffix(".py")))
    return tuple(file for file in files if file.is_file())


def with_code_files(text: str) -> str:
    """The text of a dvc.yaml whose stages depend on the code files of their rules, and on no others."""
    head, *stages = re.split(r"^(?=  \w+:$)", text, flags=re.MULTILINE)
    return head + "".join(map(stage_with_code_files, stages))


def stage_with_code_files(text: str) -> str:
    """As `with_code_files`, for the part of one stage, whose command names its rules."""
    rules = re.search(r"--allowed-rules (.+)", text)
    assert rules is not None, "every command of dvc.yaml says which rules it may run"
    code = sorted({file for rule in rules[1].split() for file in code_files(rule)})
    packages = tuple(f"      - {package}/" for package in PACKAGES)
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith(packages)]
    end = lines.index("    params:\n")
    return "".join([*lines[:end], *(f"      - {file}\n" for file in code), *lines[end:]])


if __name__ == "__main__":
    dvc_yaml = ROOT / "dvc.yaml"
    dvc_yaml.write_text(with_code_files(dvc_yaml.read_text(encoding="utf-8")), encoding="utf-8")
