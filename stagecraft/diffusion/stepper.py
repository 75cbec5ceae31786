"""diffusers' schedulers, as samplers use them."""

from typing import Any


def unclipped(scheduler: Any) -> Any:
    """The scheduler without clipping to the range of images, which latents do not keep to."""
    return (
        type(scheduler).from_config(scheduler.config, clip_sample=False)
        if "clip_sample" in scheduler.config
        else scheduler
    )
