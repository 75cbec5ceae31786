"""The calibration of a student's output: what is measured, and what it does."""

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from helpers import tiny_unet
from torch import nn

from stages.datasets.training import TrainingSet
from stages.diffusion.process import SAMPLERS
from stages.diffusion.sampling import Sampler
from stages.models.multi_decoder_unet import (
    Calibration,
    MultiDecoderUNet2DModel,
    SeparateUNet2DModel,
    bands,
    calibrate,
    cosine_basis,
)
from stages.models.pipelines import load_student, save_student
from stages.models.specs import identity_architecture
from stages.training.calibration import EDGES, Calibrator, calibrate_student, missing_power, power_of
from stages.training.calibration import gains as gains_of
from stages.training.student import build_student

SHARES = [0.98, 0.96, 0.95, 0.9, 0.8, 0.7]  # what the weak net has left of each band


def settings(reference: str) -> dict[str, object]:
    return {"calibrate": reference, "calibration_draws": 96, "calibration_samples": 0}


def shrunk(image: torch.Tensor, mean: torch.Tensor, shares: list[float]) -> torch.Tensor:
    """An image whose differences from the mean are weaker, by band."""
    basis = cosine_basis(8)
    factors = torch.tensor(shares)[bands(8, 8, EDGES)]
    return mean + basis.T @ (basis @ (image - mean) @ basis.T * factors) @ basis


class Weak(nn.Module):
    """A net whose images are the teacher's, shrunk at t >= `since`."""

    def __init__(self, teacher, process, mean, since):
        super().__init__()
        self.teacher, self.process, self.mean, self.since = teacher, process, mean, since

    def forward(self, x, t):
        t = torch.as_tensor(t).reshape(-1).expand(len(x))
        p, q = (f.float()[:, None, None, None] for f in self.process.image_factors(t))
        output = self.teacher(x, t).sample
        weaker = (shrunk(p * output + q * x, self.mean, SHARES) - q * x) / p
        return UNet2DOutput(torch.where((t >= self.since)[:, None, None, None], weaker, output))


@pytest.fixture
def data(digits):
    return TrainingSet.of_images(digits)


def middle(process):
    return process.at_share(0.4)


@torch.no_grad()
def test_a_calibrated_weak_net_is_its_teacher_again(process, data):
    teacher, since = tiny_unet(), middle(process)
    calibrator = Calibrator(teacher, data, process, settings("teacher"), 0)
    mean = calibrator.mean
    weak = Weak(teacher, process, mean, since)
    table = calibrator.table(weak, process.edges([since]))
    rows = [*zip(table["timesteps"], table["gains"], strict=True)]
    at = [i for i, (t, _) in enumerate(rows) if t == since]
    for i, (_, gains) in enumerate(rows):
        if at[0] < i < at[-1]:
            continue
        wanted = SHARES if i >= at[-1] else [1.0] * 6
        # In 8 x 8 pixels the lowest band, up to 1/16 of the highest frequency, is empty.
        for band, (gain, share) in enumerate(zip(gains, wanted, strict=True)):
            assert gain == pytest.approx(1.0 if band == 1 else 1 / share, rel=2e-3)
    calibration = Calibration(table, tuple(mean.shape))
    calibration.mean.copy_(mean)
    t = torch.stack([torch.as_tensor(process.at_share(share)) for share in (0.05, 0.39, 0.41, 0.8)])
    x = process.noise(data.x0(torch.arange(4)), torch.randn(4, 1, 8, 8), t)
    output = teacher(x, t).sample
    assert not torch.allclose(weak(x, t).sample, output, atol=1e-3)
    torch.testing.assert_close(calibration(weak(x, t).sample, x, t), output, atol=5e-3, rtol=5e-3)


def test_gains_of_one_change_nothing(process):
    times = [float(process.low), float(process.at_share(1))]
    table = {
        "timesteps": times,
        "prediction": [-0.5, -1.0],
        "sample": [1.0, 0.1],
        "edges": EDGES,
        "gains": [[1.0] * 6] * 2,
    }
    x, y = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    assert torch.equal(Calibration(table, (1, 8, 8))(y, x, torch.tensor([times[0], 0.0, times[1]])), y)


def test_the_gains_of_a_stage_do_not_reach_into_the_next():
    gains = [[1.0] * 6, [1.0] * 6, [2.0] * 6, [3.0] * 6]
    table = {"timesteps": [0.0, 400.0, 400.0, 999.0], "prediction": [1.0] * 4, "sample": [0.0] * 4, "edges": EDGES}
    calibration = Calibration(table | {"gains": gains}, (1, 8, 8))
    assert calibration.at(torch.tensor([399.0, 400.0, 699.5, 999.0, 2000.0]))[:, 2].tolist() == [
        1.0,
        2.0,
        2.5,
        3.0,
        3.0,
    ]
    y = torch.randn(2, 1, 8, 8)
    got = calibration(y, torch.zeros_like(y), torch.tensor([399.0, 999.0]))
    torch.testing.assert_close(got, torch.stack([y[0], 3 * y[1]]))


def test_the_transform_is_orthonormal_and_its_bands_cover_it():
    basis = cosine_basis(12)
    torch.testing.assert_close(basis @ basis.T, torch.eye(12), atol=1e-5, rtol=0)
    found = bands(16, 16, EDGES)
    assert found[0].tolist() == [0, 1, 2, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5]
    assert torch.equal(found, found.T) and found[3, 9] == 5


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("classes", [None, 10])
def test_a_saved_student_keeps_its_calibration(
    tmp_path, digits, process, diffusion_settings, edm_settings, shared, classes
):
    """Calibrated to its own samples too, of drawn classes when it knows any."""
    data = TrainingSet.of_images(digits, torch.arange(len(digits)) % 10)
    teacher, boundaries = tiny_unet(num_class_embeds=classes), [float(middle(process))]
    known = {} if classes is None else {"class_labels": torch.tensor([1, 7])}
    params = {"seed": 0, "precision": "fp32", "sampling": {"scheduler": SAMPLERS[process.name][0], "steps": 3}}
    params["diffusion"] = {"vp": diffusion_settings, "edm": edm_settings}[process.name]
    params["retrain"] = settings("data") | {"calibration_samples": 10, "batch_size": 4}
    student = build_student(teacher, identity_architecture(teacher, 2), boundaries, 0, shared)
    assert isinstance(student, MultiDecoderUNet2DModel if shared else SeparateUNet2DModel)
    x, t = torch.randn(2, 1, 8, 8), torch.stack([torch.as_tensor(process.at_share(s)) for s in (0.2, 0.9)])
    with torch.no_grad():
        before = student.eval()(x, t, **known).sample
        found = calibrate_student(student, teacher, data, params)
        assert found["images_drawn"] == 20 and len(found["powers"]) == 2
        assert student.config["calibration"]["gains"] == found["gains"]
        after = student(x, t, **known).sample
        assert not torch.equal(before, after)
        save_student(tmp_path / "student", student, process.scheduler(), {})
        again = load_student(tmp_path / "student").eval()
        # a loaded weight lies elsewhere, which BLAS may round by
        torch.testing.assert_close(again(x, t, **known).sample, after)
        torch.testing.assert_close(again.output_calibration.mean, data.x0(torch.arange(len(data))).mean(0))


def test_a_net_that_is_no_weaker_stays_as_it_is(data, process):
    teacher = tiny_unet()
    table = Calibrator(teacher, data, process, settings("teacher"), 0).table(teacher, process.edges([]))
    assert all(gain == pytest.approx(1.0) for gains in table["gains"] for gain in gains)
    assert table == Calibrator(teacher, data, process, settings("teacher"), 0).table(teacher, process.edges([]))


class Known(nn.Module):
    """A net whose images are a function of x_t / s_t and sigma; it has a parameter, as nets have."""

    def __init__(self, process, image):
        super().__init__()
        self.process, self.image, self.config = process, image, {"num_class_embeds": None}
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        t = torch.as_tensor(t).reshape(-1).expand(len(x))
        p, q = (f.float()[:, None, None, None] for f in self.process.image_factors(t))
        s, sigma = (f.float()[:, None, None, None] for f in self.process.scale_sigma(t))
        return UNet2DOutput((self.image(x / s, sigma) - q * x) / p)


@torch.no_grad()
def test_against_the_data_a_weak_net_gets_the_strength_of_the_optimal_denoiser(process):
    """Normal coefficients, one in each band, have the known posterior mean c / (1 + sigma^2)."""
    places = [(0, 0), (0, 1), (2, 0), (3, 2), (6, 5)]
    numbers = torch.randn(3000, len(places), generator=torch.Generator().manual_seed(0))
    coefficients = torch.zeros(3000, 1, 8, 8)
    for i, (row, column) in enumerate(places):
        coefficients[:, 0, row, column] = numbers[:, i]
    basis = cosine_basis(8)
    data = TrainingSet(basis.T @ coefficients @ basis)
    mask = torch.zeros(8, 8)
    mask[tuple(zip(*places, strict=True))] = 1

    def optimal(z, sigma):
        return basis.T @ (basis @ z @ basis.T * mask / (1 + sigma**2)) @ basis

    teacher = Known(process, lambda z, sigma: torch.zeros_like(z))
    weak = Known(process, lambda z, sigma: shrunk(optimal(z, sigma), torch.zeros(1, 8, 8), SHARES))
    calibrator = Calibrator(teacher, data, process, settings("data"), 0)
    table = calibrator.table(weak, process.edges([]))
    sigma = process.sigma_of(torch.tensor(table["timesteps"]))
    checked = [gains for gains, level in zip(table["gains"], sigma, strict=True) if 0.7 < level < 3]
    assert len(checked) > 3
    for gains in checked:
        for gain, share, band in zip(gains, SHARES, range(6), strict=True):
            assert band == 1 or gain == pytest.approx(1 / share, rel=0.06)


@torch.no_grad()
def test_where_the_teacher_is_nearer_to_the_truth_it_is_the_reference(data, process):
    """At little noise no other training image is near: the optimal denoiser without the draw's own is far off."""
    teacher = Known(process, lambda z, sigma: z)
    weak = Known(process, lambda z, sigma: 0.9 * z)
    calibrator = Calibrator(teacher, data, process, settings("data"), 0)
    calibrator.mean.zero_()
    table = calibrator.table(weak, process.edges([]))
    assert table["gains"][0] == pytest.approx([1 / 0.9, 1, *[1 / 0.9] * 4], rel=1e-4)
    assert table["gains"][-1] != pytest.approx(table["gains"][0], rel=1e-2)


class Drawn(Sampler):
    """Gives known images instead of drawing them."""

    images: torch.Tensor

    def draw_undecoded(self, model, indices):
        assert all(index < 0 for index in indices)
        return shrunk(self.images[[-1 - index for index in indices]], self.mean, model)


FLAT = {
    "timesteps": [0.0, 999.0],
    "prediction": [-1.0] * 2,
    "sample": [0.0] * 2,
    "edges": EDGES,
    "gains": [[1.0] * 6, [1.2] * 6],
}


def matched(data, process, answers, **changes):
    """The factors that `matched` gives gains, and the powers that it saw, when `answers(gains)` scale images drawn with gains."""
    calibrator = Calibrator(tiny_unet(), data, process, settings("data") | {"calibration_samples": 300} | changes, 0)
    draws = Drawn(process, SAMPLERS[process.name][0], 10, 0, (1, 8, 8), torch.device("cpu"), 128)
    images = data.x0(torch.arange(300) % len(data))
    calibrator.power = power_of(calibrator._strengths(images)).mean(
        0
    )  # of just these, so that what is asked for is known
    object.__setattr__(draws, "images", images)
    object.__setattr__(draws, "mean", calibrator.mean)
    table, powers = calibrator.matched(FLAT, lambda table: answers(np.array(table["gains"][0])).tolist(), draws)
    return np.array(table["gains"])[0], np.array(table["gains"])[1], np.array(powers)


def test_drawn_images_get_the_power_of_training_images(data, process):
    """Images of (gain / 1.03)^4: gains of 1.03 are right, and the second round is nearer to them than the first."""
    first, last, powers = matched(data, process, lambda gains: (gains / 1.03) ** 4)
    full = np.array([True, False, True, True, True, True])  # the second band is empty in 8 x 8 pixels
    assert powers[0][full] == pytest.approx(1.03**-8, rel=0.01)
    assert (abs(np.log(powers[1][full])) < abs(np.log(powers[0][full])) / 3).all()
    assert first[full] == pytest.approx(1.03, abs=0.006)
    assert last == pytest.approx(1.2 * first) and first[1] == 1.0


def test_matching_stays_near_whatever_the_images_do(data, process):
    first, last, _ = matched(data, process, lambda gains: np.full(6, 3.0))
    assert (first >= np.exp(-0.1) - 1e-9).all() and (first <= 1.0).all() and (last >= 1.2 * np.exp(-0.1) - 1e-9).all()
    first, _, _ = matched(data, process, lambda gains: np.ones(6))
    assert first == pytest.approx(1.0)


@pytest.mark.parametrize("changes", [{"calibration_samples": 0}, {"calibrate": "teacher"}])
def test_without_samples_nothing_is_drawn(data, process, changes):
    first, _, powers = matched(data, process, lambda gains: 1 / 0, **changes)
    assert first.tolist() == [1.0] * 6 and len(powers) == 0


def test_power_that_may_be_chance_fades():
    random, wanted = torch.Generator().manual_seed(0), np.ones(6)
    for error, kept in ((0.1, 0.998), (2.0, 0.5)):
        noise = torch.randn(400, generator=random, dtype=torch.float64)
        power = 1.1 + 1.1 * error * (noise - noise.mean()) / noise.std(correction=0)
        missing = missing_power(power.numpy()[:, None].repeat(6, 1), wanted)
        assert missing == pytest.approx(np.log(1.1) * kept, rel=0.05)


def test_a_gain_that_may_be_chance_fades():
    """All of an excess of 20 standard errors is kept, half of one of 1 is left, next to nothing of less."""
    found = torch.ones(400, 1, 8, 8)
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    noise = (noise - noise.mean(0)) / noise.std(0)  # a mean has a standard error of 1 / 20
    for excess, error, kept in ((0.1, 0.1, 0.0998), (0.05, 1.0, 0.025), (0.005, 1.0, 0.00005)):
        wanted = 1 + excess + error * noise
        # The band of frequency 0 is one coefficient, so its standard error is that of one.
        assert gains_of(wanted, found)[0] == pytest.approx(1 + kept, abs=2e-4)
    assert gains_of(1.1 * found, found)[2:] == pytest.approx([1.1] * 4)


def test_a_gain_stays_in_its_limits():
    found = torch.ones(4, 1, 8, 8)
    assert gains_of(9 * found, found) == [1.5, 1.0, *[1.5] * 4]
    assert gains_of(found / 9, found) == pytest.approx([1 / 1.5, 1.0, *[1 / 1.5] * 4])
    assert gains_of(-found, found) == [1.0] * 6


def test_a_student_without_a_calibration_has_none(unet):
    student = build_student(unet, identity_architecture(unet), [], 0)
    assert student.output_calibration is None and student.config["calibration"] is None
    mean = torch.zeros(1, 8, 8)
    table = {
        "timesteps": [0.0, 999.0],
        "prediction": [-1.0] * 2,
        "sample": [0.0] * 2,
        "edges": EDGES,
        "gains": [[1.0] * 6] * 2,
    }
    calibrate(student, table, mean)
    assert student.config["calibration"] == table
