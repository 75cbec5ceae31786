"""A CLIP model of a folder, which tells how well an image and a text go together."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from stagecraft.networks.text_encoder import load
from stagecraft.networks.text_parts import CLIP_REMEDY

BATCH = 64


class ClipModel:
    """A CLIPModel with its tokenizer and image processor; ValueError when they cannot be loaded, or do not work together."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        self.model = load(CLIPModel, folder, CLIP_REMEDY).to(device).eval()
        self.tokenizer = load(CLIPTokenizer, folder, CLIP_REMEDY)
        self.processor = load(CLIPImageProcessor, folder, CLIP_REMEDY)
        if len(self.tokenizer) > self.model.config.text_config.vocab_size:
            raise ValueError(f"{folder}: its tokenizer knows more words than its model; {CLIP_REMEDY}")
        try:
            self.score(np.zeros((1, 8, 8, 3), np.uint8), ["a test"])
        except Exception as error:
            raise ValueError(
                f"{folder}: cannot score an image ({' '.join(str(error).split())[:200]}); {CLIP_REMEDY}"
            ) from error

    def score(self, images: np.ndarray, texts: Sequence[str]) -> float:
        """The mean of max(100 cos, 0) over images uint8 (N, H, W, 1 or 3) and their texts, N of them; those too long are cut."""
        parts = [
            self._score(images[start : start + BATCH], texts[start : start + BATCH])
            for start in range(0, len(images), BATCH)
        ]
        return float(torch.cat(parts).mean())

    @torch.no_grad()
    def _score(self, images: np.ndarray, texts: Sequence[str]) -> torch.Tensor:
        coloured = [*np.broadcast_to(images, (*images.shape[:3], 3)).copy()]
        pixels = self.processor(coloured, return_tensors="pt", input_data_format="channels_last").pixel_values
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        output = self.model(
            input_ids=tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device),
            pixel_values=pixels.to(self.device),
        )
        return 100 * F.cosine_similarity(output.image_embeds, output.text_embeds).clamp(min=0).float().cpu()
