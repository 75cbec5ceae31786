"""The teacher's predictions, computed by the first run that needs them: those of one seed see the same batches."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagecraft.diffusion.batches import Batch
from stagecraft.runtime.files import atomic_path
from stagecraft.training.joint import JointLoss


class RememberedJointLoss(JointLoss):
    """A JointLoss that keeps the teacher's predictions, under the hash of what the teacher was given.

    Args:
        folder: where they are kept, 64 KiB for a batch of 64 grey images of 16 x 16. The folder is that of one teacher.
    """

    def __init__(self, *arguments: Any, folder: Path) -> None:
        super().__init__(*arguments)
        self.folder = folder

    def teach(self, batch: Batch, share: float) -> dict[str, torch.Tensor]:
        """As JointLoss does; where the prediction is all that is needed, from the folder."""
        if share < 1 or not self.settings.output_weight:
            return super().teach(batch, share)
        path = self.folder / f"{self.key(batch)}.npy"
        if not path.is_file():
            prediction = super().teach(batch, share)["output"]
            with atomic_path(path) as aside, open(aside, "wb") as file:
                np.save(file, prediction.cpu().numpy())
        return {"output": torch.from_numpy(np.load(path, allow_pickle=False)).to(batch.x_t.device)}

    @staticmethod
    def key(batch: Batch) -> str:
        """A name that other inputs of the teacher do not get."""
        given = [batch.x_t, batch.t, *batch.condition.tensors.values()]
        return hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in given)).hexdigest()[:32]
