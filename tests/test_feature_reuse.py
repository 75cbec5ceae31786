"""Deep features reused between a sampler's steps."""

import copy
import sys

import pytest
import torch
from helpers import ROOT, tiny_unet

sys.path.insert(0, str(ROOT / "benchmarks"))

from feature_reuse import (
    ENCODER,
    BranchAlone,
    FeatureReuse,
    ReuseCosts,
    Schedule,
    as_student,
    branches_of,
    encode_first,
    run_branch,
    run_whole,
)
from matching import Counter

from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import Sampler, evaluation_timesteps
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.training.student import build_student

SHAPE = (1, 8, 8)
# Two layers a block; attention in the coarse level; resampling by convolutions, or by ResNet layers.
TEACHERS = {
    "convolutions": {"layers_per_block": 2},
    "resnets": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
}


@pytest.fixture(params=TEACHERS)
def teacher(request):
    return tiny_unet(**TEACHERS[request.param])


@pytest.fixture
def student(teacher):
    """Two intervals with a decoder each."""
    net = build_student(teacher, identity_architecture(teacher, 2), [400], 0).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


@pytest.fixture
def sampler(diffusion_settings):
    return Sampler(make_process(diffusion_settings), "ddim", 6, 0, SHAPE, torch.device("cpu"), 2)


def test_with_every_step_whole_samples_are_the_teachers_bit_for_bit(teacher, sampler):
    expected = sampler.draw_undecoded(teacher, range(3))
    for branch in branches_of(as_student(teacher), encoder=True):
        net = FeatureReuse(as_student(teacher), 1, branch)
        assert torch.equal(sampler.draw_undecoded(net, range(3)), expected)


def test_with_every_step_whole_samples_are_the_students_bit_for_bit(student, sampler):
    expected = sampler.draw_undecoded(student, range(3))
    for branch in branches_of(student, encoder=True):
        assert torch.equal(sampler.draw_undecoded(FeatureReuse(student, 1, branch), range(3)), expected)


def test_a_branch_on_features_of_the_same_input_gives_the_whole_output(student):
    x, t = torch.randn(2, *SHAPE), torch.tensor([700, 700])
    with torch.no_grad():
        emb, expected = student.embed(t), student(x, t).sample
        for branch in branches_of(student, encoder=True):
            whole, kept = run_whole(student, x, emb, 1, branch)
            assert torch.equal(whole, expected)
            assert torch.equal(run_branch(student, x, emb, 1, branch, kept), expected)


def test_a_branch_sees_the_new_input_and_the_kept_features(student):
    x, other, t = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE), torch.tensor([700, 700])
    with torch.no_grad():
        emb = student.embed(t)
        for branch in branches_of(student, encoder=False):
            kept = run_whole(student, x, emb, 1, branch)[1]
            found = run_branch(student, other, emb, 1, branch, kept)
            assert not torch.equal(found, student(other, t).sample) and not torch.equal(found, student(x, t).sample)
        kept = run_whole(student, x, emb, 1, ENCODER)[1]
        assert torch.equal(run_branch(student, other, emb, 1, ENCODER, kept), student(x, t).sample)


def test_the_first_skips_are_those_of_the_encoder(teacher):
    net, x = as_student(teacher), torch.randn(2, *SHAPE)
    with torch.no_grad():
        emb = net.embed(torch.tensor([3, 3]))
        skips = net.encode(x, emb)[1]
        for count in range(1, len(skips) + 1):
            found = encode_first(net, x, emb, count)
            assert len(found) == count and all(map(torch.equal, found, skips))


def whole_steps(schedule, timesteps, decoders=None):
    decoders = decoders or [0] * len(timesteps)
    return [schedule.is_whole(t, decoder) for t, decoder in zip(timesteps, decoders, strict=True)]


def test_every_nth_step_of_a_run_is_whole():
    schedule = Schedule(3, 1)
    assert whole_steps(schedule, [9, 8, 7, 6, 5]) == [True, False, False, True, False]
    assert whole_steps(schedule, [9, 8]) == [True, False]  # t has risen: another run
    assert whole_steps(schedule, [8, 8]) == [True, True]


def test_features_of_another_decoder_are_not_reused():
    timesteps, decoders = [9, 8, 7, 6], [1, 1, 0, 0]
    assert whole_steps(Schedule(3, 1), timesteps, decoders) == [True, False, True, False]
    assert whole_steps(Schedule(3, ENCODER), timesteps, decoders) == [True, False, False, True]


def test_samples_with_reused_features_do_not_depend_on_the_batch_or_on_runs_before(student, sampler):
    net = FeatureReuse(student, 2, 1)
    expected = sampler.draw_undecoded(net, range(4))
    parts = [sampler.draw_undecoded(net, rows) for rows in ([2, 3], [0], [1])]
    torch.testing.assert_close(torch.cat([parts[1], parts[2], parts[0]]), expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(expected, sampler.draw_undecoded(student, range(4)))


def test_costs_are_those_of_the_steps_that_a_run_takes(student, teacher, sampler):
    branches = branches_of(student, encoder=True)
    nodes = evaluation_timesteps(sampler.process, "ddim", 6).tolist()
    counter = Counter(teacher, SHAPE)
    costs = ReuseCosts(student, branches, counter, nodes)
    assert costs.total(1, 1) == pytest.approx(1.0)
    between = [costs.between[branch][0] for branch in branches[:-1]]
    assert between == sorted(between) and 0 < between[0] < between[-1] < 1 and 0 < costs.between[ENCODER][0] < 1
    # Six steps, three in each interval: whole, between, whole of either decoder.
    low, high = costs.between[1]
    assert costs.total(2, 1) == pytest.approx((4 + low + high) / 6)
    assert costs.total(6, ENCODER) == pytest.approx(
        (1 + 2 * costs.between[ENCODER][1] + 3 * costs.between[ENCODER][0]) / 6
    )


def test_a_branch_alone_takes_classes_and_leaves_the_net_as_it_is():
    net = as_student(tiny_unet(num_class_embeds=3))
    before = copy.deepcopy(net.state_dict())
    alone = BranchAlone(net, 1, torch.randn(2, *SHAPE), 500)
    labels = torch.zeros(2, dtype=torch.int64)
    assert alone(torch.randn(2, *SHAPE), 500, labels).sample.shape == (2, *SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
