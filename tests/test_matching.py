"""Costs as shares of the teacher's, and the knob that brings a net to a budget."""

import sys

import pytest
import torch
from filelock import FileLock
from helpers import ROOT, spec_at, tiny_unet

sys.path.insert(0, str(ROOT / "benchmarks"))

import matching
from matching import Clock, Counter, Evaluation, share_of, turn_knob

from stagecraft.elastic.architecture import identity_architecture
from stagecraft.evaluation.cost import model_cost
from stagecraft.training.student import build_student

SHAPE = (1, 8, 8)


def test_a_knob_is_turned_until_the_net_is_at_the_budget():
    tried = []

    def measure(setting):
        tried.append(setting)
        return 0.2 + 0.7 * setting

    found = turn_knob(measure, 0.5, 1.0)
    assert found.share == pytest.approx(0.5, rel=0.03) and found.share == measure(found.setting)
    assert tried[0] == 0.5 and len(found.tried) <= 4
    assert [setting for setting, _ in found.tried] == tried[:-1]


def test_a_knob_of_coarse_steps_is_left_at_the_nearest():
    found = turn_knob(lambda setting: 0.3 if setting < 0.4321 else 0.6, 0.5, 1.0)
    assert found.share == 0.6 and not matching.is_within(found.share, 0.5)
    assert found.setting >= 0.4321 and len(found.tried) <= matching.ROUNDS


def test_a_knob_is_turned_up_where_no_net_has_its_setting():
    def measure(setting):
        if setting < 0.7:
            raise ValueError("infeasible")
        return setting - 0.2

    found = turn_knob(measure, 0.52, 1.5)
    assert found.share == pytest.approx(0.52, rel=0.03) and found.tried[0] == (0.52, None)


def test_a_knob_without_any_net_says_why():
    def measure(setting):
        raise ValueError("the budget cannot be met")

    with pytest.raises(ValueError, match="cannot be met"):
        turn_knob(measure, 0.5, 1.0)


def test_once_there_was_a_net_two_settings_without_one_are_enough():
    def measure(setting):
        if setting < 0.6:
            raise ValueError("infeasible")
        return 0.9

    found = turn_knob(measure, 0.5, 1.0)
    first = next(number for number, (_, share) in enumerate(found.tried) if share is not None)
    assert found.share == 0.9 and found.tried[first][0] == pytest.approx(0.5 * matching.GROWTH**first)
    assert [share for _, share in found.tried[first:]] == [0.9, None, None]


@pytest.fixture
def clock(tmp_path):
    return Clock(tiny_unet(), SHAPE, 2, tmp_path / "clock.lock")


def test_time_is_the_median_ratio_of_evaluations_in_turn(clock, monkeypatch):
    asked = []

    def seconds(net, x, timestep):
        assert FileLock(clock.lock).is_locked is False  # another object's state; the file itself is held
        with pytest.raises(TimeoutError):
            FileLock(clock.lock).acquire(timeout=0)
        asked.append((net, timestep))
        drift = 1 + len(asked) / 50  # a machine that slows down
        return drift * (1.0 if net is clock.teacher else 0.4)

    monkeypatch.setattr(matching, "time_evaluation", seconds)
    found = clock.shares([Evaluation("net", 300), Evaluation("net", 700)])
    assert found == pytest.approx([0.4, 0.4], rel=0.02)
    assert asked[:2] == [(clock.teacher, 300), ("net", 300)] and asked[-2:] == [(clock.teacher, 700), ("net", 700)]
    assert len(asked) == 2 * 2 * (matching.WARM_UP + matching.LEAST_PAIRS)


def test_a_noisy_measurement_is_repeated(clock, monkeypatch):
    seconds = iter(torch.rand(1000, generator=torch.Generator().manual_seed(0)).add(0.5).tolist())
    monkeypatch.setattr(matching, "time_evaluation", lambda *_: next(seconds))
    pairs = []
    ratio = clock.ratio
    monkeypatch.setattr(clock, "ratio", lambda *evaluation: pairs.append(ratio(*evaluation)) or pairs[-1])
    clock.share("net", 0)
    assert len(pairs) == matching.WARM_UP + matching.MOST_PAIRS


def test_a_net_counts_by_the_steps_in_each_interval():
    teacher = tiny_unet()
    architecture = identity_architecture(teacher, 2)
    spec_at(architecture, "up_blocks.0", 1)["resnets.0"] = None
    net = build_student(teacher, architecture, [400], 0).eval()
    counter = Counter(teacher, SHAPE)
    expected = model_cost(net, SHAPE, [400], [3, 1])["macs"] / model_cost(teacher, SHAPE, [], [1])["macs"]
    assert share_of(counter, net, [400], [3, 1]) == pytest.approx(expected)
    assert share_of(counter, net, [400], [3, 1]) > share_of(counter, net, [400], [1, 3])
