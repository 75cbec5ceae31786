"""Prompts of the images as hidden states of the text encoder: python -m stages.encode_prompts --params JSON --threads N ..."""

from pathlib import Path

import torch

from stagecraft.config.stages import EncodePrompts
from stagecraft.data.prepared import PreparedData
from stagecraft.data.prompts import Prompts, prompt_texts, save_prompts
from stagecraft.networks.text_encoder import TextEncoder, copy_parts, make_encoder
from stagecraft.runtime.command import run_command
from stagecraft.runtime.device import pick_device
from stagecraft.runtime.files import atomic_folder


def encode_prompts(params: EncodePrompts, *, threads: int, data: Path, output: Path) -> None:
    """Write the text encoder, what it makes of each prompt, and index.json; the index alone where there are no prompts."""
    settings = params.encode_prompts
    prepared = PreparedData.load(data)
    index = {"source": settings.source, "data": prepared.meta["sha256"], "params": params.as_given()}
    with atomic_folder(output) as aside:
        if settings.source == "none":
            save_prompts(aside, None, index)
            return
        texts = prompt_texts(prepared, settings.template, settings.names)
        known = ["", *sorted({*texts} - {""})]
        if settings.source == "random":
            make_encoder(aside, known, settings.width, params.seed)
        else:
            copy_parts(Path(settings.path), aside)
        encoder = TextEncoder(aside, pick_device(params.device, threads))
        if cut := encoder.cut(known):
            print(f"encode_prompts: {len(cut)} prompts are longer than {encoder.tokens} tokens and were cut, as {cut[0]!r}")
        numbers = {text: number for number, text in enumerate(known)}
        rows = torch.tensor([numbers[text] for text in texts])
        save_prompts(aside, Prompts(encoder.encode(known), rows), {**index, "empty": settings.empty, "prompts": known})


if __name__ == "__main__":
    run_command(encode_prompts)
