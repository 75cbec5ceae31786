"""Prompts or classes of the images as hidden states: python -m stages.encode_prompts --params JSON --threads N ..."""

from pathlib import Path

from stagecraft.config.stages import EncodePrompts
from stagecraft.data.prepared import PreparedData
from stagecraft.runtime.command import run_command
from stagecraft.runtime.files import atomic_folder, write_checked_json


def encode_prompts(params: EncodePrompts, *, threads: int, data: Path, output: Path) -> None:
    """Write the encoder, what it makes of each prompt or class, and index.json; the index alone where there are no prompts."""
    settings = params.encode_prompts
    prepared = PreparedData.load(data)
    index = {"source": settings.source, "data": prepared.meta["sha256"], "sha256": None, "params": params.as_given()}
    with atomic_folder(output) as aside:
        if settings.source == "none":
            write_checked_json(aside / "index.json", index)
            return
        # Heavy, and of no use to most runs.
        from stagecraft.networks.prompting import write_classes, write_prompts
        from stagecraft.runtime.device import pick_device

        if settings.source == "classes":
            write_classes(aside, prepared, settings, index)
        else:
            write_prompts(aside, prepared, settings, params.seed, pick_device(params.device, threads), index)


if __name__ == "__main__":
    run_command(encode_prompts)
