"""Timestep clustering: the closed-form denoiser and the partitions made from it."""

import numpy as np
import pytest

from stages.clustering.denoiser import OptimalDenoiser
from stages.clustering.partition import (
    agglomerative_labels,
    boundaries_of,
    silhouettes,
    threshold_boundaries,
    uniform_boundaries,
)
from stages.clustering.similarity import draw_pairs, limit_shares, similarity_matrix
from stages.clustering.stages import cluster
from stages.diffusion.process import VPProcess


def brute_force(y, z, sigma):
    """The definition, in float64, with nothing clever."""
    y, z = y.astype(np.float64), z.astype(np.float64)
    logits = -((z[:, None] - y[None]) ** 2).sum(-1) / (2 * np.broadcast_to(sigma, len(z))[:, None] ** 2)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ y


@pytest.fixture
def y(digits):
    return digits.reshape(len(digits), -1).astype(np.float32) / 255


@pytest.mark.parametrize("sigma", [0.05, 0.5, 3.0, 100.0])
def test_the_optimal_denoiser_is_its_definition(y, sigma):
    x0, eps = draw_pairs(y, 20, np.random.default_rng(0))
    z = x0 + np.float32(sigma) * eps
    np.testing.assert_allclose(OptimalDenoiser(y, batch=7)(z, sigma), brute_force(y, z, sigma), atol=2e-5)


def test_each_draw_has_its_own_noise_level(y):
    x0, eps = draw_pairs(y, 5, np.random.default_rng(0))
    sigma = np.array([0.1, 0.5, 1, 5, 50.0])
    z = x0 + sigma[:, None].astype(np.float32) * eps
    np.testing.assert_allclose(OptimalDenoiser(y)(z, sigma), brute_force(y, z, sigma), atol=2e-5)


def test_the_limits_are_the_image_itself_and_the_mean(y):
    denoiser = OptimalDenoiser(y)
    x0, eps = draw_pairs(y, 10, np.random.default_rng(0))
    np.testing.assert_allclose(denoiser(x0 + np.float32(1e-4) * eps, 1e-4), x0, atol=1e-6)
    np.testing.assert_allclose(denoiser(x0 + np.float32(1e4) * eps, 1e4), np.tile(y.mean(0), (10, 1)), atol=1e-3)


def test_similarity_is_symmetric_falls_along_t_and_spans_both_limits(y):
    sigmas = np.geomspace(1e-3, 1e3, 12)
    s = similarity_matrix(OptimalDenoiser(y), *draw_pairs(y, 200, np.random.default_rng(0)), sigmas)
    np.testing.assert_allclose(s, s.T, atol=1e-12)
    assert (np.diag(s) == 1).all() and (np.diff(s[0]) < 0.02).all()
    assert s[0, -1] < 0.01


def test_limit_shares_are_one_at_their_own_limit_and_small_at_the_other(y):
    x0, eps = draw_pairs(y, 40, np.random.default_rng(0))
    sigmas = np.repeat([1e-3, 100.0], 20)
    s0, s1 = limit_shares(OptimalDenoiser(y), x0, eps, sigmas, eta=2 / 255)
    assert s0[:20].min() == 1 and s1[20:].min() > 0.95 and s1[:20].max() < 0.5


def test_threshold_finds_the_last_and_first_timestep_that_is_alike_enough():
    t = np.arange(100)
    s0, s1 = np.where(t < 30, 1.0, 0.0), np.where(t >= 80, 1.0, 0.0)
    # With the running means 30/tau and 20/(100 - tau) at least 0.75: tau = 40 draws from below, 26 from above.
    assert threshold_boundaries(t, s0, s1, alpha=0.75) == [40, 74]
    shuffled = np.random.default_rng(0).permutation(100)
    assert threshold_boundaries(t[shuffled], s0[shuffled], s1[shuffled], alpha=0.75) == [40, 74]


@pytest.mark.parametrize(("s0", "s1", "word"), [(0.0, 1.0, "lower alpha"), (1.0, 1.0, "raise alpha")])
def test_threshold_without_three_stages_says_what_to_change(s0, s1, word):
    t = np.arange(100)
    with pytest.raises(ValueError, match=word):
        threshold_boundaries(t, np.full(100, s0), np.full(100, s1), alpha=0.9)


def test_agglomerative_finds_planted_contiguous_stages():
    planted = np.repeat([0, 1, 2], [20, 50, 30])
    distance = (
        np.abs(planted[:, None] - planted[None]) / 2 * 0.8 + np.abs(np.subtract.outer(range(100), range(100))) / 1000
    )
    similarity = 1 - distance
    labels = agglomerative_labels(similarity, 3)
    assert (labels == planted).all()
    assert boundaries_of(labels, np.arange(0, 1000, 10)) == [195, 695]
    scores = silhouettes(similarity)
    assert max(scores, key=scores.get) == 3
    assert (agglomerative_labels(similarity, 1) == 0).all()


def test_agglomerative_refuses_stages_that_are_not_contiguous():
    planted = np.tile([0, 1], 10)
    with pytest.raises(ValueError, match=r"raise cluster_timesteps\.draws"):
        agglomerative_labels(1 - np.abs(planted[:, None] - planted[None]) * 0.9, 2)


def test_uniform_stages_are_equally_long():
    assert uniform_boundaries(1000, 4) == [250, 500, 750]
    assert uniform_boundaries(1000, 1) == []


@pytest.mark.parametrize(
    ("method", "stages"), [("agglomerative", 1), ("agglomerative", 3), ("uniform", 8), ("threshold", 3)]
)
def test_every_method_covers_all_timesteps_with_ascending_boundaries(digits, diffusion_settings, method, stages):
    settings = {
        "method": method,
        "stages": stages,
        "grid": 40,
        "draws": 300,
        "eta": 2 / 255,
        "alpha": 0.9,
        "image_range": [0, 1],
    }
    clusters = cluster(digits, VPProcess(diffusion_settings), settings, seed=1)
    edges = [clusters["stages"][0][0], *(hi for _, hi in clusters["stages"])]
    assert edges == [0, *clusters["boundaries"], 1000] and len(clusters["stages"]) == stages
    assert edges == sorted(set(edges)) and len(clusters["boundaries_sigma"]) == stages - 1
    assert clusters == cluster(digits, VPProcess(diffusion_settings), settings, seed=1)
    assert (clusters["curves"] is not None) == (method == "threshold")
