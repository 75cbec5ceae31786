"""FID and its companions: the extractor, the measures and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import section_with
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from stagecraft.config.sections import TrainExtractor
from stagecraft.evaluation import extractor as ex
from stagecraft.evaluation import fidelity as fi
from stagecraft.evaluation.samples import NAMES, PATH, load_samples, save_samples

CPU = torch.device("cpu")
SETTINGS = {"features": 8, "width": 8, "steps": 40, "batch_size": 32, "learning_rate": 0.01, "checkpoint_every": 1000}
SCORING = {"kid_subset_size": 50, "neighbours": 3, "seed": 0, "device": CPU}


def bars(count: int, seed: int, channels: int = 1, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Images of an upright or a level bar with noise, and which (labels 3 and 7)."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 60, (count, size, size, channels))
    upright = random.integers(0, 2, count).astype(bool)
    places = random.integers(0, size // 2, count)
    for image, is_upright, place in zip(images, upright, places, strict=True):
        (image[:, place] if is_upright else image[place])[:] += 150
    return images.astype(np.uint8), np.where(upright, 3, 7)


@pytest.fixture(scope="module")
def trained() -> ex.Trained:
    return ex.train_extractor(*bars(200, 0), bars(60, 1), section_with(TrainExtractor, **SETTINGS), seed=0, device=CPU)


@pytest.fixture(scope="module")
def classifier(trained: ex.Trained, tmp_path_factory: pytest.TempPathFactory) -> fi.Extractor:
    path = tmp_path_factory.mktemp("extractor") / "extractor.safetensors"
    ex.save_classifier(path, trained.model, trained.description | {"params": {"seed": 0}})
    return fi.open_extractor("classifier", path, bars(1, 0)[0][0])


def test_classifier_learns_the_labels(trained: ex.Trained) -> None:
    assert trained.description["kind"] == "classifier"
    assert trained.description["classes"] == 2
    assert trained.description["held_out_accuracy"] > 0.95


def test_without_labels_it_predicts_rotations() -> None:
    images, _ = bars(200, 0)
    found = ex.train_extractor(
        images, None, (images[:50], None), section_with(TrainExtractor, **SETTINGS | {"steps": 100}), seed=0, device=CPU
    )
    assert (found.description["kind"], found.description["classes"]) == ("rotation", 4)
    assert found.description["held_out_accuracy"] > 0.5


def test_labels_of_one_class_teach_nothing_so_it_predicts_rotations() -> None:
    assert ex.make_task(np.zeros(10, np.int64)).kind == "rotation"


def test_rotation_turns_each_image_by_its_own_quarter_turns() -> None:
    images = torch.arange(3 * 4, dtype=torch.uint8).reshape(3, 1, 2, 2)
    turned = ex.rotated(images, torch.tensor([0, 1, 2]))
    assert torch.equal(turned, torch.stack([images[0], images[1].rot90(1, (1, 2)), images[2].rot90(2, (1, 2))]))


def test_training_is_repeatable(trained: ex.Trained, tmp_path: Path) -> None:
    again = ex.train_extractor(*bars(200, 0), bars(60, 1), section_with(TrainExtractor, **SETTINGS), seed=0, device=CPU)
    for name, run in (("a", trained), ("b", again)):
        ex.save_classifier(tmp_path / name, run.model, run.description)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("size", "channels"), [(8, 3), (28, 1), (64, 3)])
def test_classifier_takes_other_sizes_and_colours(size: int, channels: int) -> None:
    model = ex.build(ex.Shape(channels, size, 2, 8, 8), seed=0)
    assert model.features(torch.zeros(2, channels, size, size, dtype=torch.uint8)).shape == (2, 8)


def test_features_have_unit_mean_square_over_the_training_images(trained: ex.Trained) -> None:
    features = trained.model.features(ex.to_tensor(bars(200, 0)[0]))
    assert features.square().mean().item() == pytest.approx(1, rel=1e-4)


def test_features_must_fill_the_grid() -> None:
    with pytest.raises(ValueError, match=r"train_extractor\.features: 10"):
        ex.train_extractor(
            *bars(8, 0), bars(8, 1), section_with(TrainExtractor, **SETTINGS | {"features": 10}), seed=0, device=CPU
        )


def test_saved_classifier_gives_the_same_features(trained: ex.Trained, classifier: fi.Extractor) -> None:
    images = ex.to_tensor(bars(5, 2)[0])
    assert torch.equal(ex.load_classifier(classifier.weights).features(images), trained.model.features(images))


def test_any_other_file_is_refused_as_extractor(tmp_path: Path) -> None:
    path = tmp_path / "extractor.safetensors"
    path.write_text("no weights")
    with pytest.raises(ValueError, match="not an extractor"):
        ex.read_classifier(path)


def test_equal_sets_are_at_distance_zero_and_noise_is_not(classifier: fi.Extractor) -> None:
    images, _ = bars(200, 0)
    same = fi.fidelity(images, images, classifier, **SCORING)
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert same["precision"] == same["recall"] == 1
    assert fi.fidelity(images, images, classifier, **SCORING | {"neighbours": None}) == {
        m: same[m] for m in ("fid", "kid")
    }
    noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    far = fi.fidelity(noise, images, classifier, **SCORING)
    assert far["fid"] > 100 * abs(same["fid"]) + 0.1
    assert far["kid"] > same["kid"]
    assert far["precision"] < 0.5


def test_fid_is_the_frechet_distance_of_the_features(trained: ex.Trained, classifier: fi.Extractor) -> None:
    from scipy.linalg import sqrtm

    sets = [bars(200, seed)[0] for seed in (0, 5)]
    with torch.no_grad():
        (m1, s1), (m2, s2) = (
            (f.mean(0), np.cov(f, rowvar=False))
            for f in (trained.model.features(ex.to_tensor(images)).double().numpy() for images in sets)
        )
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert fi.fidelity(*sets, classifier, **SCORING)["fid"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("generated", "reference", "named"), [(49, 200, "evaluate.samples: 49"), (200, 8, "prepare")])
def test_too_few_images_are_refused(classifier: fi.Extractor, generated: int, reference: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        fi.fidelity(bars(generated, 0)[0], bars(reference, 1)[0], classifier, **SCORING)


def test_a_small_held_out_set_has_no_figure_but_a_reason(classifier: fi.Extractor) -> None:
    found = fi.held_out_fidelity(bars(8, 1)[0], bars(100, 0)[0], classifier, **SCORING)
    assert found["fid"] is None
    assert "8 held-out images" in found["reason"]


def test_held_out_kid_subsets_are_as_large_as_the_set_allows(classifier: fi.Extractor) -> None:
    assert fi.held_out_fidelity(bars(30, 1)[0], bars(100, 0)[0], classifier, **SCORING)["kid"] is not None


class Means(nn.Module):
    """Means of 2x2 quarters of every channel: 12 features."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def test_torchscript_file_as_extractor_sees_grey_as_rgb(tmp_path: Path) -> None:
    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(path)
    images, _ = bars(100, 0)
    extractor = fi.open_extractor(str(path), tmp_path, images[0])
    assert (extractor.features, extractor.channels) == (12, 3)
    assert fi.fidelity(images, images, extractor, **SCORING)["fid"] == pytest.approx(0, abs=1e-3)
    assert fi.describe_extractor(extractor)["file"] == "means.pt"


def test_missing_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    with pytest.raises(ValueError, match=rf"evaluate\.extractor: inception-v3-compat needs the file {weights}, part"):
        fi.open_extractor("inception-v3-compat", tmp_path, bars(1, 0)[0][0])
    with pytest.raises(ValueError, match="not found; use classifier"):
        fi.open_extractor("clasifier", tmp_path, bars(1, 0)[0][0])


def test_samples_file_has_the_same_bytes_for_the_same_images(tmp_path: Path) -> None:
    sets = {name: bars(300, seed)[0] for seed, name in enumerate((*NAMES, *PATH))}
    for name in ("a.npz", "b.npz"):
        save_samples(tmp_path / name, sets, "0")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert np.array_equal(load_samples(tmp_path / "a.npz")[0]["student"], sets["student"][:256])
