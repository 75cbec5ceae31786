"""The prompts of a data set, encoded once."""

from collections.abc import Mapping
from pathlib import Path

import torch

from stagecraft.config.sections import GivenEncoder, RandomEncoder
from stagecraft.data.prepared import PreparedData
from stagecraft.data.prompts import Prompts, prompt_texts, save_prompts
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
