"""The training loop: batches by (seed, step), resuming, refusing."""

import pytest
import torch
from torch import nn

from stages.training.loop import TrainSettings, learning_rate_factor, train

SETTINGS = TrainSettings(
    steps=12, learning_rate=0.01, warmup_steps=3, ema_decay=0.9, gradient_clip=1.0, checkpoint_every=5
)


class Killed(Exception):
    """Stands for SIGKILL: leaves the loop with no chance to tidy up."""


def fresh_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))


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


def test_a_killed_run_resumes_and_ends_with_the_same_bits(tmp_path):
    weights, result = run()
    with pytest.raises(Killed):
        run(tmp_path / "c.pt", killed_at=8)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 5
    again, resumed = run(tmp_path / "c.pt")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert all(torch.equal(result.ema[name], resumed.ema[name]) for name in weights)
    assert result.history == resumed.history


def test_a_checkpoint_of_other_params_is_refused(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path / "c.pt", killed_at=8)
    with pytest.raises(ValueError, match="made with other params"):
        run(tmp_path / "c.pt", fingerprint={"a": 2})


def flipped(content):
    return content[:900] + bytes([content[900] ^ 1]) + content[901:]


@pytest.mark.parametrize(
    "damage", [lambda c: c[:1000], lambda c: c[:-1], lambda c: c[:20], lambda c: b"", flipped, lambda c: c + b"x"]
)
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    with pytest.raises(Killed):
        run(tmp_path / "c.pt", killed_at=8)
    (tmp_path / "c.pt").write_bytes(damage((tmp_path / "c.pt").read_bytes()))
    with pytest.raises(ValueError, match=r"c\.pt: damaged checkpoint"):
        run(tmp_path / "c.pt")


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint(tmp_path):
    model = fresh_model()

    def losses(step, generator):
        yield "noise", model(torch.ones(1, 4)).sum() * (float("nan") if step == 7 else 1.0)

    with pytest.raises(ValueError, match="loss 'noise' is nan at step 7"):
        train(model, losses, SETTINGS, checkpoint=tmp_path / "c.pt", fingerprint={})
    assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == 5


def test_learning_lowers_the_loss_and_history_names_each_part():
    _, result = run(settings=TrainSettings(steps=200, learning_rate=0.01))
    assert result.history[-1]["loss"] < 0.3 * result.history[0]["loss"]
    assert {"step", "loss", "first", "second"} == set(result.history[0])
    assert result.ema is None and result.history[-1]["step"] == 200


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
