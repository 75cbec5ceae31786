"""Which code a stage runs: its command and the modules of this project that it imports, found without importing.

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
BODIES = ("body", "orelse", "finalbody", "handlers", "cases")  # where statements hold others


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
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    return tuple(
        found for node in statements(tree) for name in imported_names(node, file) for found in module_files(name)
    )


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements of a tree, those within others too; expressions, most of a tree, hold no imports."""
    for part in BODIES:
        for child in getattr(node, part, ()):
            yield child
            yield from statements(child)


def imported_names(node: ast.AST, file: Path) -> Iterator[str]:
    """Dotted names that an import statement may load; `from a import b` gives a.b, which may be no module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        parents = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
        base = ".".join([*parents, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


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
