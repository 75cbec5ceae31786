"""Teacher and student by the same code, seeds and reference: what metrics.json holds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import nn

from stagecraft.config.keys import SAMPLERS
from stagecraft.config.stages import Evaluate
from stagecraft.data.condition import PROMPT, Condition
from stagecraft.data.prepared import PreparedData
from stagecraft.data.prompts import Prompts, condition_of
from stagecraft.diffusion.process import Process
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import Sampler, draw_condition_rows, sample, steps_per_interval
from stagecraft.evaluation.agreement import Scorer
from stagecraft.evaluation.cost import decoder_cost, model_cost
from stagecraft.evaluation.fewer_steps import nearest_steps
from stagecraft.evaluation.fidelity import (
    Extractor,
    Scoring,
    check_counts,
    describe_extractor,
    extract_features,
    fidelity,
    held_out_fidelity,
    min_held_out,
)
from stagecraft.evaluation.margins import measure_margins
from stagecraft.evaluation.metrics import (
    Agreement,
    Cost,
    FewerSteps,
    HeldOut,
    ImageMetrics,
    Margins,
    Metrics,
    ModelMetrics,
    Protocol,
    Scores,
    Speed,
)
from stagecraft.evaluation.path import draw_path
from stagecraft.evaluation.speed import measure_speed
from stagecraft.networks.autoencoder import decode
from stagecraft.networks.families import condition_names
from stagecraft.runtime.files import run_again
from stagecraft.runtime.journal import Pieces, kept_record
from stagecraft.runtime.processes import from_main, is_main
from stagecraft.training.assembled import AssembledStudent

Ratio = Literal["macs", "macs_with_attention", "params", "params_active", "images_per_second"]
RATIOS: tuple[Ratio, ...] = get_args(Ratio)


@dataclass(frozen=True)
class Evaluation:
    """How models are compared.

    Args:
        params: the params of the stage `evaluate`.
        data: images to compare with; its training split is the reference.
        extractor: features of FID, KID, precision and recall.
        boundaries: K - 1 ascending timesteps between the student's intervals.
        shares: how often training draws each interval, K numbers that sum to 1.
        restart: whether multistep solvers start again at the student's boundaries.
        vae: the autoencoder of latent diffusion; None in pixels.
        pieces: samples and scores of a run that was killed, and where to keep those of this one.
        stated: the scheduler config of a given teacher, as in `Process`.
        expected: the student's costs as `assemble` foresees them, `time_ratio` where layers were timed; needed to compare.
        prompts: those of all images, of text-conditional models.
        scorers: what tells how far images show what their prompts say, by the names of the figures.
        clip: hash of the CLIP model among them.
    """

    params: Evaluate
    data: PreparedData
    extractor: Extractor
    boundaries: list[float]
    shares: list[float]
    device: torch.device
    restart: bool = False
    vae: Any = None
    pieces: Pieces | None = None
    stated: dict[str, Any] | None = None
    expected: Mapping[str, float] = field(default_factory=dict)
    prompts: Prompts | None = None
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    clip: str | None = None

    @property
    def process(self) -> Process:
        """The noise process of both models."""
        return make_process(self.params.diffusion.as_dict(), self.stated)

    @property
    def prediction(self) -> dict[str, float]:
        """`time_predicted`, or nothing."""
        return {"time_predicted": self.expected["time_ratio"]} if "time_ratio" in self.expected else {}

    @property
    def scoring(self) -> Scoring:
        """Keyword arguments of `fidelity`."""
        settings = self.params.evaluate
        return {
            "kid_subset_size": settings.kid_subset_size,
            "neighbours": settings.neighbours,
            "seed": self.params.seed,
            "device": self.device,
            "batch_size": settings.batch_size,
        }

    def compare(self, teacher: Any, student: Any) -> tuple[Metrics, dict[str, np.ndarray]] | None:
        """Metrics of both models, and pictures: their samples uint8 (N, H, W, C) from the same seeds, real images, and the
        student's path (`draw_path`).

        Of several processes all draw samples; rank 0 does the rest, the others return None. Raises ValueError when there are too
        few images to compare, before any is drawn.
        """
        reference = self.data.train_images
        settings = self.params.evaluate
        check_counts(settings.samples, len(reference), self.extractor, settings.kid_subset_size, settings.neighbours)
        models = {"teacher": teacher.to(self.device), "student": student.to(self.device)}
        shape = (teacher.config["in_channels"], teacher.config["sample_size"], teacher.config["sample_size"])
        steps = {name: self.steps_per_interval(name) for name in models}
        speed: dict[str, Speed] = from_main(self.measure_speed(models, shape, steps) if is_main() else None)
        images = {name: self.draw(name, model, shape) for name, model in models.items()}
        if self.fewer_steps is not None:
            images["fewer_steps"] = self.draw("fewer_steps", models["teacher"], shape)
        if not is_main():
            return None
        margins, difference_margins = self.measure_margins(images, "student")
        found: dict[str, ImageMetrics] = {
            name: {**self.score(name, drawn), **margins[name]} for name, drawn in images.items()
        }
        scores: dict[str, ModelMetrics] = {
            name: {**found[name], **self.cost(name, model, shape), **speed[name]} for name, model in models.items()
        }
        ratio = compute_ratios(scores["teacher"], scores["student"])
        ratio["fid_difference_margin"] = difference_margins["teacher"]
        metrics: Metrics = {
            "teacher": scores["teacher"],
            "student": scores["student"],
            "held_out": kept_record(self.pieces, "held_out.json", self.score_held_out) | margins.get("held_out", {}),
            "fewer_steps": self.control(found, difference_margins),
            "ratio": ratio | self.prediction,
            "autoencoder": None if self.vae is None else decoder_cost(self.vae, shape),
            "protocol": self.protocol(),
            "params": self.params.as_given(),
        }
        path = draw_path(models["student"], self.sampler("student", models["student"], shape))
        return metrics, {name: images[name] for name in models} | {"real": reference} | path

    def cost(self, name: str, model: nn.Module, shape: tuple[int, int, int]) -> Cost:
        """MACs and parameters of a model."""
        steps = self.steps_per_interval(name)
        return model_cost(model, shape, self.boundaries, steps, self.shares, self.steps_of_samplers(name))

    @property
    def budget_of(self) -> Literal["time", "macs"]:
        """What the student's and the teacher's fewer steps have alike: the predicted time, MACs where layers were not timed."""
        return "time" if "time_ratio" in self.expected else "macs"

    @property
    def fewer_steps(self) -> int | None:
        """In how many steps the teacher takes the student's time or MACs for an image; None where these are not fewer."""
        wanted = self.expected[f"{self.budget_of}_ratio"] * self.steps("student")
        return nearest_steps(self.process, self.params.sampling.as_dict(), wanted)

    def control(self, found: Mapping[str, ImageMetrics], difference_margins: Mapping[str, float]) -> FewerSteps | None:
        """Figures of the teacher in fewer steps, and the student's FID minus its."""
        if self.fewer_steps is None:
            return None
        return {
            "steps": self.fewer_steps,
            "budget_of": self.budget_of,
            **found["fewer_steps"],
            "fid_difference": found["student"]["fid"] - found["fewer_steps"]["fid"],
            "fid_difference_margin": difference_margins["fewer_steps"],
        }

    def steps(self, name: str) -> int:
        """The sampler's network evaluations per image of a model."""
        steps = self.params.sampling.steps
        if name == "fewer_steps":
            return self.fewer_steps or steps
        return steps if name == "teacher" else self.params.evaluate.student_steps or steps

    def steps_per_interval(self, name: str = "student") -> list[int]:
        """The sampler's network evaluations in each interval."""
        return self.steps_of_samplers(name)[self.params.sampling.scheduler]

    def steps_of_samplers(self, name: str) -> dict[str, list[int]]:
        """Evaluations in each interval, for every sampler of the process with as many steps in all."""
        process = self.process
        steps = self.steps(name)
        return {name: steps_per_interval(process, name, steps, self.boundaries) for name in SAMPLERS[process.name]}

    def measure_speed(
        self, models: dict[str, nn.Module], shape: tuple[int, int, int], steps: dict[str, list[int]]
    ) -> dict[str, Speed]:
        """Images per second and peak memory of each model, in turn; without an autoencoder's decoder, the same for both."""
        settings = self.params.evaluate
        batch = settings.speed_batch
        repeats = settings.speed_repeats
        measure = partial(
            measure_speed,
            models,
            shape,
            self.boundaries,
            steps,
            batch=batch,
            repeats=repeats,
            device=self.device,
            precision=self.params.precision,
        )
        return kept_record(self.pieces, "speed.json", measure)

    def score(self, name: str, images: np.ndarray) -> Scores:
        """FID, KID, precision and recall of a model's images, and how far they show what their prompts say."""

        def measure() -> Scores:
            found = fidelity(images, self.data.train_images, self.extractor, **self.scoring)
            return {**found, **self.agreement(images, self.drawn(range(len(images))))}

        return kept_record(self.pieces, f"{name}.json", measure)

    def score_held_out(self) -> HeldOut:
        """Fidelity of the held-out real images."""
        held_out = self.data.held_out_images
        found = held_out_fidelity(held_out, self.data.train_images, self.extractor, **self.scoring)
        return {**found, **self.agreement(held_out, self.data.held_out_index)}

    @property
    def equal_count(self) -> int | None:
        """The number of images at which models and held-out images are compared; None where these are too few."""
        held_out = len(self.data.held_out_index)
        enough = held_out >= min_held_out(self.extractor, self.params.evaluate.neighbours)
        return min(self.params.evaluate.samples, held_out) if enough else None

    def measure_margins(
        self, images: dict[str, np.ndarray], subject: str
    ) -> tuple[dict[str, Margins], dict[str, float]]:
        """Margins of the FIDs of models and of the held-out images, and those of one model's FID minus each other's."""
        compared = images if self.equal_count is None else images | {"held_out": self.data.held_out_images}
        sets = {name: self.features(pictures) for name, pictures in compared.items()}
        reference = self.features(self.data.train_images)
        return measure_margins(sets, reference, self.equal_count, self.params.seed, subject, images.keys() - {subject})

    def features(self, images: np.ndarray) -> torch.Tensor:
        """The features of images that FID is computed of."""
        return extract_features(images, self.extractor, self.device, self.params.evaluate.batch_size)

    def draw(self, name: str, model: Any, shape: tuple[int, int, int]) -> np.ndarray:
        """Samples 0, 1, ... of a model, each from its own seed, uint8 (N, H, W, C)."""
        sampler = self.sampler(name, model, shape)
        return sample(model, sampler, range(self.params.evaluate.samples), label=name, pieces=self.pieces).numpy()

    def sampler(self, name: str, model: Any, shape: tuple[int, int, int]) -> Sampler:
        """How a model is sampled; the teacher's solver does not start anew at the student's boundaries."""
        vae = None if self.vae is None else self.vae.to(self.device)
        names = condition_names(model)
        sampler = Sampler.of(
            self.params.as_dict(),
            shape,
            self.device,
            self.params.evaluate.batch_size,
            restarts=self.boundaries if self.restart and name not in ("teacher", "fewer_steps") else (),
            decode=None if vae is None else partial(decode, vae),
            condition=partial(self.condition, names) if names else None,
            guidance=self.params.evaluate.guidance if self.prompts else 1.0,
            empty=self.prompts.none if self.prompts and PROMPT in names else None,
            stated=self.stated,
        )
        return replace(sampler, steps=self.steps(name))

    def drawn(self, indices: Sequence[int]) -> np.ndarray:
        """The numbers of the images whose conditions samples are drawn with: with prompts, held-out ones."""
        images = self.data.held_out_index if self.prompts else self.data.train_index
        return images[draw_condition_rows(len(images), self.params.seed, indices).numpy()]

    def condition(self, names: set[str], indices: Sequence[int]) -> Condition:
        """The condition, of these tensors, that samples of these numbers are drawn with."""
        labels = None if self.data.labels is None else torch.from_numpy(self.data.labels)
        return condition_of(labels, self.prompts, torch.from_numpy(self.drawn(indices))).only(names)

    def agreement(self, images: np.ndarray, drawn: np.ndarray) -> Agreement:
        """How far images show what the prompts of the prepared images with these numbers say; empty where none can tell."""
        return cast(Agreement, {name: scorer(images, drawn) for name, scorer in self.scorers.items()})

    def protocol(self) -> Protocol:
        """The conditions of the measurement beside the models."""
        sampling = self.params.sampling
        settings = self.params.evaluate
        meta = self.data.meta
        protocol: Protocol = {
            "samples": settings.samples,
            "sampler": sampling.scheduler,
            "steps": sampling.steps,
            "steps_per_interval": self.steps_per_interval(),
            "training_shares": self.shares,
            "restarts": self.restart,
            "seed": self.params.seed,
            "extractor": describe_extractor(self.extractor),
            "reference": {
                "split": "train",
                "count": len(self.data.train_index),
                "sha256": meta["sha256"],
                "source": meta["source"],
            },
            "held_out": len(self.data.held_out_index),
            "equal_count": self.equal_count,
            "kid_subset_size": settings.kid_subset_size,
            "neighbours": settings.neighbours,
            "speed_batch": settings.speed_batch,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
        }
        if settings.student_steps is not None:
            protocol["student_steps"] = settings.student_steps
        if self.prompts is not None:
            protocol["guidance"] = settings.guidance
        if self.clip is not None:
            protocol["clip"] = self.clip
        return protocol


def check_architecture(student: Any, architecture: AssembledStudent, folder: str) -> None:
    """Raise ValueError unless the student was built from this architecture.json."""
    if not is_of(student.config, architecture):
        remedy = run_again("retrain", Path(folder))
        raise ValueError(f"{folder}: not the model that architecture.json describes; {remedy}")


def is_of(config: Any, architecture: AssembledStudent) -> bool:
    """Whether a student of this config was built from an architecture.json."""
    native = architecture["unet"].get("native")
    if native is not None:
        return json.dumps({key: getattr(config, key, None) for key in native}) == json.dumps(native)
    same = getattr(config, "architecture", None) == architecture["unet"]
    return same and list(config.boundaries) == architecture["boundaries"]


def compute_ratios(teacher: ModelMetrics, student: ModelMetrics) -> dict[str, float]:
    """Student over teacher for cost and speed, and the student's FID minus the teacher's."""
    ratio: dict[str, float] = {key: student[key] / teacher[key] for key in RATIOS}
    ratio["time"] = student["milliseconds"] / teacher["milliseconds"]
    return ratio | {"fid_difference": student["fid"] - teacher["fid"]}
