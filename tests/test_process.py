"""The noise processes: EDM as in its paper and in diffusers, and what both promise of draws, t, sigma and boundaries."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from stagecraft.config.keys import SAMPLERS
from stagecraft.data.pixels import to_uint8
from stagecraft.diffusion.edm import EDMProcess
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import Sampler, sample
from stagecraft.networks.unet.student import interval_of
from stagecraft.runtime.seeds import generator_for

PAIRS = [(process, name) for process, names in SAMPLERS.items() for name in names]


@pytest.fixture
def edm(edm_settings):
    return EDMProcess(edm_settings)


@pytest.fixture
def triple(edm):
    """x0, eps, t, and sigma in float64 and of a shape that multiplies images."""
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(64, 1, 4, 4, generator=generator) for _ in range(2))
    t = edm.draw(64, generator)
    return x0, eps, t, (4 * t.double()).exp().reshape(-1, 1, 1, 1)


def coefficients(sigma, sigma_data):
    """c_skip, c_out and c_in of Karras et al. 2022, table 1."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total**0.5, 1 / total**0.5


def test_edm_inputs_and_targets_are_those_of_the_paper(edm, triple):
    x0, eps, t, sigma = triple
    c_skip, c_out, c_in = coefficients(sigma, 0.5)
    x = x0.double() + sigma * eps.double()
    torch.testing.assert_close(edm.noise(x0, eps, t).double(), c_in * x, atol=1e-5, rtol=1e-4)
    target = (x0.double() - c_skip * x) / c_out
    torch.testing.assert_close(edm.target(x0, eps, t).double(), target, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(t.double(), sigma.flatten().log() / 4)


def test_the_weighted_loss_of_the_denoiser_is_the_plain_loss_of_the_network(edm, triple):
    x0, eps, t, sigma = triple
    c_skip, c_out, _ = coefficients(sigma, 0.5)
    output = torch.randn(x0.shape, dtype=torch.float64)
    denoised = c_skip * (x0.double() + sigma * eps.double()) + c_out * output
    weight = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
    weighted = (weight * (denoised - x0) ** 2).mean()
    plain = (output - edm.target(x0, eps, t)).square().mean()
    assert float(weighted) == pytest.approx(float(plain), rel=1e-4)


@pytest.mark.parametrize("name", SAMPLERS["edm"])
def test_the_preconditioning_is_that_of_diffusers_schedulers(edm, triple, name):
    x0, eps, t, sigma = triple
    scheduler = edm.scheduler(name)
    for i in range(0, 64, 8):
        level, rows = sigma[i].float().reshape(1), slice(i, i + 1)
        x = x0[rows] + level * eps[rows]
        seen, wanted = edm.noise(x0[rows], eps[rows], t[rows]), edm.target(x0[rows], eps[rows], t[rows])
        torch.testing.assert_close(scheduler.precondition_inputs(x, level), seen, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(scheduler.precondition_noise(level).reshape(1), t[rows], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(scheduler.precondition_outputs(x, wanted, level), x0[rows], atol=1e-4, rtol=1e-4)


def test_t_and_sigma_say_the_same(process):
    t = torch.from_numpy(process.grid(50))
    assert torch.equal(process.t_of(process.noise_level(t)), t if process.name == "vp" else t.float())
    assert (process.noise_level(t).diff() > 0).all()
    assert process.t_of(process.noise_level(t).reshape(10, 5)).shape == (10, 5)


def test_edm_draws_are_lognormal(edm):
    ln_sigma = 4 * edm.draw(100_000, generator_for(0, "test", 0)).double().numpy()
    assert kstest(ln_sigma, norm(-1.2, 1.2).cdf).pvalue > 0.01


def test_draws_of_a_interval_follow_the_density_within_it(edm):
    lo, hi = edm.as_t(-0.4), edm.as_t(-0.1)
    t = edm.draw(100_000, generator_for(0, "test", 1), lo, hi).double().numpy()
    assert lo <= t.min() and t.max() < hi
    low, high = (norm(-1.2, 1.2).cdf(4 * edge) for edge in (lo, hi))
    assert kstest(4 * t, lambda x: (norm(-1.2, 1.2).cdf(x) - low) / (high - low)).pvalue > 0.01


def test_the_first_and_the_last_interval_have_the_tails(edm_settings):
    edm = EDMProcess(edm_settings | {"sigma_min": 0.1, "sigma_max": 1.0})
    edges = edm.edges([edm.as_t(-0.4), edm.as_t(-0.2)])
    first, middle, last = (edm.draw(2000, generator_for(0, "test", i), *pair) for i, pair in enumerate(edges))
    assert first.min() < edm.low and first.max() < edges[0][1]
    assert edges[1][0] <= middle.min() and middle.max() < edges[1][1]
    assert last.max() >= edm.high and last.min() >= edges[2][0]
    assert sum(edm.share(*pair) for pair in edges) == pytest.approx(1)


def test_the_share_of_a_interval_is_how_often_draws_fall_into_it(process):
    boundaries = [process.at_share(share) for share in (0.2, 0.45, 0.6)]
    t = process.draw(200_000, generator_for(0, "test", 2))
    found = interval_of(t, boundaries).bincount(minlength=4) / len(t)
    shares = [process.share(*edges) for edges in process.edges(boundaries)]
    assert found.tolist() == pytest.approx(shares, abs=0.005) and sum(shares) == pytest.approx(1)


def test_draws_fall_into_their_own_interval_however_narrow_it_is(process):
    lo = process.at_share(0.5)
    hi = process.above(process.above(lo))
    t = process.draw(1000, generator_for(0, "test", 3), lo, hi)
    assert set(interval_of(t, [lo, hi]).tolist()) == {1}
    assert len(t.unique()) == 2 or process.name == "edm"


def test_boundaries_mean_the_same_in_files_and_on_devices(process):
    for share in np.random.default_rng(0).random(200):
        boundary = process.as_t(process.low + share * (process.high - process.low))
        (read,) = json.loads(json.dumps([boundary]))
        assert read == boundary == process.as_t(read)
        t = torch.tensor([boundary, process.above(boundary)], dtype=torch.float32)
        below = torch.nextafter(t, torch.tensor(-torch.inf))
        assert interval_of(t, [read]).tolist() == [1, 1]
        assert interval_of(below, [read]).tolist()[0] == 0
        assert interval_of(t, [process.above(boundary)]).tolist() == [0, 1]


def test_intervals_that_do_not_divide_the_noise_levels_are_refused(process, tmp_path):
    middle = process.at_share(0.5)
    process.check_intervals({"boundaries": [middle], "intervals": process.edges([middle])}, tmp_path)
    later = process.above(middle)
    for boundaries in ([later, middle], [middle, middle], [process.low], [process.high]):
        clusters = {"boundaries": boundaries, "intervals": process.edges(boundaries)}
        with pytest.raises(ValueError, match="do not divide the timesteps"):
            process.check_intervals(clusters, tmp_path)


def test_a_teacher_of_another_edm_process_is_refused(edm):
    edm.check_same_as(dict(edm.scheduler("edm_dpm_solver").config), "teacher")
    with pytest.raises(ValueError, match=r"sigma_data is 0\.7 but params say diffusion\.sigma_data: 0\.5"):
        edm.check_same_as({"sigma_data": 0.7}, "teacher")
    with pytest.raises(ValueError, match=r"_class_name is 'DDPMScheduler', no process of diffusion\.process: edm"):
        edm.check_same_as({"_class_name": "DDPMScheduler"}, "teacher")


@pytest.mark.parametrize(("kind", "scheduler"), PAIRS)
def test_with_a_perfect_denoiser_of_one_image_every_sampler_draws_it(settings_of_processes, kind, scheduler):
    process = make_process(settings_of_processes[kind])
    point = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def perfect(x_t, t):
        times = t.reshape(1).expand(len(x_t))
        alpha, sigma = (value.reshape(-1, 1, 1, 1).float() for value in process.alpha_sigma(times))
        eps = (x_t - alpha * point) / sigma
        return SimpleNamespace(sample=process.target(point.expand_as(x_t), eps, times))

    sampler = Sampler(process, scheduler, 12, 0, (1, 4, 4), torch.device("cpu"), 3)
    drawn = sample(perfect, sampler, range(3)).int()
    assert (drawn - to_uint8(point).int()).abs().max() <= 1
