"""Prompts of images, as a text encoder's hidden states: each prompt once, and which of them each image has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stagecraft.data.classes import check_told
from stagecraft.data.condition import PROMPT, Condition, class_condition
from stagecraft.data.prepared import PreparedData
from stagecraft.runtime.files import atomic_path, check_file, read_checked_json, sha256_file, write_checked_json

STAGE = "encode_prompts"
STATES = "prompts.safetensors"
ROWS = "rows"  # the tensor that says which prompt each image has
EMPTY = 0  # the row of the empty prompt


@dataclass(frozen=True, eq=False)
class Prompts:
    """The encoded prompts.

    Args:
        states: a row for each prompt, the first that of an empty one.
        rows: the row of each image's prompt, int64 (N,).
        empty: share of the images that are trained on with an empty prompt, for guidance.
        encoder: folder with the text encoder or class embedding, where there is one.
        sha256: hash of what they were read from.
        texts: the prompts themselves, where they are known.
    """

    states: Condition
    rows: torch.Tensor
    empty: float = 0.0
    encoder: Path | None = None
    sha256: str = ""
    texts: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, int]:
        """Tokens and width of a prompt."""
        _, tokens, width = self.states.tensors[PROMPT].shape
        return tokens, width

    def of(self, images: torch.Tensor) -> Prompts:
        """The prompts of some of the images, by their numbers."""
        return replace(self, rows=self.rows[images])

    def only(self, names: Collection[str]) -> Prompts | None:
        """The same with no other tensors than those of these names; None where none is left."""
        states = self.states.only(names)
        return replace(self, states=states) if states.tensors else None

    def take(self, images: torch.Tensor, generator: torch.Generator | None = None) -> Condition:
        """The condition of these images; with a generator the share `empty` of them has an empty prompt."""
        rows = self.rows[images]
        if generator is not None and self.empty > 0:
            rows = torch.where(torch.rand(len(rows), generator=generator) < self.empty, EMPTY, rows)
        return self.states.rows(rows)

    def none(self, count: int) -> Condition:
        """The empty prompt, for `count` samples."""
        return self.states.rows(torch.full((count,), EMPTY))


def condition_of(
    labels: torch.Tensor | None, prompts: Prompts | None, images: torch.Tensor, generator: torch.Generator | None = None
) -> Condition:
    """All that networks may be given beside some images, by their numbers; `generator` as in `Prompts.take`."""
    known = class_condition(None if labels is None else labels[images])
    told = prompts.take(images, generator).tensors if prompts else {}
    return Condition({**known.tensors, **told})


def save_prompts(folder: Path, prompts: Prompts, index: Mapping[str, object]) -> None:
    """Write the prompts and index.json, which gets their hash."""
    tensors = {name: tensor.contiguous() for name, tensor in prompts.states.tensors.items()}
    with atomic_path(folder / STATES) as aside:
        save_file(tensors | {ROWS: prompts.rows}, aside)
    write_checked_json(folder / "index.json", {**index, "sha256": sha256_file(folder / STATES)})


def load_prompts(folder: Path, data: str) -> Prompts | None:
    """The prompts of all images that `encode_prompts` left in a folder; None when there are none.

    Args:
        data: hash of the images.

    Raises:
        ValueError: a file is missing, not as it was written, or of other images.
    """
    index = read_checked_json(folder / "index.json", STAGE)
    if index["data"] != data:
        raise ValueError(f"{folder}/index.json: of other images; run {STAGE} again (snakemake --forcerun {STAGE})")
    if index["sha256"] is None:
        return None
    check_file(folder / STATES, index["sha256"], folder / "index.json", STAGE)
    tensors = load_file(folder / STATES)
    rows = tensors.pop(ROWS)
    return Prompts(Condition(tensors), rows, index["empty"], folder, index["sha256"], tuple(index["prompts"]))


def prompt_texts(prepared: PreparedData, template: str, names: Sequence[str] | None) -> list[str]:
    """The prompt of each image: its own text, or the template with a name of its class in place of {}.

    Raises:
        ValueError: there is neither, or there are not as many names as classes.
    """
    texts = prepared.meta.get("texts")
    classes = check_told(texts is not None, prepared.classes, names, template)
    if texts is not None or prepared.labels is None:
        return texts or []
    named = dict(zip(classes.values(), names or classes, strict=True))
    return [template.replace("{}", named[label]) for label in prepared.labels.tolist()]
