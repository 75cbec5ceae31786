"""The optimal denoiser of a finite training set, in closed form (arXiv 2312.09181, eq. 5; Karras et al. 2022, eq. 57)."""

import numpy as np


class OptimalDenoiser:
    """m_t(x) = sum_i softmax_i(-||x - s_t y_i||^2 / (2 s_t^2 sigma_t^2)) y_i over the training set {y_i}.

    With z = x / s_t = x0 + sigma_t eps the exponent is (z.y_i - ||y_i||^2 / 2) / sigma_t^2 up to a constant, one matrix
    product for a batch of draws. The product runs in float32 on centred data, the exponent in float64 with its maximum
    subtracted; at most `batch` x N numbers are held.

    Args:
        y: training images, (N, n), float32.
        batch: draws handled at once.
    """

    def __init__(self, y: np.ndarray, batch: int = 256) -> None:
        self.mean = y.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.y = y - self.mean
        self.half_norms = 0.5 * np.einsum("ij,ij->i", self.y, self.y, dtype=np.float64)
        self.batch = batch

    def __call__(self, z: np.ndarray, sigma: np.ndarray | float) -> np.ndarray:
        """m_t at z = x_t / s_t.

        Args:
            z: (M, n) float32.
            sigma: noise levels, (M,) or one for all.

        Returns:
            (M, n) float32.
        """
        sigma = np.broadcast_to(np.asarray(sigma, dtype=np.float64), len(z))
        out = np.empty_like(z)
        for rows in (slice(start, start + self.batch) for start in range(0, len(z), self.batch)):
            out[rows] = self._batch(z[rows] - self.mean, sigma[rows])
        return out + self.mean

    def _batch(self, z: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        logits = (z @ self.y.T).astype(np.float64)
        logits -= self.half_norms
        logits /= (sigma**2)[:, None]
        logits -= logits.max(axis=1, keepdims=True)
        weights = np.exp(logits).astype(np.float32)
        weights /= weights.sum(axis=1, keepdims=True)
        return weights @ self.y
