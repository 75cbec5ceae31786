"""Write a student as ONNX, check it and measure it: python -m stages.export --params JSON --threads N --data PATH ..."""

from pathlib import Path

from stagecraft.config.stages import Evaluate
from stagecraft.data.prepared import PreparedData
from stagecraft.data.training import TrainingSet
from stagecraft.evaluation.comparison import Evaluation, check_architecture
from stagecraft.evaluation.fidelity import open_extractor
from stagecraft.export.packages import check_packages
from stagecraft.networks.autoencoder import open_autoencoder
from stagecraft.networks.pipelines import load_student, read_stated
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import atomic_folder, write_json
from stagecraft.training.assembled import read_architecture
from stagecraft.training.student import with_decoders


def export(
    params: Evaluate,
    *,
    threads: int,
    data: Path,
    latents: Path,
    autoencoder: Path,
    teacher: Path,
    student: Path,
    architecture: Path,
    extractor: Path,
    output: Path,
) -> None:
    """Write the graphs, the sampler's scheduler and export.json, all or nothing."""
    check_packages()
    # What it imports is not there without them.
    from stagecraft.export.exporter import Exporter

    device = pick_device("cpu", threads)
    prepared = PreparedData.load(data)
    loaded = load_student(student)
    assembled = read_architecture(architecture)
    check_architecture(loaded, assembled, str(student))
    small = with_decoders(loaded)
    evaluation = Evaluation(
        params,
        prepared,
        open_extractor(params.evaluate.extractor, extractor, prepared.images[0]),
        assembled["boundaries"],
        assembled["density"],
        device,
        assembled["snapped"],
        open_autoencoder(autoencoder),
        stated=read_stated(teacher),
    )
    with atomic_folder(output) as aside:
        record = Exporter(small, evaluation, aside).export(TrainingSet.load(data, latents))
        write_json(aside / "export.json", record)


if __name__ == "__main__":
    run_command(export)
