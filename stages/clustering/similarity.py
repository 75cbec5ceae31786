"""How alike the optimal denoisers of two noise levels are, and how near each is to its two limits."""

from functools import partial

import numpy as np

from stages.clustering.denoiser import OptimalDenoiser
from stages.pieces import Pieces, kept_array


def draw_pairs(y: np.ndarray, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(x0, eps), each (draws, n) float32: training images drawn with replacement and standard normal noise."""
    x0 = y[rng.integers(len(y), size=draws)]
    return x0, rng.standard_normal(x0.shape, dtype=np.float32)


def similarity_matrix(
    denoiser: OptimalDenoiser, x0: np.ndarray, eps: np.ndarray, sigmas: np.ndarray, pieces: Pieces | None = None
) -> np.ndarray:
    """Pairwise similarity of m_t over noise levels, from the same (x0, eps) at each.

    similarity(a, b) = 1 - E||m_a - m_b||^2 / E||x0 - ybar||^2, clipped to [0, 1]: 1 for equal denoisers, 0 between the
    two limits, m = x0 (no noise) and m = ybar (all noise).

    Args:
        x0, eps: (D, n).
        sigmas: (T,).
        pieces: the m_t found by a run that was killed, and where to keep those of this one.

    Returns:
        (T, T) float64, symmetric, ones on the diagonal.
    """

    def optimum(sigma: float) -> np.ndarray:
        return denoiser(x0 + np.float32(sigma) * eps, sigma).ravel()

    levels = [kept_array(pieces, f"level-{i:04}.npy", partial(optimum, sigma)) for i, sigma in enumerate(sigmas)]
    m = np.stack(levels).astype(np.float64)
    squares = np.einsum("ij,ij->i", m, m)
    distance = squares[:, None] + squares[None] - 2 * (m @ m.T)
    distance /= max(float(np.square(x0.astype(np.float64) - denoiser.mean).sum()), np.finfo(float).tiny)
    np.fill_diagonal(distance, 0)
    return 1 - distance.clip(0, 1)


def limit_shares(
    denoiser: OptimalDenoiser, x0: np.ndarray, eps: np.ndarray, sigmas: np.ndarray, eta: float
) -> tuple[np.ndarray, np.ndarray]:
    """S0 and S1 of arXiv 2312.09181 at one noise level per draw.

    S0 is the share of coordinates with |x0 - m_t| <= eta sigma_t, S1 that with |ybar - m_t| <= eta sigma_t
    (what the authors ran; their printed eq. 7 differs).

    Returns:
        (S0, S1), each (D,) in [0, 1].
    """
    m = denoiser(x0 + sigmas[:, None].astype(np.float32) * eps, sigmas)
    margin = (eta * sigmas)[:, None]
    return (np.abs(x0 - m) <= margin).mean(axis=1), (np.abs(denoiser.mean - m) <= margin).mean(axis=1)
