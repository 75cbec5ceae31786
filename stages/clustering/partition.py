"""From similarities to stages: boundaries are the first timestep of each later stage."""

import numpy as np


def uniform_boundaries(timesteps: int, stages: int) -> list[int]:
    """Stages of equal length in t."""
    return [round(timesteps * k / stages) for k in range(1, stages)]


def threshold_boundaries(t: np.ndarray, s0: np.ndarray, s1: np.ndarray, alpha: float) -> list[int]:
    """The two boundaries of arXiv 2312.09181, section 4.2, from draws at timesteps t ~ U.

    t1 = max{tau: mean over t <= tau of S0 >= alpha}, t2 = min{tau: mean over t >= tau of S1 >= alpha}.

    Raises:
        ValueError: no such tau, or t1 >= t2, so that there are no three stages.
    """
    order = np.argsort(t, kind="stable")
    t, s0, s1 = t[order], s0[order], s1[order]
    counts = np.arange(1, len(t) + 1)
    low = np.flatnonzero(np.cumsum(s0) / counts >= alpha)
    high = np.flatnonzero((np.cumsum(s1[::-1]) / counts)[::-1] >= alpha)
    if not len(low) or not len(high):
        raise ValueError(
            f"cluster_timesteps.alpha {alpha}: no timestep is that similar to a limit; lower alpha or raise eta"
        )
    t1, t2 = int(t[low[-1]]) + 1, int(t[high[0]])
    if t1 >= t2:
        raise ValueError(
            f"cluster_timesteps.alpha {alpha}: boundaries {t1} and {t2} leave no middle stage; raise alpha or lower eta"
        )
    return [t1, t2]


def agglomerative_labels(similarity: np.ndarray, stages: int) -> np.ndarray:
    """Contiguous clusters of noise levels by average linkage on 1 - similarity; (T,) of 0 .. K-1 in the order of t.

    scikit-learn's chain connectivity is not used: with it, average linkage sees the distances between neighbours only, and the
    boundaries crowd where the similarity falls fastest. Similarity falls monotonically along t, so clusters come out
    contiguous without it; that they are is checked.

    Raises:
        ValueError: the clusters are not contiguous, which too few draws can cause.
    """
    from sklearn.cluster import AgglomerativeClustering

    if stages == 1:
        return np.zeros(len(similarity), dtype=int)
    clustering = AgglomerativeClustering(n_clusters=stages, metric="precomputed", linkage="average")
    labels = clustering.fit_predict(1 - similarity)
    ordered = np.cumsum(np.concatenate([[False], labels[1:] != labels[:-1]]))
    if ordered[-1] != stages - 1:
        raise ValueError("cluster_timesteps: stages are not contiguous in t; raise cluster_timesteps.draws")
    return ordered


def boundaries_of(labels: np.ndarray, grid: np.ndarray) -> list[int]:
    """Boundaries half way between the last grid point of a stage and the first of the next."""
    last = np.flatnonzero(labels[1:] != labels[:-1])
    return [int((grid[i] + grid[i + 1] + 1) // 2) for i in last]


def silhouettes(similarity: np.ndarray, largest: int = 8) -> dict[int, float]:
    """Silhouette (Rousseeuw 1987) of the agglomerative clustering for K = 2 .. `largest`."""
    from sklearn.metrics import silhouette_score

    counts = range(2, min(largest, len(similarity) - 1) + 1)
    distance = 1 - similarity
    return {
        k: float(silhouette_score(distance, agglomerative_labels(similarity, k), metric="precomputed")) for k in counts
    }
