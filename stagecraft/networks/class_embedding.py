"""The embedding of classes that a UNet2DConditionModel attends to, as a latent diffusion model on ImageNet has it.

Self-contained (torch and diffusers only): this file travels with the weights, so that
`DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` needs nothing else.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config


class ClassEmbedding(ModelMixin, ConfigMixin):
    """One hidden state for each class (as LDM-4 on ImageNet has it, Rombach et al. 2022).

    Args:
        rows: of the embedding.
        width: of a hidden state.
        last_is_empty: whether the last row stands for no class, which classifier-free guidance needs.
    """

    # As imported; diffusers overwrites its copy with the next one's.
    code: ClassVar[bytes] = Path(__file__).read_bytes()

    @register_to_config
    def __init__(self, rows: int, width: int, last_is_empty: bool) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(rows, width)
        # What diffusers writes into model_index.json, of the instance: that of the class is where it was imported from.
        self.__module__ = Path(__file__).stem

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write this file and config.json; `save_pretrained` calls it."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.__module__}.py").write_bytes(self.code)
        super().save_config(save_directory, push_to_hub, **kwargs)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.config.rows) - bool(self.config.last_is_empty)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """The hidden states (N, 1, width) of classes int64 (N,).

        Raises:
            ValueError: there is no such class.
        """
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise ValueError(f"class_labels: {labels.tolist()}, but classes are 0 to {self.classes - 1}")
        return self.embedding(labels)[:, None]

    def empty(self, labels: torch.Tensor) -> torch.Tensor:
        """The hidden states (N, 1, width) of no class, for as many samples; zeros where no row stands for it."""
        states = self.embedding(torch.full_like(labels, self.config.rows - 1))[:, None]
        return states if self.config.last_is_empty else torch.zeros_like(states)
