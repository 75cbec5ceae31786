"""Ways to retrain one and the same student: what the terms of the joint loss, their weights and the optimizer give.

python benchmarks/recipes.py --preset digits --steps 1200 --recipes linear constant none --seeds 10 11 12

A student is searched once, under a budget of time (--time), and retrained by every recipe from the same weights, with the same
batches in a seed. `error` is the mean square difference of its predictions from the teacher's over 4,096 noised training images,
FID is by --extractors, and seconds are those of the training, on one thread. A file for each run is written into --output, and
runs that are there are not repeated.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from compression_methods import changed
from shared_inputs import LATENCY, ONE_THREAD, Shared, cpu_params, preset_file, work_folder, write

ROOT = Path(__file__).parents[1]
ERROR_BATCHES = 8
KEYS = ("joint_loss", "output_weight", "jacobian_weight", "optimizer")
RECIPES: dict[str, tuple[str | float, ...]] = {  # the optimizer is adamw where it is left out
    "none-plain": ("none", 0.0, 0.0),
    "none": ("none", 1.0, 0.0),
    "none-9": ("none", 9.0, 0.0),
    "none-30": ("none", 30.0, 0.0),
    "linear": ("linear", 1.0, 0.0),
    "linear-9": ("linear", 9.0, 0.0),
    "linear-9-muon": ("linear", 9.0, 0.0, "muon"),
    "constant": ("constant", 1.0, 0.0),
    "constant-9": ("constant", 9.0, 0.0),
    "constant-30": ("constant", 30.0, 0.0),
    "none-9-jacobian-0.1": ("none", 9.0, 0.1),
    "none-9-jacobian-1": ("none", 9.0, 1.0),
    "none-9-jacobian-9": ("none", 9.0, 9.0),
}


class Recipes:
    """One student, and what is needed to retrain it."""

    def __init__(self, preset: Path, shared: Shared, share: float, steps: int, rate: float | None) -> None:
        import torch

        from stagecraft.data.prepared import PreparedData
        from stagecraft.data.training import TrainingSet
        from stagecraft.diffusion.registry import make_process
        from stagecraft.networks.autoencoder import open_autoencoder
        from stagecraft.networks.pipelines import load_teacher, read_stated

        budgets = {"macs": None, "time": share, "params": 1.0, "params_active": None}
        retrain = {"steps": steps} | ({} if rate is None else {"learning_rate": rate})
        self.params = changed(cpu_params(preset), {"assemble": budgets, "retrain": retrain})
        self.shared, self.device = shared, torch.device("cpu")
        self.data, self.prepared = TrainingSet.load(shared.data, shared.latents), PreparedData.load(shared.data)
        self.teacher, self.vae = load_teacher(shared.teacher), open_autoencoder(shared.vae)
        self.process = make_process(self.params["diffusion"], read_stated(shared.teacher))

    def architecture(self, seed: int, path: Path) -> dict[str, Any]:
        """The content of architecture.json, searched with this seed."""
        from stagecraft.config.stages import stage_model
        from stages.assemble import assemble

        self.searched = self.params | {"seed": seed}
        folder, results = self.shared.search(self.searched), self.shared.results(self.searched)
        inputs = {"teacher": self.shared.teacher, "clusters": folder / "clusters.json", "search": results}
        params = stage_model(self.searched, "assemble")
        assemble(params, threads=1, **inputs, latency=results / LATENCY, output=path)
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def retrain(self, plan: dict[str, Any], recipe: str, seed: int, work: Path) -> tuple[Any, float]:
        """The retrained student and the seconds that it took."""
        from remembered import RememberedJointLoss

        from stagecraft.config.sections import Retrain
        from stagecraft.training.loop import TrainSettings, train
        from stagecraft.training.student import start_student, student_batches, supernet_loader

        search = self.shared.results(self.searched)
        reader = supernet_loader(search, plan["supernets"], search / "index.json")
        net = start_student(self.teacher, plan, "inherit", seed, reader)
        settings = self.params["retrain"] | {"optimizer": "adamw"} | dict(zip(KEYS, RECIPES[recipe], strict=False))
        section = Retrain(**settings)
        batches = student_batches(self.data, self.process, self.teacher, plan["boundaries"], section, self.device)
        losses = RememberedJointLoss(net, self.teacher, batches, section, "fp32", folder=work / "predictions")
        begun = time.perf_counter()
        result = train(
            net,
            losses,
            TrainSettings.of(section, seed),
            checkpoint=work / f"{recipe}-seed{seed}.pt",
            fingerprint={"params": settings, "plan": plan["unet"]},
            label=f"{recipe} seed {seed}",
        )
        if result.ema is not None:
            net.load_state_dict(result.ema)
        return net.eval(), time.perf_counter() - begun

    def error(self, net: Any) -> float:
        """Mean square difference from the teacher's predictions."""
        import torch

        from stagecraft.diffusion.batches import NoisyBatches
        from stagecraft.diffusion.losses import predict
        from stagecraft.runtime.seeds import generator_for

        draw, errors = NoisyBatches(self.data, self.process, 512, self.device), []
        for number in range(ERROR_BATCHES):
            batch = draw(generator_for(0, "error", number))
            with torch.no_grad():
                ours, theirs = (predict(model.eval(), batch.x_t, batch.t) for model in (net, self.teacher))
            errors.append(float((ours - theirs).square().mean()))
        return statistics.mean(errors)

    def fid(self, net: Any, seed: int, samples: int, extractors: list[str]) -> dict[str, float]:
        """FID by extractor."""
        from functools import partial

        from stagecraft.diffusion.sampling import Sampler, sample
        from stagecraft.evaluation.fidelity import fidelity, open_extractor
        from stagecraft.networks.autoencoder import decode
        from stagecraft.networks.pipelines import read_stated

        settings = self.params["evaluate"]
        sampler = Sampler.of(
            self.params | {"seed": seed},
            self.data.shape,
            self.device,
            settings["batch_size"],
            decode=None if self.vae is None else partial(decode, self.vae),
            stated=read_stated(self.shared.teacher),
        )
        images = sample(net, sampler, range(samples)).numpy()
        how = {"seed": 0, "device": self.device, "kid_subset_size": settings["kid_subset_size"], "neighbours": None}
        opened = [open_extractor(name, self.shared.extractor, self.prepared.images[0]) for name in extractors]
        return {
            Path(name).stem: fidelity(images, self.prepared.train_images, extractor, **how)["fid"]
            for name, extractor in zip(extractors, opened, strict=True)
        }


def print_table(folder: Path) -> None:
    """Means and standard deviations over the seeds, the best first."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        run = json.loads(path.read_text())
        runs.setdefault(run["recipe"], []).append(run)
    print("| recipe | seeds | error | FID | seconds |\n| --- | ---: | ---: | ---: | ---: |")
    for recipe, found in sorted(runs.items(), key=lambda pair: statistics.mean(run["error"] for run in pair[1])):
        errors, seconds = ([run[key] for run in found] for key in ("error", "seconds"))
        fids = " · ".join(
            f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"
            for values in ([run["fid"][name] for run in found] for name in found[0]["fid"])
        )
        print(f"| {recipe} | {len(found)} | {statistics.mean(errors):.6f} | {fids} | {statistics.mean(seconds):.0f} |")


def main() -> None:
    """Run what is missing, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", required=True)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--time", type=float, default=0.5)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rate", type=float, help="learning rate; else the preset's")
    parser.add_argument("--recipes", nargs="+", default=["teacher", *RECIPES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--extractors", nargs="+", default=["classifier"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    import torch

    from stagecraft.runtime.threads import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    preset = preset_file(arguments.preset)
    work = arguments.work or work_folder(preset)
    shared = Shared(preset, work / "shared", arguments.teacher)
    shared.prepare()
    arguments.output.mkdir(parents=True, exist_ok=True)
    recipes = Recipes(preset, shared, arguments.time, arguments.steps, arguments.rate)
    plan = recipes.architecture(arguments.seeds[0], arguments.output / "architecture.json")
    for seed in arguments.seeds:
        for recipe in arguments.recipes:
            target = arguments.output / f"{recipe}-seed{seed}.json"
            if target.exists():
                continue
            net, seconds = recipes.teacher, 0.0
            if recipe != "teacher":
                net, seconds = recipes.retrain(plan, recipe, seed, work)
            found = {"error": recipes.error(net), "seconds": round(seconds, 1)}
            fid = recipes.fid(net.eval(), seed, arguments.samples, arguments.extractors)
            write(target, {"recipe": recipe, "seed": seed} | found | {"fid": fid})
    print_table(arguments.output)


if __name__ == "__main__":
    import os

    os.environ |= ONE_THREAD
    main()
