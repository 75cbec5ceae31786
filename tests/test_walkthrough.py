"""The page that leads from a folder of pictures to a model card, command by command."""

import re
from functools import reduce
from pathlib import Path

import yaml
from helpers import ROOT, blocks_of, clone, run
from PIL import Image

PAGE = ROOT / "docs" / "walkthrough.md"
# The page's params on smaller images with little training; layers are not timed, so that the budget is one of MACs.
LITTLE = {
    "resolution: 16": "resolution: 8",
    "--configfile photos.yaml": "--configfile photos.yaml presets/smoke.yaml",
    "time: 0.5": "macs: 0.65",
}


def test_the_walk_through_ends_in_a_model_card(tmp_path: Path) -> None:
    folder = clone(tmp_path)
    text = reduce(lambda text, pair: text.replace(*pair), LITTLE.items(), PAGE.read_text())
    (tmp_path / "little.md").write_text(text)
    blocks = blocks_of(tmp_path / "little.md", "sh")
    assert sum("snakemake" in block for block in blocks) == 3
    for block in blocks:
        result = run(folder, "bash", "-euo", "pipefail", "-c", block)
        assert result.returncode == 0, block + result.stdout[-2000:] + result.stderr[-2000:]
    assert len([*(folder / "data" / "raw" / "photos").rglob("*.png")]) == 300
    assert Image.open(folder / "photo.png").size == (8, 8)
    card = (folder / "results" / "model" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "cc0-1.0" and result.stdout.startswith("---\n")


def test_the_pictures_of_the_walk_through_are_there() -> None:
    names = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE.read_text())
    assert len(names) == 3 and all((PAGE.parent / name).is_file() for name in names)
