"""ONNX graphs behind the call of the student they were made from, so that sampler and measures run them as they run it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from stagecraft.diffusion.stepper import intervals_of


class OnnxUNet:
    """A student that onnxruntime runs on the CPU.

    Args:
        graphs: one for each interval, or a single one for all.
        boundaries: ascending timesteps between the graphs' intervals.
        config: that of the student.
        threads: of each graph.
    """

    def __init__(self, graphs: Sequence[Path], boundaries: Sequence[float], config: Any, threads: int) -> None:
        assert len(graphs) == len(boundaries) + 1, "one graph per interval"
        self.sessions = [open_session(path, threads) for path in graphs]
        self.boundaries = boundaries
        self.config = config

    def __call__(self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None) -> UNet2DOutput:
        """Predict for x_t (N,C,H,W) at one timestep or at one per sample (N,)."""
        timesteps = torch.as_tensor(timestep).float().reshape(-1).expand(len(sample)).contiguous()
        given = {"sample": sample, "timestep": timesteps, "labels": class_labels}
        inputs = {name: tensor.numpy() for name, tensor in given.items() if tensor is not None}
        intervals = intervals_of(timesteps, self.boundaries).numpy()
        output = np.empty((len(sample), self.config.out_channels, *sample.shape[2:]), np.float32)
        for interval in np.unique(intervals):
            rows = intervals == interval
            (output[rows],) = self.sessions[interval].run(None, {name: array[rows] for name, array in inputs.items()})
        return UNet2DOutput(sample=torch.from_numpy(output))


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A graph on the CPU with so many threads, which says nothing but errors."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
