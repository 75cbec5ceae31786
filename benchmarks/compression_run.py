"""One run of benchmarks/compression.py: a method at a budget with a seed, from the shared teacher to the content of its file."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from compression_makers import Choosing, Maker, maker_of
from compression_methods import (
    DEPTH,
    FEATURE_REUSE,
    FEWER_STEPS,
    LONGER,
    NATIVE,
    NO_BLOCKS,
    OF_STUDENT,
    SEARCHED,
    Method,
    Options,
    changed,
    params_of,
)
from shared_inputs import Shared, write

from stagecraft.config.sections import Retrain

ERROR_BATCHES = 8
OTHER_SEEDS = 1_000_000  # of samples that no run is scored by
COMPARED = 64  # samples that ways to reuse features are compared by


class Run:
    """One method at one budget with one seed.

    Args:
        shared: what `Shared.prepare` made; search results are made when they are not there.
        extractors: names or TorchScript files; the first gives `fid`.
        folder: of all runs, for checkpoints, samples, students and what matching found.
        options: those of the comparison.
    """

    def __init__(
        self,
        preset: Path,
        method: Method,
        budget: float,
        seed: int,
        shared: Shared,
        extractors: list[str],
        folder: Path,
        options: Options | None = None,
    ) -> None:
        import torch

        from stagecraft.data.prepared import PreparedData
        from stagecraft.data.training import TrainingSet
        from stagecraft.diffusion.registry import make_process
        from stagecraft.evaluation.fidelity import open_extractor
        from stagecraft.networks.autoencoder import open_autoencoder
        from stagecraft.networks.pipelines import load_teacher, read_stated
        from stagecraft.runtime.threads import keep_freed_memory

        torch.set_num_threads(1)
        keep_freed_memory()
        self.method, self.budget, self.seed, self.shared = method, budget, seed, shared
        self.folder, self.options = folder, options or Options()
        self.params, self.device = params_of(preset, method, budget, seed, self.options), torch.device("cpu")
        self.data, self.prepared = TrainingSet.load(shared.data, shared.latents), PreparedData.load(shared.data)
        self.teacher, self.vae = load_teacher(shared.teacher), open_autoencoder(shared.vae)
        self.stated = read_stated(shared.teacher)
        self.process = make_process(self.params["diffusion"], self.stated)
        self.steps = self.params["sampling"]["steps"]
        image = self.prepared.images[0]
        self.extractors = {Path(name).stem: open_extractor(name, shared.extractor, image) for name in extractors}
        self.work = folder / f"{method.full}-{budget}-seed{seed}"

    def result(self) -> dict[str, Any]:
        """What the file of the run holds."""
        about = {"method": self.method.full, "budget_of": self.options.budget_of, "budget": self.budget}
        about["seed"] = self.seed
        if self.method.name in SEARCHED and self.method.name != NATIVE:
            about["channels"] = self.params["search_block"]["channels"]
        return about | self.measured()

    def measured(self) -> dict[str, Any]:
        """The part of the result that is found out."""
        match self.method.name:
            case "held-out":
                return self.score(self.prepared.held_out_images)
            case "teacher":
                return self.cost(self.teacher, []) | timed(1.0) | self.score(self.draw(self.teacher))
            case name if name == LONGER:
                return self.trained_longer()
            case name if name in FEWER_STEPS:
                return self.with_fewer_steps()
            case name if name in FEATURE_REUSE:
                return self.with_reused_features()
            case _:
                return self.compressed()

    @property
    def retraining(self) -> dict[str, Any]:
        """How networks are retrained, for the result."""
        settings = self.params["retrain"]
        return {"steps": settings["steps"], "optimizer": settings["optimizer"]}

    # --- What it costs ---

    @cached_property
    def clock(self) -> Any:
        """Measures time as shares of the teacher's."""
        from matching import Clock

        batch = self.params["measure_latency"]["batch_size"]
        return Clock(self.teacher, self.data.shape, batch, self.shared.clock)

    @cached_property
    def counter(self) -> Any:
        """Counts MACs as shares of the teacher's."""
        from matching import Counter

        return Counter(self.teacher, self.data.shape)

    @property
    def meter(self) -> Any:
        """Of the two the one that budgets are shares of."""
        return self.clock if self.options.budget_of == "time" else self.counter

    def steps_in(self, boundaries: Sequence[float], steps: int | None = None) -> list[int]:
        """How many of the sampler's evaluations fall into each interval; `steps` in all, else the params'."""
        from stagecraft.diffusion.sampling import steps_per_interval

        return steps_per_interval(self.process, self.params["sampling"]["scheduler"], steps or self.steps, boundaries)

    def cost(self, net: Any, boundaries: list[float]) -> dict[str, Any]:
        """MACs and parameters as shares of the teacher's."""
        from stagecraft.evaluation.cost import model_cost

        steps = self.steps_in(boundaries)
        small = model_cost(net, self.data.shape, boundaries, steps)
        whole = model_cost(self.teacher, self.data.shape, [], [1])
        ratios = {f"{key}_ratio": small[key] / whole[key] for key in ("macs", "params", "params_active")}
        return ratios | {"boundaries": boundaries, "steps_per_interval": steps}

    def matched(self, maker: Maker) -> dict[str, Any]:
        """The setting at which a maker's net takes the budget, with the share that it was measured to take.

        It is kept for all runs whose nets depend on the same, which so are the same.
        """
        from filelock import FileLock
        from matching import share_of, turn_knob

        known: dict[Any, float] = {}

        def measure(setting: float) -> float:
            made = maker.sketch(setting)
            shapes = tuple((name, value.shape) for name, value in made.net.state_dict().items())
            if shapes not in known:
                known[shapes] = share_of(self.meter, made.net, made.boundaries, self.steps_in(made.boundaries))
            return known[shapes]

        key = maker.describe() | {"budget": self.budget, "budget_of": self.options.budget_of}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        path = self.folder / "matched" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                write(path, asdict(turn_knob(measure, self.budget, maker.most)) | {"of": key})
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    # --- The methods ---

    def compressed(self) -> dict[str, Any]:
        """A smaller net at the budget, retrained."""
        from matching import is_within, share_of

        maker = maker_of(self)
        found = self.matched(maker)
        net, boundaries, scores = maker.make(found["setting"])
        scores = scores | {"untrained": self.untrained(net)}
        net = self.retrain(net, boundaries)
        if self.method.full == "search":
            self.keep_student(net)
        cost, time = self.cost(net, boundaries), found["share"]
        if self.options.budget_of != "time":
            time = share_of(self.clock, net, boundaries, cost["steps_per_interval"])
        about = self.retraining | {"matched": is_within(found["share"], self.budget)}
        about |= {"setting": found["setting"], "scores": scores, "error": self.output_error(net)}
        return about | cost | timed(time) | self.score(self.draw(net))

    def source(self) -> tuple[Any, list[float], dict[str, Any]]:
        """The net that a way of sampling is tried on, the timesteps between its intervals, and what says which it is."""
        if self.method.name not in OF_STUDENT:
            return self.teacher.eval(), [], {}
        net = self.student()
        about = {"student_budget": self.options.student_budget} | self.retraining
        return net, list(net.config["boundaries"]), about

    def with_fewer_steps(self) -> dict[str, Any]:
        """The teacher or a student by a sampler with as many steps as the budget leaves."""
        from matching import evaluations_of, is_within

        from stagecraft.evaluation.cost import weighted_mean

        net, boundaries, about = self.source()
        evaluations = evaluations_of(net, boundaries)
        shares = {"time": [1.0] if net is self.teacher else self.clock.shares(evaluations)}
        shares["macs"] = self.counter.shares(evaluations)

        def total(key: str, steps: int) -> float:
            return steps / self.steps * weighted_mean(shares[key], self.steps_in(boundaries, steps))

        key = self.options.budget_of
        steps = min(range(1, self.steps + 1), key=lambda steps: abs(total(key, steps) - self.budget))
        about |= {"sampling_steps": steps, "matched": is_within(total(key, steps), self.budget)}
        cost = self.cost(net, boundaries) | {"macs_ratio": total("macs", steps)}
        cost["steps_per_interval"] = self.steps_in(boundaries, steps)
        return about | cost | timed(total("time", steps)) | self.score(self.draw(net, steps=steps))

    def with_reused_features(self) -> dict[str, Any]:
        """The teacher or a student that reuses deep features between steps, as often as the budget asks for."""
        from feature_reuse import FeatureReuse, ReuseCosts, as_student, branches_of
        from matching import is_within

        from stagecraft.diffusion.sampling import evaluation_timesteps

        net, boundaries, about = self.source()
        net = as_student(net) if net is self.teacher else net
        branches = branches_of(net, encoder=self.method.name in OF_STUDENT)
        nodes = evaluation_timesteps(self.process, self.params["sampling"]["scheduler"], self.steps).tolist()
        meters = {"time": self.clock, "macs": self.counter}
        costs = {key: ReuseCosts(net, branches, meter, nodes) for key, meter in meters.items()}
        every, branch = self.best_reuse(net, costs[self.options.budget_of], branches)
        totals = {key: cost.total(every, branch) for key, cost in costs.items()}
        about |= {"every": every, "branch": branch, "branches": len(branches)}
        about["matched"] = is_within(totals[self.options.budget_of], self.budget)
        about |= self.cost(net, boundaries) | {"macs_ratio": totals["macs"]} | timed(totals["time"])
        return about | self.score(self.draw(FeatureReuse(net, every, branch), every=every, branch=branch))

    def best_reuse(self, net: Any, costs: Any, branches: Sequence[Any]) -> tuple[int, Any]:
        """N and branch: of those at the budget the one whose samples are nearest to the net's own; else the nearest by cost.

        The samples are of another seed than any that is scored.
        """
        from feature_reuse import FeatureReuse
        from matching import is_within

        ways = [(every, branch) for every in range(2, self.steps + 1) for branch in branches]
        fitting = [way for way in ways if is_within(costs.total(*way), self.budget)]
        if len(fitting) < 2:
            return min(ways, key=lambda way: abs(costs.total(*way) - self.budget))
        sampler = replace(self.sampler(COMPARED), seed=OTHER_SEEDS + self.seed)
        own = sampler.draw_undecoded(net, range(COMPARED))

        def distance(way: tuple[int, Any]) -> float:
            return float((sampler.draw_undecoded(FeatureReuse(net, *way), range(COMPARED)) - own).square().mean())

        return min(fitting, key=distance)

    def trained_longer(self) -> dict[str, Any]:
        """The teacher trained on by its own loss, for the MACs that search and retraining of the budget's student took."""
        import copy

        from stagecraft.evaluation.cost import count_macs
        from stagecraft.training.student import student_batches
        from stagecraft.training.teacher import DenoisingLoss

        settings = Retrain(**changed(self.params, NO_BLOCKS)["retrain"])
        macs = 3 * settings.batch_size * count_macs(self.teacher, self.data.shape, 0)
        spent = self.spent()
        steps = max(1, round(spent / macs))
        net = copy.deepcopy(self.teacher).requires_grad_(True)
        batches = student_batches(self.data, self.process, net, [], settings, self.device)
        net = self.train(net, DenoisingLoss(net, batches, "fp32"), settings.model_copy(update={"steps": steps}))
        about = self.retraining | {"teacher_steps": steps, "macs_spent": spent}
        return about | self.cost(net, []) | timed(1.0) | self.score(self.draw(net))

    def spent(self) -> float:
        """MACs that search and retraining of the student at this budget take, as the report counts them."""
        from stagecraft.evaluation.cost import model_cost
        from stagecraft.report.page import macs_of_retraining, macs_of_search
        from stagecraft.search.results import read_results
        from stagecraft.training.student import build_student, interval_probabilities

        choosing = Choosing(self)
        plan = choosing.plan(self.matched(choosing)["setting"])
        drawn = self.params["retrain"]["interval_probabilities"]
        shares = interval_probabilities(drawn, plan["intervals"]) or plan["density"]
        student = build_student(self.teacher, plan["unet"], plan["boundaries"], 0)
        macs = model_cost(student, self.data.shape, plan["boundaries"], plan["steps_per_interval"], shares)
        teacher_macs = self.counter.whole
        metrics = {"student": macs, "teacher": {"macs_training": teacher_macs}}
        log = {"params": self.params}
        searches = [*read_results(self.shared.results(self.params)).values()]
        parts = macs_of_search(teacher_macs, searches) | macs_of_retraining(metrics, log)
        return sum(parts.values())

    # --- Training ---

    def retrain(self, net: Any, boundaries: list[float]) -> Any:
        """The net with averaged weights after retraining."""
        from remembered import RememberedJointLoss

        from stagecraft.training.student import student_batches

        by_blocks = self.method.name in SEARCHED or self.method.name == DEPTH
        settings = Retrain(**(self.params if by_blocks else changed(self.params, NO_BLOCKS))["retrain"])
        batches = student_batches(self.data, self.process, self.teacher, boundaries, settings, self.device)
        remembered = self.shared.folder / "predictions"
        loss = RememberedJointLoss(net, self.teacher, batches, settings, "fp32", folder=remembered)
        return self.train(net, loss, settings)

    def train(self, net: Any, loss: Any, settings: Retrain) -> Any:
        """The net with averaged weights after training with a loss."""
        from stagecraft.training.loop import TrainSettings, train

        result = train(
            net,
            loss,
            TrainSettings.of(settings, self.seed),
            checkpoint=self.work / "retrain.pt",
            fingerprint={"params": self.params, "method": self.method.full},
            label=f"{self.method.full} {self.budget} seed {self.seed}",
        )
        if result.ema is not None:
            net.load_state_dict(result.ema)
        return net.eval()

    def student_folder(self, budget: float | None) -> Path:
        """Where the retrained student of `search` at a budget is kept, for other ways of sampling it."""
        how = "{optimizer}-steps{steps}".format(**self.retraining)
        return self.folder / "students" / f"{self.options.budget_of}-{budget}-{how}-seed{self.seed}"

    def keep_student(self, net: Any) -> None:
        """Keep config and weights of a retrained student."""
        from stagecraft.runtime.files import atomic_folder

        with atomic_folder(self.student_folder(self.budget)) as aside:
            net.save_pretrained(aside, safe_serialization=True)

    def student(self) -> Any:
        """The kept student of this seed at the options' student budget; ValueError when there is none."""
        from stagecraft.networks.unet2d.multi_decoder_unet import MultiDecoderUNet2DModel

        folder = self.student_folder(self.options.student_budget)
        if not folder.is_dir():
            raise ValueError(
                f"{folder}: not found; run --methods search --budgets {self.options.student_budget} with the same --work"
            )
        return MultiDecoderUNet2DModel.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False).eval()

    # --- Samples and scores ---

    def draw(self, net: Any, **how: Any) -> Any:
        """Samples, uint8 (N, H, W, C); `how` is what differs from the params, of which `steps` is the sampler's."""
        from stagecraft.diffusion.sampling import sample
        from stagecraft.runtime.journal import Pieces

        settings = self.params["evaluate"]
        pieces = Pieces(self.work / "samples", {"params": self.params, "method": self.method.full} | how)
        sampler = replace(self.sampler(settings["batch_size"]), steps=how.get("steps", self.steps))
        return sample(net, sampler, range(settings["samples"]), pieces=pieces).numpy()

    def sampler(self, batch_size: int) -> Any:
        """The params' sampler, for all methods."""
        from functools import partial

        from stagecraft.diffusion.sampling import Sampler
        from stagecraft.networks.autoencoder import decode

        decoding = None if self.vae is None else partial(decode, self.vae)
        shape = self.data.shape
        return Sampler.of(self.params, shape, self.device, batch_size, decode=decoding, stated=self.stated)

    def score(self, images: Any) -> dict[str, Any]:
        """Fidelity by every extractor, against the training split."""
        from stagecraft.evaluation.fidelity import fidelity

        settings = self.params["evaluate"]
        how = {"seed": 0, "device": self.device, "kid_subset_size": settings["kid_subset_size"], "neighbours": None}
        found = {name: fidelity(images, self.prepared.train_images, e, **how) for name, e in self.extractors.items()}
        return {"samples": len(images), "fid": next(iter(found.values()))["fid"], "fidelity": found}

    def untrained(self, net: Any) -> float:
        """NMSE of the net's prediction to the teacher's before retraining, over 512 noised training images."""
        from stagecraft.diffusion.losses import nmse

        ((found, wanted),) = self.predictions(net, "untrained", 1)
        return float(nmse([found], [wanted]))

    def output_error(self, net: Any, name: str = "error", batches: int = ERROR_BATCHES) -> float:
        """Mean square difference of the net's prediction from the teacher's, over 512 noised training images a batch.

        It says with far less chance than FID does how near retraining has brought the net to the teacher.
        """
        pairs = list(self.predictions(net, name, batches))
        return sum(float((found - wanted).square().mean()) for found, wanted in pairs) / len(pairs)

    def predictions(self, net: Any, name: str, batches: int) -> Iterator[tuple[Any, Any]]:
        """Pairs of the net's and the teacher's predictions for 512 images at once, whose noises depend on the name alone."""
        import torch

        from stagecraft.diffusion.batches import NoisyBatches
        from stagecraft.diffusion.losses import predict
        from stagecraft.runtime.seeds import generator_for

        draw = NoisyBatches(self.data, self.process, 512, self.device)
        for number in range(batches):
            batch = draw(generator_for(0, name, number))
            with torch.no_grad():
                found, wanted = (predict(model.eval(), batch.x_t, batch.t) for model in (net, self.teacher))
            yield found, wanted


def timed(share: float) -> dict[str, float]:
    """A net's time as a share of the teacher's, and its speed as a multiple."""
    return {"time_ratio": share, "images_per_second_ratio": 1 / share}
