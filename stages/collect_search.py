"""Say which block searches belong to a run, so that what follows reads these and no others; none for a given architecture."""

from pathlib import Path
from typing import Any

from stages.command import run_command


def collect_search(params: dict[str, Any], *, threads: int, names: list[str], search: Path) -> None:
    """Write results/search/index.json."""
    from stages.search.results import write_index

    write_index(search, names, params)


if __name__ == "__main__":
    run_command(collect_search)
