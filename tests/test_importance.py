"""The importance of channels: in bounded memory, continued when it was killed, and not computed where nothing asks for it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from helpers import EDM, tiny_unet

from stagecraft.clustering.gradients import bounded_gradients, loss_gradients
from stagecraft.config.stages import RankChannels
from stagecraft.data.condition import class_condition
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.losses import predict
from stagecraft.diffusion.vp import VPProcess
from stagecraft.networks import activations
from stagecraft.networks.activations import BOUND, activation_bytes, bounded_activations
from stagecraft.runtime.files import read_checked_json
from stagecraft.runtime.journal import Pieces
from stagecraft.search import importance
from stagecraft.search.importance import BATCH, masked_prediction, measure_importance
from stages.rank_channels import rank_channels

CPU, GIB = torch.device("cpu"), 2**30
DOWN, UP = "DownBlock2D", "UpBlock2D"
CELEBAHQ = {  # google/ddpm-celebahq-256
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*[DOWN] * 4, "AttnDownBlock2D", DOWN),
    "up_block_types": (UP, "AttnUpBlock2D", *[UP] * 4),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
}
CIFAR = {  # google/ddpm-cifar10-32
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": (DOWN, "AttnDownBlock2D", DOWN, DOWN),
    "up_block_types": (UP, UP, "AttnUpBlock2D", UP),
    "attention_head_dim": None,
}
DIGITS = {
    "block_out_channels": (32, 64),
    "down_block_types": (DOWN, "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", UP),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}


@pytest.fixture
def process(diffusion_settings):
    return VPProcess(diffusion_settings)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(importance, "BATCHES", 3)


def without_weights(**config) -> UNet2DModel:
    with torch.device("meta"):
        return UNet2DModel(**config)


@pytest.mark.parametrize(
    ("config", "side", "images"),
    [
        (CELEBAHQ, 256, 2),
        (CELEBAHQ, 128, 3),
        (CELEBAHQ, 64, 13),
        (CIFAR, 32, BATCH),
        (DIGITS, 8, BATCH),
        ({}, 64, 1),
    ],
)
def test_as_many_images_are_differentiated_at_once_as_fit_into_the_bound(config, side, images):
    unet, shape = without_weights(**config), (3, side, side)
    with bounded_activations(unet, shape, BATCH, masked_prediction) as at_once:
        again = unet.is_gradient_checkpointing
        assert at_once == images
        assert at_once * activation_bytes(unet, shape, masked_prediction, again) <= BOUND
    assert not unet.is_gradient_checkpointing
    if side == 256:
        assert again and activation_bytes(unet, shape, masked_prediction) / GIB == pytest.approx(2.28, abs=0.01)


PLAIN = {"down_block_types": [DOWN] * 2, "up_block_types": [UP] * 2, "add_attention": False}


@pytest.mark.parametrize(
    "changes", [{}, PLAIN, {"num_class_embeds": 5}, PLAIN | {"resnet_time_scale_shift": "scale_shift"}]
)
def test_the_bytes_that_are_foreseen_are_those_that_autograd_keeps(changes):
    unet, kept = tiny_unet(sample_size=16, **changes), {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    condition = class_condition(torch.zeros(1, dtype=torch.int64) if "num_class_embeds" in changes else None)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        predict(unet, torch.zeros(1, 1, 16, 16, requires_grad=True), torch.zeros(1), condition)
    weights = {weight.untyped_storage()._cdata for weight in unet.parameters()}
    real = sum(storage.nbytes() for at, storage in kept.items() if at not in weights)
    # More where a device computes attention without its matrices.
    assert real <= activation_bytes(unet, (1, 16, 16)) <= real * (1.01 if "add_attention" in changes else 1.5)


@pytest.mark.parametrize("images", [0, 1, 3, 7])
@pytest.mark.parametrize("conditional", [False, True])
def test_few_images_at_once_give_the_same_importance(few, digits, process, monkeypatch, images, conditional):
    unet = tiny_unet(**({"num_class_embeds": 10} if conditional else {}))
    data = TrainingSet.of_images(digits, np.arange(64) % 10)
    whole = measure_importance(unet, process, data, 0, CPU)
    # No image fits into 1 byte, so that activations are computed again.
    bound = images * activation_bytes(unet, data.shape, masked_prediction) + 1
    monkeypatch.setattr(activations.bounded_activations.__wrapped__, "__defaults__", (predict, bound))
    sizes, once = [], importance.predict
    monkeypatch.setattr(importance, "predict", lambda net, x, *rest: sizes.append(len(x)) or once(net, x, *rest))
    parts = measure_importance(unet, process, data, 0, CPU)
    assert sum(size for size in sizes if size <= BATCH) >= 3 * BATCH
    assert max(sizes) < BATCH and (images == 0 or max(sizes) == images)
    for level, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(level, other, rtol=1e-4)
    assert not unet.is_gradient_checkpointing and min(map(min, whole)) > 0


def test_gradients_for_the_clustering_are_the_same_in_bounded_memory(digits, process, monkeypatch):
    unet, data, t = tiny_unet(block_out_channels=(8, 16)), TrainingSet.of_images(digits), np.array([3, 700])
    whole = loss_gradients(unet, process, data, 10, t, 0)
    for images in (0, 3):
        bound = images * activation_bytes(unet, data.shape) + 1
        monkeypatch.setattr(activations.bounded_activations.__wrapped__, "__defaults__", (predict, bound))
        found = bounded_gradients(unet, process, data, 10, t, 0)
        np.testing.assert_allclose(found, whole, atol=1e-4 * np.abs(whole).max())


def test_a_killed_ranking_goes_on_and_ends_with_the_same_numbers(
    few, unet, digits, process, tmp_path, monkeypatch, capsys
):
    data, measured = TrainingSet.of_images(digits), []
    whole = measure_importance(unet, process, data, 0, CPU)
    assert "rank_channels: 3/3" in capsys.readouterr().err
    measure = importance.batch_importance

    def killed(*arguments):
        measured.append(len(measured))
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(importance, "batch_importance", killed)
    with pytest.raises(KeyboardInterrupt):
        measure_importance(unet, process, data, 0, CPU, Pieces(tmp_path / "work", {}))
    assert measure_importance(unet, process, data, 0, CPU, Pieces(tmp_path / "work", {})) == whole
    assert len(measured) == 4


@pytest.mark.parametrize(
    ("architecture", "channels"), [("searched", 1.0), ("searched", 1), ("searched", [1.0, 1.0, 1]), ("given", 0.5)]
)
def test_nothing_is_ranked_where_all_channels_are_kept(tmp_path, architecture, channels):
    params = {
        "seed": 0,
        "device": "cpu",
        "architecture": architecture,
        "diffusion": EDM,
        "search_block.channels": channels,
        "assemble.native": False,
    }
    nowhere = {name: Path("nowhere") for name in ("data", "latents", "prompts", "teacher")}
    rank_channels(RankChannels.of(params), threads=1, **nowhere, output=tmp_path / "importance.json")
    found = read_checked_json(tmp_path / "importance.json", "rank_channels")
    assert found == {"stream_importance": None, "stream_triples": 0, "params": json.loads(json.dumps(params))}
    for shares in (0.75, [1.0, 0.5]):
        if architecture == "searched":
            with pytest.raises(ValueError, match="nowhere"):
                rank_channels(
                    RankChannels.of(params | {"search_block.channels": shares}),
                    threads=1,
                    **nowhere,
                    output=tmp_path / "other.json",
                )
