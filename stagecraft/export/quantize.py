"""Graphs with 8-bit convolutions, by onnxruntime's static quantisation on noised training images."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.runtime.files import atomic_path
from stagecraft.runtime.seeds import generator_for

CALIBRATION_BATCH = 32
CALIBRATION_BATCHES = 16


class CalibrationData(CalibrationDataReader):
    """Inputs of a graph, batch by batch, from which onnxruntime learns the ranges of the activations.

    Args:
        batches: of x_t and t of the graph's interval.
        stream: names the random numbers, with the seed.
    """

    def __init__(self, batches: NoisyBatches, seed: int, stream: str) -> None:
        self.inputs = self.read(batches, seed, stream)

    @staticmethod
    def read(batches: NoisyBatches, seed: int, stream: str) -> Iterator[dict[str, np.ndarray]]:
        """The inputs by name."""
        for number in range(CALIBRATION_BATCHES):
            x_t, t, _, condition = batches(generator_for(seed, stream, number))
            inputs = {"sample": x_t, "timestep": t.float(), **condition.tensors}
            yield {name: tensor.numpy() for name, tensor in inputs.items()}

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch; None after the last."""
        return next(self.inputs, None)


def quantize_graph(graph: Path, output: Path, data: CalibrationData) -> None:
    """Write a graph with convolutions in 8 bits: weights per output channel, activations by the ranges seen in `data`."""
    with atomic_path(output) as aside, without_warnings():
        quantize_static(
            graph,
            aside,
            data,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


@contextmanager
def without_warnings() -> Iterator[None]:
    """Keep onnxruntime's advice to optimise the graph first from the log: the exporter has done so."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
