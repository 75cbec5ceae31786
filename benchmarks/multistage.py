"""FID against training compute: one net for all noise levels against a decoder per interval, from the same seeds.

python benchmarks/multistage.py --processes vp edm --arms unified multistage --seeds 3 --jobs 2

The committed results are of this command, of the same with `--processes latent --steps 1500`, and, in clustering-ablation, of
`--processes vp --arms equal cluster-uniform cluster-snr cluster-gradient --seeds 3 --steps 700 --points 1.0`.

Each run is a process of its own with one thread, resumes from its checkpoint, and leaves <process>-<arm>-seed<k>.json in
--output; runs that are there are not repeated. After them summary.json and curves.svg are written. Everything is trained from
scratch on the digits (presets/multistage.yaml; its noise process exchanged for that of presets/edm.yaml, or its pixels for the
latents of presets/latent.yaml), with a constant learning rate and an average of the weights, so every point of a curve is a
finished model. Training MACs are 3 x batch x steps x the mean MACs of a forward pass, intervals weighted by how often training
draws them.

Arms: unified (one decoder), multistage (decoders of the preset's widths), equal (all as wide as unified's), separate (nothing
shared), warm (as equal, all decoders starting as copies of a unified net trained for a quarter of the steps, whose cost is
counted), and cluster-<method> (as equal, with the boundaries of another method).
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from stagecraft.config.sections import ClusterTimesteps
from stagecraft.config.stages import stage_model
from stagecraft.preflight.params import load_over, validate_params

ROOT = Path(__file__).parents[1]
POINTS = [0.0625, 0.125, 0.25, 0.5, 0.75, 1.0]
NAMES = {"vp": "VP", "edm": "EDM", "latent": "latent (VP)"}
WARM = 0.25
LEARNING_RATE = 1e-3


def params_of(process: str, seed: int) -> dict[str, Any]:
    """The params of all runs of one process and seed; data, extractor and autoencoder are the same for all seeds."""
    params = load_over(ROOT / "presets" / "multistage.yaml")
    if process == "edm":
        params |= {key: load_over(ROOT / "presets" / "edm.yaml")[key] for key in ("diffusion", "sampling")}
    if process == "latent":
        other = load_over(ROOT / "presets" / "latent.yaml")
        params |= {key: other[key] for key in ("prepare_data", "train_autoencoder", "cluster_timesteps")}
    return params


def prepare(process: str, folder: Path) -> None:
    """What the runs of a process share: data, autoencoder, latents, extractor; made once."""
    from stages.encode_latents import encode_latents
    from stages.prepare_data import prepare_data
    from stages.train_autoencoder import train_autoencoder
    from stages.train_extractor import train_extractor

    params, data, vae = params_of(process, 0), folder / "data", folder / "autoencoder"
    log = folder / "log.json"
    if not (data / "meta.json").exists():
        prepare_data(stage_model(params, "prepare_data"), threads=1, output=data)
    if not (vae / "index.json").exists():
        train_autoencoder(stage_model(params, "train_autoencoder"), threads=1, data=data, output=vae, log=log)
    if not (folder / "latents" / "index.json").exists():
        latents = folder / "latents"
        encode_latents(stage_model(params, "encode_latents"), threads=1, data=data, autoencoder=vae, output=latents)
    extractor = folder / "extractor.safetensors"
    if not extractor.exists():
        train_extractor(stage_model(params, "train_extractor"), threads=1, data=data, output=extractor, log=log)


class Run:
    """One arm of one process with one seed.

    Args:
        shared: the folder that `prepare` filled.
        work: folder for checkpoints.
    """

    def __init__(
        self, process: str, arm: str, seed: int, arguments: argparse.Namespace, shared: Path, work: Path
    ) -> None:
        import torch

        from stagecraft.data.prepared import PreparedData
        from stagecraft.data.training import TrainingSet
        from stagecraft.diffusion.registry import make_process
        from stagecraft.evaluation.fidelity import open_extractor
        from stagecraft.networks.autoencoder import open_autoencoder
        from stagecraft.training.teacher import build_teacher

        torch.set_num_threads(1)
        self.process_name, self.arm, self.seed, self.arguments, self.work = process, arm, seed, arguments, work
        self.params, self.device = params_of(process, seed), torch.device("cpu")
        self.data = TrainingSet.load(shared / "data", shared / "latents")
        self.prepared = PreparedData.load(shared / "data")
        self.process, self.vae = make_process(self.params["diffusion"]), open_autoencoder(shared / "autoencoder")
        self.extractor = open_extractor("classifier", shared / "extractor.safetensors", self.prepared.images[0])
        channels, side, _ = self.data.shape
        self.unified = build_teacher(validate_params(self.params, "multistage").train_teacher, side, channels, seed)

    def boundaries(self) -> list[float]:
        """The interval boundaries of the arm."""
        from functools import partial

        from stagecraft.clustering.cluster import cluster
        from stagecraft.clustering.gradients import loss_gradients

        settings = ClusterTimesteps(**self.params["cluster_timesteps"] | {"seeds": 1})
        if self.arm == "unified":
            return []
        gradients = None
        if self.arm.startswith("cluster-"):
            settings = settings.model_copy(update={"method": self.arm.removeprefix("cluster-")})
            if settings.method == "gradient":
                # A net that has learned a little, as gradients of random weights say little.
                trained = self.train(copy.deepcopy(self.unified), self.batches(), self.steps(WARM), "gradient")
                gradients = partial(loss_gradients, trained, self.process, self.data, 256)
        found = cluster(self.data.flat(settings.image_range), self.process, settings, self.seed, gradients)
        boundaries: list[float] = found["boundaries"]
        return boundaries

    def build(self, boundaries: list[float]) -> Any:
        """The arm's net before training."""
        from separate import build_separate

        from stagecraft.search.architecture import given_architecture
        from stagecraft.training.student import build_student, warm_start

        intervals = len(boundaries) + 1
        widths = self.params["assemble"]["decoder_widths"] if self.arm == "multistage" else [1.0] * intervals
        specs = given_architecture(self.unified, [1] * intervals, widths)["unet"]
        if self.arm == "separate":
            return build_separate(self.unified, specs, boundaries, self.seed)
        net = build_student(self.unified, specs, boundaries, self.seed)
        if self.arm == "warm":
            warm_start(net, self.train(copy.deepcopy(self.unified), self.batches(), self.steps(WARM), "warm"))
        return net

    def steps(self, share: float) -> int:
        """Optimiser steps of a share of the whole."""
        return round(share * self.arguments.steps)

    def batches(self) -> Any:
        """Batches by the density of t, the same for all arms."""
        from stagecraft.diffusion.batches import NoisyBatches

        return NoisyBatches(self.data, self.process, self.params["retrain"]["batch_size"], self.device)

    def train(self, net: Any, batches: Any, steps: int, name: str) -> Any:
        """The net with averaged weights after so many steps; goes on from where an earlier call with this name ended."""
        from stagecraft.training.loop import TrainSettings, train
        from stagecraft.training.teacher import DenoisingLoss

        settings = TrainSettings(
            steps=steps,
            learning_rate=LEARNING_RATE,
            warmup_steps=100,
            ema_decay=self.params["retrain"]["ema_decay"],
            gradient_clip=1.0,
            decay="constant",
            seed=self.seed,
            checkpoint_every=500,
        )
        checkpoint = self.work / f"{self.process_name}-{self.arm}-{self.seed}-{name}.pt"
        made_with = {"params": self.params, "seed": self.seed}
        found = train(net, DenoisingLoss(net, batches, "fp32"), settings, checkpoint=checkpoint, fingerprint=made_with)
        averaged = copy.deepcopy(net)
        averaged.load_state_dict(found.ema)
        return averaged.eval()

    def fid(self, net: Any) -> float:
        """FID of `samples` images against the training split."""
        from functools import partial

        from stagecraft.diffusion.sampling import Sampler, sample
        from stagecraft.evaluation.fidelity import fidelity
        from stagecraft.networks.autoencoder import decode

        sampling, settings = self.params["sampling"], self.params["evaluate"]
        decoding = None if self.vae is None else partial(decode, self.vae)
        how = (self.process, sampling["scheduler"], sampling["steps"], self.seed, self.data.shape, self.device)
        images = sample(net, Sampler(*how, settings["batch_size"], decode=decoding), range(self.arguments.samples))
        scoring = {key: settings[key] for key in ("kid_subset_size", "neighbours")}
        found = fidelity(
            images.numpy(), self.prepared.train_images, self.extractor, seed=0, device=self.device, **scoring
        )
        return found["fid"]

    def result(self) -> dict[str, Any]:
        """Curve of FID over training MACs, with what the arm costs."""
        from stagecraft.diffusion.sampling import steps_per_interval
        from stagecraft.evaluation.cost import model_cost

        boundaries = self.boundaries()
        net, batches = self.build(boundaries), self.batches()
        sampling = self.params["sampling"]
        steps = steps_per_interval(self.process, sampling["scheduler"], sampling["steps"], boundaries)
        shares = [self.process.share(*edges) for edges in self.process.edges(boundaries)]
        cost = model_cost(net, self.data.shape, boundaries, steps, shares)
        whole = model_cost(self.unified, self.data.shape, [], [1], [1.0])["macs_training"]
        batch = self.params["retrain"]["batch_size"]
        spent = 3 * batch * self.steps(WARM) * whole if self.arm == "warm" else 0.0
        points = []
        for share in self.arguments.points:
            trained = self.train(net, batches, self.steps(share), "net")
            macs = spent + 3 * batch * self.steps(share) * cost["macs_training"]
            points.append({"step": self.steps(share), "training_macs": macs, "fid": self.fid(trained)})
            print(self.process_name, self.arm, self.seed, points[-1], flush=True)
        return {
            "process": self.process_name,
            "arm": self.arm,
            "seed": self.seed,
            "boundaries": boundaries,
            "steps_per_interval": steps,
            "shares": shares,
            "macs_training_ratio": cost["macs_training"] / whole,
            "macs_sampling_ratio": cost["macs"] / whole,
            "params": cost["params"],
            "points": points,
        }


# --- What the curves say ---


def reached(points: list[dict[str, float]], fid: float) -> float | None:
    """The fewest training MACs at which a curve, linear between its points, is at `fid` or below; None when it never is."""
    before = None
    for point in points:
        if point["fid"] <= fid:
            if before is None or before["fid"] == point["fid"]:
                return point["training_macs"]
            part = (before["fid"] - fid) / (before["fid"] - point["fid"])
            return before["training_macs"] + part * (point["training_macs"] - before["training_macs"])
        before = point
    return None


def crossing(one: list[dict[str, float]], other: list[dict[str, float]]) -> float | None:
    """The training MACs from which `other` stays below `one` for as long as both were trained; None when it does not."""
    import numpy as np

    columns = [([p["training_macs"] for p in points], [p["fid"] for p in points]) for points in (one, other)]
    least, most = max(macs[0] for macs, _ in columns), min(macs[-1] for macs, _ in columns)
    grid = np.linspace(least, most, 400)
    below = np.interp(grid, *columns[1]) < np.interp(grid, *columns[0])
    if not below[-1]:
        return None
    last = np.flatnonzero(~below)
    return float(grid[0] if not len(last) else grid[last[-1]])


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """For each process and arm: final FIDs, and the share of the unified net's MACs needed for its final FID, over seeds."""
    unified = {(run["process"], run["seed"]): run["points"] for run in runs if run["arm"] == "unified"}
    summary: dict[str, Any] = {}
    for run in runs:
        entry = summary.setdefault(run["process"], {}).setdefault(run["arm"], {"seeds": [], "final_fid": []})
        entry["seeds"].append(run["seed"])
        entry["final_fid"].append(run["points"][-1]["fid"])
        entry.setdefault("macs_training_ratio", []).append(run["macs_training_ratio"])
        entry.setdefault("macs_sampling_ratio", []).append(run["macs_sampling_ratio"])
        entry.setdefault("boundaries", []).append(run["boundaries"])
        plain = unified.get((run["process"], run["seed"]))
        if plain and run["arm"] != "unified":
            need = reached(run["points"], plain[-1]["fid"])
            meet, whole = crossing(plain, run["points"]), plain[-1]["training_macs"]
            entry.setdefault("share_for_unified_fid", []).append(None if need is None else need / whole)
            entry.setdefault("crossing_share", []).append(None if meet is None else meet / whole)
    for entry in (entry for arms in summary.values() for entry in arms.values()):
        entry["mean"] = statistics.mean(entry["final_fid"])
        entry["std"] = statistics.stdev(entry["final_fid"]) if len(entry["final_fid"]) > 1 else None
    return summary


def draw(runs: list[dict[str, Any]], target: Path) -> None:
    """FID against training MACs, as shares of what the unified net spent; a panel per process that has one."""
    from curves import panel, write_figure

    arms, panels = list(dict.fromkeys(run["arm"] for run in runs)), []
    for process in dict.fromkeys(run["process"] for run in runs):
        own = [run for run in runs if run["process"] == process]
        plain = [run["points"][-1]["training_macs"] for run in own if run["arm"] == "unified"]
        if not plain:
            continue
        shown = {
            arm: [
                [(p["training_macs"] / plain[0], p["fid"]) for p in run["points"]] for run in own if run["arm"] == arm
            ]
            for arm in arms
        }
        label = "training MACs / those of the unified net"
        panels.append(panel(shown, NAMES[process], label, "FID (log)"))
    if panels:
        write_figure(panels, arms, target)


def parse_arguments() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", nargs="+", default=["vp", "edm", "latent"], choices=["vp", "edm", "latent"])
    parser.add_argument("--arms", nargs="+", default=["unified", "multistage"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument(
        "--points", type=float, nargs="+", default=POINTS, help="shares of the steps where FID is measured"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "multistage")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "multistage")
    parser.add_argument("--one", nargs=3, metavar=("PROCESS", "ARM", "SEED"), help="a single run; what --jobs starts")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, two at a time or more, then summarise."""
    arguments = parse_arguments()
    if arguments.one:
        process, arm, seed = arguments.one
        run = Run(process, arm, int(seed), arguments, arguments.work / process, arguments.work)
        path = arguments.output / f"{process}-{arm}-seed{seed}.json"
        path.write_text(json.dumps(run.result(), indent=1) + "\n")
        return

    arguments.output.mkdir(parents=True, exist_ok=True)
    for process in arguments.processes:
        prepare(process, arguments.work / process)
    wanted = list(product(range(arguments.seeds), arguments.processes, arguments.arms))

    def start(job: tuple[int, str, str]) -> int:
        seed, process, arm = job
        if (arguments.output / f"{process}-{arm}-seed{seed}.json").exists():
            return 0
        sizes = ["--steps", str(arguments.steps), "--samples", str(arguments.samples)]
        sizes += ["--points", *map(str, arguments.points)]
        folders = ["--output", str(arguments.output), "--work", str(arguments.work)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--one", process, arm, str(seed), *sizes, *folders]
        return subprocess.run(command, env=environment, check=False).returncode

    with ThreadPoolExecutor(arguments.jobs) as pool:
        codes = list(pool.map(start, wanted))
    runs = [json.loads(path.read_text()) for path in sorted(arguments.output.glob("*-seed*.json"))]
    runs.sort(key=lambda run: (list(NAMES).index(run["process"]), run["arm"] != "unified"))
    summary = summarise(runs)
    if len(arguments.points) > 1:
        draw(runs, arguments.output / "curves.svg")
    (arguments.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    sys.exit(max(codes, default=0))


if __name__ == "__main__":
    main()
