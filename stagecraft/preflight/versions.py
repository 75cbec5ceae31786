"""Results and the params they carry, and what DVC knows of them. Light, as a Snakefile imports it: no torch, no NumPy."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from stagecraft.config.messages import show
from stagecraft.config.stages import param_at
from stagecraft.preflight.params import load_params
from stagecraft.runtime.files import read_json
from stagecraft.runtime.provenance import ROOT

Results = dict[str, list[str]]
SETTLED = {"STAGECRAFT_SETTLING": "1"}  # for a Snakemake that need not ask DVC what changed
EMBEDDED = re.compile(r'<script type="application/json" id="params">(.*?)</script>', re.DOTALL)


def under_dvc() -> bool:
    """Whether the current folder is this code's own, a DVC repository within a Git repository."""
    here = Path.cwd()
    in_git = any((folder / ".git").exists() for folder in (here, *here.parents))
    return in_git and (here / ".dvc").is_dir() and here.samefile(ROOT)


def run_quietly(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A finished command; ValueError with the first line of its complaint when it fails."""
    environment = {**os.environ, **(environment or {})}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["failed without a message"]
        raise ValueError(f"{' '.join(command[2:4])}: {lines[0]}")
    return result


def dvc(*arguments: str) -> list[str]:
    """The command line of DVC in this environment."""
    return [sys.executable, "-m", "dvc", *arguments]


def changed_stages() -> set[str]:
    """Stages whose params, code, inputs or outputs have other contents than dvc.lock says."""
    return set(json.loads(run_quietly(dvc("status", "--json")).stdout))


# --- Results that Snakemake did not make ---


def complete(results: Results) -> set[str]:
    """Stages of which every file is there."""
    return {stage for stage, files in results.items() if all(map(os.path.lexists, files))}


def foreign(results: Results, made_at: Callable[[str], float | None]) -> set[str]:
    """Complete stages with a file that is not the one Snakemake left: DVC, Git or a person put it there.

    Args:
        results: the files of each stage.
        made_at: the time of a file when Snakemake had made it; None when it did not.
    """
    return {
        stage for stage in complete(results) if any(made_at(file) != os.lstat(file).st_mtime for file in results[stage])
    }


# --- The params that results carry ---


def carried_params(path: Path) -> Mapping[str, Any] | None:
    """The params that a JSON file or report page was made with; None for files that carry none."""
    if path.suffix == ".html":
        embedded = EMBEDDED.search(path.read_text(encoding="utf-8"))
        return json.loads(embedded[1]) if embedded else None
    if path.suffix != ".json":
        return None
    content = read_json(path)
    return content if path.name == "params.json" else content.get("params")


def differences(given: Any, wanted: Any, key: str = "") -> list[str]:
    """`section.key: a, not b` for each value of `given` that is another in `wanted`."""
    if not isinstance(given, dict) or not isinstance(wanted, dict):
        return [] if given == wanted else [f"{key} {show(given)}, not {show(wanted)}"]
    keys = dict.fromkeys([*given, *wanted])
    return [
        line
        for name in keys
        for line in differences(given.get(name), wanted.get(name), f"{key}.{name}".removeprefix("."))
    ]


def check_carried(results: Iterable[Path], params: Mapping[str, object]) -> None:
    """Raise a ValueError when a result was made with other params than these."""
    for path in results:
        carried = carried_params(path)
        others = differences(carried, {name: param_at(params, name) for name in carried}) if carried else []
        if others:
            raise ValueError(f"{path}: made with {others[0]}; make it again (snakemake --forcerun {path})")


# --- Committing ---


def reason_not_to_commit(params: Mapping[str, object]) -> str | None:
    """Why a run with these params is none that DVC can describe, in words; None when it is one."""
    if not under_dvc():
        return "no DVC repository here, so nothing is committed"
    others = differences(params, load_params("params.yaml"))
    return f"not committed to dvc.lock, as this run had {others[0]} as in params.yaml" if others else None


def commit() -> None:
    """Write dvc.lock and fill DVC's cache; ValueError when Snakemake would not call the results finished."""
    plan = run_quietly([sys.executable, "-m", "snakemake", "--dry-run", "--nolock", "--", "report", "publish"], SETTLED)
    if "Nothing to be done" not in plan.stdout + plan.stderr:
        raise ValueError("params, code or inputs changed while this ran, so nothing is committed; run snakemake again")
    run_quietly(dvc("commit", "--force", "--no-relink"))
