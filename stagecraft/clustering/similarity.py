"""How alike the optimal denoisers of two noise levels are, and how near each is to its two limits."""

from functools import partial

import numpy as np

from stagecraft.clustering.denoiser import OptimalDenoiser, Rows
from stagecraft.runtime.journal import Pieces, kept_array


def draw_pairs(y: Rows, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(x0, eps), each (draws, n) float32: training images drawn with replacement and standard normal noise."""
    x0 = y[rng.integers(len(y), size=draws)]
    return x0, rng.standard_normal(x0.shape, dtype=np.float32)


def optimal_means(
    denoiser: OptimalDenoiser,
    x0: np.ndarray,
    eps: np.ndarray,
    sigmas: np.ndarray,
    pieces: Pieces | None = None,
    label: str = "",
) -> np.ndarray:
    """m_t at every noise level from the same (x0, eps).

    Args:
        x0, eps: (D, n).
        sigmas: (T,).
        pieces: the m_t found by a run that was killed, and where to keep those of this one.
        label: names this call among the pieces.

    Returns:
        (T, D, n) float32.
    """

    def optimum(sigma: float) -> np.ndarray:
        return denoiser(x0 + np.float32(sigma) * eps, sigma)

    return np.stack(
        [kept_array(pieces, f"{label}level-{i:04}.npy", partial(optimum, sigma)) for i, sigma in enumerate(sigmas)]
    )


def similarity_matrix(m: np.ndarray, x0: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Pairwise similarity of m_t over noise levels.

    similarity(a, b) = 1 - E||m_a - m_b||^2 / E||x0 - ybar||^2, clipped to [0, 1]: 1 for equal denoisers, 0 between the
    two limits, m = x0 (no noise) and m = ybar (all noise). Of images that are all the same so are the denoisers.

    Args:
        m: (T, D, n), of `optimal_means`.
        x0: (D, n).
        mean: ybar, (n,).

    Returns:
        (T, T) float64, symmetric, ones on the diagonal.
    """
    spread = float(np.square(x0.astype(np.float64) - mean).sum())
    if spread == 0:
        return np.ones((len(m), len(m)))
    flat = m.reshape(len(m), -1).astype(np.float64)
    squares = np.einsum("ij,ij->i", flat, flat)
    distance = squares[:, None] + squares[None] - 2 * (flat @ flat.T)
    distance /= spread
    np.fill_diagonal(distance, 0)
    return 1 - distance.clip(0, 1)


def limit_shares(
    m: np.ndarray,
    x0: np.ndarray,
    mean: np.ndarray,
    sigmas: np.ndarray,
    eta: float,
    last_sigma: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """S0 and S1 of arXiv 2312.09181: the shares of coordinates in which m_t is near x0, and near the data mean.

    S0 counts |x0 - m_t| <= eta sigma_t. S1 counts |ybar - m_t| <= eta sigma_t, which is what the authors ran; given `last_sigma`
    it counts what their eq. 7 says, |(x0 - m_t) / sigma_t - (x0 - ybar) / sigma_1| <= eta.

    Args:
        m, x0: (D, n).
        sigmas: (D,), or one for all.
        last_sigma: sigma at the largest t.

    Returns:
        (S0, S1), each (D,) in [0, 1].
    """
    sigma = np.broadcast_to(np.asarray(sigmas, dtype=np.float64), len(m))[:, None]
    toward_x0 = np.abs(x0 - m) <= eta * sigma
    if last_sigma is None:
        toward_mean = np.abs(mean - m) <= eta * sigma
    else:
        toward_mean = np.abs((x0 - m) / sigma - (x0 - mean) / last_sigma) <= eta
    return toward_x0.mean(axis=1), toward_mean.mean(axis=1)
