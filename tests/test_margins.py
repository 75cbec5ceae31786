"""Margins of FIDs: what the bootstrap says against what repeated drawing shows."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from stagecraft.evaluation import margins as ma

FEATURES = 24


def features(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Features of normal distribution with correlations, away from the reference's mean by `shift`."""
    random = np.random.default_rng(seed)
    mixing = np.eye(FEATURES) + 0.03
    return torch.from_numpy(random.normal(size=(count, FEATURES)) @ mixing + shift).float()


@pytest.fixture(scope="module")
def reference() -> ma.FrechetReference:
    return ma.FrechetReference(features(2000, 0))


def test_the_distance_is_that_of_torch_fidelity(reference: ma.FrechetReference) -> None:
    one = features(300, 1, shift=0.5)
    known = fid_statistics_to_metric(
        fid_features_to_statistics(one), fid_features_to_statistics(features(2000, 0)), verbose=False
    )
    assert reference.distance(one).item() == pytest.approx(known[KEY_METRIC_FID], rel=1e-5)


def test_a_margin_is_as_wide_as_repeated_drawing_shows(reference: ma.FrechetReference) -> None:
    def repeated(shift: float) -> float:
        drawn = torch.stack([reference.distance(features(400, seed, shift)) for seed in range(100, 300)])
        return ma.HALF_INTERVAL * drawn.std().item()

    def found(shift: float) -> float:
        each = [ma.margin_of(ma.resampled_distances(features(400, seed, shift), reference, 0)) for seed in range(10)]
        return float(np.mean(each))

    assert found(1.0) == pytest.approx(repeated(1.0), rel=0.2)
    # At the reference's own distribution, where FIDs vary by their square; uncorrected, margins are 1.7 times as wide there.
    assert found(0.0) == pytest.approx(repeated(0.0), rel=0.25)


def test_a_margin_depends_on_the_seed_alone(reference: ma.FrechetReference) -> None:
    first, again, other = (
        ma.margin_of(ma.resampled_distances(features(100, 1), reference, seed)) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_sets_that_belong_together_are_resampled_together() -> None:
    teacher = features(500, 1, shift=1.0)
    sets = {"teacher": teacher, "student": teacher + 0.01 * features(500, 2), "other": features(500, 3, shift=1.0)}
    margins, differences = ma.measure_margins(sets, features(2000, 0), None, 0, "student", ["teacher", "other"])
    assert differences["teacher"] < 0.1 * margins["teacher"]["fid_margin"] < 0.2 * differences["other"]
    assert margins["student"].keys() == {"fid_margin"}
    _, none = ma.measure_margins(sets | {"student": teacher}, features(2000, 0), None, 0, "student", ["teacher"])
    assert none == {"teacher": 0}


def test_fids_at_equal_numbers_do_not_favour_the_larger_set() -> None:
    sets = {"teacher": features(2000, 1), "student": features(2000, 2), "held_out": features(100, 3)}
    reference = features(2000, 0)
    margins, _ = ma.measure_margins(sets, reference, 100, 0, "student", ["teacher"])
    whole = {name: ma.FrechetReference(reference).distance(found).item() for name, found in sets.items()}
    assert whole["held_out"] > 3 * whole["teacher"]
    assert margins["held_out"]["fid_equal"] == pytest.approx(whole["held_out"])
    assert margins["teacher"]["fid_equal"] == pytest.approx(
        margins["held_out"]["fid_equal"], abs=margins["held_out"]["fid_equal_margin"]
    )
    assert margins["teacher"]["fid_equal_margin"] < margins["held_out"]["fid_equal_margin"]
