"""One command line for all stages: flags from the signature, errors in one line.

python -m stages.<stage> --params '<JSON>' --threads N [--processes N] --<input or output> PATH ...
"""

import argparse
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from stagecraft.runtime import gpus, launch, processes
from stagecraft.runtime.lifeline import end_with, end_with_parent
from stagecraft.runtime.remedies import REMEDIES
from stagecraft.runtime.threads import threads_of_process

# Stages whose work several processes can share.
SHARED = ("train_teacher", "retrain", "evaluate")
# What torch says in a plain RuntimeError when memory runs out.
ALLOCATORS = ("DefaultCPUAllocator: ", "std::bad_alloc", "_STATUS_ALLOC_FAILED", "CUDA error: out of memory")


def run_command(body: Callable[..., None]) -> None:
    """Call `body(params, **flags)` with flags read from the command line, the params as the type that it annotates.

    The keyword-only parameters of `body` become flags: `data: Path` is `--data PATH`, `logs: list[Path]` is
    `--logs PATH ...`, `names: list[str]` is `--names [NAME ...]`, and so on for `str` and `int`. A ValueError, an OSError or a
    lack of memory ends in one line on stderr and exit code 1; anything else is a defect and keeps its traceback. With
    `--processes` above 1 the command starts itself so many times, and each shares the work and the threads.
    """
    arguments = vars(build_parser(body).parse_args())
    end_with_parent()
    started_alone = processes.FAILURES not in os.environ
    count = arguments.pop("processes", 1)
    device = arguments["params"].get("device", "cpu")
    arguments["params"] = typed_params(body, arguments["params"])
    arguments["threads"] = threads_of_process(arguments["threads"])
    try:
        if count > 1 and not processes.is_worker():
            launch.launch(body.__name__, sys.argv[1:], count, device)
        elif processes.is_worker():
            end_with(os.getppid())
            body(arguments.pop("params"), **arguments)
            processes.leave()
        else:
            gpus.claim_gpus(device, 1)
            body(arguments.pop("params"), **arguments)
    except Exception as error:
        line = explain(body.__name__, error)
        if started_alone and line is None:
            raise
        message = traceback.format_exc() if line is None else f"error: {body.__name__}: {line}"
        if started_alone:
            sys.exit(message)
        launch.report_failure(message)
        # Without the usual clean-up, in which a process may wait for others that wait for it.
        os._exit(1)


def typed_params(body: Callable[..., None], given: Mapping[str, object]) -> Any:
    """The params of a command as the type of its parameter `params`."""
    kind = get_type_hints(body)["params"]
    return kind.of(given) if hasattr(kind, "of") else given


def explain(stage: str, error: Exception) -> str | None:
    """One line for what a user can change; None for a defect of the program."""
    if ran_out_of_memory(error):
        reason = " ".join(str(error).split())[:200] or "no more could be allocated"
        return f"out of memory; {REMEDIES.get(stage, 'give the job more (mem_mb)')} ({reason})"
    if isinstance(error, ValueError | OSError):
        return " ".join(str(error).split())
    return None


def ran_out_of_memory(error: Exception) -> bool:
    """Whether Python, NumPy, torch or a library of CUDA could not allocate memory; torch need not be imported."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATORS))


def build_parser(body: Callable[..., None]) -> argparse.ArgumentParser:
    """Make the parser of a stage's flags from the signature of its body."""
    parser = argparse.ArgumentParser(prog=f"python -m stages.{body.__name__}", description=inspect.getdoc(body))
    parser.add_argument("--params", type=json.loads, required=True, help="the params of this stage, as JSON")
    if body.__name__ in SHARED:
        parser.add_argument("--processes", type=int, default=1, help="processes that share the work, one for each GPU")
    hints = get_type_hints(body)
    for name in inspect.signature(body).parameters:
        if name != "params":
            add_flag(parser, f"--{name.replace('_', '-')}", hints[name])
    return parser


def add_flag(parser: argparse.ArgumentParser, flag: str, hint: Any) -> None:
    """Add the flag of a parameter with this annotation."""
    if hint == list[Path]:
        parser.add_argument(flag, required=True, type=Path, nargs="+")
    elif hint == list[str]:
        parser.add_argument(flag, required=True, nargs="*")
    else:
        assert hint in (Path, str, int), f"no command-line form for {hint}"
        parser.add_argument(flag, required=True, type=hint)
