"""The memory that two steps of training and of a search take at the size of Stable Diffusion, weights random.

python benchmarks/real_size.py --config tests/unets/stable-diffusion-v1-5.json --output benchmarks/results/real_size.json

Each step is a process of its own, on one thread, with the params of presets/stable-diffusion.yaml but for one sample in a batch
and two steps: features of the teacher, the search of a block, and retraining of a student that has as many parameters as its
teacher, all decoders in one, which is the most that the preset admits. Written are the seconds and the greatest resident memory.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from stagecraft.config.overlay import lay_over
from stagecraft.config.stages import stage_model
from stagecraft.data.condition import PROMPT, Condition
from stagecraft.data.prompts import Prompts
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.registry import make_process
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.networks.families import example_condition
from stagecraft.preflight.params import load_over
from stagecraft.runtime.files import write_checked_json, write_json
from stagecraft.search.features import FeatureWriter
from stagecraft.search.job import SearchJob
from stagecraft.training.joint import JointLoss
from stagecraft.training.loop import TrainSettings, train
from stagecraft.training.student import cast_teacher, start_student, student_batches

BLOCKS = ("down_blocks.0", "mid_block", "up_blocks.3.interval_0")
CPU = torch.device("cpu")
STEPS = 2
IMAGES = 4
LITTLE = {
    "device": "cpu",
    "cache_features": {"triples_per_interval": 6, "held_out": 0.5, "batch_size": 1, "shard_size": 6},
    "search_block": {"steps": STEPS, "warmup_steps": 1, "batch_size": 1, "candidates": 4, "output_candidates": 2}
    | {"local_triples": 2, "output_triples": 1, "checkpoint_every": 1000},
    "retrain": {"steps": STEPS, "warmup_steps": 1, "batch_size": 1, "checkpoint_every": 1000},
}


def small_params() -> dict[str, Any]:
    """The params of the preset with few samples and steps."""
    return lay_over(load_over(Path("presets/stable-diffusion.yaml")), LITTLE)


def read_teacher(config: Path) -> Any:
    """A network of that config with random weights."""
    torch.manual_seed(0)
    return UNet2DConditionModel.from_config(json.loads(config.read_text(encoding="utf-8"))).eval()


def some_data(teacher: Any) -> TrainingSet:
    """Latents and prompts of a few images, all random."""
    side = teacher.config["sample_size"]
    latents = torch.randn(IMAGES, teacher.config["in_channels"], side, side)
    prompt = torch.randn_like(example_condition(teacher, IMAGES).tensors[PROMPT])
    return TrainingSet(latents, prompts=Prompts(Condition({PROMPT: prompt}), torch.arange(IMAGES)))


def write_features(teacher: Any, folder: Path) -> None:
    """The teacher's features of three intervals."""
    model = stage_model(small_params(), "cache_features")
    process = make_process(model.diffusion.as_dict())
    settings = model.cache_features
    FeatureWriter(teacher, process, some_data(teacher), process.edges([300, 600]), settings, 0, CPU).write(folder, {})


def search(teacher: Any, folder: Path, block: str) -> None:
    """Two steps of a block's supernet, and the scores of a few candidates."""
    importance = folder / "importance.json"
    write_checked_json(importance, {"stream_importance": None, "stream_triples": 0})
    settings = stage_model(small_params(), "search_block")
    SearchJob(settings, teacher, block, folder, CPU, folder / f"{block}.pt", importance).run()


def retrain(teacher: Any) -> None:
    """Two steps of the joint loss, both parts of it."""
    model = stage_model(small_params(), "retrain")
    settings = model.retrain
    process = make_process(model.diffusion.as_dict())
    plan = {"unet": identity_architecture(teacher), "boundaries": [], "rule": "given"}
    student = start_student(teacher, plan, "teacher", 0, lambda job: {})
    batches = student_batches(some_data(teacher), process, teacher, [], settings, CPU)
    teacher = cast_teacher(teacher, CPU, model.precision)
    train(student, JointLoss(student, teacher, batches, settings, model.precision), TrainSettings.of(settings, 0))


def measure(config: Path, folder: Path, step: str) -> dict[str, Any]:
    """What one step took, in a process of its own."""
    command = [sys.executable, __file__, "--config", str(config), "--folder", str(folder), "--step", step]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(teacher: Any, folder: Path, step: str) -> None:
    """One step; prints what it took."""
    torch.set_num_threads(1)
    start = time.monotonic()
    if step == "features":
        write_features(teacher, folder)
    elif step == "retrain":
        retrain(teacher)
    else:
        search(teacher, folder, step)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"step": step, "gib": round(peak, 2), "seconds": round(time.monotonic() - start)}))


def main() -> None:
    """Measure all steps, or run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="config.json of the UNet")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--steps", nargs="+", default=["features", *BLOCKS, "retrain"])
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run(read_teacher(arguments.config), arguments.folder, arguments.step)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for step in arguments.steps:
            rows.append(measure(arguments.config, Path(folder), step))
            print(rows[-1], flush=True)
    if arguments.output:
        write_json(arguments.output, {"config": arguments.config.name, "steps": rows})


if __name__ == "__main__":
    main()
