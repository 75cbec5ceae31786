"""A student's ONNX graphs: one for each interval, and one that routes every sample to the decoder of its own interval.

Their inputs are `sample` float32 (N,C,H,W), `timestep` float32 (N,) and, of a class-conditional student, `labels` int64 (N,);
their output is `output` (N,C,H,W). N is dynamic.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from stagecraft.networks.families import example_condition
from stagecraft.runtime.files import atomic_path

EXAMPLES = 3  # samples of the batch that is traced


class IntervalUNet(nn.Module):
    """A student in one of its intervals: the shared encoder and one decoder."""

    def __init__(self, student: Any, interval: int) -> None:
        super().__init__()
        self.student = student
        self.decoder = student.decoders[student.paths[interval]]

    def decode(self, hidden: Tensor, skips: tuple[Tensor, ...], emb: Tensor, timestep: Tensor) -> Tensor:
        """The decoder's output, N,C,H,W."""
        output: Tensor = self.decoder(hidden, skips, emb)
        return output

    def forward(self, sample: Tensor, timestep: Tensor, labels: Tensor | None = None) -> Tensor:
        """The output of the student's own call for one timestep per sample."""
        config = self.student.base_config
        emb = self.student.embed(timestep, labels)
        hidden, skips = self.student.encode(sample, emb)
        output = self.decode(hidden, skips, emb, timestep)
        return output / timestep.reshape(-1, 1, 1, 1) if config.time_embedding_type == "fourier" else output


class RoutedUNet(IntervalUNet):
    """A student whose samples may be of different intervals.

    A decoder runs, behind ONNX's operator If, when any sample is of its intervals, and then on the whole batch, of which its own
    samples are kept. Samplers evaluate a batch at one timestep, so that one decoder runs.
    """

    def __init__(self, student: Any) -> None:
        super().__init__(student, 0)

    def decode(self, hidden: Tensor, skips: tuple[Tensor, ...], emb: Tensor, timestep: Tensor) -> Tensor:
        """Each sample's output by the decoder of its own timestep."""
        paths = self.student.paths
        if len({*paths}) == 1:
            return super().decode(hidden, skips, emb, timestep)
        path = torch.tensor(paths)[self.student.interval_of(timestep)]
        output = torch.zeros_like(skips[0][:, :1])
        for index in sorted({*paths}):
            mine = path == index
            part = torch.cond(mine.any(), self.student.decoders[index], self.skip, (hidden, skips, emb))
            output = torch.where(mine[:, None, None, None], part, output)
        return output

    def skip(self, hidden: Tensor, skips: tuple[Tensor, ...], emb: Tensor) -> Tensor:
        """Zeros in place of the output of a decoder that no sample needs."""
        channels = self.student.config.out_channels
        return torch.zeros_like(skips[0][:, :1]).expand(-1, channels, -1, -1).contiguous()


def write_graph(path: Path, module: IntervalUNet) -> None:
    """Write a module as an ONNX file."""
    student = module.student
    config = student.config
    sample = torch.zeros(EXAMPLES, config.in_channels, config.sample_size, config.sample_size)
    condition = example_condition(student, EXAMPLES)
    inputs = {"sample": sample, "timestep": torch.zeros(EXAMPLES), **condition.tensors}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that two inputs have the same batch size, and of what torch itself calls
        program = torch.onnx.export(
            module.eval(),
            kwargs=inputs,
            input_names=[*inputs],
            output_names=["output"],
            dynamic_shapes={name: {0: "batch"} for name in inputs},
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the exporter returns what it is given no file for"
    # Which has paths of this machine in it.
    ClearMetadataAndDocStringPass()(program.model)
    with atomic_path(path) as aside:
        program.save(aside)
