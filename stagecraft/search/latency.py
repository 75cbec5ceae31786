"""Latency of a network's layers, each distinct shape measured alone: what a budget of time is counted in.

A block takes the sum of its layers (a ResNet layer with the concatenation before it, an attention, a downsampler, an upsampler),
a student that of its blocks, its input side and its output head, all in milliseconds an image.
"""

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import NotRequired, TypedDict, cast

import diffusers
import numpy as np
import torch

from stagecraft.elastic.kinds import identity_spec
from stagecraft.networks.families import family_of, sites_of
from stagecraft.networks.family import Layers, Module, Spec
from stagecraft.networks.layer import WHOLE, Call, Layer
from stagecraft.runtime.device import autocast
from stagecraft.runtime.files import read_checked_json, read_json
from stagecraft.runtime.progress import Progress

WARM_UP = 2
SHORTEST = 0.002  # seconds of one sample; faster layers are called several times for it
OTHER_DATA = 8 * 2**20  # bytes read and written between two calls on a CPU
TURNS = 30  # of the teacher's own layers
CLOCK_WARM_UP = 1.0  # seconds of work before the first sample on CUDA
DESCRIPTION = ("device", "threads", "batch", "precision", "versions")

# --- Measuring ---


class Conditions(TypedDict, total=False):
    """What latencies depend on beside the layers, the keys of DESCRIPTION; tables from elsewhere may lack some."""

    device: str
    threads: int
    batch: int
    precision: str
    versions: dict[str, str]


class Latencies(Conditions):
    """A table of latencies: milliseconds an image by layer, and what each layer takes more within a network."""

    layers: dict[str, float]
    overhead: NotRequired[float]


@dataclass(frozen=True)
class Stopwatch:
    """Measures calls on one device.

    Args:
        batch: images in a call.
        repeats: samples of each layer that is not the teacher's own; the median counts.
        precision: fp32 or bf16 (autocast).
    """

    device: torch.device
    batch: int
    repeats: int
    precision: str

    def measure(self, pairs: dict[str, tuple[Layer, Layer]]) -> dict[str, float]:
        """Milliseconds an image of layers by key.

        Args:
            pairs: each layer and the teacher's own in its place. The two take turns, and a layer's time is its median multiple
                of the teacher's (see `teachers_own`), so that a change of the clock reaches both.
        """
        progress = Progress("measure_latency", len(pairs))
        self.warm_up()
        with torch.no_grad(), autocast(self.device, self.precision):
            times = self.teachers_own({own.key: own for _, own in pairs.values()})
            for number, (key, (layer, own)) in enumerate(pairs.items(), 1):
                if key not in times:
                    samples = self.in_turn(own.call(self.batch, self.device), layer.call(self.batch, self.device))
                    times[key] = times[own.key] * median(ours / theirs for theirs, ours in samples)
                progress.update(number)
        return {key: times[key] for key in pairs}

    def teachers_own(self, layers: Mapping[str, Layer]) -> dict[str, float]:
        """Milliseconds an image of the teacher and its layers, by key, whose proportions to each other predictions depend on.

        All take turns, and each takes its median share of a turn of median length.
        """
        calls = [layer.call(self.batch, self.device) for layer in layers.values()]
        counts = [self.calls_of(call) for call in calls]
        turns = np.array([list(map(self.seconds, calls, counts)) for _ in range(TURNS)])
        lengths = turns.sum(axis=1)
        shares = np.median(turns / lengths[:, None], axis=0)
        return dict(zip(layers, (1000 / self.batch * np.median(lengths) * shares).tolist(), strict=True))

    def in_turn(self, first: Call, second: Call) -> list[tuple[float, float]]:
        """Seconds of a call of each, one after the other, as often as `repeats` says."""
        calls = [(call, self.calls_of(call)) for call in (first, second)]
        return [tuple(self.seconds(*call) for call in calls) for _ in range(self.repeats)]  # type: ignore[misc]

    def calls_of(self, call: Call) -> int:
        """The number of calls that makes a sample long enough; warms up as well."""
        fastest = min(self.seconds(call, 1) for _ in range(1 + WARM_UP))
        return max(1, round(SHORTEST / fastest))

    def seconds(self, call: Call, calls: int) -> float:
        """Mean seconds of a call: by events on CUDA, by the clock elsewhere.

        On a CPU the caches are before each call as they are within a network: with the layer's input, but not its weights.
        """
        if self.device.type != "cuda":
            taken = 0.0
            for _ in range(calls):
                self.evict()
                call.write_inputs()
                begun = time.perf_counter()
                call()
                taken += time.perf_counter() - begun
            return taken / calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / calls

    @cached_property
    def other_data(self) -> torch.Tensor:
        """A buffer larger than the caches of one core, as the rest of a network would be."""
        return torch.ones(OTHER_DATA // 4)

    def evict(self) -> None:
        """Push a layer's weights out of the caches of this core."""
        self.other_data.add_(0.0)

    def warm_up(self) -> None:
        """Let a CUDA device reach the clock that it has under load."""
        if self.device.type == "cuda":
            square = torch.randn(4096, 4096, device=self.device)
            ends = time.monotonic() + CLOCK_WARM_UP
            while time.monotonic() < ends:
                square @ square
                torch.cuda.synchronize(self.device)

    def describe(self) -> Conditions:
        """The device and settings on which the times depend."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else processor_name(),
            "threads": torch.get_num_threads(),
            "batch": self.batch,
            "precision": self.precision,
            "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        }


def processor_name() -> str:
    """The model of this machine's processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


class WithinNetwork(TypedDict):
    """Milliseconds an image of layers within a network, but for the `overhead` that each has there."""

    layers: dict[str, float]
    overhead: float


def within_network(layers: dict[str, float], teacher: Layers) -> WithinNetwork:
    """Times of layers such that those of the teacher's sum to the whole teacher's.

    What the teacher takes more than its layers alone is taken as the same for all layers. What it takes less, as caches are
    warmer within it, goes by what a layer takes: all are scaled.
    """
    own = teacher.own()
    alone = sum(layers[layer.key] for layer in own)
    more = layers[WHOLE] - alone
    if more >= 0:
        return {"layers": layers, "overhead": more / len(own)}
    scaled = {key: value * layers[WHOLE] / alone for key, value in layers.items()}
    return {"layers": scaled | {WHOLE: layers[WHOLE]}, "overhead": 0.0}


def layers_of(net: Module) -> Layers:
    """The layers of a teacher, or of a teacher with the student's hidden channels."""
    identities = {site.name: identity_spec(net.get_submodule(site.name)) for site in sites_of(net)}
    return family_of(net).layers(net, identities)


def pairs_to_measure(
    teacher: Layers, student: Layers, specs: Iterable[tuple[str, Spec]]
) -> dict[str, tuple[Layer, Layer]]:
    """Every distinct layer of the teacher, of what all students share and of specs, by key, with the teacher's in its place.

    Args:
        specs: names of blocks, and specs of each.
    """
    pairs = {layer.key: (layer, layer) for layer in [teacher.together(), *teacher.own()]}
    for layer, own in zip(student.fixed(), teacher.fixed(), strict=True):
        pairs.setdefault(layer.key, (layer, own))
    for name, part, layer in distinct_parts(student, specs):
        pairs.setdefault(layer.key, (layer, teacher.counterpart(name, part)))
    return pairs


def distinct_parts(student: Layers, specs: Iterable[tuple[str, Spec]]) -> Iterator[tuple[str, str, Layer]]:
    """The block, the place in it and the layer of each different option of specs."""
    seen: set[str] = set()
    for name, spec in specs:
        for part, layer in student.placed(name, spec).items():
            if layer.key not in seen:
                seen.add(layer.key)
                yield name, part, layer


# --- Using a table ---


class LatencyTable:
    """Milliseconds an image by layer.

    Args:
        content: what `results/latency.json` holds: `layers` by key, `overhead` that each takes within a network, and what they
            were measured with.
        origin: where it is from, for messages.
    """

    def __init__(self, content: Latencies, origin: str) -> None:
        self.layers = content["layers"]
        self.overhead = content.get("overhead", 0.0)
        self.content = content
        self.origin = origin

    @classmethod
    def of_stage(cls, path: Path) -> "LatencyTable | None":
        """What the stage measure_latency wrote; None when it was told to measure nothing."""
        content = read_checked_json(path, "measure_latency")
        return None if content["source"] == "none" else cls(cast(Latencies, content), str(path))

    @classmethod
    def read(cls, path: Path) -> "LatencyTable":
        """The table of a file from elsewhere; ValueError when it holds none."""
        content = read_json(path, "give another measure_latency.path, or source: measure")
        layers = content.get("layers")
        if not isinstance(layers, dict) or not all(isinstance(value, float) for value in layers.values()):
            raise ValueError(f"{path}: holds no `layers` with milliseconds; set measure_latency.source: measure")
        return cls(cast(Latencies, content), str(path))

    def of_teacher(self) -> float:
        """Milliseconds an image of the whole teacher; ValueError where the table lacks it."""
        self.check_has([WHOLE])
        return self.layers[WHOLE]

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The layers among these that the table lacks."""
        return [key for key in keys if key not in self.layers]

    def latency_of(self, unet: Module, name: str) -> Callable[[Spec], float]:
        """A function from a block's spec to its milliseconds per image."""
        layers = layers_of(unet)
        return lambda spec: self.milliseconds(layers.block(name, spec))

    def milliseconds(self, layers: Iterable[Layer]) -> float:
        """Sum of the latencies of layers within a network, per image; ValueError where the table lacks one."""
        keys = [layer.key for layer in layers]
        self.check_has(keys)
        return sum(self.layers[key] for key in keys) + self.overhead * len(keys)

    def check_has(self, keys: Iterable[str]) -> None:
        """Raise ValueError unless the table has all of these layers."""
        if missing := self.missing(keys):
            raise ValueError(
                f"{self.origin}: lacks the layer {missing[0]}; measure it: set measure_latency.source: measure"
            )
