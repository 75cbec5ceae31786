"""The split into images to train on and images held out."""

from __future__ import annotations

import numpy as np

MIN_IMAGES = 10


def split(n: int, held_out: float, seed: int, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Draw round(n * held_out) of n images to hold out, at least one and not all.

    With `labels` (int64, (n,)) each class gives its share, the odd images going to the largest remainders.
    Returns (train, held out) indices, int64, ascending. ValueError for fewer than 10 images or an impossible share.
    """
    if n < MIN_IMAGES:
        raise ValueError(f"prepare_data.path: only {n} images, too few to split; give at least {MIN_IMAGES}")
    if not 0 < held_out < 1:
        raise ValueError(f"prepare_data.held_out: {held_out} is no share of the images; use one above 0 and below 1")
    total = min(max(round(n * held_out), 1), n - 1)
    order = np.random.default_rng(seed).permutation(n)
    if labels is None:
        chosen = order[:total]
    else:
        by_class = [order[labels[order] == label] for label in np.unique(labels)]
        shares = shares_per_class([len(members) for members in by_class], total)
        chosen = np.concatenate([members[:share] for members, share in zip(by_class, shares, strict=True)])
    kept = np.ones(n, bool)
    kept[chosen] = False
    return np.flatnonzero(kept).astype(np.int64), np.flatnonzero(~kept).astype(np.int64)


def shares_per_class(sizes: list[int], total: int) -> list[int]:
    """Share out `total` in proportion to `sizes` by largest remainders; ties go to the earlier class."""
    products = np.array(sizes, np.int64) * total
    shares, remainders = products // sum(sizes), products % sum(sizes)
    missing = total - int(shares.sum())
    shares[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return [int(share) for share in shares]
