"""Decode, resize and split: python -m stages.prepare_data --params JSON --threads N --output data/prepared."""

from pathlib import Path

from stagecraft.config.stages import PrepareData
from stagecraft.data.prepared import save
from stagecraft.data.sources import load_source
from stagecraft.data.splits import divide
from stagecraft.runtime.command import run_command


def prepare_data(params: PrepareData, *, threads: int, output: Path) -> None:
    """Write images.npy, labels.npy and meta.json of the source in params."""
    settings = params.prepare_data
    images = load_source(settings, threads)
    for note in images.contents.notes:
        print("prepare_data:", " ".join(note.split()).encode("utf-8", "backslashreplace").decode())
    save(output, images, divide(images.contents, settings.held_out, params.seed), params)


if __name__ == "__main__":
    run_command(prepare_data)
