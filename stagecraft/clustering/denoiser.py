"""The optimal denoiser of a finite training set, in closed form (arXiv 2312.09181, eq. 5; Karras et al. 2022, eq. 57)."""

import numpy as np
import torch
import torch.nn.functional as F

# Weights below this change nothing in float32; as denormal numbers they would make the second product several times slower.
NEGLIGIBLE = 1e-30
BATCH = 256  # draws handled at once
MOST_WEIGHTS = 2**27  # of all draws handled at once


class OptimalDenoiser:
    """m_t(x) = sum_i softmax_i(-||x - alpha_t y_i||^2 / (2 sigma_t^2)) y_i over the training set {y_i}.

    With z = x / alpha_t = x0 + level_t eps the exponent is (z.y_i - ||y_i||^2 / 2) / level_t^2 up to a constant, one matrix
    product for a batch of draws. The products run in float32 on centred data, the exponent in float64 with its maximum
    subtracted; at most `batch` x N numbers are held.

    Args:
        y: training images, (N, n), float32.
        batch: draws handled at once, fewer where N is beyond half a million.
        device: where to compute.
    """

    def __init__(self, y: np.ndarray, batch: int = BATCH, device: torch.device | str = "cpu") -> None:
        self.mean = y.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.batch = max(1, min(batch, MOST_WEIGHTS // len(y)))
        self.device = device
        self.y = torch.from_numpy(y - self.mean).to(device)
        self.half_norms = 0.5 * torch.linalg.vector_norm(self.y, dim=1, dtype=torch.float64).square().float()

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
        logits = torch.addmm(self.half_norms, z, self.y.T, beta=-1) * precision[:, None]
        return F.threshold(logits.softmax(dim=1).float(), NEGLIGIBLE, 0.0, inplace=True) @ self.y
