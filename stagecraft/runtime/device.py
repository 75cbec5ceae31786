"""The device a stage runs on, its arithmetic and its threads."""

from contextlib import AbstractContextManager, nullcontext

import torch

from stagecraft.runtime import processes

PIXELS = 2**19


def pick_device(name: str, threads: int) -> torch.device:
    """`auto`, `cpu` or `cuda` to the device of this process, with deterministic kernels and `threads` CPU threads.

    Raises:
        ValueError: CUDA asked for and not there.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # No kernel here reads memory that it has not written, so filling it first would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("params.yaml: device is 'cuda' but no CUDA device is visible; set it to 'auto' or 'cpu'")
    return processes.join(name) if processes.world_size() > 1 else torch.device(name)


def autocast(device: torch.device, precision: str, *, cached: bool = True) -> AbstractContextManager:
    """Autocast to bfloat16 for `bf16`, nothing for `fp32`; `cached` keeps each weight's cast until the context ends."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=cached) if precision == "bf16" else nullcontext()


def frozen_in(precision: str) -> torch.dtype:
    """The number format of a network's weights where they are not trained; its arithmetic is that of `autocast`."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def images_at_once(most: int, height: int, width: int) -> int:
    """How many images a pass without gradients takes: at most `most`, and no more than 2^19 pixels, but one."""
    return max(1, min(most, PIXELS // (height * width)))
