"""Timestep clustering: the closed-form denoiser and the partitions made from it."""

import itertools
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import section_with, tiny_unet

from stagecraft.clustering import cluster as clustering
from stagecraft.clustering import denoiser as denoiser_module
from stagecraft.clustering.denoiser import OptimalDenoiser
from stagecraft.clustering.gradients import Sketch, loss_gradients
from stagecraft.clustering.partition import (
    agglomerative_labels,
    boundaries_of,
    dynamic_programming_labels,
    interval_labels,
    silhouettes,
    threshold_boundaries,
    uniform_boundaries,
)
from stagecraft.clustering.similarity import draw_pairs, limit_shares, optimal_means, similarity_matrix
from stagecraft.config.sections import ClusterTimesteps
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.boundaries import nearest_timesteps
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.stated import BETA_SCHEDULES
from stagecraft.diffusion.vp import VPProcess
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.training.student import build_student


def cluster(y, process, settings, *others):
    """Clusters by the keys of `cluster_timesteps` that a test needs."""
    return clustering.cluster(y, process, section_with(ClusterTimesteps, **settings), *others)


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


def test_a_set_too_large_to_be_centred_at_once_is_centred_in_parts(y, monkeypatch):
    x0, eps = draw_pairs(y, 20, np.random.default_rng(0))
    z = x0 + np.float32(0.5) * eps
    monkeypatch.setattr(denoiser_module, "MOST_CENTRED", 20 * y.shape[1])
    denoiser = OptimalDenoiser(y)
    assert len(denoiser.parts) > 2 and denoiser.held is None
    np.testing.assert_allclose(denoiser(z, 0.5), brute_force(y, z, 0.5), atol=2e-5)


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
    x0, eps = draw_pairs(y, 200, np.random.default_rng(0))
    s = similarity_matrix(optimal_means(OptimalDenoiser(y), x0, eps, sigmas), x0, y.mean(0))
    np.testing.assert_allclose(s, s.T, atol=1e-12)
    assert (np.diag(s) == 1).all() and (np.diff(s[0]) < 0.02).all()
    assert s[0, -1] < 0.01


def test_limit_shares_are_one_at_their_own_limit_and_small_at_the_other(y):
    x0, eps = draw_pairs(y, 40, np.random.default_rng(0))
    sigmas = np.repeat([1e-3, 100.0], 20)
    m = OptimalDenoiser(y)(x0 + sigmas[:, None].astype(np.float32) * eps, sigmas)
    s0, s1 = limit_shares(m, x0, y.mean(0), sigmas, eta=2 / 255)
    assert s0[:20].min() == 1 and s1[20:].min() > 0.95 and s1[:20].max() < 0.5


def test_threshold_finds_the_last_and_first_timestep_that_is_alike_enough():
    t = np.arange(100)
    s0, s1 = np.where(t < 30, 1.0, 0.0), np.where(t >= 80, 1.0, 0.0)
    # With the running means 30/tau and 20/(100 - tau) at least 0.75: tau = 40 draws from below, the last t = 39, 26 from above.
    assert threshold_boundaries(t, s0, s1, alpha=0.75) == (39, 74)
    shuffled = np.random.default_rng(0).permutation(100)
    assert threshold_boundaries(t[shuffled], s0[shuffled], s1[shuffled], alpha=0.75) == (39, 74)


@pytest.mark.parametrize(("s0", "s1", "word"), [(0.0, 1.0, "lower alpha"), (1.0, 1.0, "raise alpha")])
def test_threshold_without_three_intervals_says_what_to_change(s0, s1, word):
    t = np.arange(100)
    with pytest.raises(ValueError, match=word):
        threshold_boundaries(t, np.full(100, s0), np.full(100, s1), alpha=0.9)


def test_agglomerative_finds_planted_contiguous_intervals(diffusion_settings):
    planted = np.repeat([0, 1, 2], [20, 50, 30])
    distance = (
        np.abs(planted[:, None] - planted[None]) / 2 * 0.8 + np.abs(np.subtract.outer(range(100), range(100))) / 1000
    )
    similarity = 1 - distance
    labels = agglomerative_labels(similarity, 3)
    assert (labels == planted).all()
    assert boundaries_of(labels, np.arange(0, 1000, 10), VPProcess(diffusion_settings)) == [195, 695]
    scores = silhouettes(distance, lambda k: agglomerative_labels(similarity, k))
    assert max(scores, key=scores.get) == 3
    assert (agglomerative_labels(similarity, 1) == 0).all()


def test_agglomerative_refuses_intervals_that_are_not_contiguous():
    planted = np.tile([0, 1], 10)
    with pytest.raises(ValueError, match=r"raise cluster_timesteps\.draws"):
        agglomerative_labels(1 - np.abs(planted[:, None] - planted[None]) * 0.9, 2)


def test_uniform_intervals_are_equally_long(diffusion_settings):
    process = VPProcess(diffusion_settings)
    assert uniform_boundaries(process, 4) == [250, 500, 750]
    assert uniform_boundaries(process, 1) == []


def partitions(size, intervals):
    """Every division of 0 .. size-1 into contiguous intervals, as slices."""
    for cuts in itertools.combinations(range(1, size), intervals - 1):
        yield [slice(*pair) for pair in itertools.pairwise([0, *cuts, size])]


def slices_of(labels):
    assert (np.diff(labels) >= 0).all() and set(np.diff(labels)) <= {0, 1}
    return [slice(*np.flatnonzero(labels == k)[[0, -1]] + [0, 1]) for k in range(labels.max() + 1)]


@pytest.mark.parametrize("intervals", range(1, 9))
@pytest.mark.parametrize("seed", range(3))
def test_dynamic_programming_finds_the_best_of_all_partitions(seed, intervals):
    half = np.random.default_rng(seed).random((9, 9))
    similarity = (half + half.T) / 2

    def score(parts):
        return sum(similarity[part, part].mean() for part in parts)

    found = slices_of(dynamic_programming_labels(similarity, intervals))
    assert len(found) == intervals
    assert score(found) == pytest.approx(max(map(score, partitions(9, intervals))), rel=1e-12)


@pytest.mark.parametrize("intervals", range(1, 9))
@pytest.mark.parametrize("seed", range(3))
def test_interval_clustering_finds_the_best_of_all_partitions(seed, intervals):
    distance = np.random.default_rng(seed).random((9, 9))

    def cost(parts):
        return sum(min(distance[c, part].sum() for c in range(part.start, part.stop)) for part in parts)

    found = slices_of(interval_labels(distance, intervals))
    assert len(found) == intervals
    assert cost(found) == pytest.approx(min(map(cost, partitions(9, intervals))), rel=1e-12)


SETTINGS = {
    "method": "agglomerative",
    "intervals": 3,
    "boundaries": None,
    "boundaries_in": "t",
    "seeds": 1,
    "grid": 16,
    "draws": 64,
    "eta": 2 / 255,
    "alpha": 0.9,
    "literal": False,
    "image_range": [0, 1],
}


def planted_gradients(t, seed):
    """Gradients that turn evenly along t."""
    angle = np.linspace(0, 3, len(t))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    "method", ["agglomerative", "dynamic_programming", "threshold", "uniform", "snr", "gradient", "given"]
)
def test_every_method_divides_all_noise_levels_for_every_k(y, process, method):
    for intervals in [3] if method == "threshold" else range(1, 9):
        settings = SETTINGS | {"method": method, "intervals": intervals}
        if method == "given":
            settings["boundaries"] = [process.at_share(k / intervals) for k in range(1, intervals)]
        clusters = cluster(y, process, settings, 1, planted_gradients)
        boundaries = clusters["boundaries"]
        assert len(clusters["intervals"]) == intervals and len(boundaries) == intervals - 1
        edges = [process.low, *boundaries, process.high]
        assert edges == sorted(set(edges)) and clusters["intervals"] == [list(p) for p in itertools.pairwise(edges)]
        assert clusters["boundaries_sigma"] == process.noise_level(torch.tensor(boundaries)).tolist()
        assert clusters == json.loads(json.dumps(clusters, allow_nan=False))
        process.check_intervals(clusters, Path())
        s0, s1 = (np.array(clusters["curves"][name]) for name in ("s0", "s1"))
        assert clusters["curves"]["t"] == clusters["grid"] and len(s0) == len(s1) == len(clusters["grid"]) == 16
        assert min(s0.min(), s1.min()) >= 0 and max(s0.max(), s1.max()) <= 1
        assert s0[0] > 0.9 > s0.min() and s1[-1] > 0.9 > s1[0]
        assert set(clusters["silhouette"]) == set("2345678")
    assert clusters == cluster(y, process, settings, 1, planted_gradients)


def degenerate(name, y):
    """Images of which the similarity says little."""
    return {
        "constant": np.full_like(y, 0.3),
        "duplicates": np.repeat(y[:2], 10, axis=0),
        "alone": y[:1],
        "apart": np.eye(len(y), y.shape[1], dtype=np.float32) * 1e4,
    }[name]


METHODS = ["agglomerative", "dynamic_programming", "threshold", "uniform", "snr", "gradient", "given"]


@pytest.mark.parametrize("images", ["constant", "duplicates", "alone", "apart"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_only_to_be_looked_at_ends_no_run(y, diffusion_settings, method, images):
    y = degenerate(images, y)
    for timesteps in (2, 3, 5, 10, 1000):
        process = VPProcess(diffusion_settings | {"num_train_timesteps": timesteps})
        for grid, intervals in itertools.product(range(2, min(8, timesteps) + 1), (2, 3)):
            if intervals > grid or (method == "threshold" and intervals != 3):
                continue
            settings = SETTINGS | {"method": method, "intervals": intervals, "grid": grid, "draws": 4}
            if method == "given":
                settings["boundaries"] = list(range(1, intervals))
            try:
                clusters = cluster(y, process, settings, 0, planted_gradients)
            except ValueError as error:
                # Only where the method itself finds no such intervals.
                assert (method == "threshold" and "alpha" in str(error)) or "not contiguous" in str(error)
                assert method in ("threshold", "agglomerative")
                continue
            process.check_intervals(clusters, Path())
            assert len(clusters["intervals"]) == intervals and json.dumps(clusters, allow_nan=False)
            for k, score in clusters["silhouette"].items():
                assert (score is None) == (f"silhouette {k}" in clusters.get("missing", {}))
                assert score is None or -1 <= score <= 1
                assert score is None or int(k) < grid
            assert set(clusters["silhouette"]) == set("2345678")
            assert clusters["similarity"] is not None and clusters["curves"] is not None


def test_images_that_are_all_the_same_have_the_same_denoiser_at_every_noise_level(y):
    same = degenerate("constant", y)
    x0, eps = draw_pairs(same, 5, np.random.default_rng(0))
    m = optimal_means(OptimalDenoiser(same), x0, eps, np.geomspace(1e-3, 1e3, 6))
    assert (similarity_matrix(m, x0, same.mean(0)) == 1).all()


class Broken(VPProcess):
    """A process whose last noise level is no number."""

    def noise_level(self, t):
        return torch.where(t.cpu() == 999, torch.nan, super().noise_level(t))


REASON = r"at 1 of 16 noise levels, the smallest t = 999 \(sigma nan\); cluster_timesteps\.method: uniform does without"


@pytest.mark.parametrize("method", ["uniform", "given", "gradient"])
def test_similarities_that_are_not_finite_are_left_out_with_their_reason(y, diffusion_settings, method):
    settings = SETTINGS | {"method": method, "boundaries": [200, 500] if method == "given" else None}
    clusters = cluster(y, Broken(diffusion_settings), settings, 0, planted_gradients)
    assert len(clusters["boundaries"]) == 2 and json.dumps(clusters, allow_nan=False)
    assert clusters["similarity"] is None and clusters["curves"] is None
    assert clusters["silhouette"] == dict.fromkeys("2345678")
    assert set(clusters["missing"]) == {"similarity", "curves", *(f"silhouette {k}" for k in range(2, 9))}
    for reason in clusters["missing"].values():
        assert re.search(REASON, reason)


@pytest.mark.parametrize("method", ["agglomerative", "dynamic_programming", "snr", "threshold"])
def test_a_method_is_refused_what_it_needs_and_is_not_finite(y, diffusion_settings, method):
    process = Broken(diffusion_settings)
    process.at_share = lambda share: 999 if share > 0.9 else VPProcess.at_share(process, share)
    reason = REASON.replace("1 of 16", r"\d+ of \d+")
    with pytest.raises(ValueError, match=reason):
        cluster(y, process, SETTINGS | {"method": method}, 0)


def test_gradients_that_are_not_finite_are_refused(y, process):
    def broken(t, seed):
        return np.where(t[:, None] == t[3], np.nan, planted_gradients(t, seed))

    with pytest.raises(
        ValueError, match=r"gradient of the loss is not finite at 1 of 16 noise levels, the smallest t = "
    ):
        cluster(y, process, SETTINGS | {"method": "gradient"}, 0, broken)


def test_further_seeds_and_other_numbers_of_stages_that_fail_are_left_out(y, process, monkeypatch):
    labels, calls = clustering.agglomerative_labels, []

    def fails(similarity, number):
        calls.append(number)
        if len(calls) == 2 or number == 5:
            raise ValueError("not contiguous")
        return labels(similarity, number)

    monkeypatch.setattr(clustering, "agglomerative_labels", fails)
    clusters = cluster(y, process, SETTINGS | {"seeds": 3}, 7)
    first, second, third = clusters["spread"]["boundaries"]
    assert second is None and len(first) == len(third) == 2
    assert clusters["spread"]["std"] == np.std([first, third], axis=0, ddof=1).tolist()
    assert clusters["missing"] == {"boundaries of seed 8": "not contiguous", "silhouette 5": "not contiguous"}
    assert clusters["silhouette"]["5"] is None and clusters["silhouette"]["4"] is not None
    calls[:] = [None]
    with pytest.raises(ValueError, match="not contiguous"):
        cluster(y, process, SETTINGS, 7)


def test_a_middle_stage_without_a_timestep_is_refused(y, diffusion_settings, monkeypatch):
    monkeypatch.setattr(clustering, "threshold_boundaries", lambda *_: (5, 6))
    with pytest.raises(ValueError, match="boundaries 5 and 6 leave no middle interval"):
        cluster(y, VPProcess(diffusion_settings), SETTINGS | {"method": "threshold"}, 0)


def test_given_boundaries_are_taken_in_t_and_in_sigma(y, settings_of_processes):
    def boundaries(process, values, of="sigma"):
        settings = SETTINGS | {"method": "given", "intervals": 3, "boundaries": values, "boundaries_in": of}
        return cluster(y, process, settings, 0)["boundaries"]

    vp, edm, flow = (make_process(settings_of_processes[name]) for name in ("vp", "edm", "flow"))
    assert boundaries(vp, [250, 500.4], "t") == [250, 500]
    assert boundaries(edm, [-0.5, 0.25], "t") == [-0.5, 0.25]
    assert boundaries(edm, [0.3, 4.0]) == pytest.approx([np.log(0.3) / 4, np.log(4) / 4])
    assert boundaries(flow, [250, 500.5], "t") == [250, 500.5]
    assert boundaries(flow, [0.25, 4.0]) == pytest.approx([200, 800])
    levels = vp.noise_level(torch.arange(1000)).log()
    nearest = [int((levels - np.log(sigma)).abs().argmin()) for sigma in (0.3, 4.0)]
    assert boundaries(vp, [0.3, 4.0]) == nearest
    for process, values in (
        (vp, [0.3, 0.3]),
        (vp, [4.0, 0.3]),
        (vp, [1e-9, 1]),
        (edm, [4.0, 0.3]),
        (edm, [1, 80.0]),
        (flow, [0, 1]),
        (flow, [1, 1e30]),
    ):
        with pytest.raises(ValueError, match=r"cluster_timesteps\.boundaries: .* in sigma are t = .* do not ascend"):
            boundaries(process, values)


@pytest.mark.parametrize(
    "changes",
    [
        *({"beta_schedule": name} for name in BETA_SCHEDULES),
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"num_train_timesteps": 2},
    ],
)
def test_before_the_first_job_noise_levels_are_at_the_timesteps_of_the_process(diffusion_settings, changes):
    settings = diffusion_settings | changes
    sigmas = np.geomspace(1e-3, 1e3, 200)
    assert nearest_timesteps(sigmas, settings) == VPProcess(settings).t_of(torch.from_numpy(sigmas)).tolist()


def test_the_literal_share_is_the_printed_equation(y):
    x0, eps = draw_pairs(y, 40, np.random.default_rng(0))
    denoiser, sigmas, last = OptimalDenoiser(y), np.geomspace(0.01, 50, 40), 50.0
    m = denoiser(x0 + sigmas[:, None].astype(np.float32) * eps, sigmas)
    _, literal = limit_shares(m, x0, y.mean(0), sigmas, 2 / 255, last)
    inside = np.abs((x0 - m) / sigmas[:, None] - (x0 - y.mean(0)) / last) <= 2 / 255
    np.testing.assert_allclose(literal, inside.mean(1))
    _, run = limit_shares(m, x0, y.mean(0), sigmas, 2 / 255)
    # Both say the same at the last noise level, and the printed one is the stricter before it.
    assert literal[-1] == pytest.approx(run[-1], abs=0.02) and literal[30] < run[30] - 0.1


def test_the_literal_equation_moves_the_last_boundary_of_the_threshold(y, process):
    settings = SETTINGS | {"method": "threshold", "draws": 400}
    run, literal = (cluster(y, process, settings | {"literal": flag}, 0) for flag in (False, True))
    assert run["boundaries"][0] == literal["boundaries"][0]
    assert run["boundaries"][1] < literal["boundaries"][1]
    assert run["curves"]["s1"] != literal["curves"]["s1"] and run["curves"]["s0"] == literal["curves"]["s0"]


def test_the_spread_is_that_of_clusterings_with_seeds_that_follow(y, process):
    settings = SETTINGS | {"method": "agglomerative", "draws": 12, "grid": 30}
    spread = cluster(y, process, settings | {"seeds": 3}, 5)["spread"]
    alone = [cluster(y, process, settings, seed)["boundaries"] for seed in (5, 6, 7)]
    assert spread["seeds"] == [5, 6, 7] and spread["boundaries"] == alone
    assert spread["std"] == pytest.approx(np.std(alone, axis=0, ddof=1).tolist()) and max(spread["std"]) > 0
    fixed = cluster(y, process, settings | {"method": "uniform", "seeds": 3}, 5)["spread"]
    assert fixed["seeds"] == [5] and fixed["std"] == [0, 0]


def test_gradients_that_part_at_a_timestep_are_divided_there(unet, digits, diffusion_settings):
    """A net whose decoders are two, so the gradients before and after their boundary have little in common."""
    student = build_student(unet, identity_architecture(unet, 2), [640], seed=0)
    data, process = TrainingSet.of_images(digits), VPProcess(diffusion_settings)
    gradients = partial(loss_gradients, student, process, data, 6)
    settings = SETTINGS | {"method": "gradient", "intervals": 2, "grid": 12, "draws": 6}
    clusters = cluster(data.flat((0, 1)), process, settings, 0, gradients)
    assert abs(clusters["boundaries"][0] - 640) <= 999 / 11 / 2
    assert all(p.grad is None for p in student.parameters())


def test_mean_gradients_are_those_of_the_loss_in_batches_of_any_size(digits, diffusion_settings):
    unet, process = tiny_unet(num_class_embeds=10, block_out_channels=(8, 16)), VPProcess(diffusion_settings)
    data = TrainingSet.of_images(digits, np.arange(64) % 10)
    t = np.array([3, 700])
    whole, parts = (loss_gradients(unet, process, data, 10, t, 0, size) for size in (10, 4))
    assert whole.shape == (2, sum(p.numel() for p in unet.parameters()))
    np.testing.assert_allclose(whole, parts, atol=1e-4 * np.abs(whole).max())
    other = TrainingSet.of_images(digits, (np.arange(64) + 1) % 10)
    assert np.abs(whole - loss_gradients(unet, process, other, 10, t, 0)).max() > 1e-3 * np.abs(whole).max()


def test_a_sketch_keeps_cosines():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(500_000, generator=generator) for _ in range(2))
    sketch = Sketch(len(a))
    for share in (0.0, 0.3, 0.9):
        c = share * a + (1 - share**2) ** 0.5 * b
        kept = torch.cosine_similarity(sketch(a), sketch(c), dim=0)
        assert sketch(c).shape == (2**16,)
        assert float(kept) == pytest.approx(float(torch.cosine_similarity(a, c, dim=0)), abs=0.015)
    assert torch.equal(Sketch(1000)(a[:1000]), a[:1000])
