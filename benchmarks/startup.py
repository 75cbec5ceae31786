"""How long tools and jobs take before they do anything, in a folder whose run is finished.

python benchmarks/startup.py --repeats 5      (writes benchmarks/results/startup.json)

`snakemake` and `dvc status` with nothing to do, `import torch` alone, and each stage up to its help, which comes after all its
imports; each the median of interleaved repeats.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def seconds(command: list[str]) -> float:
    """The wall time of a command that must succeed."""
    begun = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - begun


def main() -> None:
    """Time all commands in turn, repeatedly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    stages = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if "run_command(" in path.read_text())
    commands = {"snakemake": [sys.executable, "-m", "snakemake"], "dvc status": [sys.executable, "-m", "dvc", "status"]}
    commands |= {"import torch": [sys.executable, "-c", "import torch"]}
    commands |= {stage: [sys.executable, "-m", f"stages.{stage}", "--help"] for stage in stages}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            times[name].append(seconds(command))
    medians = {name: round(statistics.median(found), 2) for name, found in times.items()}
    summary = {"cores": os.cpu_count(), "repeats": repeats, "seconds": medians}
    text = json.dumps(summary, indent=1)
    (ROOT / "benchmarks" / "results" / "startup.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
