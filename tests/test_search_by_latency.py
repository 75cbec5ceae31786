"""A search with latencies: every layer of the space is measured before it, and candidates are bred and kept by their time too."""

import copy
import json
import zlib

import numpy as np
import pytest
import torch
from helpers import search_space, space_of, tiny_unet

from stagecraft.config.sections import Assemble, CacheFeatures
from stagecraft.config.stages import SPACE_KEYS, MeasureLatency, SearchBlock
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.vp import VPProcess
from stagecraft.elastic.block import natural_orders
from stagecraft.networks.costs import count_parameters
from stagecraft.networks.families import sites_of
from stagecraft.networks.jobs import Job
from stagecraft.networks.stream import narrowed_teacher
from stagecraft.networks.unet.costs import block_macs
from stagecraft.networks.unet2d.multi_decoder_unet import apply_spec
from stagecraft.runtime.files import read_checked_json, write_checked_json
from stagecraft.search import job
from stagecraft.search.architecture import assemble_architecture
from stagecraft.search.features import FeatureWriter
from stagecraft.search.job import SearchJob
from stagecraft.search.latency import LatencyTable, layers_of, pairs_to_measure
from stagecraft.search.selection import pareto
from stagecraft.search.space import BlockSpace, covering_specs, key_of
from stagecraft.search.supernet import BlockScore, best_of, explore, front_of
from stages.measure_latency import measure_latency

CPU = torch.device("cpu")
EVEN = [list(range(0, 16, 2)), list(range(0, 32, 2))]
SPACE = {
    "channels": 1.0,
    "widths": [0.5, 1.0],
    "stream": [0.5, 1.0],
    "channel_multiple": 1,
    "kernels": [3],
    "drop_layers": True,
    "drop_attention": True,
}
SEARCH = SPACE | {
    "steps": 1,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "candidates": 120,
    "local_triples": 4,
    "output_candidates": 4,
    "output_triples": 2,
    "checkpoint_every": 100,
}
RICH = SPACE | {"kernels": [1, 3]}
ASSEMBLE = {
    "native": False,
    "rule": "budget",
    "score": "local",
    "macs": None,
    "time": 0.6,
    "params": None,
    "params_active": None,
}
NOT_NATIVE = {"assemble.native": False}
# One interval by itself, ranges of three, and blocks that all intervals have in common.
JOBS = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0.interval_0-1", "up_blocks.0.interval_2"]
JOBS += ["up_blocks.1.interval_0-2"]


def table_of(unet, stream=None, settings=SPACE):
    """A table of the layers of a teacher's space, with times that only the layers' keys tell."""
    student = narrowed_teacher(unet, stream)
    keys = pairs_to_measure(layers_of(unet), layers_of(student), covering_specs(student, search_space(settings)))
    return {key: 0.01 + zlib.crc32(key.encode()) / 2**32 for key in keys} | {"the whole teacher": 9.0}


def shuffled(order, rng):
    """An order of channels in which others come first."""
    return {
        name: {key: rng.permutation(groups).tolist() for key, groups in parts.items()} for name, parts in order.items()
    }


# --- What is measured ---


OTHER_TYPES = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}


@pytest.mark.parametrize(("changes", "stream"), [({}, None), ({"layers_per_block": 2}, EVEN), (OTHER_TYPES, EVEN)])
def test_every_layer_of_every_candidate_is_measured_before_the_search(changes, stream):
    unet, rng = tiny_unet(**changes), np.random.default_rng(0)
    student, measured = narrowed_teacher(unet, stream), table_of(unet, stream, RICH)
    layers = layers_of(student)
    for name in JOBS:
        place = Job.parse(name).site
        block = student.get_submodule(place)
        space = BlockSpace(block, search_space(RICH), shuffled(natural_orders(block), rng))
        specs = [space.identity, space.smallest(), *space.plain(), *(space.draw(rng) for _ in range(30))]
        specs += space.children(specs, 20, [], rng)
        assert {layer.key for spec in specs for layer in layers.block(place, spec)} <= measured.keys()


def test_the_specs_to_measure_hold_every_option_of_a_space_once_or_more():
    for site in sites_of(tiny_unet()):
        space = space_of(tiny_unet().get_submodule(site.name), SPACE)
        specs = space.covering()
        for name, choices in space.choices.items():
            assert {key_of(spec[name]) for spec in specs} == {key_of(option) for option in choices.all()}
        assert len(specs) == 1 + max(map(len, space.choices.values()))


@pytest.fixture
def interval(tmp_path, monkeypatch):
    """The stage measure_latency on a tiny teacher of which half of the residual stream is kept."""
    monkeypatch.setattr("stages.measure_latency.load_teacher", lambda folder: tiny_unet())
    ranked = {"stream_importance": [list(range(16)), list(range(32))], "stream_triples": 1}
    write_checked_json(tmp_path / "importance.json", ranked)
    space = {f"search_block.{key}": SPACE[key] for key in SPACE_KEYS} | {"search_block.channels": 0.5}

    def run(source, path=None, architecture="searched"):
        settings = {"source": source, "path": path, "threads": 1, "batch_size": 2, "repeats": 1}
        params = {
            "device": "cpu",
            "precision": "fp32",
            "architecture": architecture,
            "measure_latency": settings,
        } | NOT_NATIVE
        files = {name: tmp_path / f"{name}.json" for name in ("teacher", "importance", "output")}
        measure_latency(MeasureLatency.of(params | space), threads=1, **files)
        return read_checked_json(files["output"], "measure_latency")

    return run


def test_a_kept_table_has_to_hold_the_layers_of_the_whole_space(interval, tmp_path):
    least_important = [[4 * group + i for group in range(4) for i in (2, 3)]]
    least_important += [[8 * group + i for group in range(4) for i in (4, 5, 6, 7)]]
    layers = table_of(tiny_unet(), least_important)
    (tmp_path / "kept.json").write_text(json.dumps({"layers": layers | {"another": 1.0}, "device": "a"}))
    found = interval("path", str(tmp_path / "kept.json"))
    assert found["layers"] == layers and found["device"] == "a" and found["source"] == "path"
    narrowest = next(key for key in layers if key.startswith("PartialLayer"))
    del layers[narrowest]
    (tmp_path / "kept.json").write_text(json.dumps({"layers": layers}))
    with pytest.raises(ValueError, match=r"kept\.json: lacks the layer PartialLayer"):
        interval("path", str(tmp_path / "kept.json"))


@pytest.mark.parametrize(("source", "architecture"), [("none", "searched"), ("measure", "given")])
def test_nothing_is_measured_without_a_source_or_a_search(interval, tmp_path, source, architecture):
    found = interval(source, architecture=architecture)
    assert found["layers"] == {} and LatencyTable.of_stage(tmp_path / "output.json") is None


# --- What is bred, and what is kept ---


def toy(spec):
    """Costs and error in which writing less saves time alone, and reading less MACs alone; each loses something."""
    macs, time, error = 1, 1, 1
    layers = [choice for name, choice in spec.items() if name.startswith("resnets")]
    for i, layer in enumerate(layers):
        if layer:
            reads, writes = (len(layer.get(key, "0123")) for key in ("reads", "writes"))
            macs += 8 * reads
            time += 8 * writes
            error += (i + 2) * (4 - reads) ** 2 + (3 - i) * (4 - writes) ** 2 + (32 - layer["width"])
        else:
            error += 60
    return {"spec": spec, "nmse": float(error), "macs": macs, "params": macs, "time": float(time)}


def explored(timed):
    """Candidates of a toy space, bred with their times or without; all have their times in the end."""
    settings = SPACE | {"widths": [0.25, 0.5, 0.75, 1.0], "stream": [0.25, 0.5, 0.75, 1.0]}
    space = space_of(tiny_unet(layers_per_block=2).up_blocks[0], settings)

    def measure(specs):
        return [{key: value for key, value in toy(spec).items() if timed or key != "time"} for spec in specs]

    return [toy(candidate["spec"]) for candidate in explore(space, measure, 400, 0, None)]


def least(candidates, cost, most):
    return min(c["nmse"] for c in candidates if c[cost] <= most)


def test_breeding_by_time_finds_what_is_cheap_by_time_and_still_what_is_by_macs():
    by_time, by_macs = explored(timed=True), explored(timed=False)
    limits = (33, 49, 57)
    pairs = [(least(by_time, "time", most), least(by_macs, "time", most)) for most in limits]
    assert all(ours < theirs for ours, theirs in pairs), pairs
    bred, drawn = ([least(some, "macs", most) for most in limits] for some in (by_time, by_macs[:100]))
    assert all(a <= b for a, b in zip(bred, drawn, strict=True)) and sum(bred) < sum(drawn)


def candidate(number, nmse, macs, params, time=None):
    return {"spec": number, "nmse": nmse, "macs": macs, "params": params} | ({} if time is None else {"time": time})


def test_what_is_kept_is_on_a_front_of_the_error_and_one_cost():
    first = candidate(0, 0.0, 10, 10, 10.0)
    fast, lean, small = (
        candidate(1, 0.3, 9, 9, 1.0),
        candidate(2, 0.3, 1, 9, 9.0),
        candidate(3, 0.3, 9, 1, 9.0),
    )
    middling = candidate(4, 0.4, 5, 5, 5.0)  # on the front over all costs at once, on none of one
    scored = [first, fast, lean, small, middling]
    assert middling in pareto(scored)
    assert sorted(c["spec"] for c in best_of(scored)) == [0, 1, 2, 3]
    untimed = [{key: value for key, value in c.items() if key != "time"} for c in scored]
    assert best_of(untimed) == pareto(untimed) and untimed[4] in best_of(untimed)


def test_those_kept_are_spread_evenly_over_time_or_else_macs():
    scored = [candidate(0, 0.0, 99, 99, 99.0)]
    scored += [candidate(i, 0.1 * i, 50 + i, 50 + i, 50.0 - i) for i in range(1, 42)]  # the slower the fewer MACs
    kept = front_of(scored, 6)
    assert kept[0] is scored[0] and [c["time"] for c in kept[1:]] == [9.0, 19.0, 29.0, 39.0, 49.0]
    untimed = [{key: value for key, value in c.items() if key != "time"} for c in scored[:1] + scored[:0:-1]]
    assert [c["macs"] for c in front_of(untimed, 3)] == [99, 51]


# --- A search with a table ---


@pytest.fixture
def searches(digits, diffusion_settings, tmp_path):
    """A function that makes the search job of the mid block with a table of latencies, None for none; the file of the table."""
    unet, path = tiny_unet(), tmp_path / "latency.json"
    settings = {
        "triples_per_interval": 8,
        "held_out": 0.5,
        "batch_size": 8,
        "shard_size": 8,
        "max_gib": 1.0,
        "precision": "fp32",
    }
    data = TrainingSet.of_images(digits)
    writer = FeatureWriter(
        unet, VPProcess(diffusion_settings), data, [[0, 1000]], CacheFeatures.model_construct(**settings), 0, CPU
    )
    writer.write(tmp_path / "features", {})
    write_checked_json(tmp_path / "importance.json", {"stream_importance": None, "stream_triples": 0})

    def make(table, work="one"):
        content = {"source": "none", "layers": {}} if table is None else {"source": "path", "layers": table}
        write_checked_json(path, content)
        params = {"seed": 0, "precision": "fp32", "search_block": SEARCH} | NOT_NATIVE
        files = (tmp_path / "features", CPU, tmp_path / f"{work}.pt", tmp_path / "importance.json")
        return SearchJob(SearchBlock.of(params), unet, "mid_block", *files, latency=path)

    return make


def written(report):
    """The text of a report's file."""
    return json.dumps(report, sort_keys=True)


def test_every_candidate_has_the_sum_of_its_layers_where_they_were_measured(searches):
    table = table_of(tiny_unet())
    found = searches(table).run()["candidates"]
    layers = layers_of(tiny_unet())
    for one in found:
        assert one["time"] == sum(table[layer.key] for layer in layers.block("mid_block", one["spec"]))
    assert len({one["time"] for one in found}) > 20
    assert all("time" not in one for one in searches(None, "two").run()["candidates"])


def test_a_search_that_was_killed_goes_on_to_the_same_bytes_with_the_same_table_alone(searches, monkeypatch):
    table, calls = table_of(tiny_unet()), []
    other = {key: 10.0 - value for key, value in table.items()}
    whole, by_other = (written(searches(times, "whole").run()) for times in (table, other))

    class Killed(BlockScore):
        def __call__(self, specs):
            calls.append(len(specs))
            if len(calls) > 2:
                raise KeyboardInterrupt
            return super().__call__(specs)

    for times, expected in ((table, whole), (other, by_other)):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(job, "BlockScore", Killed)
            with pytest.raises(KeyboardInterrupt):
                searches(table, "killed").run()
        again = searches(times, "killed")
        assert written(again.run()) == expected
        again.clean_up()
    assert whole != by_other


# --- What is assembled ---


def results_of(unet, table, intervals=2):
    """Search results of every block, with times where there is a table."""
    rng, found = np.random.default_rng(0), {}
    for site in sites_of(unet):
        block = unet.get_submodule(site.name)
        space = space_of(block, SPACE)
        latency_of = None if table is None else table.latency_of(unet, site.name)
        candidates = []
        for spec in space.first(40, rng):
            skeleton = apply_spec(copy.deepcopy(block).to("meta"), spec)
            costs = {"macs": block_macs(skeleton, site.side), "params": count_parameters(skeleton)}
            costs |= {} if latency_of is None else {"time": latency_of(spec)}
            candidates.append({"spec": spec, "nmse": float(rng.random()), "output": None} | costs)
        shared = {"block": site.name, "identity": space.identity, "stream": None, "order": space.orders}
        shared |= {"candidates": candidates, "weights_sha256": ""}
        jobs = {f"{site.name}.interval_{s}": [s] for s in range(intervals)} if site.per_range else {site.name: None}
        found |= {name: shared | {"intervals": of_job} for name, of_job in jobs.items()}
    return found


def test_the_assembled_student_takes_the_time_that_its_layers_have_in_the_table():
    unet, steps = tiny_unet(), [1, 3]
    table = LatencyTable({"layers": table_of(unet)}, "latency.json")
    plan = assemble_architecture(unet, results_of(unet, table), steps, Assemble.model_construct(**ASSEMBLE), 0, table)
    layers = layers_of(unet)
    time = table.milliseconds(layers.fixed())
    for name, chosen in plan["chosen"].items():
        share = steps[int(name[-1])] / 4 if "interval" in name else 1.0
        time += share * table.milliseconds(layers.block(name.partition(".interval_")[0], chosen["spec"]))
    assert plan["expected"]["time"] == pytest.approx(time)
    assert plan["expected"]["time_ratio"] == pytest.approx(time / 9.0) and plan["expected"]["time_ratio"] <= 0.6


@pytest.mark.parametrize("budget", [0.6, None])
def test_results_without_times_are_refused_where_times_count(budget):
    unet = tiny_unet()
    table = LatencyTable({"layers": table_of(unet)}, "latency.json")
    results, settings = results_of(unet, None), ASSEMBLE | {"time": budget}
    with pytest.raises(
        ValueError,
        match=r"^down_blocks\.0\.json: holds candidates without a time; set measure_latency.source .*--forcerun",
    ):
        assemble_architecture(unet, results, [1, 1], Assemble.model_construct(**settings), 0, table)
    if budget is None:
        assert (
            "time"
            not in assemble_architecture(unet, results, [1, 1], Assemble.model_construct(**settings), 0)["expected"]
        )
