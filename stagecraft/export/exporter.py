"""A student's folder of ONNX graphs, and what export.json says of them."""

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.evaluation.comparison import Evaluation
from stagecraft.export.check import check_differences, compare_outputs, measure_milliseconds, random_inputs
from stagecraft.export.graphs import IntervalUNet, RoutedUNet, write_graph
from stagecraft.export.packages import PACKAGES
from stagecraft.export.quantize import CALIBRATION_BATCH, CalibrationData, quantize_graph
from stagecraft.export.session import OnnxUNet
from stagecraft.networks.pipelines import is_class_conditional
from stagecraft.runtime.files import sha256_file

Record = dict[str, object]


@dataclass(frozen=True)
class Exporter:
    """Writes a student's graphs into a folder, and measures them there.

    Args:
        student: in eval mode on the CPU.
        evaluation: how the student is sampled and scored.
        folder: an existing folder.
    """

    student: Any
    evaluation: Evaluation
    folder: Path

    @cached_property
    def names(self) -> list[str]:
        """The names of the graphs of one interval each."""
        return [f"interval_{interval}" for interval in range(self.student.num_intervals)]

    def file(self, name: str) -> Path:
        """The file of a graph."""
        return self.folder / f"{name}.onnx"

    def export(self, data: TrainingSet) -> Record:
        """Write all graphs and the sampler's scheduler; returns the content of export.json.

        Args:
            data: what the 8-bit graphs are calibrated with.

        Raises:
            ValueError: a graph is not what PyTorch computes.
        """
        self.write_graphs()
        differences = self.compare(self.float_models())
        check_differences(differences)
        self.quantize_graphs(data)
        scheduler = self.evaluation.params.sampling.scheduler
        self.evaluation.process.scheduler(scheduler).save_pretrained(self.folder)
        return self.describe() | self.measure(differences)

    def write_graphs(self) -> None:
        """Write the graphs of 32-bit numbers."""
        write_graph(self.file("routed"), RoutedUNet(self.student))
        for interval, name in enumerate(self.names):
            write_graph(self.file(name), IntervalUNet(self.student, interval))

    def quantize_graphs(self, data: TrainingSet) -> None:
        """Write the graphs with 8-bit convolutions."""
        for interval, name in enumerate(self.names):
            quantize_graph(self.file(name), self.file(f"{name}.int8"), self.calibration(data, interval))

    def calibration(self, data: TrainingSet, interval: int) -> CalibrationData:
        """Noised training images of an interval."""
        batches = NoisyBatches(
            data,
            self.evaluation.process,
            CALIBRATION_BATCH,
            torch.device("cpu"),
            conditional=is_class_conditional(self.student),
            intervals=self.evaluation.process.edges(self.evaluation.boundaries),
            probabilities=[float(other == interval) for other in range(len(self.names))],
        )
        return CalibrationData(batches, self.evaluation.params.seed, f"calibration {interval}")

    def float_models(self) -> dict[str, OnnxUNet]:
        """The graphs of 32-bit numbers, in the student's place."""
        return {"interval": self.open(self.names), "routed": self.open(["routed"])}

    def int8_model(self) -> OnnxUNet:
        """The graphs with 8-bit convolutions, in the student's place."""
        return self.open([f"{name}.int8" for name in self.names])

    def open(self, names: list[str]) -> OnnxUNet:
        """Graphs of these names, with as many threads as PyTorch has."""
        boundaries = self.evaluation.boundaries if len(names) > 1 else []
        return OnnxUNet([self.file(name) for name in names], boundaries, self.student.config, torch.get_num_threads())

    def compare(self, models: dict[str, OnnxUNet]) -> dict[str, dict[str, float]]:
        """How far outputs differ from the student's on random inputs."""
        inputs = random_inputs(self.student, self.evaluation.process, self.evaluation.params.seed)
        return compare_outputs(self.student, models, inputs)

    def measure(self, differences: dict[str, dict[str, float]]) -> Record:
        """Differences, fidelity and times."""
        quantized = self.int8_model()
        models = self.float_models()
        return {
            "difference": differences | self.compare({"int8": quantized}),
            "milliseconds": self.measure_speed({"pytorch": self.student, **models, "int8": quantized}),
            **self.score({"interval": models["interval"], "int8": quantized}),
        }

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W of a sample."""
        config = self.student.config
        return config.in_channels, config.sample_size, config.sample_size

    def score(self, models: dict[str, OnnxUNet]) -> Record:
        """FID with its margin, KID, precision and recall, from the seeds of all evaluation; and 8 bits' FID minus the other."""
        images = {name: self.evaluation.draw(name, model, self.shape) for name, model in models.items()}
        margins, difference_margins = self.evaluation.measure_margins(images, "int8")
        scores = {name: self.evaluation.score(name, drawn) for name, drawn in images.items()}
        return {
            "fidelity": {name: {**score, **margins[name]} for name, score in scores.items()},
            "fid_difference": scores["int8"]["fid"] - scores["interval"]["fid"],
            "fid_difference_margin": difference_margins["interval"],
        }

    def measure_speed(self, models: dict[str, Any]) -> dict[str, dict[str, float]]:
        """Milliseconds an image of one evaluation, of single images and of batches."""
        settings = self.evaluation.params.evaluate
        steps = self.evaluation.steps_per_interval()
        return {
            f"batch_{batch}": measure_milliseconds(
                models, self.shape, self.evaluation.boundaries, steps, batch, settings.speed_repeats
            )
            for batch in sorted({1, settings.speed_batch})
        }

    def describe(self) -> Record:
        """Description of the graphs, and the conditions of their figures."""
        params = self.evaluation.params
        files = sorted(self.folder.glob("*.onnx"))
        protocol = self.evaluation.protocol()
        return {
            "boundaries": self.evaluation.boundaries,
            "shape": self.shape,
            "graphs": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in files},
            "protocol": {key: value for key, value in protocol.items() if key != "training_shares"},
            "versions": {name: version(name) for name in ("torch", *PACKAGES)},
            "params": params.as_given(),
        }
