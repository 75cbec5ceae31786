"""FID of a preset's teacher over its training: whether it has stopped falling.

python benchmarks/teacher_curve.py --preset fashion-mnist --extractors classifier fashion-cnn.pt --jobs 2

Trains the teacher that benchmarks/compression.py uses, unless it is there, and keeps each of its checkpoints. The averaged
weights of --points of them, evenly over the steps, are scored as the runs of that program are, each by a process that leaves
step-<step>.json beside them. Then teacher.json and teacher.svg are written to --output.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from compression_methods import Method
from compression_run import Run
from curves import panel, write_figure
from shared_inputs import ONE_THREAD, Shared, cpu_params, preset_file, preset_params, work_folder, write

ROOT = Path(__file__).parents[1]
POLL = 1.0  # seconds


def keep_checkpoints(source: Path, folder: Path, done: threading.Event) -> None:
    """Link every checkpoint that appears at `source` into `folder` until `done`; a later one takes its place, not its content."""
    while True:
        last = done.wait(POLL)
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            os.link(source, folder / f"{source.stat().st_mtime_ns}.pt")
        if last:
            return


def train(shared: Shared, folder: Path) -> None:
    """Make the teacher, with its checkpoints in `folder`, and itself as the last."""
    import torch

    from stagecraft.networks.pipelines import load_teacher

    folder.mkdir(parents=True, exist_ok=True)
    done = threading.Event()
    checkpoint = shared.teacher.parent / "checkpoints" / "train_teacher.pt"
    watch = threading.Thread(target=keep_checkpoints, args=(checkpoint, folder, done))
    watch.start()
    try:
        shared.prepare()
    finally:
        done.set()
        watch.join()
    steps = preset_params(shared.preset)["train_teacher"]["steps"]
    torch.save({"step": steps, "ema": load_teacher(shared.teacher).state_dict()}, folder / "last.pt")


def chosen(folder: Path, points: int) -> dict[int, Path]:
    """Checkpoints by step: at most `points`, evenly, the last one among them."""
    import torch

    found = {torch.load(file, weights_only=True)["step"]: file for file in folder.glob("*.pt")}
    steps = sorted(found)
    kept = {steps[round((i + 1) * len(steps) / points) - 1] for i in range(points)} if len(steps) > points else steps
    return {step: found[step] for step in sorted(kept)}


def score(preset: Path, shared: Shared, checkpoint: Path, extractors: list[str], work: Path) -> dict[str, Any]:
    """The FIDs of a checkpoint's averaged weights."""
    import torch

    state = torch.load(checkpoint, weights_only=True)
    run = Run(preset, Method("teacher"), 1.0, 0, shared, extractors, work / f"step-{state['step']}")
    run.teacher.load_state_dict(state["ema"])
    return {"step": state["step"]} | run.score(run.draw(run.teacher))


def parse_arguments() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="fashion-mnist", help="name in presets/, or a params file")
    parser.add_argument("--extractors", nargs="+", default=["classifier"])
    parser.add_argument("--points", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--one", type=Path, help="a single checkpoint; what --jobs starts")
    return parser.parse_args()


def main() -> None:
    """Train, score what is missing, draw."""
    arguments = parse_arguments()
    preset = preset_file(arguments.preset)
    output = arguments.output or ROOT / "benchmarks" / "results" / f"compression-{preset.stem}"
    work = arguments.work or work_folder(preset)
    shared, curve = Shared(preset, work / "shared"), work / "teacher-curve"
    if arguments.one:
        point = score(preset, shared, arguments.one, arguments.extractors, curve)
        write(curve / f"step-{point['step']}.json", point)
        return
    train(shared, curve)
    environment = os.environ | ONE_THREAD

    samples = cpu_params(preset)["evaluate"]["samples"]

    def start(step: int, checkpoint: Path) -> dict[str, Any]:
        result = curve / f"step-{step}.json"
        if not result.exists() or json.loads(result.read_text()).get("samples") != samples:
            command = [sys.executable, __file__, "--one", str(checkpoint), "--preset", str(preset), "--work", str(work)]
            subprocess.run([*command, "--extractors", *arguments.extractors], env=environment, check=True)
        point: dict[str, Any] = json.loads(result.read_text())
        return point

    files = chosen(curve, arguments.points)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        points = list(pool.map(start, files, files.values()))
    output.mkdir(parents=True, exist_ok=True)
    write(output / "teacher.json", {"points": points})
    curves = {
        name: [[(point["step"], point["fidelity"][name]["fid"]) for point in points]] for name in points[0]["fidelity"]
    }
    panels = [panel({name: found}, f"FID ({name})", "steps", "FID (log)") for name, found in curves.items()]
    write_figure(panels, ["teacher"], output / "teacher.svg")


if __name__ == "__main__":
    main()
