"""Lay out results/model for a model hub: the student's folder with a model card and samples."""

import shutil
from pathlib import Path

from stagecraft.config.stages import Publish
from stagecraft.evaluation.metrics import read_metrics
from stagecraft.evaluation.samples import check_metrics, load_samples
from stagecraft.networks.pipelines import HASHES, check_hashes, count_classes, write_hashes
from stagecraft.report.card import Student, model_card, read_license, sample_sheet
from stagecraft.runtime.command import run_command
from stagecraft.runtime.files import atomic_folder, read_checked_json, read_json, write_json
from stagecraft.training.assembled import read_architecture


def publish(
    params: Publish,
    *,
    threads: int,
    student: Path,
    prompts: Path,
    metrics: Path,
    samples: Path,
    architecture: Path,
    teacher_card: list[str],
    output: Path,
) -> None:
    """Write results/model."""
    check_hashes(student, "retrain")
    measured = read_metrics(metrics)
    images, sha256 = load_samples(samples)
    check_metrics(metrics, measured, sha256)
    assembled = read_architecture(architecture)
    made_with = (
        read_json(student / "params.json") | {**assembled["params"]} | {**measured["params"]} | params.as_given()
    )
    config = read_json(student / "unet" / "config.json")
    license = read_license(params.publish.license, teacher_card)
    code = sorted(file.relative_to(student).as_posix() for file in student.rglob("*.py"))
    known = read_checked_json(prompts / "index.json", "encode_prompts").get("prompts", [])
    card = model_card(
        Student(measured, assembled, config, made_with, code, known, count_classes(student)), params.publish, license
    )
    with atomic_folder(output) as aside:
        # Without their modes: DVC may have made its files read-only.
        without = shutil.ignore_patterns(HASHES)
        shutil.copytree(student, aside, ignore=without, copy_function=shutil.copyfile, dirs_exist_ok=True)
        card.save(aside / "README.md")
        (aside / "samples.png").write_bytes(sample_sheet(images["student"]))
        write_json(aside / "params.json", made_with)
        write_hashes(aside)


if __name__ == "__main__":
    run_command(publish)
