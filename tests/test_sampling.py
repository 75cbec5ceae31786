"""The sampler: what a sample depends on, and which decoder takes part in which step."""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from helpers import tiny_unet

from stagecraft.config.keys import SAMPLERS
from stagecraft.data.condition import class_condition
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import Sampler, evaluation_timesteps, sample, snap, steps_per_interval
from stagecraft.diffusion.stepper import Stepper, intervals_of
from stagecraft.diffusion.vp import VPProcess

PAIRS = [(process, name) for process, names in SAMPLERS.items() for name in names]
CPU = torch.device("cpu")


@pytest.fixture
def make(settings_of_processes):
    return lambda kind: make_process(settings_of_processes[kind])


@pytest.mark.parametrize(("kind", "scheduler"), [pair for pair in PAIRS if pair[0] != "vp"])
def test_a_sample_depends_on_its_index_and_not_on_its_batch(unet, make, kind, scheduler):
    def draw(indices, batch_size):
        sampler = Sampler(make(kind), scheduler, 6, 1, (1, 8, 8), CPU, batch_size)
        return sample(unet, sampler, indices).int()

    together = draw(range(6), 6)
    assert (together - draw(range(6), 4)).abs().max() <= 1
    assert (together[4:5] - draw([4], 1)).abs().max() <= 1
    assert (together[0] != together[1]).any()


def test_each_sample_gets_the_label_of_its_own_index(diffusion_settings):
    unet, seen = tiny_unet(num_class_embeds=4), []

    def model(x, t, class_labels):
        seen.append(class_labels.tolist())
        return unet(x, t, class_labels)

    def draw(indices, batch_size, label=lambda i: i % 4):
        condition = lambda batch: class_condition(torch.tensor([label(i) for i in batch]))  # noqa: E731
        process = VPProcess(diffusion_settings)
        sampler = Sampler(process, "ddim", 3, 1, (1, 8, 8), CPU, batch_size, condition=condition)
        return sample(model, sampler, indices).int()

    together = draw(range(5), 5)
    assert set(map(tuple, seen)) == {(0, 1, 2, 3, 0)}
    assert (together[3:] - draw([3, 4], 2)).abs().max() <= 1
    assert (together - draw(range(5), 5, lambda i: 0)).abs().max() > 1


def test_latents_are_decoded_before_they_are_images(unet, diffusion_settings):
    shapes = []

    def decode(x):
        shapes.append(tuple(x.shape))
        return torch.ones(len(x), 3, 16, 16)

    sampler = Sampler(VPProcess(diffusion_settings), "ddim", 2, 1, (1, 8, 8), CPU, 2, decode=decode)
    drawn = sample(unet, sampler, range(3))
    assert drawn.shape == (3, 16, 16, 3) and (drawn == 255).all() and shapes == [(2, 1, 8, 8), (1, 1, 8, 8)]


@pytest.mark.parametrize("name", ["DDPMScheduler", "DEISMultistepScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_a_scheduler_is_called_with_what_it_takes_and_forgets_at_boundaries(name):
    stepper = Stepper(getattr(diffusers, name)(), 6, restarts=[500.0])
    assert stepper.takes_generator == (name != "DEISMultistepScheduler")
    scheduler, known = stepper.scheduler, []
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    noise = torch.randn(2, 1, 4, 4)

    def predict(x, t):
        known.append(getattr(scheduler, "lower_order_nums", None))
        return x / 2

    assert stepper.run(noise, predict, generators).isfinite().all()
    first = int(intervals_of(stepper.timesteps, [500.0]).sum())
    assert 0 < first < 6
    assert known == (
        [None] * 6 if name != "DEISMultistepScheduler" else [min(i, 2) for i in [*range(first), *range(6 - first)]]
    )


def crossed(process, nodes, boundaries):
    """The steps with a boundary between the evaluation that they start from and the end of what they cover."""
    ends = [process.above(t.item()) for t in nodes[1:]] + [process.low]
    start = intervals_of(nodes, boundaries)
    return [i for i, end in enumerate(ends) if start[i] != intervals_of(torch.tensor(end), boundaries)]


@pytest.mark.parametrize(("kind", "scheduler"), PAIRS)
@pytest.mark.parametrize("steps", [9, 18])
def test_no_step_crosses_a_snapped_boundary(make, kind, scheduler, steps):
    process = make(kind)
    boundaries = [process.at_share(share) for share in (0.31, 0.62, 0.83)]
    nodes, snapped = evaluation_timesteps(process, scheduler, steps), snap(process, scheduler, steps, boundaries)
    assert crossed(process, nodes, boundaries) and crossed(process, nodes, snapped) == []
    assert snapped == sorted(snapped)
    for old, new in zip(boundaries, snapped, strict=True):
        assert abs(old - new) <= min(abs(old - nodes[1:].double())) + 1
    moved = zip(*(steps_per_interval(process, scheduler, steps, b) for b in (boundaries, snapped)), strict=True)
    assert all(abs(before - after) <= 2 for before, after in moved)


def test_boundaries_that_snap_to_one_evaluation_are_refused(make):
    with pytest.raises(ValueError, match=r"the 3 steps of ddim are too few to keep the boundaries \[300, 310\] apart"):
        snap(make("vp"), "ddim", 3, [300, 310])


@pytest.mark.parametrize(
    ("kind", "scheduler", "name"),
    [
        ("vp", "dpm_solver", "DPMSolverMultistepScheduler"),
        ("edm", "edm_dpm_solver", "EDMDPMSolverMultistepScheduler"),
    ],
)
@pytest.mark.parametrize("restart", [True, False])
def test_a_multistep_solver_mixes_decoders_unless_it_restarts(make, monkeypatch, kind, scheduler, name, restart):
    process, solver, mixtures = make(kind), getattr(diffusers, name), []
    boundaries = snap(process, scheduler, 18, [process.at_share(share) for share in (0.4, 0.7)])
    at_work = []

    def model(x, t):
        at_work.append(int(intervals_of(t, boundaries)))
        return SimpleNamespace(sample=torch.zeros_like(x))

    def tagged(self, *args, **kwargs):
        output = convert(self, *args, **kwargs).clone()
        output.stage = at_work[-1]
        return output

    def watched(self, outputs, *args, **kwargs):
        mixtures.append({output.stage for output in outputs[-2:]})
        return combine(self, outputs, *args, **kwargs)

    convert, combine = solver.convert_model_output, solver.multistep_dpm_solver_second_order_update
    monkeypatch.setattr(solver, "convert_model_output", tagged)
    monkeypatch.setattr(solver, "multistep_dpm_solver_second_order_update", watched)
    restarts = boundaries if restart else ()
    sample(model, Sampler(process, scheduler, 18, 0, (1, 4, 4), CPU, 2, restarts=restarts), range(2))
    assert sorted(set(at_work)) == [0, 1, 2]
    # The first step has nothing to look back on, the last must not; with restarts neither has the first of each later interval.
    assert len(mixtures) == (14 if restart else 16)
    assert (max(map(len, mixtures)) == 1) == restart
