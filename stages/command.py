"""One command line for all stages: flags from the signature, errors in one line.

python -m stages.<stage> --params '<JSON>' --threads N --<input or output> PATH ...
"""

import argparse
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from stages.lifeline import end_with_parent


def run_command(body: Callable[..., None]) -> None:
    """Call `body(params, **flags)` with flags read from the command line.

    The keyword-only parameters of `body` become flags: `data: Path` is `--data PATH`, `search: list[Path]` is
    `--search PATH ...`, and so on for `str` and `int`. A ValueError or OSError ends in one line on stderr and exit code 1;
    anything else is a defect and keeps its traceback.
    """
    arguments = vars(build_parser(body).parse_args())
    end_with_parent()
    # Read by OpenMP and MKL when torch or NumPy are first imported, which `body` does.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(arguments["threads"])
    # OpenMP threads that spin for long while they wait make jobs on shared cores up to twenty times slower than in turn;
    # threads that sleep at once halve the speed of a job that has its cores to itself.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        body(arguments.pop("params"), **arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {body.__name__}: {' '.join(str(error).split())}")


def build_parser(body: Callable[..., None]) -> argparse.ArgumentParser:
    """Make the parser of a stage's flags from the signature of its body."""
    parser = argparse.ArgumentParser(prog=f"python -m stages.{body.__name__}", description=inspect.getdoc(body))
    parser.add_argument("--params", type=json.loads, required=True, help="the params of this stage, as JSON")
    hints = get_type_hints(body)
    for name in inspect.signature(body).parameters:
        if name != "params":
            parser.add_argument(f"--{name.replace('_', '-')}", required=True, **argument_kind(hints[name]))
    return parser


def argument_kind(hint: Any) -> dict[str, Any]:
    """The argparse keywords for one annotated parameter."""
    if hint == list[Path]:
        return {"type": Path, "nargs": "+"}
    assert hint in (Path, str, int), f"no command-line form for {hint}"
    return {"type": hint}
