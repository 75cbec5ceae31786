"""The training loop: batches by (seed, step), resuming, refusing."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from stagecraft.training.checkpoint import load_checkpoint, save_checkpoint
from stagecraft.training.loop import TrainSettings, learning_rate_factor, train
from stagecraft.training.optimizers import make_optimizer, orthogonalise

SETTINGS = TrainSettings(
    steps=12, learning_rate=0.01, warmup_steps=3, ema_decay=0.9, gradient_clip=1.0, checkpoint_every=5
)


class Killed(Exception):
    """Stands for SIGKILL: leaves the loop with no chance to tidy up."""


def fresh_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))


def regression(model, killed_at=None):
    def losses(step, generator):
        if step == killed_at:
            raise Killed
        x = torch.randn(16, 4, generator=generator)
        yield "first", (model(x) - x.sum(1, keepdim=True)).square().mean()
        yield "second", 0.1 * model(x).abs().mean()

    return losses


def run(path=None, killed_at=None, settings=SETTINGS, fingerprint=None):
    model = fresh_model()
    result = train(model, regression(model, killed_at), settings, checkpoint=path, fingerprint=fingerprint or {"a": 1})
    return model.state_dict(), result


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_resumes_and_ends_with_the_same_bits(tmp_path, optimizer):
    settings = dataclasses.replace(SETTINGS, optimizer=optimizer)
    weights, result = run(settings=settings)
    with pytest.raises(Killed):
        run(tmp_path / "c.pt", killed_at=8, settings=settings)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 5
    again, resumed = run(tmp_path / "c.pt", settings=settings)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert all(torch.equal(result.ema[name], resumed.ema[name]) for name in weights)
    assert result.history == resumed.history


def test_a_finished_run_is_not_trained_again(tmp_path):
    weights, result = run(tmp_path / "c.pt")
    again, resumed = run(tmp_path / "c.pt", killed_at=0)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert result.history == resumed.history


def test_a_checkpoint_of_other_params_is_not_used_and_the_log_says_so(tmp_path, capsys):
    with pytest.raises(Killed):
        run(tmp_path / "c.pt", killed_at=8)
    weights, result = run()
    again, restarted = run(tmp_path / "c.pt", fingerprint={"a": 2})
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert result.history == restarted.history
    line = f"{tmp_path}/c.pt: made with other params or inputs; not used, starting from step 0"
    assert line in capsys.readouterr().err.splitlines()


def flipped(content):
    return content[:900] + bytes([content[900] ^ 1]) + content[901:]


@pytest.mark.parametrize(
    "damage", [lambda c: c[:1000], lambda c: c[:-1], lambda c: c[:20], lambda c: b"", flipped, lambda c: c + b"x"]
)
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    with pytest.raises(Killed):
        run(tmp_path / "c.pt", killed_at=8)
    (tmp_path / "c.pt").write_bytes(damage((tmp_path / "c.pt").read_bytes()))
    with pytest.raises(ValueError, match=r"c\.pt: damaged checkpoint.*; delete it"):
        run(tmp_path / "c.pt")


def test_an_altered_byte_of_a_checkpoint_never_alters_the_run(tmp_path):
    """Anywhere in the file: refused, unless the byte has no meaning, as those that align a record."""
    save_checkpoint(tmp_path / "c.pt", {"fingerprint": "f", "weights": torch.arange(64.0), "step": 5})
    whole, refused = (tmp_path / "c.pt").read_bytes(), 0
    stored = torch.arange(64.0).numpy().tobytes()
    for place in [*range(0, len(whole), 7), whole.index(stored) + 30]:
        altered = bytearray(whole)
        altered[place] ^= 0x40
        (tmp_path / "c.pt").write_bytes(altered)
        try:
            state = load_checkpoint(tmp_path / "c.pt", "f")
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{tmp_path}/c.pt: damaged checkpoint"), place
        else:
            assert state["step"] == 5 and torch.equal(state["weights"], torch.arange(64.0)), place
    assert refused > 100
    (tmp_path / "c.pt").write_bytes(whole.replace(stored, stored[:-4] + bytes(4)))
    with pytest.raises(ValueError, match="damaged checkpoint"):
        load_checkpoint(tmp_path / "c.pt", "f")


def test_what_a_killed_job_was_writing_is_cleared_away(tmp_path):
    (tmp_path / ".c.pt.123.tmp").write_bytes(b"half")
    (tmp_path / ".d.pt.123.tmp").write_bytes(b"of another job")
    run(tmp_path / "c.pt")
    assert {path.name for path in tmp_path.iterdir()} == {"c.pt", ".d.pt.123.tmp"}


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(tmp_path):
    model = fresh_model()

    def losses(step, generator):
        yield "noise", model(torch.ones(1, 4)).sum() * (float("nan") if step == 7 else 1.0)

    with pytest.raises(ValueError, match="loss 'noise' is nan at step 7; lower learning_rate, or set precision: fp32"):
        train(model, losses, SETTINGS, checkpoint=tmp_path / "c.pt", fingerprint={})
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 5


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_is_not_finite_beside_a_finite_loss_ends_the_run(tmp_path, clip):
    model, settings = fresh_model(), dataclasses.replace(SETTINGS, gradient_clip=clip)

    def losses(step, generator):
        # The derivative of a square root at 0 is infinite, and 0 times that is no number.
        zero = model(torch.ones(1, 4)).sum() * 0
        yield "noise", model(torch.ones(1, 4)).sum() + (zero.sqrt() if step == 7 else zero)

    with pytest.raises(ValueError, match="the norm of the gradient is nan at step 7"):
        train(model, losses, settings, checkpoint=tmp_path / "c.pt", fingerprint={})
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert state["step"] == 5 and all(value.isfinite().all() for value in state["model"].values())


def test_a_weight_that_is_not_finite_is_found_before_the_checkpoint_is_written(tmp_path):
    model = fresh_model()

    def losses(step, generator):
        yield "noise", model[0](torch.ones(1, 4)).sum()
        if step == 9:
            model[2].bias.data.fill_(math.inf)

    with pytest.raises(ValueError, match=r"a weight of 2\.bias is nan at step 10"):
        train(model, losses, SETTINGS, checkpoint=tmp_path / "c.pt", fingerprint={})
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 5


def test_learning_lowers_the_loss_and_history_names_each_part():
    _, result = run(settings=TrainSettings(steps=200, learning_rate=0.01))
    assert result.history[-1]["loss"] < 0.3 * result.history[0]["loss"]
    assert {"step", "loss", "first", "second"} == set(result.history[0])
    assert result.ema is None and result.history[-1]["step"] == 200


class Mixed(nn.Module):
    """Kernels and a linear layer, whose steps Muon makes orthogonal, beside weights of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 6)
        self.norm, self.classes, self.unused = nn.GroupNorm(2, 8), nn.Embedding(5, 8), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.conv(x)).mean((2, 3)) + self.classes(torch.arange(len(x)) % 5)
        return self.linear(hidden.tanh())


def one_step(name, learning_rate=0.01):
    """A model's weights before and after one step of an optimizer of ours, and the gradients."""
    model = Mixed()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = make_optimizer(model, name, learning_rate, weight_decay=0.1)
    model(torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(1))).square().sum().backward()
    gradients = {key: p.grad for key, p in model.named_parameters()}
    optimizer.step()
    return before, dict(model.named_parameters()), gradients


def test_muon_steps_as_torchs_does_and_leaves_the_rest_to_adamw():
    before, muon, gradients = one_step("muon")
    _, adamw, _ = one_step("adamw")
    for name in ("conv.weight", "linear.weight"):
        matrix = nn.Parameter(before[name].flatten(1).clone())
        matrix.grad = gradients[name].flatten(1)
        torch.optim.Muon([matrix], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
        theirs = matrix.detach() - before[name].flatten(1)
        ours = (muon[name] - before[name]).flatten(1).detach()
        assert (ours - theirs).norm() < 0.06 * theirs.norm()  # torch's multiplies in bfloat16
    for name in before:
        kept = name not in ("conv.weight", "linear.weight")
        assert torch.equal(muon[name], adamw[name]) is kept
    assert torch.equal(muon["unused.weight"], before["unused.weight"])


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (1, 9)])
def test_the_singular_values_of_a_step_are_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.5 and values.max() < 1.3


def test_learning_rate_warms_up_and_decays():
    factors = [learning_rate_factor(step, SETTINGS) for step in range(12)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1]) and factors[3] == 1 and factors[-1] < 0.1
    assert learning_rate_factor(11, TrainSettings(12, 0.1, decay="constant")) == 1


def test_frozen_weights_stay():
    model = fresh_model()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    train(model, regression(model), SETTINGS)
    assert torch.equal(model[0].weight, before)
