"""The noise process and the sampler."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from stagecraft.data.pixels import to_network, to_uint8
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.losses import nmse
from stagecraft.diffusion.sampling import Sampler, sample, steps_per_interval
from stagecraft.diffusion.vp import VPProcess
from stagecraft.runtime.seeds import generator_for


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_noise_and_both_targets_agree_with_diffusers(diffusion_settings, schedule):
    process = VPProcess(diffusion_settings | {"beta_schedule": schedule, "prediction_type": "v_prediction"})
    reference = DDPMScheduler(beta_schedule=schedule, beta_start=0.0001, beta_end=0.02)
    x0, eps, t = torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4), torch.tensor([0, 1, 100, 500, 900, 998])
    torch.testing.assert_close(process.noise(x0, eps, t), reference.add_noise(x0, eps, t), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(process.target(x0, eps, t), reference.get_velocity(x0, eps, t), atol=1e-5, rtol=1e-4)
    assert torch.equal(VPProcess(diffusion_settings).target(x0, eps, t), eps)


def test_alpha_sigma_and_noise_levels_say_the_same_as_abar(diffusion_settings):
    process, t = VPProcess(diffusion_settings), torch.arange(1000)
    alpha, sigma = process.alpha_sigma(t)
    torch.testing.assert_close(alpha**2, process.abar_T)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000, dtype=torch.float64))
    torch.testing.assert_close(process.noise_level(t), sigma / alpha)
    assert (sigma.diff() > 0).all()


def test_timesteps_are_drawn_inside_their_interval(diffusion_settings):
    t = VPProcess(diffusion_settings).draw(5000, generator_for(0, "test", 0), 100, 103)
    assert t.unique().tolist() == [100, 101, 102]


def test_images_survive_the_way_to_the_network_and_back():
    images = np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1)
    x = to_network(images)
    assert x.shape == (4, 1, 8, 8) and x.min() == -1 and x.max() == 1
    assert np.array_equal(to_uint8(x).numpy(), images)


def test_streams_never_share_a_seed_within_a_stream_and_differ_between_streams():
    seeds = {generator_for(0, "sample", i).initial_seed() for i in range(100_000)}
    assert len(seeds) == 100_000
    starts = {generator_for(s, name, 0).initial_seed() for s in range(50) for name in ("sample", "train")}
    assert len(starts) == 100


def test_batches_depend_on_the_generator_alone(digits, diffusion_settings):
    batches = NoisyBatches(
        TrainingSet.of_images(digits), VPProcess(diffusion_settings), 16, torch.device("cpu"), flip=True
    )
    one, two = batches(generator_for(0, "train", 5)), batches(generator_for(0, "train", 5))
    assert all(torch.equal(a, b) for a, b in zip(one[:3], two[:3], strict=True))
    assert not one.condition.tensors and not two.condition.tensors
    assert not torch.equal(one[0], batches(generator_for(0, "train", 6))[0])


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm_solver"])
def test_a_sample_depends_on_its_index_and_not_on_its_batch(unet, diffusion_settings, scheduler):
    process = VPProcess(diffusion_settings)

    def draw(indices, batch_size):
        sampler = Sampler(process, scheduler, 6, 1, (1, 8, 8), torch.device("cpu"), batch_size)
        return sample(unet, sampler, indices).int()

    together = draw(range(6), 6)
    assert together.shape == (6, 8, 8, 1)
    # Rounding differs with the batch's shape, by no more than one of 255 steps.
    assert (together - draw(range(6), 4)).abs().max() <= 1
    assert (together[4:5] - draw([4], 1)).abs().max() <= 1
    assert (together[0] != together[1]).any()


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm_solver"])
def test_steps_per_interval_are_the_samplers_own(diffusion_settings, scheduler):
    process = VPProcess(diffusion_settings)
    steps = steps_per_interval(process, scheduler, 50, [300, 700])
    assert sum(steps) == 50 and all(12 <= count <= 22 for count in steps)
    assert steps_per_interval(process, scheduler, 10, []) == [10]
    timetable = process.scheduler("ddim")
    timetable.set_timesteps(50)
    assert steps_per_interval(process, "ddim", 50, [300]) == [
        int((timetable.timesteps < 300).sum()),
        int((timetable.timesteps >= 300).sum()),
    ]


def test_a_teacher_of_another_process_is_refused(diffusion_settings):
    process = VPProcess(diffusion_settings)
    process.check_same_as(dict(process.scheduler().config), "teacher")
    with pytest.raises(ValueError, match="beta_schedule is 'scaled_linear' but params say"):
        process.check_same_as({"beta_schedule": "scaled_linear"}, "teacher")


def test_nmse_is_one_for_the_mean_and_adds_over_tensors():
    x = torch.randn(1000, 3)
    assert nmse([x], [x]) == 0
    assert nmse([x.mean().expand_as(x)] * 2, [x, 5 * x - 5 * x.mean() + x.mean()]) == pytest.approx(2, rel=1e-2)
