"""How the methods of benchmarks/compression.py make a net before retraining, each with a knob that sets what it costs."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from compression_methods import DEPTH, PRUNED, UNTIMED_RULES, changed
from shared_inputs import LATENCY, write

if TYPE_CHECKING:
    from compression_run import Run

DRAWS = 100  # most draws of one seed
SCORES = ("local", "output", "combined")


class Made(NamedTuple):
    """A net, the timesteps between its intervals, and what a search's scores say of it (empty for others)."""

    net: Any
    boundaries: list[float]
    scores: dict[str, float]


class Maker(Protocol):
    """Makes the net of a method for a setting of its knob, the same one each time."""

    most: float

    def describe(self) -> dict[str, Any]:
        """All that the net depends on beside the setting, the teacher and the images."""

    def sketch(self, setting: float) -> Made:
        """The net as far as its cost goes; ValueError where there is none of this setting."""

    def make(self, setting: float) -> Made:
        """The net with the weights that its retraining starts from."""


def maker_of(run: "Run") -> Maker:
    """The maker of a run's method."""
    if run.method.name in PRUNED:
        return Pruning(run)
    return Dropping(run) if run.method.name == DEPTH else Choosing(run)


class Pruning:
    """The teacher with channels removed (baselines.py); the knob is its share of the MACs."""

    most = 1.0

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.importance: Any = None

    def describe(self) -> dict[str, Any]:
        """The criterion and the seed."""
        return {"method": self.run.method.name, "seed": self.run.seed}

    def sketch(self, setting: float) -> Made:
        """The pruned net itself."""
        import torch
        from baselines import importance_of, pruned

        run, name = self.run, self.run.method.name
        if self.importance is None:
            self.importance = importance_of(PRUNED[name], run.teacher, run.process, run.data, run.seed)
        torch.manual_seed(run.seed)  # which a random importance draws from
        return Made(pruned(run.teacher, setting, self.importance), [], {})

    def make(self, setting: float) -> Made:
        """The pruned net; the teacher loses the gradients that the importance was made of."""
        made = self.sketch(setting)
        self.run.teacher.zero_grad()
        return made


class Dropping:
    """The teacher with layers dropped (depth.py); the knob is the share of the cost that is predicted."""

    most = 1.5

    def __init__(self, run: "Run") -> None:
        self.run = run

    def describe(self) -> dict[str, Any]:
        """The method alone: the effects are those of one teacher, whatever the seed."""
        return {"method": self.run.method.name}

    def sketch(self, setting: float) -> Made:
        """The net itself."""
        from depth import without

        return Made(without(self.run.teacher, self.effects().choose(setting)), [], {})

    def make(self, setting: float) -> Made:
        """The same."""
        return self.sketch(setting)

    def effects(self) -> Any:
        """The effects of dropping each layer, measured once for all runs."""
        from dataclasses import asdict
        from functools import partial

        from depth import Effects, Layer
        from filelock import FileLock

        path = self.run.shared.folder / f"depth-{self.run.options.budget_of}.json"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                error_of = partial(self.run.output_error, name=DEPTH, batches=1)
                write(path, asdict(Effects.measure(self.run.teacher, error_of, self.run.meter)))
        found = json.loads(path.read_text())
        return Effects(**found | {"layers": [Layer(*layer) for layer in found["layers"]]})


class Choosing:
    """A choice in a search space; the knob is the budget that the rule is given, of predicted time or of MACs."""

    most = 1.5

    def __init__(self, run: "Run") -> None:
        self.run = run
        self.rule = run.params["assemble"]["rule"]
        self.limited = "macs" if self.rule in UNTIMED_RULES else run.options.budget_of

    def describe(self) -> dict[str, Any]:
        """The params that the choice depends on, and which draw it is."""
        kept = ("seed", "sampling", "diffusion", "cluster_timesteps", "cache_features", "search_block", "assemble")
        method = self.run.method
        return {key: self.run.params[key] for key in kept} | {"drawn": method.name == "random", "draw": method.draw}

    def sketch(self, setting: float) -> Made:
        """The net with random weights."""
        from stagecraft.training.student import build_student

        plan = self.plan(setting)
        return Made(build_student(self.run.teacher, plan["unet"], plan["boundaries"], 0).eval(), plan["boundaries"], {})

    def make(self, setting: float) -> Made:
        """The net with weights of the supernets, or as `retrain.init` says."""
        from stagecraft.training.student import start_student, supernet_loader

        run, plan = self.run, self.plan(setting)
        search = run.shared.results(run.params)
        reader = supernet_loader(search, plan["supernets"], search / "index.json")
        net = start_student(run.teacher, plan, run.params["retrain"]["init"], run.seed, reader)
        return Made(net, plan["boundaries"], self.block_scores(plan))

    def plan(self, setting: float) -> dict[str, Any]:
        """The content of architecture.json."""
        from stagecraft.config.stages import Assemble, stage_params
        from stages.assemble import assemble

        run = self.run
        folder, output = run.shared.search(run.params), run.work / "architecture.json"
        params = stage_params(changed(run.params, {"assemble": {self.limited: setting}}), "assemble")
        params["seed"] = DRAWS * run.seed + run.method.draw
        inputs = {"teacher": run.shared.teacher, "clusters": folder / "clusters.json", "latency": self.latency()}
        inputs["search"] = self.drawn() if run.method.name == "random" else run.shared.results(run.params)
        output.parent.mkdir(parents=True, exist_ok=True)
        assemble(Assemble.of(params), threads=1, **inputs, output=output)
        found: dict[str, Any] = json.loads(output.read_text())
        return found

    def latency(self) -> Path:
        """The latencies of the candidates; none for a rule that does not choose among them."""
        from stagecraft.config.stages import MeasureLatency, stage_params
        from stages.measure_latency import measure_latency

        run = self.run
        if self.rule not in UNTIMED_RULES:
            return run.shared.results(run.params) / LATENCY
        path = run.work / LATENCY
        path.parent.mkdir(parents=True, exist_ok=True)
        params = stage_params(changed(run.params, {"measure_latency": {"source": "none"}}), "measure_latency")
        importance = run.shared.search(run.params) / run.shared.importance_name(run.params)
        measure_latency(
            MeasureLatency.of(params), threads=1, teacher=run.shared.teacher, importance=importance, output=path
        )
        return path

    def drawn(self) -> Path:
        """A copy of the search results with the candidates alone that `drawn_of` leaves."""
        from stagecraft.runtime.files import write_checked_json
        from stagecraft.search.results import read_results, write_index

        run = self.run
        folder, most = run.work / "drawn", run.params["search_block"]["candidates"]
        folder.mkdir(parents=True, exist_ok=True)
        results = read_results(run.shared.results(run.params))
        for name, result in results.items():
            write_checked_json(folder / f"{name}.json", result | {"candidates": drawn_of(result, most)})
        write_index(folder, results, run.params)
        return folder

    def block_scores(self, plan: dict[str, Any]) -> dict[str, float]:
        """The scores of an architecture as the budget rule adds them up, each measured for every block in its supernet."""
        from safetensors.torch import load_file

        from stagecraft.config.stages import SearchBlock, stage_params
        from stagecraft.search.architecture import costs_of, named_block
        from stagecraft.search.job import SearchJob
        from stagecraft.search.selection import value_of

        run = self.run
        folder, costs = run.shared.search(run.params), costs_of(run.teacher, plan["steps_per_interval"])
        results = run.shared.results(run.params)
        params = SearchBlock.of(stage_params(run.params, "search_block"))
        total = dict.fromkeys(SCORES, 0.0)
        features, importance = folder / "results" / "features", folder / run.shared.importance_name(run.params)
        for name, chosen in plan["chosen"].items():
            job = SearchJob(params, run.teacher, name, features, run.device, run.work / name, importance)
            job.supernet.load_state_dict(load_file(results / f"{name}.safetensors"))
            candidate = job.measured(chosen["spec"])
            block = named_block(name)
            total = {score: value + value_of(block, candidate, costs, score) for score, value in total.items()}
        return total


def drawn_of(result: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """The candidates of a search result that were drawn from the space, none that was bred from the best.

    Args:
        most: `search_block.candidates`; a space that is not larger was scored whole, and is left whole.
    """
    from stagecraft.search.supernet import SAMPLED

    found: list[dict[str, Any]] = result["candidates"]
    return found[: math.ceil(most * SAMPLED)] if result["space_size"] > most else found
