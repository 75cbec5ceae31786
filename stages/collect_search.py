"""List the block searches of a run, so that later stages read only these; none for a given architecture."""

from pathlib import Path

from stagecraft.config.stages import CollectSearch
from stagecraft.runtime.command import run_command
from stagecraft.search.results import write_index


def collect_search(params: CollectSearch, *, threads: int, names: list[str], search: Path) -> None:
    """Write results/search/index.json."""
    write_index(search, names, params.as_given())


if __name__ == "__main__":
    run_command(collect_search)
