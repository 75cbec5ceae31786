"""The page that leads from a folder of pictures to a model card, command by command."""

import re
import shutil
from pathlib import Path

import yaml
from helpers import ROOT, blocks_of, run
from PIL import Image

PAGE = ROOT / "docs" / "walkthrough.md"
# The page's params with little training; the table of the digits has no layers of this teacher, and timing takes long.
SMOKE = ("--configfile photos.yaml", "--configfile photos.yaml presets/smoke.yaml")


def test_the_walk_through_ends_in_a_model_card(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "clone", symlinks=True))
    blocks = blocks_of(PAGE, "sh")
    assert sum("snakemake" in block for block in blocks) == 3
    for block in blocks:
        result = run(folder, "bash", "-euo", "pipefail", "-c", block.replace(*SMOKE))
        assert result.returncode == 0, block + result.stdout[-2000:] + result.stderr[-2000:]
    assert len([*(folder / "data" / "raw" / "photos").rglob("*.png")]) == 300
    assert Image.open(folder / "photo.png").size == (16, 16)
    card = (folder / "results" / "model" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "cc0-1.0" and result.stdout.startswith("---\n")


def test_the_pictures_of_the_walk_through_are_there() -> None:
    names = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE.read_text())
    assert len(names) == 3 and all((PAGE.parent / name).is_file() for name in names)
