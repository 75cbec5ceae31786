"""Students as ONNX: what the graphs compute, by onnxruntime, and what is written about them."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers import ROOT, preset_params, tiny_unet, with_ranges

from stagecraft.config.stages import stage_model
from stagecraft.data.prepared import PreparedData
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.losses import predict
from stagecraft.diffusion.stepper import Stepper
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.evaluation.comparison import Evaluation
from stagecraft.evaluation.fidelity import open_extractor
from stagecraft.export import packages
from stagecraft.export.check import TOLERANCE, check_differences
from stagecraft.training.student import build_student

MISSING = [name for name in packages.PACKAGES if find_spec(name) is None]
needs_packages = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (the extra `export`)")
BOUNDARIES = [500]
RANGES = [[[0, 1]], [[0], [1]]]
CPU = torch.device("cpu")


class Corners(torch.nn.Module):
    """An extractor of four pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, 2:5:2, 2:5:2].flatten(1).float()


def student_of(unet, boundaries, ranges):
    """A student whose decoders differ."""
    architecture = with_ranges(identity_architecture(unet, len(boundaries) + 1), ranges)
    return build_student(unet, architecture, boundaries, seed=0).eval()


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, digits):
    """An evaluation with few samples of an extractor without weights."""
    path = tmp_path_factory.mktemp("extractor") / "corners.pt"
    torch.jit.script(Corners()).save(path)
    params = preset_params("smoke")
    params["evaluate"] |= {"samples": 16, "kid_subset_size": 8, "neighbours": 2, "speed_batch": 4, "speed_repeats": 1}
    data = PreparedData(path.parent, digits, None, np.arange(48), np.arange(48, 64), {"sha256": "", "source": "digits"})
    extractor = open_extractor(str(path), path, digits[0])
    return Evaluation(stage_model(params, "evaluate"), data, extractor, BOUNDARIES, [], CPU)


@pytest.fixture(scope="module")
def exporter(tmp_path_factory, evaluation, digits):
    """A finished export of a student with two intervals that share a block."""
    from stagecraft.export.exporter import Exporter

    exporter = Exporter(student_of(tiny_unet(), BOUNDARIES, RANGES), evaluation, tmp_path_factory.mktemp("onnx"))
    (exporter.folder / "export.json").write_text(json.dumps(exporter.export(TrainingSet.of_images(digits))))
    return exporter


@pytest.fixture(scope="module")
def record(exporter):
    return json.loads((exporter.folder / "export.json").read_text())


@needs_packages
def test_the_record_says_how_near_how_good_and_how_fast_the_graphs_are(exporter, record):
    assert {*record["graphs"]} == {path.name for path in exporter.folder.glob("*.onnx")}
    difference = record["difference"]
    assert max(difference[name]["worst"] for name in ("interval", "routed")) <= TOLERANCE < difference["int8"]["mean"]
    assert {*record["fidelity"]} == {"interval", "int8"}
    assert all(0 < score["fid_margin"] < score["fid"] for score in record["fidelity"].values())
    fids = [record["fidelity"][name]["fid"] for name in ("interval", "int8")]
    assert record["fid_difference"] == fids[1] - fids[0] and 0 < record["fid_difference_margin"] < fids[0]
    for batch in ("batch_1", "batch_4"):
        assert {*record["milliseconds"][batch]} == {"pytorch", "interval", "routed", "int8"}


# Of the first ResNet layer of each block.
KINDS = {
    "down_blocks.0": {"width": 4, "kernels": [1, 3]},
    "down_blocks.1": {"width": 8, "kernels": [3, 3], "reads": [0, 2]},
    "mid_block": {"width": 8, "kernels": [3, 3], "writes": [1, 3]},
    "up_blocks.0": {"width": 8, "kernels": [3, 1], "reads": [1], "writes": [0, 1, 2]},
    "up_blocks.1": None,
}


@needs_packages
@torch.no_grad()
def test_layers_of_every_kind_are_exported_as_they_are(tmp_path):
    from stagecraft.export.graphs import IntervalUNet, write_graph
    from stagecraft.export.session import OnnxUNet

    unet = tiny_unet()
    architecture = identity_architecture(unet, 1)
    for name, choice in KINDS.items():
        (entry,) = architecture["blocks"][name]
        entry["spec"] = {**entry["spec"], "resnets.0": choice}
    student = build_student(unet, architecture, [], seed=0).eval()
    for parameter in student.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    write_graph(tmp_path / "graph.onnx", IntervalUNet(student, 0))
    graph = OnnxUNet([tmp_path / "graph.onnx"], [], student.config, 1)
    x, t = torch.randn(5, 1, 8, 8), torch.arange(5) * 200
    torch.testing.assert_close(predict(graph, x, t), predict(student, x, t), atol=TOLERANCE, rtol=0)


@needs_packages
def test_the_graphs_are_those_of_the_rule_and_hold_no_paths(exporter, record):
    names = {"routed", *(f"interval_{i}{kind}" for i in range(2) for kind in ("", ".int8"))}
    assert {*record["graphs"]} == {f"{name}.onnx" for name in names}
    for name in record["graphs"]:
        assert str(ROOT).encode() not in (exporter.folder / name).read_bytes()


@needs_packages
@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 70])
def test_batches_of_any_size_and_mixture_are_what_pytorch_computes(exporter, count):
    x = torch.randn(count, 1, 8, 8)
    for t in (torch.arange(count) * 299 % 1000, torch.tensor(500)):
        expected = exporter.student(x, t).sample
        for model in exporter.float_models().values():
            torch.testing.assert_close(model(x, t).sample, expected, atol=TOLERANCE, rtol=0)


@needs_packages
def test_graphs_of_another_student_are_refused(exporter):
    bias = exporter.student.decoders[1].conv_out.bias
    models = exporter.float_models()
    with torch.no_grad():
        bias.add_(2 * TOLERANCE)
    try:
        with pytest.raises(ValueError, match=r"^export: graph interval differs from PyTorch by 0\.0002 on 100 random"):
            check_differences(exporter.compare(models))
    finally:
        with torch.no_grad():
            bias.sub_(2 * TOLERANCE)


RUN = """
import sys
sys.modules["torch"] = None
import numpy as np, onnxruntime
sample, t = np.load("x.npy"), np.array([5, 500, 999], np.float32)
np.save("y.npy", onnxruntime.InferenceSession(sys.argv[1]).run(None, {"sample": sample, "timestep": t})[0])
"""


@needs_packages
@torch.no_grad()
def test_a_graph_needs_no_torch(exporter, tmp_path):
    x = torch.randn(3, 1, 8, 8)
    np.save(tmp_path / "x.npy", x.numpy())
    subprocess.run([sys.executable, "-c", RUN, exporter.file("routed")], cwd=tmp_path, check=True)
    expected = exporter.student(x, torch.tensor([5, 500, 999])).sample.numpy()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=TOLERANCE)


@needs_packages
@torch.no_grad()
def test_the_script_of_the_docs_draws_what_pytorch_draws(exporter, evaluation, tmp_path):
    script = ROOT / "docs" / "sample_onnx.py"
    assert len(script.read_text().splitlines()) <= 30 and "torch" not in script.read_text()
    subprocess.run([sys.executable, script, exporter.folder], cwd=tmp_path, check=True)
    sampling = evaluation.params.sampling
    stepper = Stepper(evaluation.process.scheduler(sampling.scheduler), sampling.steps)
    noise = torch.tensor(np.random.default_rng(0).standard_normal((16, 1, 8, 8)), dtype=torch.float32)
    x = stepper.run(noise, lambda x, t: exporter.student(x, t).sample, [torch.Generator()] * 16)
    expected = (127.5 * x + 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    drawn = np.load(tmp_path / "samples.npy")
    assert drawn.dtype == np.uint8 and drawn.std() > 0
    np.testing.assert_allclose(drawn, expected, atol=0.6)
    subprocess.run([sys.executable, script, exporter.folder, ".int8"], cwd=tmp_path, check=True)
    assert 0 < np.abs(np.load(tmp_path / "samples.npy").astype(float) - expected).mean() < 30


@needs_packages
def test_an_intervals_activations_are_seen_on_its_own_timesteps(exporter, digits):
    data = exporter.calibration(TrainingSet.of_images(digits), 1)
    batches = [*iter(data.get_next, None)]
    times = np.concatenate([batch["timestep"] for batch in batches])
    assert 500 <= times.min() < 530 and 970 < times.max() < 1000
    assert data.get_next() is None and batches[0]["sample"].dtype == np.float32


@needs_packages
@torch.no_grad()
def test_a_class_conditional_student_of_log_noise_levels_is_exported(tmp_path):
    from stagecraft.export.graphs import RoutedUNet, write_graph
    from stagecraft.export.session import OnnxUNet

    unet = tiny_unet(num_class_embeds=4, time_embedding_type="fourier", in_channels=3, out_channels=3)
    student = student_of(unet, [0.5], [[[0], [1]], [[0], [1]]])
    write_graph(tmp_path / "routed.onnx", RoutedUNet(student))
    x, t, labels = torch.randn(5, 3, 8, 8), torch.tensor([0.2, 0.5, 3.0, 0.4, 1.0]), torch.tensor([0, 3, 1, 2, 0])
    found = OnnxUNet([tmp_path / "routed.onnx"], [], student.config, 1)(x, t, labels).sample
    torch.testing.assert_close(found, student(x, t, labels).sample, atol=TOLERANCE, rtol=0)


@needs_packages
@torch.no_grad()
def test_a_student_whose_intervals_share_all_blocks_needs_no_routing():
    from stagecraft.export.graphs import RoutedUNet

    student = student_of(tiny_unet(), BOUNDARIES, [[[0, 1]], [[0, 1]]])
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([5.0, 999.0])
    graph = torch.export.export(RoutedUNet(student), (x, t)).graph
    assert torch.ops.higher_order.cond not in {node.target for node in graph.nodes}
    assert torch.equal(RoutedUNet(student)(x, t), student(x, t).sample)


def test_without_its_packages_the_command_says_what_to_install(monkeypatch):
    from stages.export import export

    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "onnxruntime" else object())
    nothing = dict.fromkeys(
        ["data", "latents", "autoencoder", "teacher", "student", "architecture", "extractor", "output"]
    )
    with pytest.raises(ValueError, match=r"^export needs the package onnxruntime; pip install onnxruntime$"):
        export(None, threads=1, **nothing)


@needs_packages
def test_the_example_of_the_docs_runs(exporter, tmp_path):
    (example,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "export.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "onnx").symlink_to(exporter.folder)
    check = "assert output.shape == (2, 1, 8, 8) and np.isfinite(output).all()"
    subprocess.run([sys.executable, "-c", f"{example}\n{check}"], cwd=tmp_path, check=True)
