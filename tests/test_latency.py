"""Latencies of layers: every layer of a network is counted once, and a stored table gives the same times again."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import space_of, tiny_unet

from stagecraft.elastic.kinds import identity_spec
from stagecraft.networks.families import sites_of
from stagecraft.networks.layer import WHOLE
from stagecraft.networks.unet2d.multi_decoder_unet import narrow_stream
from stagecraft.preflight.run import FIRST_LAYER
from stagecraft.search.latency import LatencyTable, Stopwatch, layers_of, pairs_to_measure, within_network

SPACE = {
    "widths": [0.5, 1.0],
    "stream": [0.5, 1.0],
    "channel_multiple": 1,
    "kernels": [1, 3],
    "drop_layers": True,
    "drop_attention": True,
}


def specs_of(unet):
    """Names of blocks, and specs with every option of each layer."""
    for site in sites_of(unet):
        block = unet.get_submodule(site.name)
        space = space_of(block, SPACE)
        yield site.name, space.identity
        rng = np.random.default_rng(0)
        for spec in [*space.plain(), *(space.draw(rng) for _ in range(20))]:
            yield site.name, spec


def parameters(layers):
    return sum(p.numel() for layer in layers for p in layer.module.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers_per_block": 2},
        {"num_class_embeds": 3},
        {
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        },
        {"mid_block_type": None},
    ],
)
def test_the_layers_of_a_unet_are_all_that_it_computes(changes):
    unet = tiny_unet(**changes)
    embedding = 0 if unet.class_embedding is None else sum(p.numel() for p in unet.class_embedding.parameters())
    assert parameters(layers_of(unet).own()) == sum(p.numel() for p in unet.parameters()) - embedding


def test_a_layer_reads_what_the_network_gives_it():
    unet = tiny_unet()
    layers = layers_of(unet)
    reads = {
        name: layers.reads[name]
        for name in ("down_blocks.1.resnets.0", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1")
    }
    assert list(reads.values()) == [(16, 4, 4), (64, 4, 4), (48, 4, 4)]


@pytest.mark.parametrize("stream", [None, [list(range(0, 16, 2)), list(range(0, 32, 2))]])
def test_every_option_of_a_space_runs_by_itself(stream):
    unet = tiny_unet()
    student = unet if stream is None else narrow_stream(tiny_unet(), stream)
    pairs = pairs_to_measure(layers_of(unet), layers_of(student), specs_of(student))
    with torch.no_grad():
        for layer, own in pairs.values():
            for one in (layer, own):
                one.call(2, torch.device("cpu"))()
    assert len(pairs) > 60


def test_layers_of_one_shape_have_one_key_and_others_another():
    layers = layers_of(tiny_unet())
    spec = identity_spec(layers.net.up_blocks[1])
    narrow = spec | {"resnets.0": spec["resnets.0"] | {"width": 4}}
    half = spec | {"resnets.0": spec["resnets.0"] | {"reads": [0, 1]}}
    keys = [[layer.key for layer in layers.block("up_blocks.1", one)] for one in (spec, narrow, half)]
    assert len({key[0] for key in keys}) == 3 and len({key[1] for key in keys}) == 1
    first, second = ([layer.key for layer in layers_of(tiny_unet()).own()] for _ in range(2))
    assert first == second


def test_a_table_says_for_which_samples_it_is():
    found = [FIRST_LAYER.match(layer.key) for layer in layers_of(tiny_unet()).own()]
    assert [match.groups() for match in found if match] == [("1", "8")]


def test_a_dropped_attention_takes_no_time_and_a_dropped_layer_that_of_its_shortcut():
    layers = layers_of(tiny_unet())
    name = "down_blocks.1"
    spec = identity_spec(layers.net.get_submodule(name))
    dropped = {"resnets.0": None, "attentions.0": None}
    whole, left = layers.block(name, spec), layers.block(name, dropped)
    assert len(whole) == 2 and [layer.key.split(" ")[0] for layer in left] == ["ShortcutLayer"]


def measured(unet):
    pairs = pairs_to_measure(layers_of(unet), layers_of(unet), specs_of(unet))
    return Stopwatch(torch.device("cpu"), 2, 1, "fp32").measure(pairs)


def test_a_table_gives_the_sum_of_its_layers_and_names_what_it_lacks():
    unet = tiny_unet()
    times = measured(unet)
    table, layers = LatencyTable({"layers": times}, "kept.json"), layers_of(unet).own()
    assert table.milliseconds(layers) == pytest.approx(sum(times[layer.key] for layer in layers))
    assert all(value > 0 for value in times.values())
    missing = layers[2].key
    with pytest.raises(
        ValueError, match=r"kept\.json: lacks the layer ResnetBlock2D.*measure_latency\.source: measure"
    ):
        LatencyTable({"layers": {k: v for k, v in times.items() if k != missing}}, "kept.json").milliseconds(layers)


@pytest.mark.parametrize("text", ["[]", "{}", '{"layers": [1.0]}', '{"layers": {"a": "b"}}', "not JSON"])
def test_a_file_that_holds_no_table_is_named(tmp_path, text):
    path = tmp_path / "latency.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^{path}"):
        LatencyTable.read(path)


class DriftingClock(Stopwatch):
    """A machine that is up to three times slower at some times than at others, on which a layer takes what its name says."""

    passed = itertools.count()

    def calls_of(self, call):
        return 1

    def seconds(self, call, calls):
        return float(call) * (2 + math.sin(next(self.passed) / 100))


@pytest.mark.parametrize("start", [0, 200, 400])
def test_a_clock_that_drifts_changes_no_proportion(monkeypatch, start):
    monkeypatch.setattr(DriftingClock, "passed", itertools.count(start))
    whole, first, second, smaller = (SimpleNamespace(key=name, call=lambda *_, n=name: n) for name in "9351")
    pairs = {"9": (whole, whole), "3": (first, first), "5": (second, second), "1": (smaller, second)}
    found = DriftingClock(torch.device("cpu"), 2, 5, "fp32").measure(pairs)
    assert [found[name] / found["9"] for name in "9351"] == pytest.approx([1, 3 / 9, 5 / 9, 1 / 9], rel=0.02)


@pytest.mark.parametrize(("whole", "overhead", "scale"), [(12.0, 1.0, 1.0), (5.0, 0.0, 0.5)])
def test_the_teachers_layers_sum_to_the_whole_teacher(whole, overhead, scale):
    teacher = SimpleNamespace(own=lambda: [SimpleNamespace(key="a"), SimpleNamespace(key="b")])
    found = within_network({WHOLE: whole, "a": 4.0, "b": 6.0, "smaller": 2.0}, teacher)
    assert found == {
        "layers": {WHOLE: whole, "a": 4 * scale, "b": 6 * scale, "smaller": 2 * scale},
        "overhead": overhead,
    }
