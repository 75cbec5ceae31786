"""The published timestep boundaries on a real image set, over seeds, with time and memory.

python benchmarks/clustering.py --images cifar10-train.npy --seeds 5 --output benchmarks/results/clustering.json

`--images` is uint8 (N, H, W, C): the 50,000 training images of CIFAR-10 for the figures of arXiv 2312.09181, which are
t1 = 0.442 and t2 = 0.631. Setting: pixels in [0, 1], the continuous VP-SDE (Song et al. 2021, beta from 0.1 to 20), eta = 2/255,
alpha = 0.9, 3,000 draws (x0, eps, t). Each seed is timed against the bare matrix products and exponentials of the same size, in
turn.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from stagecraft.clustering.denoiser import OptimalDenoiser
from stagecraft.clustering.partition import threshold_boundaries
from stagecraft.clustering.similarity import draw_pairs, limit_shares

BETA_MIN, BETA_MAX = 0.1, 20.0
ETA, ALPHA = 2 / 255, 0.9
PUBLISHED = (0.442, 0.631)


def sigma_of(t: np.ndarray) -> np.ndarray:
    """sigma_t of the continuous VP-SDE: ln abar = -t^2 (beta_max - beta_min) / 2 - t beta_min."""
    log_abar = -0.5 * t**2 * (BETA_MAX - BETA_MIN) - t * BETA_MIN
    return np.sqrt(np.expm1(-log_abar))


def boundaries(denoiser: OptimalDenoiser, y: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
    """t1 and t2 of one seed, as run and with S1 as printed, and the seconds that the optimal denoiser took."""
    rng = np.random.default_rng(seed)
    x0, eps = draw_pairs(y, draws, rng)
    t = rng.random(draws)
    sigma = sigma_of(t)
    z = x0 + sigma[:, None].astype(np.float32) * eps
    begun = time.perf_counter()
    m = denoiser(z, sigma)
    seconds = time.perf_counter() - begun
    found = {"seed": seed, "seconds": seconds, "bare_seconds": bare(denoiser, torch.from_numpy(z))}
    for name, last in (("run", None), ("literal", float(sigma_of(np.ones(1))[0]))):
        shares = limit_shares(m, x0, denoiser.mean, sigma, ETA, last)
        try:
            found[name] = threshold_boundaries(t, *shares, ALPHA)
        except ValueError as error:
            found[name] = str(error)
    return found


def bare(denoiser: OptimalDenoiser, z: torch.Tensor) -> float:
    """Seconds of the two float32 matrix products and the float64 exponentials alone."""
    total = 0.0
    for rows in z.split(denoiser.batch):
        logits = torch.zeros((len(rows), len(denoiser.y)), dtype=torch.float64)
        weights = torch.full((len(rows), len(denoiser.y)), 1e-5)
        begun = time.perf_counter()
        rows @ denoiser.y.T
        logits.exp()
        weights @ denoiser.y
        total += time.perf_counter() - begun
    return total


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation and range."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "std": deviation, "least": min(values), "most": max(values)}


def main() -> None:
    """Run all seeds and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    images = np.load(arguments.images, mmap_mode="r", allow_pickle=False)
    y = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
    denoiser = OptimalDenoiser(y)
    runs = [boundaries(denoiser, y, arguments.draws, seed) for seed in range(arguments.seeds)]
    summary: dict[str, Any] = {
        "images": list(images.shape),
        "draws": arguments.draws,
        "published": PUBLISHED,
        "t1": spread([run["run"][0] for run in runs]),
        "t2": spread([run["run"][1] for run in runs]),
        "seconds": spread([run["seconds"] for run in runs]),
        "times_bare": spread([run["seconds"] / run["bare_seconds"] for run in runs]),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "runs": runs,
    }
    arguments.output.write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps({key: value for key, value in summary.items() if key != "runs"}, indent=1))


if __name__ == "__main__":
    main()
