"""The model card of a student: README.md with the metadata of a model hub, and its samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from stagecraft.config.sections import Publish
from stagecraft.evaluation.metrics import Metrics, student_steps
from stagecraft.report import charts
from stagecraft.report.page import open_template, shared_text, verdict
from stagecraft.report.table import feature_name, measured_with, table_rows
from stagecraft.training.assembled import AssembledStudent

TASK = "unconditional-image-generation"
TEXT_TASK = "text-to-image"
SHOWN = 32
COLUMNS = 8
UNKNOWN = "unknown"  # a name that the hub knows
LICENSE_KEYS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Student:
    """The inputs of a student's model card.

    Args:
        metrics, architecture: contents of the JSON files of those names.
        config: content of unet/config.json in its folder.
        code: the names of the files with code that its folder holds.
        prompts: some of the prompts that it was trained on; none of a student without.
        classes: how many it draws; None of one conditioned on prompts or nothing.
        params: the params that it was made and measured with.
    """

    metrics: Metrics
    architecture: AssembledStudent
    config: dict[str, Any]
    params: dict[str, Any]
    code: Sequence[str]
    prompts: Sequence[str]
    classes: int | None


def read_license(given: str | None, cards: Sequence[str]) -> dict[str, Any]:
    """The metadata of the student's licence: the one given, else that of the teacher's model card, else unknown.

    Args:
        cards: the path of the teacher's model card, or none.

    Raises:
        ValueError: the teacher's card has metadata that cannot be read.
    """
    if given is not None:
        return {"license": given}
    for path in cards:
        try:
            data = ModelCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{path}: its metadata cannot be read ({reason}); mend it, or set publish.license"
            ) from error
        if data.get("license"):
            return {key: data[key] for key in LICENSE_KEYS if data.get(key)}
    return {"license": UNKNOWN}


def model_card(student: Student, settings: Publish, license: dict[str, Any]) -> ModelCard:
    """The model card, the same text for the same inputs.

    Args:
        license: metadata of the licence, see `read_license`.
    """
    metrics = student.metrics
    name = model_name(metrics, settings)
    text = open_template("card.md.j2", keep_trailing_newline=True).render(
        name=name,
        config=student.config,
        classes=student.classes,
        native=student.config["_class_name"] if "native" in student.architecture["unet"] else None,
        code=student.code,
        prompts=[prompt for prompt in student.prompts if prompt][:2],
        verdict=verdict(metrics),
        rows=[row[:4] for row in table_rows(metrics)],
        measured_with=measured_with(metrics["protocol"]),
        features=feature_name(metrics),
        protocol=metrics["protocol"],
        steps=student_steps(metrics["protocol"]),
        autoencoder=metrics["autoencoder"],
        architecture=student.architecture,
        shared=shared_text(student.architecture["unet"]),
        retrain=student.params["retrain"],
        settings=settings,
        license=license,
    )
    data = card_data(name, TEXT_TASK if student.prompts else TASK, metrics, settings, license)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def model_name(metrics: Metrics, settings: Publish) -> str:
    """A name for the student: that of its teacher on the hub, or of its images, with what it is."""
    origin = settings.base_model or settings.dataset or metrics["protocol"]["reference"]["source"]
    return f"{origin.rpartition('/')[2]}-student"


def card_data(name: str, task: str, metrics: Metrics, settings: Publish, license: dict[str, Any]) -> ModelCardData:
    """The metadata of the card; keys that nothing is known of are left out.

    Args:
        task: what the student does, by the hub's name.
    """
    derived: dict[str, Any] = {}
    if settings.base_model is not None:
        # The hub's word for any model that was trained further from another.
        derived = {"base_model": settings.base_model, "base_model_relation": "finetune"}
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=task,
        tags=["diffusion", "model-compression", "stagecraft"],
        datasets=None if settings.dataset is None else [settings.dataset],
        metrics=["fid", "kid"],
        model_name=name,
        eval_results=[evaluation("fid", task, metrics, settings), evaluation("kid", task, metrics, settings)],
        **license,
        **derived,
    )


def evaluation(key: Literal["fid", "kid"], task: str, metrics: Metrics, settings: Publish) -> EvalResult:
    """One figure of the student with the protocol that it was measured by."""
    protocol = metrics["protocol"]
    reference = protocol["reference"]
    dataset = settings.dataset or reference["source"]
    return EvalResult(
        task_type=task,
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split=reference["split"],
        metric_type=key,
        metric_name=f"{key.upper()} ({feature_name(metrics)})",
        metric_value=metrics["student"][key],
        metric_args={
            "samples": protocol["samples"],
            "sampler": protocol["sampler"],
            "steps": student_steps(protocol),
            "seed": protocol["seed"],
            "features": protocol["extractor"]["name"],
            "features_sha256": protocol["extractor"]["sha256"],
            "reference_images": reference["count"],
            "reference_sha256": reference["sha256"],
        },
    )


def sample_sheet(images: np.ndarray) -> bytes:
    """The first samples, uint8 (N, H, W, C), as one PNG picture."""
    return charts.encode_png(charts.image_sheet(images[:SHOWN], COLUMNS))
