"""Text encoders: those of a diffusers folder, of one or two parts, or a small one made here, and what they make of prompts."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, models, pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel

from stagecraft.data.condition import POOLED, PROMPT, SIZES, Condition
from stagecraft.networks.text_parts import FIRST, HEAD_WIDTH, REMEDY, SECOND, TOKENS, has_second
from stagecraft.runtime.progress import Progress

KINDS = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}
BATCH = 64
LAYERS = 2
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
# Words as CLIP's tokenizer has them: letters, single digits, other characters.
WORDS = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
SPLIT = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(WORDS, "removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)


def copy_parts(source: Path, folder: Path) -> None:
    """Copy tokenizers and encoders of one folder into another."""
    for part in (*FIRST, *(SECOND if has_second(source) else ())):
        shutil.copytree(source / part, folder / part)


def make_encoder(folder: Path, prompts: Sequence[str], width: int, seed: int) -> None:
    """Write a CLIP text encoder with random weights, and a tokenizer that has a token for each word of the prompts."""
    split = [SPLIT.pre_tokenize_str(prompt.lower()) for prompt in prompts]
    words = sorted({word for parts in split for word, _ in parts})
    model = word_model(words)
    (folder / "tokenizer").mkdir(parents=True)
    model.save(str(folder / "tokenizer"))
    length = min(TOKENS, 2 + max(map(len, split)))
    said = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
    start, end = (model.token_to_id(token) for token in (START, END))
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=length,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder", safe_serialization=True)


def word_model(words: Sequence[str]) -> models.BPE:
    """A byte-pair encoding with a token for each of some words, which are given in its alphabet; the same for the same words."""
    merges: dict[tuple[str, str], None] = {}
    while True:
        model = models.BPE(vocabulary(merges), list(merges), end_of_word_suffix=WORD_END, unk_token=END)
        split = [[token.value for token in model.tokenize(word)] for word in words]
        if all(len(tokens) == 1 for tokens in split):
            return model
        # Merges of one word may come before those of another that needs others.
        for first, *others in split:
            for token in others:
                merges.setdefault((first, token))
                first += token


def vocabulary(merges: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The tokens of a byte-pair encoding with these merges, numbered."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [START, END, *letters, *(letter + WORD_END for letter in letters), *map("".join, merges)]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


class TextEncoder:
    """The text encoder of a folder, as diffusers' Stable Diffusion pipelines use it: one, or the two of an SDXL.

    Args:
        side: of the images that the prompts are for, in pixels.

    Raises:
        ValueError: a part cannot be loaded.
    """

    def __init__(self, folder: Path, device: torch.device, side: int) -> None:
        self.side = side
        self.device = device
        self.two = has_second(folder)
        parts = [FIRST, SECOND] if self.two else [FIRST]
        self.tokenizers = [load(CLIPTokenizer, folder / tokenizer) for tokenizer, _ in parts]
        self.models = [load(kind_of(folder / model), folder / model).to(device).eval() for _, model in parts]

    @property
    def tokens(self) -> int:
        """How many hidden states it makes of any prompt."""
        return int(self.tokenizers[0].model_max_length)

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """Those of the prompts that are longer than it takes."""
        lengths = self.tokenizers[0](list(prompts)).input_ids
        return [prompt for prompt, ids in zip(prompts, lengths, strict=True) if len(ids) > self.tokens]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """A row for each prompt: `prompt` (N, tokens, D) and, of an SDXL, `pooled` (N, P) and `sizes` (N, 6)."""
        progress = Progress("encoding prompts", len(prompts))
        parts = []
        for start in range(0, len(prompts), BATCH):
            parts.append(self._encode(list(prompts[start : start + BATCH])))
            progress.update(min(start + BATCH, len(prompts)))
        return Condition({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def _encode(self, prompts: list[str]) -> dict[str, torch.Tensor]:
        outputs = [self._run(*pair, prompts) for pair in zip(self.tokenizers, self.models, strict=True)]
        if not self.two:
            return {PROMPT: outputs[0][0].float().cpu()}
        # As SDXL's pipeline: the last hidden states but one of both, the projection of the second, zeros for an empty prompt.
        said = torch.tensor([float(prompt != "") for prompt in prompts], device=self.device)
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1) * said[:, None, None]
        sizes = torch.tensor([self.side, self.side, 0, 0, self.side, self.side], dtype=torch.float32)
        pooled = outputs[1][0] * said[:, None]
        return {PROMPT: states.float().cpu(), POOLED: pooled.float().cpu(), SIZES: sizes.repeat(len(prompts), 1)}

    def _run(self, tokenizer: Any, model: Any, prompts: list[str]) -> Any:
        length = tokenizer.model_max_length
        tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return model(tokens.input_ids.to(self.device), output_hidden_states=self.two)


def kind_of(folder: Path) -> Any:
    """The class of an encoder, by its config."""
    return KINDS[json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]]


def load(kind: Any, folder: Path, remedy: str = REMEDY) -> Any:
    """A tokenizer or model of a folder, from the disk alone; ValueError when it cannot be loaded."""
    how = {"use_safetensors": True} if issubclass(kind, PreTrainedModel) else {}
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **how)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder}: cannot be loaded as {kind.__name__} ({text}); {remedy}") from error
