"""The search against the simple ways to the same MACs: one command that makes the whole table.

python benchmarks/compression.py --preset digits --steps 1200 --seeds 3 --budgets 0.5 --methods search uniform random magnitude

The README's tables are made by that command with all methods, and by

python benchmarks/compression.py --preset fashion-mnist --teacher benchmarks/teachers/fashion-mnist --seeds 3 --budgets 0.5 0.3
  --channels 1.0 1.0,0.75 --methods search random diff-pruning scratch --extractors classifier fashion-cnn.pt

and again with `--channels 0.75 0.6 --methods uniform`; fashion-cnn.pt is what fashion_extractor.py makes.

Every run is a process of its own with one thread. It resumes from its checkpoint and leaves <method>-<budget>-seed<k>.json in
--output; runs that are there are not repeated. After them summary.json and fid.svg are written.

Runs of one seed share the noise that samples start from and the batches of retraining, so methods are compared seed by seed:
beside the mean and standard deviation of a method's FID the table has those of its difference from that of `search`.

All start from the same teacher, whose predictions are kept in --work for the runs of a seed, and are retrained for the preset's
steps, or for --steps, with the same batches, learning rate and average. All are scored by the same code, FID and KID:
`evaluate.samples` images from the seed of the run, against the training split. MACs are thop's, weighted by the sampler's steps
in each stage, as a share of the teacher's; they alone are limited, and the table says what it takes in parameters. A seed stands
for the whole of a method: clustering, features, supernets, choice, retraining and samples.

Methods: `search` is the preset. `scratch` is its architecture with random weights; `uniform`, `uniform-rank`, `random` and
`largest` choose in its space without scores, in its residual stream or, run with --channels of their own, in the one that is
best for them, which the table names; `uniform` has supernets of its own, of widths in eighths and no low ranks, whatever the
preset searches; `random` takes sub-blocks that were drawn from the space alone, `random-scored` also those that the search has
bred; `random-1`, `random-2` ... are further draws, of which a seed's mean counts. `magnitude`, `taylor`, `diff-pruning` and
`pruned-random` remove channels of the teacher (baselines.py), with the preset's `output_weight` as distillation, and its
calibration; `diff-pruning-folded` has the search's cheaper upsamplers as well. A method with `-plain` after its name is
retrained without distillation terms and is not calibrated. The others exchange one part of the search: `local-rule`,
`local-score`, `output-score`, `combined-score`, `joint-linear`, `joint-step`, `joint-constant`, `joint-none`, `uncalibrated`,
`one-stage`, and `ranks-only` the space, for that of `fashion-mnist`. `teacher`, `teacher-calibrated` and `held-out` are what
to compare with; held-out images are scored where there are enough of them for KID.

`error` is the mean square difference of a net's predictions from the teacher's after retraining, before calibration: it has
far less chance in it than FID, and tells of nothing but the imitation. Images per second are a multiple of the teacher's, on one
thread, beside the other jobs.

Runs with an architecture of the search space say what the scores made of it, so that summary.json has Spearman's correlation of
each score with the FID after retraining, over the draws of one seed.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from compression_methods import (
    FOLDED,
    NO_BLOCKS,
    PRUNED,
    REFERENCES,
    SEARCHED,
    Channels,
    Method,
    changed,
    params_of,
    shares,
    written,
)
from compression_table import correlations, draw, not_joined, summarise, table
from shared_inputs import LATENCY, ONE_THREAD, Shared, cpu_params, preset_file, work_folder, write

ROOT = Path(__file__).parents[1]
DRAWS = 100  # most draws of one seed
ERROR_BATCHES = 8
SCORES = ("local", "output", "combined")


def drawn_of(result: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """The candidates of a search result that were drawn from the space, none that was bred from the best.

    Args:
        most: `search_block.candidates`; a space that is not larger was scored whole, and is left whole.
    """
    from stages.search.supernet import SAMPLED

    found: list[dict[str, Any]] = result["candidates"]
    return found[: math.ceil(most * SAMPLED)] if result["space_size"] > most else found


class Run:
    """One method at one budget with one seed.

    Args:
        shared: what `Shared.prepare` made; search results are made when they are not there.
        extractors: names or TorchScript files; the first gives `fid`.
        work: folder for checkpoints and samples.
        channels, steps: as in `params_of`.
    """

    def __init__(
        self,
        preset: Path,
        method: Method,
        budget: float,
        seed: int,
        shared: Shared,
        extractors: list[str],
        work: Path,
        channels: Channels | None = None,
        steps: int | None = None,
    ) -> None:
        import torch

        from stages.command import keep_freed_memory
        from stages.datasets.prepared import PreparedData
        from stages.datasets.training import TrainingSet
        from stages.diffusion.process import make_process
        from stages.evaluation.fidelity import open_extractor
        from stages.models.autoencoder import open_autoencoder
        from stages.models.pipelines import load_teacher, read_stated

        torch.set_num_threads(1)
        keep_freed_memory()
        self.method, self.budget, self.seed, self.shared = method, budget, seed, shared
        self.params, self.device = params_of(preset, method, budget, seed, channels, steps), torch.device("cpu")
        self.data, self.prepared = TrainingSet.load(shared.data, shared.latents), PreparedData.load(shared.data)
        self.teacher, self.vae = load_teacher(shared.teacher), open_autoencoder(shared.vae)
        self.process = make_process(self.params["diffusion"], read_stated(shared.teacher))
        image = self.prepared.images[0]
        self.extractors = {Path(name).stem: open_extractor(name, shared.extractor, image) for name in extractors}
        self.work = work / f"{method.full}-{budget}-seed{seed}"

    def pruned(self) -> Any:
        """The teacher with channels removed."""
        from baselines import importance_of, pruned

        importance = importance_of(PRUNED[self.method.name], self.teacher, self.process, self.data, self.seed)
        net = pruned(self.teacher, self.budget, importance, fold=self.method.name == FOLDED)
        self.teacher.zero_grad()
        return net

    def student(self, plan: dict[str, Any]) -> Any:
        """The net of an architecture.json before retraining."""
        from stages.training.student import start_student, supernet_reader

        search = self.shared.results(self.params)
        reader = supernet_reader(search, plan["supernets"], search / "index.json")
        return start_student(self.teacher, plan, self.params["retrain"]["init"], self.seed, reader)

    def plan(self) -> dict[str, Any]:
        """The content of architecture.json."""
        from stages.assemble import assemble
        from stages.config import stage_params

        folder, output = self.shared.search(self.params), self.work / "architecture.json"
        inputs = {"teacher": self.shared.teacher, "clusters": folder / "clusters.json"}
        results = self.shared.results(self.params)
        inputs |= {"search": self.drawn() if self.method.name == "random" else results, "latency": results / LATENCY}
        params = stage_params(self.params, "assemble") | {"seed": DRAWS * self.seed + self.method.draw}
        assemble(params, threads=1, **inputs, output=output)
        found: dict[str, Any] = json.loads(output.read_text())
        return found

    def drawn(self) -> Path:
        """A copy of the search results with the candidates alone that `drawn_of` leaves."""
        from stages.files import write_checked_json
        from stages.search.results import read_results, write_index

        folder, most = self.work / "drawn", self.params["search_block"]["candidates"]
        folder.mkdir(parents=True, exist_ok=True)
        results = read_results(self.shared.results(self.params))
        for name, result in results.items():
            write_checked_json(folder / f"{name}.json", result | {"candidates": drawn_of(result, most)})
        write_index(folder, results, self.params)
        return folder

    def block_scores(self, plan: dict[str, Any]) -> dict[str, float]:
        """The scores of an architecture as the budget rule adds them up, each measured for every block in its supernet."""
        from safetensors.torch import load_file

        from stages.config import stage_params
        from stages.search.architecture import costs_of
        from stages.search.job import SearchJob
        from stages.search.selection import Block, value_of

        folder, costs = self.shared.search(self.params), costs_of(self.teacher, plan["steps_per_stage"])
        results = self.shared.results(self.params)
        params, total = stage_params(self.params, "search_block"), dict.fromkeys(SCORES, 0.0)
        for name, chosen in plan["chosen"].items():
            features, importance = folder / "results" / "features", folder / self.shared.importance_name(self.params)
            job = SearchJob(params, self.teacher, name, features, self.device, self.work / name, importance)
            job.supernet.load_state_dict(load_file(results / f"{name}.safetensors"))
            candidate = job.measured(chosen["spec"])
            block = Block(name, job.stage, candidate, (candidate,))
            total = {score: value + value_of(block, candidate, costs, score) for score, value in total.items()}
        return total

    def retrain(self, net: Any, boundaries: list[float]) -> Any:
        """The net with averaged weights after retraining, not calibrated yet."""
        from remembered import RememberedJointLoss

        from stages.training.loop import TrainSettings, train
        from stages.training.student import student_batches

        params = self.params if self.method.name in SEARCHED else changed(self.params, NO_BLOCKS)
        settings = params["retrain"]
        batches = student_batches(self.data, self.process, self.teacher, boundaries, settings, self.device)
        result = train(
            net,
            RememberedJointLoss(
                net, self.teacher, batches, settings, "fp32", folder=self.shared.folder / "predictions"
            ),
            TrainSettings.of(settings, self.seed),
            checkpoint=self.work / "retrain.pt",
            fingerprint={"params": self.params, "method": self.method.full},
            label=f"{self.method.full} {self.budget} seed {self.seed}",
        )
        if result.ema is not None:
            net.load_state_dict(result.ema)
        return net.eval()

    def calibrated(self, net: Any, boundaries: list[float]) -> Any:
        """The net with the calibration that `retrain` gives a student."""
        from baselines import Calibrated

        from stages.training.calibration import Calibrator

        calibrator = Calibrator(self.teacher, self.data, self.process, self.params["retrain"], self.seed)
        sampler = self.sampler(self.params["retrain"]["batch_size"])
        measured = calibrator.table(net, self.process.edges(boundaries))
        table, _ = calibrator.matched(measured, lambda table: Calibrated(net, table, calibrator.mean), sampler)
        return Calibrated(net, table, calibrator.mean)

    def draw(self, net: Any) -> Any:
        """Samples, uint8 (N, H, W, C)."""
        from stages.diffusion.sampling import sample
        from stages.pieces import Pieces

        settings = self.params["evaluate"]
        pieces = Pieces(self.work / "samples", {"params": self.params, "method": self.method.full})
        return sample(net, self.sampler(settings["batch_size"]), range(settings["samples"]), pieces=pieces).numpy()

    def sampler(self, batch_size: int) -> Any:
        """The params' sampler, for all methods."""
        from functools import partial

        from stages.diffusion.sampling import Sampler
        from stages.models.autoencoder import decode
        from stages.models.pipelines import read_stated

        decoding = None if self.vae is None else partial(decode, self.vae)
        return Sampler.of(
            self.params,
            self.data.shape,
            self.device,
            batch_size,
            decode=decoding,
            stated=read_stated(self.shared.teacher),
        )

    def score(self, images: Any) -> dict[str, Any]:
        """Fidelity by every extractor, against the training split."""
        from stages.evaluation.fidelity import fidelity

        settings = self.params["evaluate"]
        how = {"seed": 0, "device": self.device, "kid_subset_size": settings["kid_subset_size"], "neighbours": None}
        found = {name: fidelity(images, self.prepared.train_images, e, **how) for name, e in self.extractors.items()}
        return {"samples": len(images), "fid": next(iter(found.values()))["fid"], "fidelity": found}

    def result(self) -> dict[str, Any]:
        """What the file of the run holds."""
        about = {"method": self.method.full, "budget": self.budget, "seed": self.seed}
        if self.method.name in SEARCHED:
            about["channels"] = self.params["search_block"]["channels"]
        if self.method.name == "held-out":
            return about | self.score(self.prepared.held_out_images)
        if self.method.name in REFERENCES:
            net = self.teacher if self.method.name == "teacher" else self.calibrated(self.teacher.eval(), [])
            return about | {"macs_ratio": 1.0, "params_ratio": 1.0} | self.score(self.draw(net))
        about["steps"] = self.params["retrain"]["steps"]
        if self.method.name in PRUNED:
            net, boundaries, scores = self.pruned(), [], {}
        else:
            plan = self.plan()
            net, boundaries, scores = self.student(plan), plan["boundaries"], self.block_scores(plan)
        scores["untrained"] = self.untrained(net)
        net = self.retrain(net, boundaries)
        about |= self.cost(net, boundaries) | {"scores": scores, "error": self.error(net)}
        about["images_per_second_ratio"] = self.speed(net, about["boundaries"], about["steps_per_stage"])
        if self.params["retrain"]["calibrate"] != "none":
            net = self.calibrated(net, boundaries)
        return about | self.score(self.draw(net))

    def cost(self, net: Any, boundaries: list[float]) -> dict[str, Any]:
        """MACs and parameters as shares of the teacher's."""
        from stages.diffusion.sampling import steps_per_stage
        from stages.evaluation.cost import model_cost

        sampling = self.params["sampling"]
        steps = steps_per_stage(self.process, sampling["scheduler"], sampling["steps"], boundaries)
        small = model_cost(net, self.data.shape, boundaries, steps)
        whole = model_cost(self.teacher, self.data.shape, [], [1])
        ratios = {f"{key}_ratio": small[key] / whole[key] for key in ("macs", "params", "params_active")}
        return ratios | {"boundaries": boundaries, "steps_per_stage": steps}

    def speed(self, net: Any, boundaries: list[float], steps: list[int]) -> float:
        """Images per second as a multiple of the teacher's, on one thread, the two in turn."""
        from stages.evaluation.speed import measure_speed

        settings = self.params["evaluate"]
        found = measure_speed(
            {"teacher": self.teacher.eval(), "net": net.eval()},
            self.data.shape,
            boundaries,
            steps,
            batch=settings["speed_batch"],
            repeats=settings["speed_repeats"],
            device=self.device,
            precision="fp32",
        )
        faster: float = found["net"]["images_per_second"] / found["teacher"]["images_per_second"]
        return faster

    def untrained(self, net: Any) -> float:
        """NMSE of the net's prediction to the teacher's before retraining, over 512 noised training images."""
        from stages.diffusion.losses import nmse

        ((found, wanted),) = self.predictions(net, "untrained", 1)
        return float(nmse([found], [wanted]))

    def error(self, net: Any) -> float:
        """Mean square difference of the net's prediction from the teacher's, over 4,096 noised training images.

        It says with far less chance than FID does how near retraining has brought the net to the teacher.
        """
        pairs = list(self.predictions(net, "error", ERROR_BATCHES))
        return sum(float((found - wanted).square().mean()) for found, wanted in pairs) / len(pairs)

    def predictions(self, net: Any, name: str, batches: int) -> Iterator[tuple[Any, Any]]:
        """Pairs of the net's and the teacher's predictions for 512 images at once, whose noises depend on the name alone."""
        import torch

        from stages.diffusion.losses import NoisyBatches, predict
        from stages.diffusion.seeds import generator_for

        draw = NoisyBatches(self.data, self.process, 512, self.device)
        for number in range(batches):
            batch = draw(generator_for(0, name, number))
            with torch.no_grad():
                found, wanted = (predict(model.eval(), batch.x_t, batch.t) for model in (net, self.teacher))
            yield found, wanted


def main() -> None:
    """Run what is missing, several at a time, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True, help="name in presets/, or a params file")
    parser.add_argument("--methods", nargs="+", default=["search", "scratch", "uniform", "random", *PRUNED])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5])
    parser.add_argument(
        "--channels",
        type=shares,
        nargs="+",
        help="search_block.channels of each budget, as 0.75, or as 0.75,0.5 for shares of the levels; else the preset's",
    )
    parser.add_argument("--steps", type=int, help="retrain.steps; else the preset's")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--extractors", nargs="+", default=["classifier"])
    parser.add_argument("--teacher", type=Path, help="a diffusers folder to take the teacher from; else it is trained")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "BUDGET", "SEED"), help="a single run; what --jobs starts")
    arguments = parser.parse_args()
    preset = preset_file(arguments.preset)
    output = arguments.output or ROOT / "benchmarks" / "results" / f"compression-{preset.stem}"
    work = arguments.work or work_folder(preset)
    shared = Shared(preset, work / "shared", arguments.teacher)
    if arguments.one:
        method, budget, seed = arguments.one
        channels = arguments.channels[0] if arguments.channels else None
        settings = {"channels": channels, "steps": arguments.steps}
        run = Run(preset, Method(method), float(budget), int(seed), shared, arguments.extractors, work, **settings)
        write(output / f"{method}-{budget}-seed{seed}.json", run.result())
        return
    try:
        list(map(Method, arguments.methods))
    except ValueError as error:
        parser.error(f"--methods {error}")
    if arguments.channels and len(arguments.channels) != len(arguments.budgets):
        parser.error(f"--channels {arguments.channels}: give one for each of the {len(arguments.budgets)} budgets")
    if arguments.steps is not None and arguments.steps < 1:
        parser.error(f"--steps {arguments.steps}: give 1 or more")
    asked = (arguments.methods, arguments.budgets, arguments.channels, arguments.steps)
    if problem := not_joined(output, cpu_params(preset), *asked):
        parser.error(problem)

    output.mkdir(parents=True, exist_ok=True)
    shared.prepare()
    codes = run_all(arguments, preset, output, work)
    runs = [json.loads(path.read_text()) for path in sorted(output.glob("*-seed*.json"))]
    summary = summarise(runs)
    write(output / "summary.json", {"table": summary, "correlations": correlations(runs)})
    draw(runs, output / "fid.svg")
    (output / "table.md").write_text(table(summary))
    print(table(summary))
    sys.exit(max(codes, default=0))


def run_all(arguments: argparse.Namespace, preset: Path, output: Path, work: Path) -> list[int]:
    """Start every run that has no result yet; their exit codes."""

    def start(job: tuple[int, float, str]) -> int:
        seed, budget, method = job
        if (output / f"{method}-{budget}-seed{seed}.json").exists():
            return 0
        folders = ["--preset", str(preset), "--output", str(output), "--work", str(work)]
        command = [sys.executable, __file__, "--one", method, str(budget), str(seed), *folders]
        if arguments.channels:
            command += ["--channels", written(arguments.channels[arguments.budgets.index(budget)])]
        if arguments.steps:
            command += ["--steps", str(arguments.steps)]
        environment = os.environ | ONE_THREAD
        return subprocess.run(
            [*command, "--extractors", *arguments.extractors], env=environment, check=False
        ).returncode

    wanted = list(product(range(arguments.seeds), arguments.budgets, arguments.methods))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        return list(pool.map(start, wanted))


if __name__ == "__main__":
    main()
