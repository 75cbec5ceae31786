"""Results of search jobs, and the index of a search: the blocks that were searched, with the hashes of their results."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from stagecraft.runtime.files import check_file, read_checked_json, sha256_file, write_checked_json

if TYPE_CHECKING:
    from stagecraft.elastic.searchable import Order
    from stagecraft.networks.family import Spec, Stream
    from stagecraft.search.selection import Candidate

INDEX = "index.json"
STAGE = "collect_search"
AGAIN = "run search_block again (snakemake --forcerun search_block)"


class SearchReport(TypedDict):
    """The result of a search job; `intervals` is None for a block that all share, `stream` where all channels are kept."""

    block: str
    intervals: list[int] | None
    identity: "Spec"
    stream: "Stream | None"
    space_size: int
    order: "Mapping[str, Order]"
    teacher_macs: int
    teacher_params: int
    macs_spent: dict[str, float]
    triples: int
    stream_triples: int
    candidates: "list[Candidate]"
    log: list[dict[str, float]]
    params: Mapping[str, object]


class SearchResult(SearchReport):
    """The content of results/search/<name>.json."""

    weights_sha256: str


def write_index(folder: Path, names: Iterable[str], params: Mapping[str, object]) -> None:
    """Write index.json for the results of these search jobs."""
    hashes = {name: sha256_file(folder / f"{name}.json") for name in sorted(names)}
    write_checked_json(folder / INDEX, {"sha256": hashes, "params": params})


def read_result(path: Path) -> SearchResult:
    """The result of a search job; ValueError when the file is not as it was written."""
    return cast(SearchResult, read_checked_json(path, "search_block"))


def read_results(folder: Path) -> dict[str, SearchResult]:
    """Contents of results/search/<name>.json by job name; ValueError when one is not as the index says."""
    index = read_checked_json(folder / INDEX, STAGE)
    for name, sha256 in index["sha256"].items():
        check_file(folder / f"{name}.json", sha256, folder / INDEX, "search_block")
    return {name: read_result(folder / f"{name}.json") for name in index["sha256"]}


def stream_of(results: Mapping[str, SearchResult]) -> "Stream | None":
    """The channels of the residual stream that the blocks were searched with; ValueError where they differ."""
    name, first = next(iter(sorted(results.items())))
    for other, result in results.items():
        if result["stream"] != first["stream"]:
            raise ValueError(f"{other}.json: has other channels of the residual stream than {name}.json; {AGAIN}")
    return first["stream"]
