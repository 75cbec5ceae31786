"""Say which block searches belong to a run, so that what follows reads these and no others; none for a given architecture."""

from pathlib import Path
from typing import Any

from stagecraft.runtime.command import run_command
from stagecraft.search.results import write_index


def collect_search(params: dict[str, Any], *, threads: int, names: list[str], search: Path) -> None:
    """Write results/search/index.json."""

    write_index(search, names, params)


if __name__ == "__main__":
    run_command(collect_search)
