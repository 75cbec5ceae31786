"""The split into images to train on and images held out. Light: loads NumPy when it draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from stagecraft.data.images import Contents

MIN_IMAGES = 10


def count_held_out(contents: Contents, held_out: float) -> int:
    """How many images are held out; ValueError for fewer than 10 images, an impossible share or an empty split."""
    if contents.held_out is None:
        return count_share(contents.count, held_out)
    check_count(contents.count)
    if not 0 < len(contents.held_out) < contents.count:
        raise ValueError("prepare_data.path: one of the splits holds no images; put some there or remove it")
    return len(contents.held_out)


def count_share(n: int, held_out: float) -> int:
    """round(n * held_out), but at least one and not all."""
    check_count(n)
    if not 0 < held_out < 1:
        raise ValueError(f"prepare_data.held_out: {held_out} is no share of the images; use one above 0 and below 1")
    return min(max(round(n * held_out), 1), n - 1)


def check_count(n: int) -> None:
    """Raise ValueError for too few images to split."""
    if n < MIN_IMAGES:
        raise ValueError(f"prepare_data.path: only {n} images, too few to split; give at least {MIN_IMAGES}")


def divide(contents: Contents, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The split that the source has itself, or else one that is drawn, as `split` returns it."""
    import numpy as np

    if contents.held_out is None:
        labels = None if contents.labels is None else np.asarray(contents.labels, np.int64)
        return split(contents.count, held_out, seed, labels)
    count_held_out(contents, held_out)
    rows = np.arange(contents.count, dtype=np.int64)
    own = np.isin(rows, contents.held_out)
    return rows[~own], rows[own]


def split(n: int, held_out: float, seed: int, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Draw round(n * held_out) of n images to hold out, at least one and not all.

    With `labels` (int64, (n,)) each class gives its share, the odd images going to the largest remainders.
    Returns (train, held out) indices, int64, ascending. ValueError for fewer than 10 images or an impossible share.
    """
    import numpy as np

    total = count_share(n, held_out)
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
    import numpy as np

    products = np.array(sizes, np.int64) * total
    shares = products // sum(sizes)
    remainders = products % sum(sizes)
    missing = total - int(shares.sum())
    shares[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return [int(share) for share in shares]
