"""The GPU that a plan gives hours for. Light, as a Snakefile imports it: no torch, no NumPy."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

FLOPS_OF_A_MAC = 2


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet; the defaults are an A100's dense bfloat16 rate and a share of it that UNets reach.

    Args:
        tflops: TFLOP/s at most.
        utilisation: share of them that a run reaches.
    """

    tflops: float = 312.0
    utilisation: float = 0.3

    @classmethod
    def take_from(cls, config: dict[str, Any]) -> Self:
        """The GPU of the keys `tflops` and `utilisation` of a --config, which are taken out of it.

        Raises:
            ValueError: a value is no number, or out of its range.
        """
        given = {key: config.pop(key) for key in cls.__dataclass_fields__ if key in config}
        return cls.of(given)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The GPU of values as they were given, numbers or texts."""
        gpu = cls(**{key: as_number(key, value) for key, value in given.items()})
        if gpu.tflops <= 0:
            raise ValueError(f"tflops: {gpu.tflops:g} is not above 0; give the GPU's TFLOP/s (--config tflops=312)")
        if not 0 < gpu.utilisation <= 1:
            raise ValueError(
                f"utilisation: {gpu.utilisation:g} is no share above 0; give one up to 1 (--config utilisation=0.3)"
            )
        return gpu

    def seconds(self, macs: float) -> float:
        """Seconds of so many MACs."""
        return FLOPS_OF_A_MAC * macs / (self.tflops * 1e12 * self.utilisation)


def as_number(key: str, value: Any) -> float:
    """A value as a number; ValueError when it is none, or not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key}: {value!r} is no number; give one (--config {key}=...)")
    return number
