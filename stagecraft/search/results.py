"""The index of a search: which blocks were searched, with the hashes of their results."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stagecraft.networks.unet2d.stream import Stream
from stagecraft.runtime.files import check_file, read_checked_json, sha256_file, write_checked_json

INDEX = "index.json"
STAGE = "collect_search"
AGAIN = "run search_block again (snakemake --forcerun search_block)"


def write_index(folder: Path, names: Iterable[str], params: dict[str, Any]) -> None:
    """Write index.json for the results of these search jobs."""
    hashes = {name: sha256_file(folder / f"{name}.json") for name in sorted(names)}
    write_checked_json(folder / INDEX, {"sha256": hashes, "params": params})


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Contents of results/search/<name>.json by job name; ValueError when one is not as the index says."""
    index = read_checked_json(folder / INDEX, STAGE)
    for name, sha256 in index["sha256"].items():
        check_file(folder / f"{name}.json", sha256, folder / INDEX, "search_block")
    return {name: read_checked_json(folder / f"{name}.json", "search_block") for name in index["sha256"]}


def stream_of(results: dict[str, dict[str, Any]]) -> Stream | None:
    """The channels of the residual stream that the blocks were searched with; ValueError where they differ."""
    name, first = next(iter(sorted(results.items())))
    for other, result in results.items():
        if result["stream"] != first["stream"]:
            raise ValueError(f"{other}.json: has other channels of the residual stream than {name}.json; {AGAIN}")
    stream: Stream | None = first["stream"]
    return stream
