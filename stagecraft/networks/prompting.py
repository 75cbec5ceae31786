"""The prompts of a data set, encoded once."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from stagecraft.config.sections import ClassEncoder, GivenEncoder, RandomEncoder
from stagecraft.data.condition import PROMPT, Condition
from stagecraft.data.prepared import PreparedData
from stagecraft.data.prompts import Prompts, prompt_texts, save_prompts
from stagecraft.networks.class_embedding import ClassEmbedding
from stagecraft.networks.class_parts import FOLDER, check_classes, read_sizes
from stagecraft.networks.text_encoder import TextEncoder, copy_parts, make_encoder


def write_prompts(
    folder: Path,
    data: PreparedData,
    settings: RandomEncoder | GivenEncoder,
    seed: int,
    device: torch.device,
    index: Mapping[str, object],
) -> None:
    """Write a text encoder, what it makes of each prompt of the images, and index.json, into an empty folder.

    Args:
        settings: the `encode_prompts` section of the params.
        index: what index.json says beside the prompts and their hash.
    """
    texts = prompt_texts(data, settings.template, settings.names)
    known = ["", *sorted({*texts} - {""})]
    if isinstance(settings, RandomEncoder):
        make_encoder(folder, known, settings.width, seed)
    else:
        copy_parts(Path(settings.path), folder)
    encoder = TextEncoder(folder, device, data.resolution)
    if cut := encoder.cut(known):
        print(f"encode_prompts: {len(cut)} prompts are longer than {encoder.tokens} tokens and were cut, as {cut[0]!r}")
    numbers = {text: number for number, text in enumerate(known)}
    prompts = Prompts(encoder.encode(known), torch.tensor([numbers[text] for text in texts]))
    save_prompts(folder, prompts, {**index, "empty": settings.empty, "prompts": known})


def write_classes(folder: Path, data: PreparedData, settings: ClassEncoder, index: Mapping[str, object]) -> None:
    """Write a class embedding, its hidden state of each class, and index.json, into an empty folder.

    Raises:
        ValueError: the embedding is not one of the images' classes, or not finite.
    """
    check_classes(settings, data.classes)
    embedding = load_class_embedding(Path(settings.path), settings.last_is_empty)
    embedding.save_pretrained(folder / FOLDER, safe_serialization=True)
    with torch.no_grad():
        classes = torch.arange(embedding.classes)
        states = torch.cat([embedding.empty(classes[:1]), embedding(classes)])
    # Row 0 is that of no class.
    rows = torch.as_tensor(data.labels, dtype=torch.int64) + 1
    save_prompts(folder, Prompts(Condition({PROMPT: states}), rows), {**index, "empty": settings.empty, "prompts": []})


def load_class_embedding(path: Path, last_is_empty: bool) -> ClassEmbedding:
    """The class embedding of a file, in single precision; ValueError when it holds another tensor, or is not finite."""
    rows, width = read_sizes(path)
    (weight,) = load_file(path).values()
    if not weight.isfinite().all():
        raise ValueError(f"{path}: holds values that are not finite; give another class embedding")
    embedding = ClassEmbedding(rows, width, last_is_empty)
    embedding.load_state_dict({"embedding.weight": weight})
    return embedding.eval()
