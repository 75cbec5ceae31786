"""The page docs/refusals.md, and a run that tests spoil to provoke what it lists."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import AutoencoderKL, DDPMScheduler
from helpers import ROOT, VAE, ddpm_params, tiny_unet
from PIL import Image

from stagecraft.data.sources import source_fingerprint
from stagecraft.preflight import jobs
from stagecraft.preflight import run as preflight
from stagecraft.preflight.params import validate_params

# --- The page ---


@dataclass(frozen=True)
class Row:
    """A row of the page: words that its messages have, one or more, and the moment at which they come."""

    words: tuple[str, ...]
    moment: str


def read_page() -> dict[str, Row]:
    """The rows of docs/refusals.md by their ids."""
    lines = (ROOT / "docs" / "refusals.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rows = [row for row in cells if row[0] != "id" and set(row[0]) != {"-"}]
    assert len(rows) == len({row[0] for row in rows}) and {len(row) for row in rows} == {4}
    return {name: Row(tuple(re.findall(r"`(.+?)`", words)), moment.strip("`")) for name, _, words, moment in rows}


ROWS = read_page()


def names(*moments: str) -> list[str]:
    """Ids of the rows of these moments; of those of the stages when none is given."""
    known = ("params", "start", "plan of evaluate", "plan")
    return [name for name, row in ROWS.items() if (row.moment in moments if moments else row.moment not in known)]


def says(words: str, message: str) -> bool:
    """Whether a message, or its text in the code, has the words of a row."""
    return re.search(".*".join(map(re.escape, words.split("…"))), message) is not None


def check_words(name: str, messages: list[str]) -> None:
    """Every message has words of the row, and the row no words that no message has."""
    for message in messages:
        assert "\n" not in message and any(says(words, message) for words in ROWS[name].words), message
    for words in ROWS[name].words:
        assert any(says(words, message) for message in messages), (words, messages)


# --- A run to spoil ---


def save_models(folder: Path) -> Path:
    """A teacher and an autoencoder from elsewhere, of grey images of 8 x 8 pixels, in a folder."""
    tiny_unet().save_pretrained(folder / "teacher" / "unet")
    DDPMScheduler().save_pretrained(folder / "teacher" / "scheduler")
    AutoencoderKL(**VAE).save_pretrained(folder / "autoencoder")
    return folder


class Scene:
    """Params of a run and a folder for its files."""

    def __init__(self, models: Path, folder: Path) -> None:
        self.models, self.folder = models, folder
        self.params: dict[str, Any] = ddpm_params()

    def put(self, changes: dict[str, Any]) -> None:
        """Change params by `section.key`; the key is deleted for the value `absent`."""
        for key, value in changes.items():
            section, _, name = key.rpartition(".")
            where = self.params[section] if section else self.params
            where[name] = value
            if isinstance(value, str) and value == "absent":
                del where[name]

    def archive(self, count: int = 100, side: Any = 8, **arrays: Any) -> Path:
        """An npz archive as the source."""
        sides = side if isinstance(side, tuple) else (side, side)
        path = self.folder / "a.npz"
        np.savez(path, **{"images": np.zeros((count, *sides), np.uint8)} | arrays)
        self.put({"prepare_data.source": "npz", "prepare_data.path": str(path)})
        return path

    def images(self, *folders: str, count: int = 12, size: tuple[int, int] = (8, 8)) -> Path:
        """A folder with images, in class folders or splits, as the source."""
        source = self.folder / "raw"
        for name in folders or ("",):
            (source / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.new("L", size, number).save(source / name / f"{number:02}.png")
        self.put({"prepare_data.source": "folder", "prepare_data.path": str(source)})
        return source

    def use(self, kind: str, name: str = "", **changes: Any) -> Path:
        """The teacher's or autoencoder's folder from elsewhere, with changes to a JSON file in it."""
        folder = self.folder / kind
        if not folder.exists():
            shutil.copytree(self.models / kind, folder)
        self.put({f"train_{kind}.source": "path", f"train_{kind}.path": str(folder)})
        self.put({"search_block.channels": 1.0} if kind == "teacher" else {})
        if changes:
            file = folder / (name or ("unet/config.json" if kind == "teacher" else "config.json"))
            content = {**json.loads(file.read_text()), **changes}
            file.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))
        return folder

    def write(self, name: str, content: bytes | str = b"") -> Path:
        """A file of the run."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


def message_of(function: Callable[..., Any], *arguments: Any) -> str | None:
    """What a call refuses; None when it refuses nothing."""
    try:
        function(*arguments)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def at_start(params: dict[str, Any]) -> list[str]:
    """What the Snakefile's functions refuse before the first job, each asked alone."""
    checked = validate_params(params, "params.yaml")
    checks: list[tuple[Callable[..., Any], Any]] = [
        (preflight.check_inputs, checked),
        (jobs.encoder_files, checked.encode_prompts),
        (jobs.autoencoder_files, checked.train_autoencoder),
        (jobs.teacher_files, checked.train_teacher),
        (jobs.extractor_files, checked.evaluate),
        (jobs.clip_files, checked.evaluate),
        (jobs.latency_files, checked.measure_latency),
        (source_fingerprint, checked.prepare_data),
        (jobs.block_names, checked),
        (jobs.needs_own_pipeline, checked),
    ]
    found = [message_of(check, argument) for check, argument in checks]
    return [message for message in found if message is not None]


def before_the_first_job(scene: Scene) -> None:
    """All that comes before the first job, up to the plan of an evaluation, accepts a scene."""
    validate_params(scene.params, "params.yaml")
    assert at_start(scene.params) == []
    assert message_of(preflight.check_counts, validate_params(scene.params, "params.yaml")) is None
