"""How far features in half precision move the scores of a search, beside how far another seed does.

python benchmarks/feature_precision.py --run . --seeds 0 1 2 --output benchmarks/results/feature_precision.json

Writes the features of a finished run of the default params in fp32 and in fp16 and searches some blocks on both, with the
seeds given. Compared are the errors of the candidates that two searches share: the median over them of |a / b - 1|.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from stagecraft.clustering.record import read_clusters
from stagecraft.config.stages import stage_model
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.registry import make_process
from stagecraft.networks.pipelines import load_teacher
from stagecraft.preflight.params import load_over
from stagecraft.runtime.files import write_json
from stagecraft.search.features import FeatureWriter
from stagecraft.search.job import SearchJob

BLOCKS = ("down_blocks.0", "mid_block", "up_blocks.1.interval_0-2")
PRECISIONS = ("fp32", "fp16")
CPU = torch.device("cpu")
Errors = dict[str, float]  # of each candidate, by its spec


def write_features(run: Path, params: dict[str, Any], folder: Path, precision: str) -> None:
    """The features of a run's teacher in one precision."""
    model = stage_model(params, "cache_features")
    settings = model.cache_features.model_copy(update={"precision": precision})
    data = TrainingSet.load(run / "data" / "prepared", run / "data" / "latents")
    teacher = load_teacher(run / "results" / "teacher")
    intervals = read_clusters(run / "results" / "clusters.json")["intervals"]
    process = make_process(model.diffusion.as_dict())
    FeatureWriter(teacher, process, data, intervals, settings, params["seed"], CPU).write(folder, {})


def search(run: Path, params: dict[str, Any], features: Path, block: str, parent: Path) -> Errors:
    """Errors of the candidates of one search."""
    teacher = load_teacher(run / "results" / "teacher")
    settings = stage_model(params, "search_block")
    checkpoint = parent / "search.pt"
    importance = run / "results" / "importance.json"
    job = SearchJob(settings, teacher, block, features, CPU, checkpoint, importance)
    report = job.run()
    job.clean_up()
    return {json.dumps(one["spec"], sort_keys=True): one["nmse"] for one in report["candidates"]}


def median_change(some: Errors, others: Errors) -> float:
    """Median relative difference of the errors of the candidates in both."""
    shared = [spec for spec in some if others.get(spec)]
    return statistics.median(abs(some[spec] / others[spec] - 1) for spec in shared)


def compare(run: Path, block: str, seeds: list[int], parent: Path) -> dict[str, list[float]]:
    """Differences by the precision, for each seed, and by the seed, for each pair, of one block."""
    found = {}
    for seed, precision in itertools.product(seeds, PRECISIONS):
        found[seed, precision] = search(run, load_over() | {"seed": seed}, parent / precision, block, parent)
    return {
        "by_precision": [median_change(found[seed, "fp16"], found[seed, "fp32"]) for seed in seeds],
        "by_seed": [median_change(found[a, "fp32"], found[b, "fp32"]) for a, b in itertools.combinations(seeds, 2)],
    }


def main() -> None:
    """Compare, block by block, and print each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path(), help="folder of a finished run of the default params")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if len(arguments.seeds) < 2:
        sys.exit("error: --seeds: two or more are needed to compare with another seed")
    torch.set_num_threads(1)
    result: dict[str, Any] = {"cores": os.cpu_count(), "threads": 1, "seeds": arguments.seeds, "blocks": {}}
    with tempfile.TemporaryDirectory() as folder:
        parent = Path(folder)
        for precision in PRECISIONS:
            write_features(arguments.run, load_over(), parent / precision, precision)
        for block in BLOCKS:
            result["blocks"][block] = compare(arguments.run, block, arguments.seeds, parent)
            print(block, json.dumps(result["blocks"][block]), flush=True)
            write_json(arguments.output, result)


if __name__ == "__main__":
    main()
