"""Hand a finished run to DVC: check that all results belong to the params, then `dvc commit`."""

from pathlib import Path
from typing import Any

from stagecraft.preflight.versions import check_carried, commit, reason_not_to_commit
from stagecraft.runtime.command import run_command
from stagecraft.runtime.files import write_json


def record(params: dict[str, Any], *, threads: int, results: list[Path], output: Path) -> None:
    """Commit to DVC and say so in `output`; results of other params, and of other code or inputs, are refused.

    Nothing is committed outside a DVC repository, nor for a run whose params are not those of params.yaml, which DVC reads.
    """
    check_carried(results, params)
    reason = reason_not_to_commit(params)
    if reason is None:
        commit()
    print(f"record: {reason or 'committed to dvc.lock'}")
    write_json(output, {"committed": reason is None, "reason": reason, "params": params})


if __name__ == "__main__":
    run_command(record)
