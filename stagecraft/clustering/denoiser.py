"""The optimal denoiser of a finite training set, in closed form (arXiv 2312.09181, eq. 5; Karras et al. 2022, eq. 57)."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

# Weights below this change nothing in float32; as denormal numbers they would make the second product several times slower.
NEGLIGIBLE = 1e-30
BATCH = 256  # draws handled at once
MOST_WEIGHTS = 2**27  # of all draws handled at once
MOST_CENTRED = 2**29  # numbers of centred training images held in float32; of a larger set some rows at a time


class Rows(Protocol):
    """Training images (N, n) of which rows are taken as float32: an array, or a view of something smaller."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, n)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Rows by their numbers or a slice, (m, n)."""


class OptimalDenoiser:
    """m_t(x) = sum_i softmax_i(-||x - alpha_t y_i||^2 / (2 sigma_t^2)) y_i over the training set {y_i}.

    With z = x / alpha_t = x0 + level_t eps the exponent is (z.y_i - ||y_i||^2 / 2) / level_t^2 up to a constant, one matrix
    product for a batch of draws. The products run in float32 on centred data, the exponent in float64 with its maximum
    subtracted; at most `batch` x N numbers are held.

    Args:
        y: training images, (N, n).
        batch: draws handled at once, fewer where N is beyond half a million.
        device: where to compute.
    """

    def __init__(self, y: Rows, batch: int = BATCH, device: torch.device | str = "cpu") -> None:
        self.y = y
        self.batch = max(1, min(batch, MOST_WEIGHTS // len(y)))
        self.device = device
        step = max(1, MOST_CENTRED // y.shape[1])
        self.parts = [slice(start, start + step) for start in range(0, len(y), step)]
        total = np.sum([y[part].sum(axis=0, dtype=np.float64) for part in self.parts], axis=0)
        self.mean = (total / len(y)).astype(np.float32)
        self.held = self._centred(self.parts[0]) if len(self.parts) == 1 else None
        norms = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in self._all_centred()]
        self.half_norms = 0.5 * torch.cat(norms).square().float()

    def _centred(self, rows: slice) -> torch.Tensor:
        """The images of these rows less the mean, on the device."""
        return torch.from_numpy(self.y[rows] - self.mean).to(self.device)

    def _all_centred(self) -> Iterator[torch.Tensor]:
        """The images of all rows less the mean, part by part."""
        if self.held is not None:
            yield self.held
        else:
            yield from map(self._centred, self.parts)

    def __call__(self, z: np.ndarray, sigma: np.ndarray | float) -> np.ndarray:
        """m_t at z = x_t / alpha_t.

        Args:
            z: (M, n) float32.
            sigma: noise levels, (M,) or one for all; at infinity, where z says nothing, m_t is the mean.

        Returns:
            (M, n) float32.
        """
        sigma = np.broadcast_to(np.asarray(sigma, dtype=np.float64), len(z))
        if np.isinf(sigma).any():
            z = np.where(np.isinf(sigma)[:, None], self.mean, z)
        out = np.empty_like(z)
        for rows in (slice(start, start + self.batch) for start in range(0, len(z), self.batch)):
            precision = torch.from_numpy(sigma[rows] ** -2.0).to(self.device)
            means = self._batch(torch.from_numpy(z[rows] - self.mean).to(self.device), precision)
            out[rows] = means.cpu().numpy()
        return out + self.mean

    def _batch(self, z: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
        """Few passes over the B x N numbers between the two products, so that these take most of the time."""
        norms = self.half_norms.split([len(range(*part.indices(len(self.y)))) for part in self.parts])
        products = [torch.addmm(n, z, y.T, beta=-1) for n, y in zip(norms, self._all_centred(), strict=True)]
        logits = torch.cat(products, dim=1) * precision[:, None]
        weights = F.threshold(logits.softmax(dim=1).float(), NEGLIGIBLE, 0.0, inplace=True)
        means = torch.zeros_like(z)
        for part, y in zip(self.parts, self._all_centred(), strict=True):
            means += weights[:, part] @ y
        return means
