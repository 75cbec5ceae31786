"""The pipeline on a real Slurm of two nodes, which is started here: `STAGECRAFT_SLURM=1 python -m pytest tests/slurm`.

Debian's packages slurmctld, slurmd, slurm-client and munge are needed, and the rights of root.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from helpers import clone, run
from slurm_cluster import Cluster, missing_programs, wait_for

if not os.environ.get("STAGECRAFT_SLURM"):
    pytest.skip("takes minutes: set STAGECRAFT_SLURM=1 to run it", allow_module_level=True)
if missing_programs():
    pytest.skip(f"Slurm is not installed: {', '.join(missing_programs())} not found", allow_module_level=True)
if os.geteuid() != 0:
    pytest.skip("Slurm's daemons need the rights of root", allow_module_level=True)

# A local run gives a job at most as many threads as there are cores, and figures depend on the number of threads.
CORES = len(os.sched_getaffinity(0))
COMMAND = ["snakemake", "--workflow-profile", "workflow/profiles/slurm", "--max-threads", str(CORES)]
BLOCKS = ["down_blocks.0", "down_blocks.1", "mid_block"]
BLOCKS += [f"up_blocks.{level}.interval_{interval}" for level in range(2) for interval in range(2)]
WITH_GPU = {"train_teacher", "train_extractor", "cache_features", "rank_channels", "retrain", "evaluate"}
WITHOUT_GPU = {
    "measure_latency",
    "prepare_data",
    "encode_prompts",
    "train_autoencoder",
    "encode_latents",
    "cluster_timesteps",
    "assemble",
    "report",
}
WITHOUT_GPU |= {"publish"}
SAME_BYTES = (
    "results/student/unet/diffusion_pytorch_model.safetensors",
    "results/clusters.json",
    "results/architecture.json",
    "results/extractor.safetensors",
    *(f"results/search/{block}.{kind}" for block in BLOCKS for kind in ("json", "safetensors")),
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        Path(folder).chmod(0o755)
        with Cluster(Path(folder)) as running:
            yield running


@pytest.fixture
def unsearched(finished: Path, tmp_path: Path) -> Path:
    """A finished local run without its block searches."""
    folder = Path(shutil.copytree(finished, tmp_path / "clone", symlinks=True))
    shutil.rmtree(folder / "results" / "search")
    shutil.rmtree(folder / "logs" / "search_block")
    return folder


def names(jobs: list[dict[str, str]]) -> Counter[str]:
    """How many Slurm jobs there were of each rule or block."""
    return Counter(re.sub(r"^rule_(\w+_wildcards_)?", "", job["Comment"]) for job in jobs)


@contextlib.contextmanager
def searching(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the block searches, at most four at a time, so that some end before others begin."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_"))}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    with (folder / "output.txt").open("w") as output:
        command = [*COMMAND, "--jobs", "4", "collect_search"]
        process = subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def written(folder: Path) -> dict[str, int]:
    """When each block search wrote its result."""
    found = {block: folder / "results" / "search" / f"{block}.json" for block in BLOCKS}
    return {block: path.stat().st_mtime_ns for block, path in found.items() if path.exists()}


def in_state(cluster: Cluster, state: str) -> set[str]:
    """The blocks whose Slurm jobs are in a state."""
    return set(names([job for job in cluster.jobs() if job["JobState"] == state]))


def wait_for_second_search(cluster: Cluster, folder: Path) -> dict[str, str]:
    """Wait until a block search has ended and another has begun to write its log; return the Slurm job of that one."""

    def at_work():
        if in_state(cluster, "COMPLETED"):
            for job in cluster.jobs():
                (block,) = names([job])
                begun = (folder / "logs" / "search_block" / f"{block}.log").exists()
                if begun and job["JobState"] == "RUNNING" and block not in written(folder):
                    return job
        return None

    return wait_for(at_work, 300, "second block search")


def test_the_whole_run_gives_the_bytes_of_a_local_run(finished, cluster, tmp_path):
    folder = clone(tmp_path / "clone")
    result = run(folder, *COMMAND)
    jobs = cluster.jobs()
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Nothing to be done" in run(folder, *COMMAND).stderr
    assert names(jobs) == Counter([*WITH_GPU, *WITHOUT_GPU, *BLOCKS])
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    asked = [job for job in jobs if "gres:gpu:1" in job.get("TresPerJob", "")]
    assert set(names(asked)) == {*WITH_GPU, *BLOCKS}
    searches = [job for job in jobs if "wildcards" in job["Comment"]]
    assert {(job["NumCPUs"], job["MinMemoryNode"], job["TimeLimit"]) for job in searches} == {
        ("1", "8000M", "08:00:00")
    }
    assert any(
        one["StartTime"] < other["EndTime"] and other["StartTime"] < one["EndTime"]
        for one, other in combinations(searches, 2)
    )
    for name in SAME_BYTES:
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_cancelled_search_is_named_and_the_same_command_finishes(finished, cluster, unsearched):
    with searching(unsearched) as process:
        cancelled = wait_for_second_search(cluster, unsearched)
        (block,) = names([cancelled])
        cluster.ask("scancel", cancelled["JobId"])
        assert process.wait(timeout=300) != 0
    output = (unsearched / "output.txt").read_text()
    assert re.search(
        rf"^error: search_block {re.escape(block)}: .*CANCELLED.* \(logs/search_block/{re.escape(block)}\.log\)$",
        output,
        flags=re.MULTILINE,
    ), output[-3000:]
    before, first_jobs = written(unsearched), cluster.jobs()
    assert before and block not in before
    result = run(unsearched, *COMMAND, "collect_search")
    assert result.returncode == 0, result.stderr[-3000:]
    again = names(cluster.jobs()) - names(first_jobs)
    assert again == Counter({*BLOCKS} - {*before})
    assert before.items() <= written(unsearched).items()
    for name in SAME_BYTES:
        assert (unsearched / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_crashed_node_costs_no_more_than_what_ran_there(finished, cluster, unsearched):
    with searching(unsearched) as process:
        lost = wait_for_second_search(cluster, unsearched)
        ended = in_state(cluster, "COMPLETED")
        before = {block: moment for block, moment in written(unsearched).items() if block in ended}
        cluster.crash_node(lost["NodeList"])
        cluster.start_node(lost["NodeList"])
        assert process.wait(timeout=300) == 0, (unsearched / "output.txt").read_text()[-3000:]
    jobs = cluster.jobs()
    assert names(jobs) == Counter(BLOCKS)
    assert [job["Restarts"] for job in jobs if job["JobId"] == lost["JobId"]] == ["1"]
    # Slurm itself starts a job again that ends in the moment of the crash.
    spared = set(names([job for job in jobs if job["Restarts"] == "0"]))
    kept = {block: moment for block, moment in before.items() if block in spared}
    assert kept and kept.items() <= written(unsearched).items()
    assert "Nothing to be done" in run(unsearched, *COMMAND, "collect_search").stderr
    for name in SAME_BYTES:
        assert (unsearched / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_partition_that_is_not_there_is_told_in_one_line(cluster, tmp_path):
    folder = clone(tmp_path / "clone")
    profile = folder / "workflow" / "profiles" / "slurm" / "config.yaml"
    profile.write_text(profile.read_text().replace("slurm_partition: main", "slurm_partition: elsewhere"))
    result = run(folder, *COMMAND, "prepare_data")
    assert result.returncode != 0
    assert re.search(
        r"^error: prepare_data: .*invalid partition specified: elsewhere", result.stderr, flags=re.MULTILINE
    )
