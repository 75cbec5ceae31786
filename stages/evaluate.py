"""Sample, score and time teacher and student: python -m stages.evaluate --params JSON --threads N --data PATH ..."""

from dataclasses import replace
from pathlib import Path

from stagecraft.config.stages import Evaluate
from stagecraft.data.prepared import PreparedData
from stagecraft.data.prompts import load_prompts
from stagecraft.evaluation.agreement import ScorerInputs, make_scorers
from stagecraft.evaluation.comparison import Evaluation, check_architecture
from stagecraft.evaluation.fidelity import Extractor, open_extractor
from stagecraft.evaluation.samples import save_samples
from stagecraft.networks.autoencoder import open_autoencoder
from stagecraft.networks.pipelines import load_student, load_teacher, read_stated
from stagecraft.networks.weights import WEIGHTS
from stagecraft.preflight.jobs import clip_files
from stagecraft.report.table import format_table
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import read_json, sha256_content, sha256_file, write_json
from stagecraft.runtime.journal import Pieces
from stagecraft.runtime.processes import is_main
from stagecraft.training.assembled import AssembledStudent, read_architecture
from stagecraft.training.student import interval_probabilities


def evaluate(
    params: Evaluate,
    *,
    threads: int,
    data: Path,
    prompts: Path,
    autoencoder: Path,
    teacher: Path,
    student: Path,
    architecture: Path,
    extractor: Path,
    output: Path,
    samples: Path,
) -> None:
    """Write metrics.json and samples.npz, and print the table."""
    assembled = read_architecture(architecture)
    large = load_teacher(teacher)
    small = load_student(student)
    check_architecture(small, assembled, str(student))
    prepared = PreparedData.load(data)
    features = open_extractor(params.evaluate.extractor, extractor, prepared.images[0])
    clip = hash_clip(params)
    hashes = {"data": prepared.meta["sha256"], "extractor": sha256_file(features.weights), "clip": clip}
    fingerprint = {"params": params.as_given(), "made_from": hash_inputs(prompts, teacher, student) | hashes}
    pieces = Pieces(output.parent / "checkpoints" / "evaluate", fingerprint) if is_main() else None
    evaluation = replace(
        planned_evaluation(params, prepared, features, assembled, training_shares(student, assembled), threads),
        vae=open_autoencoder(autoencoder),
        pieces=pieces,
        stated=read_stated(teacher),
        prompts=load_prompts(prompts, prepared.meta["sha256"]),
    )
    result = with_scorers(evaluation, extractor, clip).compare(large, small)
    if result is None or pieces is None:
        return
    metrics, images = result
    save_samples(samples, images, sha256_content(metrics))
    write_json(output, metrics)
    pieces.remove()
    print(format_table(metrics))


def planned_evaluation(
    params: Evaluate,
    data: PreparedData,
    extractor: Extractor,
    assembled: AssembledStudent,
    shares: list[float],
    threads: int,
) -> Evaluation:
    """An evaluation as params and an architecture.json say, of models in pixels that were trained here."""
    device = pick_device(params.device, threads)
    return Evaluation(
        params,
        data,
        extractor,
        assembled["boundaries"],
        shares,
        device,
        assembled["snapped"],
        expected=assembled["expected"],
    )


def with_scorers(evaluation: Evaluation, extractor: Path, clip: str | None) -> Evaluation:
    """An evaluation that also tells how far images show what their prompts say; `clip` is the hash of a model for that."""
    if evaluation.prompts is None or not is_main():
        return evaluation
    folder = evaluation.params.evaluate.clip
    given = ScorerInputs(evaluation.data, evaluation.prompts, extractor, folder, evaluation.device)
    return replace(evaluation, scorers=make_scorers(given), clip=clip)


def training_shares(student: Path, assembled: AssembledStudent) -> list[float]:
    """How often the training of a student drew each interval."""
    drawn = read_json(student / "params.json")["retrain"]["interval_probabilities"]
    return interval_probabilities(drawn, assembled["intervals"]) or assembled["density"]


def hash_clip(params: Evaluate) -> str | None:
    """Hash of the CLIP model that the params name, if any."""
    files = clip_files(params.evaluate)
    return sha256_content({Path(file).name: sha256_file(Path(file)) for file in files}) if files else None


def hash_inputs(prompts: Path, *folders: Path) -> dict[str, str]:
    """Hashes of the index of prompts and of the UNets' files in pipeline folders."""
    files = [folder / "unet" / name for folder in folders for name in (WEIGHTS, "config.json")]
    return {str(path): sha256_file(path) for path in (prompts / "index.json", *files)}


if __name__ == "__main__":
    run_command(evaluate)
