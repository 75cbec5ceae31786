"""Train the feature extractor of FID: python -m stages.train_extractor --params JSON --threads N --data ... --output ..."""

from pathlib import Path

from stagecraft.config.stages import TrainExtractor
from stagecraft.data.prepared import PreparedData
from stagecraft.evaluation.extractor import save_classifier
from stagecraft.evaluation.extractor import train_extractor as train
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.training.log import write_log


def train_extractor(params: TrainExtractor, *, threads: int, data: Path, output: Path, log: Path) -> None:
    """Train a small classifier on the training split and write it with its accuracies."""
    prepared = PreparedData.load(data)
    labels = prepared.labels
    checkpoint = output.parent / "checkpoints" / "train_extractor.pt"
    trained = train(
        prepared.train_images,
        None if labels is None else labels[prepared.train_index],
        (prepared.held_out_images, None if labels is None else labels[prepared.held_out_index]),
        params.train_extractor,
        seed=params.seed,
        device=pick_device(params.device, threads),
        checkpoint=checkpoint,
        fingerprint={"params": params.as_given(), "data": prepared.meta["sha256"]},
    )
    write_log(log, {"stage": "train_extractor", "history": trained.history, "params": params.as_given()})
    save_classifier(output, trained.model, trained.description | {"params": params.as_given()})
    checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    run_command(train_extractor)
