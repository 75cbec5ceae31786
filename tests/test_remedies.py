"""What is said to take less memory: params that the stage reads, that take the values advised, and that its memory follows."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, preset_params

from stagecraft.clustering.denoiser import OptimalDenoiser
from stagecraft.config.stages import STAGE_SECTIONS, param_at
from stagecraft.data.training import TrainingSet
from stagecraft.evaluation import extractor, fidelity
from stagecraft.networks.autoencoder import encode_all
from stagecraft.preflight.params import validate_params
from stagecraft.runtime import device
from stagecraft.runtime.command import explain
from stagecraft.runtime.console import Job, explain_end
from stagecraft.runtime.device import images_at_once
from stagecraft.runtime.remedies import REMEDIES
from stagecraft.search import supernet

KEY = re.compile(r"[a-z_]+\.[a-z_]+")
ADVISED = [(stage, key) for stage, remedy in REMEDIES.items() for key in KEY.findall(remedy)]


@pytest.mark.parametrize(("stage", "name"), ADVISED)
def test_every_key_is_one_that_the_stage_reads(stage, name):
    section, key = name.split(".")
    assert {section, name} & {*STAGE_SECTIONS[stage]}
    assert key in preset_params("digits")[section]


@pytest.mark.parametrize("preset", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_value_that_is_advised_is_accepted(preset):
    for stage, name in ADVISED:
        params = preset_params(preset.stem)
        section, key = name.split(".")
        value = param_at(params, name)
        given = re.search(rf"set {name}: ([\d.]+)", REMEDIES[stage])
        if value is not None or given:
            params[section][key] = float(given[1]) if given else value // 2
            validate_params(params, f"{preset.stem} with another {name}")


def test_a_killed_job_and_one_without_memory_are_given_the_same_advice():
    for stage in STAGE_SECTIONS:
        line = explain(stage, MemoryError())
        killed = explain_end(Job(stage, None, {"mem_mb": 1000}), "", 137)
        assert killed.endswith(f"let a cluster give more with --set-resources {stage}:mem_mb=2000")
        assert "batch_size" not in killed or f"{stage}.batch_size" in killed
        if stage in REMEDIES:
            assert REMEDIES[stage] in line and REMEDIES[stage] in killed
        else:
            assert "give the job more (mem_mb)" in line and "lower" not in killed


@pytest.mark.parametrize(
    ("most", "side", "images"),
    [(1024, 8, 1024), (512, 32, 512), (128, 64, 128), (512, 64, 128), (128, 256, 8), (4, 2048, 1)],
)
def test_large_images_are_taken_a_few_at_a_time(most, side, images):
    assert images_at_once(most, side, side) == images


class Recorder(torch.nn.Module):
    """Stands in for networks and notes how many images come at once."""

    def __init__(self):
        super().__init__()
        self.sizes, self.body, self.head = [], [torch.nn.Conv2d(1, 4, 1)], torch.nn.Linear(4, 10)

    def features(self, images):
        self.sizes.append(len(images))
        return torch.ones(len(images), 4)

    def forward(self, images):
        return self.head(self.features(images))


def test_passes_without_gradients_are_bounded(monkeypatch, digits):
    monkeypatch.setattr(device, "PIXELS", 5 * 64)
    model, data = Recorder(), TrainingSet.of_images(digits)
    extractor.scale_features(model, digits)
    assert extractor.accuracy(model, extractor.make_task(np.zeros(64, dtype=int)), digits, np.zeros(64, dtype=int)) >= 0
    assert max(model.sizes) == 5 and sum(model.sizes) == 64 + 4 * 64  # rotations of each
    sizes = []
    monkeypatch.setattr(
        "stagecraft.networks.autoencoder.encode", lambda vae, images: sizes.append(len(images)) or images
    )
    assert len(encode_all(None, data, torch.device("cpu"))) == 64 and max(sizes) == 5


def test_features_for_the_fid_are_of_no_more_images_than_are_sampled_at_once(monkeypatch):
    seen = {}
    monkeypatch.setattr(fidelity, "calculate_metrics", lambda **given: seen.update(given) or {})
    images = np.zeros((8, 8, 8, 1), dtype=np.uint8)
    known = fidelity.Extractor("classifier", Path("x"), 1, 2, {})
    for batch_size, taken in ((3, 3), (64, 64), (5000, 250)):
        how = {
            "kid_subset_size": 2,
            "neighbours": 1,
            "seed": 0,
            "device": torch.device("cpu"),
            "batch_size": batch_size,
        }
        fidelity.fidelity(images, images, known, **how)
        assert seen["batch_size"] == taken
        fidelity.held_out_fidelity(images, images, known, **how)
        assert seen["batch_size"] == taken


def test_the_denoiser_holds_a_bounded_number_of_weights(monkeypatch):
    monkeypatch.setattr("stagecraft.clustering.denoiser.MOST_WEIGHTS", 100)
    y = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    denoiser = OptimalDenoiser(y)
    assert denoiser.batch == 2
    np.testing.assert_allclose(denoiser(y, 0.5), OptimalDenoiser(y, batch=1)(y, 0.5), rtol=1e-6)


@pytest.mark.parametrize(("bound", "least", "most"), [(2**30, 256, 511), (2000 * 40 * 2, 40, 79), (1, 1, 1)])
def test_channels_are_sorted_on_triples_that_fit_into_memory(monkeypatch, bound, least, most):
    class Triples:
        """Features of 1000 training triples with one input of 2000 bytes each."""

        def rows(self, held_out):
            return torch.arange(1000)

        def take(self, rows, device):
            return [torch.zeros(len(rows), 500), torch.zeros(len(rows), 10**6 // 4 if len(rows) == 1 else 1)]

    block = torch.nn.Linear(1, 1)
    block.sort = lambda tensors: len(tensors[0])
    monkeypatch.setattr(supernet, "SORTING_BYTES", bound)
    assert least <= supernet.sort_supernet(block, Triples(), 1) <= most
