"""Snakemake and DVC over one graph: whichever ran last, the other believes it, and no result is paired with other params."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from helpers import activated, documented_blocks, run

IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org")


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def ok(folder: Path, *command: str) -> str:
    """What a command printed; it must succeed."""
    result = run(folder, *command)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def snakemake(folder: Path) -> set[str]:
    """The rules that `snakemake` runs."""
    printed = ok(folder, "snakemake")
    return set(re.findall(r"^(\w+)(?: \S+)?: started", printed, flags=re.MULTILINE))


def repro(folder: Path) -> tuple[set[str], set[str]]:
    """The stages that `dvc repro` runs, and those that it takes from the cache."""
    printed = ok(folder, "dvc", "repro")
    return set(re.findall(r"Running stage '(\w+)'", printed)), set(re.findall(r"Stage '(\w+)' is cached", printed))


def commit(folder: Path, message: str) -> None:
    ok(folder, "git", "add", "-A")
    ok(folder, "git", *IDENTITY, "commit", "-qm", message)


def check_pairing(folder: Path) -> None:
    """All results carry the params of params.yaml, and dvc.lock describes them."""
    import yaml

    from stagecraft.config.stages import param_at

    params = yaml.safe_load((folder / "params.yaml").read_text())
    results = {*folder.glob("results/**/*.json")} - {folder / "results" / "record.json"}
    for path in [*results, folder / "data" / "prepared" / "meta.json"]:
        content = json.loads(path.read_text())
        carried = content if path.name == "params.json" else content.get("params", {})
        assert carried == {key: param_at(params, key) for key in carried}, path
    assert json.loads(ok(folder, "dvc", "status", "--json").splitlines()[-1]) == {}


@pytest.fixture
def recorded(finished: Path, tmp_path: Path) -> Path:
    """A finished run under version control: params.yaml, dvc.lock and the metrics are committed."""
    folder = Path(shutil.copytree(finished, tmp_path / "one", symlinks=True))
    ok(folder, "git", "config", "core.fileMode", "false")
    commit(folder, "first run")
    return folder


def test_dvc_believes_a_run_of_snakemake(recorded):
    assert json.loads((recorded / "results" / "record.json").read_text())["committed"]
    assert repro(recorded) == (set(), set())
    assert snakemake(recorded) == set()


def test_snakemake_believes_dvc_and_old_results_come_from_the_cache(recorded):
    edit(recorded, "images: 16", "images: 9")
    assert repro(recorded) == ({"report"}, set())
    assert snakemake(recorded) == {"record"}
    check_pairing(recorded)
    edit(recorded, "images: 9", "images: 16")
    assert repro(recorded) == (set(), {"report"})
    assert snakemake(recorded) == {"record"}
    check_pairing(recorded)
    assert snakemake(recorded) == set()


def test_a_clone_pulls_the_results_and_makes_only_what_depends_on_a_changed_param(recorded, tmp_path):
    ok(recorded, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    commit(recorded, "a remote")
    ok(recorded, "dvc", "push")
    other = tmp_path / "other"
    ok(tmp_path, "git", "clone", "-q", str(recorded), str(other))
    ok(other, "dvc", "pull")
    assert snakemake(other) == {"record"}
    edit(other, "warmup_steps: 2\n  candidates", "warmup_steps: 3\n  candidates")
    printed = ok(other, "dvc", "repro")
    ran = set(re.findall(r"Running stage '(\w+)'", printed))
    assert ran == {"search_block", "assemble", "retrain", "evaluate", "report", "publish"}
    assert side_by_side(printed) >= 2
    check_pairing(other)


def side_by_side(printed: str) -> int:
    """The most block searches that Snakemake had running at once."""
    most = running = 0
    for line in printed.splitlines():
        running += bool(re.match(r"search_block \S+: started", line))
        running -= bool(re.match(r"search_block \S+: done", line))
        most = max(most, running)
    return most


def test_an_older_commit_with_edited_params_gives_no_wrong_pairing(recorded):
    first = ok(recorded, "git", "rev-parse", "HEAD").strip()
    edit(recorded, "images: 16", "images: 9")
    assert snakemake(recorded) == {"report", "record"}
    commit(recorded, "second run")
    ok(recorded, "git", "checkout", "-q", first)
    ok(recorded, "dvc", "checkout")
    # Snakemake's notes are of the second run, with just these params.
    edit(recorded, "images: 16", "images: 9")
    assert snakemake(recorded) == {"report", "record"}
    check_pairing(recorded)
    ok(recorded, "git", "checkout", "-qf", first)
    ok(recorded, "dvc", "checkout")
    edit(recorded, "images: 16", "images: 4")
    assert repro(recorded) == ({"report"}, set())
    check_pairing(recorded)


def test_figures_changed_by_hand_are_made_again(recorded):
    metrics = recorded / "results" / "metrics.json"
    fid = json.loads(metrics.read_text())["student"]["fid"]
    metrics.write_text(metrics.read_text().replace(str(fid), "0.001"))
    assert snakemake(recorded) == {"evaluate", "report", "publish", "record"}
    assert json.loads(metrics.read_text())["student"]["fid"] == fid
    check_pairing(recorded)


def test_a_run_with_overridden_params_is_not_recorded(recorded):
    lock = (recorded / "dvc.lock").read_bytes()
    printed = ok(recorded, "snakemake", "--config", "report={images: 9}")
    assert "not committed to dvc.lock, as this run had report.images 9, not 16 as in params.yaml" in printed
    assert (recorded / "dvc.lock").read_bytes() == lock
    assert snakemake(recorded) == {"report", "record"}
    check_pairing(recorded)


def test_params_edited_while_a_run_is_going_are_not_recorded_with_it(recorded):
    lock = (recorded / "dvc.lock").read_bytes()
    edit(recorded, "images: 16", "images: 9")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(["snakemake"], cwd=recorded, env=activated(), **pipes)
    for line in process.stdout:
        if "report: started" in line:
            edit(recorded, "images: 9", "images: 4")
            break
    printed = process.communicate()[0]
    assert process.returncode == 0 and "not committed to dvc.lock, as this run had report.images 9, not 4" in printed
    assert (recorded / "dvc.lock").read_bytes() == lock


def test_code_edited_while_a_run_is_going_is_not_recorded_with_it(recorded):
    lock = (recorded / "dvc.lock").read_bytes()
    edit(recorded, "images: 16", "images: 9")
    code = recorded / "stagecraft" / "training" / "student.py"
    code.write_text(code.read_text() + "# later\n")
    edited = run(recorded, "snakemake", "report", "--allowed-rules", "report", "record")
    assert edited.returncode == 0
    result = run(recorded, "snakemake", "record", "--allowed-rules", "record")
    assert result.returncode != 0
    assert re.search(r"^error: record: .*code or inputs changed", result.stderr, flags=re.MULTILINE)
    assert (recorded / "dvc.lock").read_bytes() == lock


def test_outside_a_dvc_repository_a_run_ends_well_and_says_so(recorded):
    shutil.rmtree(recorded / ".dvc")
    edit(recorded, "images: 16", "images: 9")
    assert "no DVC repository here, so nothing is committed" in ok(recorded, "snakemake")


def test_two_queued_experiments_run_at_once_as_the_docs_say(recorded):
    queueing = next(block for block in documented_blocks("sh") if "--queue" in block)
    # The workers stay and would keep a captured output open.
    ok(recorded, "bash", "-c", f"set -euo pipefail; ({queueing}) > queue.log 2>&1")
    seen = []
    try:
        while not seen or set(seen[-1]) & {"Queued", "Running"}:
            status = ok(recorded, "dvc", "queue", "status").split("Worker")[0]
            seen.append(re.findall(r"Queued|Running|Success|Failed", status))
            time.sleep(12)  # asking takes four seconds of a core, which the experiments need
    finally:
        run(recorded, "dvc", "queue", "stop", "--kill")
    assert seen[-1] == ["Success", "Success"], status
    assert ["Running", "Running"] in seen
    assert {"0.2", "0.25"} <= set(re.split("[,\n]", ok(recorded, "dvc", "exp", "show", "--csv")))
    assert snakemake(recorded) == set()
