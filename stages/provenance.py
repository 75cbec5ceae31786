"""Which code a stage runs: its command and the modules of this package that it imports, found without importing."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "stages"
ROOT = Path(__file__).parents[1]


def code_files(stage: str) -> list[str]:
    """Sorted paths, relative to the repository, of stages/<stage>.py and its transitive imports within the package.

    A template beside a module that carries its name counts as its own (report.html.j2 of report.py). Imports inside
    functions count. An import by a computed name does not, so there must be none.

    Raises:
        ValueError: the stage has no command.
    """
    if not (ROOT / PACKAGE / f"{stage}.py").is_file():
        raise ValueError(f"{PACKAGE}/{stage}.py: not found; every stage needs its command")
    found: set[Path] = set()
    waiting = module_files(f"{PACKAGE}.{stage}")
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += imported_files(file)
    templates = {template for file in found for template in file.parent.glob(f"{file.stem}.*.j2")}
    return sorted(file.relative_to(ROOT).as_posix() for file in found | templates)


@cache
def imported_files(file: Path) -> tuple[Path, ...]:
    """The files of this package that `file` imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
    return tuple(
        found for node in ast.walk(tree) for name in imported_names(node, file) for found in module_files(name)
    )


def imported_names(node: ast.AST, file: Path) -> Iterator[str]:
    """Dotted names that an import statement may load; `from a import b` gives a.b, which may be no module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        parents = file.relative_to(ROOT).parts[: -node.level] if node.level else ()
        base = ".".join([*parents, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def module_files(name: str) -> list[Path]:
    """The files that importing a dotted name runs: each package's __init__, the module; none outside this package."""
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return []
    prefixes = [ROOT.joinpath(*parts[:depth]) for depth in range(1, len(parts) + 1)]
    return [
        file for prefix in prefixes for file in (prefix / "__init__.py", prefix.with_suffix(".py")) if file.is_file()
    ]
