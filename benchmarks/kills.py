"""Kill the smoke run at random moments and see whether the plain command ends it with the bytes of an undisturbed run.

python benchmarks/kills.py --kills 50 --at-once 2 --output benchmarks/results/kills.json

Each trial starts in a new clone of the committed tree, sends SIGKILL at a moment drawn uniformly over the length of the
undisturbed run, half the time to Snakemake alone and half the time to all its processes, then runs `snakemake` once more. Results
are compared file by file, but for the report and the model card (with its hash), as they show speeds, and for the measured speeds
and memory in metrics.json.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
MEASURED = {"images_per_second", "milliseconds", "time", "time_by_operation", "peak_memory_mib"}
UNCOMPARED = {"results/report.html", "results/model/README.md", "results/model/sha256.json"}


def make_clone(folder: Path) -> Path:
    """A clone of what is committed, with the smoke preset as its params."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    preset = [sys.executable, "-m", "stagecraft.config", "presets/smoke.yaml", "--output", "params.yaml"]
    subprocess.run(preset, cwd=folder, check=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
    return folder


def start(folder: Path) -> subprocess.Popen:
    """Snakemake in a process group of its own, with the environment that runs this program."""
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            ["snakemake"], cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every result, by path."""
    files = [
        path for top in ("data/prepared", "results") for path in sorted((folder / top).rglob("*")) if path.is_file()
    ]
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: hashlib.sha256(content(path)).hexdigest() for name, path in names.items() if name not in UNCOMPARED}


def content(path: Path) -> bytes:
    """The bytes of a result; of metrics.json without what is measured anew each time, of samples.npz without its hash."""
    if path.name == "metrics.json":
        return json.dumps(without_measured(json.loads(path.read_text())), sort_keys=True).encode()
    if path.name == "samples.npz":
        with np.load(path) as arrays:
            return b"".join(arrays[name].tobytes() for name in arrays.files if name != "metrics_sha256")
    return path.read_bytes()


def without_measured(value: Any) -> Any:
    """Nested metrics without speeds and memory."""
    if not isinstance(value, dict):
        return value
    return {key: without_measured(item) for key, item in value.items() if key not in MEASURED}


def undisturbed(folder: Path) -> tuple[dict[str, str], float]:
    """Fingerprint and seconds of a run that nobody disturbs."""
    begun = time.monotonic()
    if start(make_clone(folder)).wait():
        sys.exit((folder / "output.txt").read_text())
    return fingerprint(folder), time.monotonic() - begun


def trial(number: int, seconds: float, expected: dict[str, str], parent: Path) -> dict[str, Any]:
    """Kill one run and end it; what became of it."""
    draw = random.Random(number)
    moment, alone, folder = draw.uniform(0, seconds), draw.random() < 0.5, parent / f"trial-{number}"
    killed_after = start_and_kill(folder, moment, alone)
    last = last_job(folder)
    code = start(folder).wait()
    found = fingerprint(folder)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if not code and not differing:
        shutil.rmtree(folder)
    return {
        "trial": number,
        "killed": "snakemake" if alone else "all processes",
        "after_s": round(killed_after, 1),
        "during": last,
        "exit_code": code,
        "differing": differing,
    }


def start_and_kill(folder: Path, moment: float, alone: bool) -> float:
    """Start a run in a new clone and kill it `moment` seconds later, sooner when it ends before; when that was."""
    process = start(make_clone(folder))
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
        process.wait()
        return moment
    shutil.rmtree(folder)
    return start_and_kill(folder, 0.9 * moment, alone)


def last_job(folder: Path) -> str:
    """The rule that had started last."""
    lines = (folder / "output.txt").read_text().splitlines()
    return next((line.split(":")[0].split()[0] for line in reversed(lines) if ": started" in line), "")


def main() -> None:
    """Run the trials, writing each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "kills.json")
    arguments = parser.parse_args()
    parent = Path(tempfile.mkdtemp(prefix="kills-"))
    expected, seconds = undisturbed(parent / "undisturbed")
    print(f"undisturbed: {seconds:.1f} s, {len(expected)} files", flush=True)
    done: list[dict[str, Any]] = []

    def run(number: int) -> None:
        done.append(trial(number, seconds, expected, parent))
        summary = {"undisturbed_s": round(seconds, 1), "files": len(expected), "cores": os.cpu_count()}
        summary |= {"trials": sorted(done, key=lambda entry: entry["trial"])}
        summary["same"] = sum(not entry["exit_code"] and not entry["differing"] for entry in done)
        arguments.output.write_text(json.dumps(summary, indent=1) + "\n")
        print(f"{summary['same']} of {len(done)} the same", done[-1], flush=True)

    with ThreadPoolExecutor(arguments.at_once) as pool:
        list(pool.map(run, range(arguments.kills)))
    shutil.rmtree(parent, ignore_errors=all(not entry["differing"] for entry in done))
    sys.exit(any(entry["exit_code"] or entry["differing"] for entry in done))


if __name__ == "__main__":
    main()
