"""What the search costs beside the teacher's training, and what two block searches at once save.

python benchmarks/search_cost.py --preset fashion-mnist --teacher benchmarks/teachers/fashion-mnist

Uses what benchmarks/compression.py left in --work when that had the same --teacher, or makes it.

Every round times, in turn and on one thread each: the feature cache and every block search one after the other, before and after
them some steps of the teacher's training (all cost the same), all searches two at a time, two alike one after the other and at
once, and the selection.
A block search is a process of its own and is timed inside, without the imports. MACs are those of the params: a backward pass
counts as two forward ones.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared_inputs import LATENCY, ONE_THREAD, Shared, cpu_params, preset_file, work_folder, write

from stagecraft.config.stages import stage_model
from stagecraft.preflight.params import validate_params

ROOT = Path(__file__).parents[1]
WARM_UP, TIMED = 10, 100  # teacher steps


class Costs:
    """The timings of one preset.

    Args:
        shared: with a teacher and what a search of the preset's seed needs.
        folder: for what is made only to be timed.
    """

    def __init__(self, preset: Path, shared: Shared, folder: Path) -> None:
        self.preset, self.shared, self.folder = preset, shared, folder
        self.params = cpu_params(preset)
        self.search = shared.search(self.params)
        self.names = shared.jobs(self.params)

    def teacher_step(self) -> float:
        """Seconds of a step of the teacher's training."""
        import torch

        from stagecraft.data.training import TrainingSet
        from stagecraft.diffusion.batches import NoisyBatches
        from stagecraft.diffusion.registry import make_process
        from stagecraft.training.loop import TrainSettings, train
        from stagecraft.training.teacher import DenoisingLoss, build_teacher

        settings, seed = validate_params(self.params, str(self.preset)).train_teacher, self.params["seed"]
        data, device = TrainingSet.load(self.shared.data, self.shared.latents), torch.device("cpu")
        channels, resolution, _ = data.shape
        classes = data.classes() if settings.class_conditional else None
        net = build_teacher(settings, resolution, channels, seed, classes)
        flip = settings.horizontal_flip
        batches = NoisyBatches(
            data,
            make_process(self.params["diffusion"]),
            settings.batch_size,
            device,
            flip,
            conditional=bool(classes),
        )
        begun = []

        def losses(step: int, generator: torch.Generator) -> Any:
            if step == WARM_UP:
                begun.append(time.perf_counter())
            return DenoisingLoss(net, batches, self.params["precision"])(step, generator)

        train(
            net,
            losses,
            TrainSettings.of(settings.model_copy(update={"steps": WARM_UP + TIMED}), seed),
            label="train_teacher",
        )
        return (time.perf_counter() - begun[0]) / TIMED

    def features(self) -> float:
        """Seconds of the feature cache."""
        from stages.cache_features import cache_features

        given = self.shared.inputs | {"teacher": self.shared.teacher, "clusters": self.search / "clusters.json"}
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            begun = time.perf_counter()
            cache_features(
                stage_model(self.params, "cache_features"), threads=1, **given, output=Path(folder) / "features"
            )
            return time.perf_counter() - begun

    def selection(self) -> float:
        """Seconds of the choice."""
        from stages.assemble import assemble

        given = {"teacher": self.shared.teacher, "clusters": self.search / "clusters.json"}
        results = self.shared.results(self.params)
        given |= {"search": results, "latency": results / LATENCY}
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            begun = time.perf_counter()
            assemble(stage_model(self.params, "assemble"), threads=1, **given, output=Path(folder) / "chosen.json")
            return time.perf_counter() - begun

    def jobs(self, names: list[str], at_once: int) -> float:
        """Seconds from the begin of the first block search to the end of the last, without the waits between them."""
        with ThreadPoolExecutor(at_once) as pool:
            spans = list(pool.map(self.job, names))
        if at_once == 1:
            return sum(end - begin for begin, end in spans)
        return max(end for _, end in spans) - min(begin for begin, _ in spans)

    def job(self, name: str) -> tuple[float, float]:
        """Begin and end of one block search, in a process of its own."""
        command = [sys.executable, __file__, "--job", name, "--preset", str(self.preset), "--work", str(self.folder)]
        command += ["--teacher", str(self.shared.given)] if self.shared.given else []
        environment = os.environ | ONE_THREAD
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        begin, end = json.loads(done.stdout.splitlines()[-1])
        return begin, end

    def timed_job(self, name: str) -> tuple[float, float]:
        """What `job` starts."""
        import torch

        from stagecraft.networks.pipelines import load_teacher
        from stages.search_block import search_block

        torch.set_num_threads(1)
        load_teacher(self.shared.teacher)
        start = self.shared.start_of(name, self.params)
        features, importance = self.search / "results" / "features", self.shared.importance_name(self.params)
        given = {"teacher": self.shared.teacher, "features": features, "name": name, "start": start}
        given |= {"importance": self.search / importance, "latency": self.shared.results(self.params) / LATENCY}
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            made = {
                "output": Path(folder) / "search" / "job.json",
                "weights": Path(folder) / "search" / "job.safetensors",
            }
            made["output"].parent.mkdir()
            begin = time.time()
            search_block(stage_model(self.params, "search_block"), threads=1, **given, **made)
            return begin, time.time()

    def round(self) -> dict[str, float]:
        """Seconds of everything once."""
        pair = [name for name in self.names if name.startswith(self.names[-1].rpartition(".")[0])][-2:]
        before, features, searches = self.teacher_step(), self.features(), self.jobs(self.names, 1)
        return {
            "teacher_step": statistics.mean([before, self.teacher_step()]),
            "features": features,
            "searches": searches,
            "searches_two_at_once": self.jobs(self.names, 2),
            "pair": self.jobs(pair, 1),
            "pair_at_once": self.jobs(pair, 2),
            "selection": self.selection(),
        }

    def macs(self) -> dict[str, float]:
        """MACs of the teacher's training and of the search."""
        from stagecraft.networks.costs import count_network_macs
        from stagecraft.networks.pipelines import load_teacher
        from stagecraft.report.page import macs_of_search

        whole, settings = count_network_macs(load_teacher(self.shared.teacher)), self.params["train_teacher"]
        results = self.shared.results(self.params)
        searches = [json.loads((results / f"{name}.json").read_text()) for name in self.names]
        spent = macs_of_search(whole, searches)
        return spent | {"teacher": 3.0 * settings["steps"] * settings["batch_size"] * whole}


def summarise(rounds: list[dict[str, float]], macs: dict[str, float], steps: int) -> dict[str, Any]:
    """Shares of the teacher's training and of one after the other: mean, and standard deviation over the rounds."""

    def spread(values: list[float]) -> dict[str, float | None]:
        return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}

    search = [one["features"] + one["searches"] + one["selection"] for one in rounds]
    teacher = [steps * one["teacher_step"] for one in rounds]
    return {
        "macs_share": (sum(macs.values()) - macs["teacher"]) / macs["teacher"],
        "seconds_share": spread([a / b for a, b in zip(search, teacher, strict=True)]),
        "two_at_once_share": spread([one["searches_two_at_once"] / one["searches"] for one in rounds]),
        "pair_at_once_share": spread([one["pair_at_once"] / one["pair"] for one in rounds]),
        "teacher_seconds": spread(teacher),
        "search_seconds": spread(search),
        "selection_seconds": spread([one["selection"] for one in rounds]),
    }


def main() -> None:
    """Time all rounds and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, help="name in presets/, or a params file")
    parser.add_argument("--work", type=Path, help="the --work of benchmarks/compression.py, when it had one")
    parser.add_argument("--teacher", type=Path, help="the --teacher of benchmarks/compression.py, when it had one")
    parser.add_argument("--output", type=Path, help="folder for <preset>.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", help="a single block search; what a round starts")
    arguments = parser.parse_args()
    import torch

    from stagecraft.runtime.threads import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()  # as every stage does that runs by itself
    preset = preset_file(arguments.preset)
    work = arguments.work or work_folder(preset)
    shared = Shared(preset, work / "shared", arguments.teacher)
    shared.prepare()
    costs = Costs(preset, shared, work)
    if arguments.job:
        print(json.dumps(costs.timed_job(arguments.job)))
        return
    output = arguments.output or ROOT / "benchmarks" / "results" / "search-cost"
    output.mkdir(parents=True, exist_ok=True)
    rounds: list[dict[str, float]] = []
    macs = costs.macs()
    for _ in range(arguments.rounds):
        rounds.append(costs.round())
        summary = summarise(rounds, macs, costs.params["train_teacher"]["steps"])
        write(
            output / f"{preset.stem}.json",
            {"cores": os.cpu_count(), "summary": summary, "rounds": rounds, "macs": macs},
        )
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
