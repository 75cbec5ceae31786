"""Single runs of the comparison, without their training and scoring."""

import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, spec_at, tiny_unet

sys.path.insert(0, str(ROOT / "benchmarks"))

import compression_run
from compression_makers import Dropping, Made
from compression_methods import Method, Options
from compression_run import Run
from matching import Counter
from shared_inputs import cpu_params, preset_file

from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import Sampler
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.evaluation.cost import count_macs
from stagecraft.training.student import build_student

SHAPE = (1, 8, 8)


@pytest.fixture
def run_of(digits, tmp_path, monkeypatch):
    """A function that makes a run of a method of the smoke preset, of the default sampler's 10 steps, that draws nothing."""
    monkeypatch.setattr(Run, "draw", lambda self, net, **how: (net, how))
    monkeypatch.setattr(Run, "score", lambda self, drawn: {"drawn": drawn})

    def make(name, budget, **options):
        run = object.__new__(Run)
        run.method, run.budget, run.seed, run.options = Method(name), budget, 0, Options(**options)
        run.params, run.device = cpu_params(preset_file("smoke")), torch.device("cpu")
        run.data, run.teacher, run.folder = TrainingSet.of_images(digits), tiny_unet(), tmp_path
        run.process, run.steps, run.stated = make_process(run.params["diffusion"]), 10, None
        run.work = tmp_path / name
        # Time, where it is asked for, is what the MACs are.
        run.clock = run.counter = Counter(run.teacher, SHAPE)
        return run

    return make


def small_student(teacher):
    """A student of two intervals, the lower one without attention."""
    architecture = identity_architecture(teacher, 2)
    spec = spec_at(architecture, "up_blocks.0", 0)
    spec |= dict.fromkeys(spec)
    return build_student(teacher, architecture, [500], 0).eval()


def test_fewer_steps_take_their_share_of_the_teachers_time(run_of):
    run = run_of("fewer-steps", 0.7)
    found = run.measured()
    net, how = found["drawn"]
    assert net is run.teacher and how == {"steps": 7} and found["sampling_steps"] == 7
    assert found["time_ratio"] == found["macs_ratio"] == 0.7 and found["params_ratio"] == 1.0 and found["matched"]
    assert found["images_per_second_ratio"] == pytest.approx(1 / 0.7) and "student_budget" not in found
    assert not run_of("fewer-steps", 0.75).measured()["matched"]


def test_a_kept_student_is_sampled_in_fewer_steps_for_a_budget_of_both(run_of):
    searched = run_of("search", 0.8)
    student = small_student(searched.teacher)
    searched.keep_student(student)
    run = run_of("fewer-steps-student", 0.5, student_budget=0.8)
    found = run.measured()
    net, how = found["drawn"]
    assert net.config["boundaries"] == [500] and net.state_dict().keys() == student.state_dict().keys()
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in net.state_dict().items())
    low, high = (count_macs(student, SHAPE, t) / count_macs(run.teacher, SHAPE, 0) for t in (0, 999))
    shares = [(sum(run.steps_in([500], n)), *run.steps_in([500], n)) for n in range(1, 11)]
    best = min(shares, key=lambda share: abs((share[1] * low + share[2] * high) / 10 - 0.5))
    assert how["steps"] == found["sampling_steps"] == best[0] and found["steps_per_interval"] == [*best[1:]]
    assert found["time_ratio"] == pytest.approx((best[1] * low + best[2] * high) / 10)
    assert found["student_budget"] == 0.8 and found["steps"] == run.params["retrain"]["steps"]


def test_a_student_that_is_not_kept_is_asked_for(run_of):
    with pytest.raises(ValueError, match=r"not found; run --methods search --budgets 0\.8 with the same --work"):
        run_of("fewer-steps-student", 0.5, student_budget=0.8).measured()


def test_features_are_reused_as_often_as_the_budget_asks_for(run_of, monkeypatch):
    run = run_of("feature-reuse", 0.7)
    sampler = Sampler(run.process, "ddim", 10, 0, SHAPE, run.device, 64)
    monkeypatch.setattr(Run, "sampler", lambda self, batch_size: sampler)
    monkeypatch.setattr(compression_run, "COMPARED", 4)
    found = run.measured()
    net, how = found["drawn"]
    assert how == {"every": found["every"], "branch": found["branch"]} and found["matched"] and found["every"] > 1
    assert found["time_ratio"] == pytest.approx(0.7, rel=0.03) and found["macs_ratio"] == found["time_ratio"]
    assert (net.schedule.every, net.branch) == (found["every"], found["branch"])
    # Of all ways at the budget it is the one that is nearest to the teacher's own samples.
    from feature_reuse import FeatureReuse, ReuseCosts, as_student, branches_of

    from stagecraft.diffusion.sampling import evaluation_timesteps

    teacher, indices = as_student(run.teacher), range(4)
    nodes = evaluation_timesteps(run.process, run.params["sampling"]["scheduler"], 10).tolist()
    costs = ReuseCosts(teacher, branches_of(teacher, encoder=False), run.counter, nodes)
    ways = [(every, branch) for every in range(2, 11) for branch in branches_of(teacher, encoder=False)]
    fitting = [way for way in ways if abs(costs.total(*way) / 0.7 - 1) <= 0.03]
    other = Sampler(run.process, "ddim", 10, compression_run.OTHER_SEEDS, SHAPE, run.device, 64)
    own = other.draw_undecoded(run.teacher, indices)
    far = {way: (other.draw_undecoded(FeatureReuse(teacher, *way), indices) - own).square().mean() for way in fitting}
    assert len(far) > 1 and min(far, key=far.get) == (found["every"], found["branch"])


def test_the_teacher_is_trained_on_for_the_macs_of_search_and_retraining(run_of, monkeypatch):
    run = run_of("teacher-longer", 0.5)
    step = 3 * run.params["retrain"]["batch_size"] * count_macs(run.teacher, SHAPE, 0)
    monkeypatch.setattr(Run, "spent", lambda self: 4.2 * step)
    before = {name: value.clone() for name, value in run.teacher.state_dict().items()}
    found = run.measured()
    net, _ = found["drawn"]
    assert found["teacher_steps"] == 4 and found["time_ratio"] == 1.0 and found["macs_ratio"] == 1.0
    assert found["steps"] == run.params["retrain"]["steps"] and found["macs_spent"] == 4.2 * step
    assert any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in run.teacher.state_dict().items())


class Narrowing:
    """Stands for a maker: the teacher with a part of its layers dropped, one net for all settings between two tenths."""

    most = 1.0

    def __init__(self, teacher):
        self.teacher, self.sketched = teacher, []

    def describe(self):
        return {"method": "narrowing"}

    def sketch(self, setting):
        import depth

        self.sketched.append(setting)
        sites = depth.layers_of(self.teacher)
        return Made(depth.without(self.teacher, sites[round(len(sites) * setting) :]), [], {})


def test_a_setting_is_found_once_for_all_runs_with_the_same_nets(run_of):
    run = run_of("depth", 0.5)
    maker = Narrowing(run.teacher)
    first = run.matched(maker)
    assert first["share"] == pytest.approx(run.counter.shares([(maker.sketch(first["setting"]).net, 0)])[0])
    assert all(abs(first["share"] - 0.5) <= abs(share - 0.5) for _, share in first["tried"])
    count = len(maker.sketched)
    assert run_of("depth-plain", 0.5).matched(maker) == first and len(maker.sketched) == count
    assert run_of("depth", 0.6).matched(maker) != first and len(maker.sketched) > count


def test_effects_of_dropped_layers_are_measured_once_for_all_runs(run_of, tmp_path, monkeypatch):
    run = run_of("depth", 0.6)
    run.shared = SimpleNamespace(folder=tmp_path)
    run.options = Options(budget_of="macs")
    monkeypatch.setattr(Run, "output_error", lambda self, net, **how: 2.0 - run.counter.shares([(net, 0)])[0])
    maker = Dropping(run)
    made = maker.make(0.6)
    assert run.counter.shares([(made.net, 0)])[0] == pytest.approx(0.6, rel=0.03)
    monkeypatch.delattr(Run, "output_error")
    again = Dropping(run).make(0.6)
    assert all(torch.equal(value, again.net.state_dict()[name]) for name, value in made.net.state_dict().items())


def test_a_net_is_measured_once_whatever_the_setting(run_of, monkeypatch):
    run = run_of("depth", 0.5)
    maker, measured = Narrowing(run.teacher), []
    monkeypatch.setattr(maker, "sketch", lambda setting: Made(run.teacher, [], {}))
    monkeypatch.setattr(run.counter, "shares", lambda evaluations: measured.append(1) or [0.9])
    found = run.matched(maker)
    assert found["share"] == 0.9 and len(found["tried"]) > 1 and len(measured) == 1
