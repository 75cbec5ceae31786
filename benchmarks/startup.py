"""How long tools and jobs take before they do anything, in a folder whose run is finished.

python benchmarks/startup.py --repeats 5      (writes benchmarks/results/startup.json)

`snakemake` and `dvc status` with nothing to do, and for each stage the time that all its imports take more than `import torch`
alone, each the median of interleaved repeats.
"""

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imports_of(stage: Path) -> str:
    """The import statements of a stage's command, those in its body too."""
    nodes = ast.walk(ast.parse(stage.read_text()))
    return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


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
    stages = sorted(path for path in (ROOT / "stages").glob("*.py") if "run_command(" in path.read_text())
    commands = {"snakemake": [sys.executable, "-m", "snakemake"], "dvc status": [sys.executable, "-m", "dvc", "status"]}
    commands |= {"torch": [sys.executable, "-c", "import torch"]}
    commands |= {stage.stem: [sys.executable, "-c", imports_of(stage)] for stage in stages if stage.stem != "command"}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            times[name].append(seconds(command))
    median = {name: statistics.median(found) for name, found in times.items()}
    more = {stage.stem: round(median[stage.stem] - median["torch"], 2) for stage in stages if stage.stem in median}
    summary = {"cores": os.cpu_count(), "repeats": repeats, "seconds_more_than_torch": more}
    summary |= {f"{name}_s": round(median[name], 2) for name in ("snakemake", "dvc status", "torch")}
    text = json.dumps(summary, indent=1)
    (ROOT / "benchmarks" / "results" / "startup.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
