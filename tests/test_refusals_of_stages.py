"""What docs/refusals.md lists for stages is refused by them, and what comes before the first job accepts the same input."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import save_clip, tiny_unet
from PIL import Image
from refusals import ROWS, Scene, before_the_first_job, check_words, message_of, names
from safetensors.torch import load_file, save_file

from stagecraft.clustering import cluster as clustering
from stagecraft.clustering import partition
from stagecraft.config.sections import CacheFeatures, Everything
from stagecraft.config.stages import STAGE_SECTIONS, stage_model
from stagecraft.data.sources import load_source
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion import batches
from stagecraft.diffusion.sampling import snap
from stagecraft.diffusion.vp import VPProcess
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.evaluation import fidelity
from stagecraft.evaluation.clip import ClipModel
from stagecraft.evaluation.comparison import check_architecture
from stagecraft.evaluation.extractor import read_classifier
from stagecraft.evaluation.samples import load_samples
from stagecraft.export import packages
from stagecraft.export.check import check_differences
from stagecraft.networks.autoencoder import load_given_autoencoder
from stagecraft.networks.pipelines import load_given_teacher
from stagecraft.networks.prompting import load_class_embedding
from stagecraft.networks.text_encoder import make_encoder
from stagecraft.preflight import versions
from stagecraft.report.card import read_license
from stagecraft.report.page import check_same_run
from stagecraft.runtime import device, files, gpus, launch
from stagecraft.runtime.command import explain
from stagecraft.runtime.journal import Pieces, kept_array
from stagecraft.search.architecture import check_results, check_times, stream_of
from stagecraft.search.features import Features, FeatureWriter
from stagecraft.search.latency import LatencyTable, layers_of
from stagecraft.search.selection import Block, Budget, Candidate, Costs, select_budget, select_random
from stagecraft.training import loop
from stagecraft.training.checkpoint import load_checkpoint
from stagecraft.training.student import check_teacher

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"
Provocation = Callable[[Scene, pytest.MonkeyPatch], Any]


def checked(scene: Scene) -> Everything:
    """The params of a scene with their types."""
    return Everything.model_validate(scene.params)


def bad_image(content: Callable[[Path], bytes]) -> Provocation:
    """A file that is not the first of a folder of images; prepare_data reads all."""

    def provoke(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        raw = scene.images(count=90)
        (raw / "50.png").write_bytes(content(raw / "50.png"))
        before_the_first_job(scene)
        load_source(checked(scene).prepare_data)

    return provoke


def image_of(size: tuple[int, int]) -> Callable[[Path], bytes]:
    """The bytes of an image of another size, written over the one at a path."""

    def content(path: Path) -> bytes:
        Image.new("L", size).save(path)
        return path.read_bytes()

    return content


def bad_weights(kind: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Provocation:
    """A model from elsewhere whose tensors are not those of its config, loaded by its stage."""

    def provoke(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = scene.use(kind)
        file = folder / ("unet" if kind == "teacher" else "") / WEIGHTS
        weights = load_file(file)
        change(weights)
        save_file(weights, file)
        before_the_first_job(scene)
        (load_given_teacher if kind == "teacher" else load_given_autoencoder)(folder)

    return provoke


def weights_of(kind: str) -> list[Provocation]:
    """A tensor of another shape, one missing, one with a number that is none."""
    return [
        bad_weights(kind, lambda w: w.update({first(w): torch.zeros(7)})),
        bad_weights(kind, lambda w: w.pop(first(w))),
        bad_weights(kind, lambda w: w[first(w)].view(-1)[:1].fill_(torch.nan)),
    ]


def first(weights: dict[str, torch.Tensor]) -> str:
    """A tensor that all models have."""
    return next(name for name in sorted(weights) if name.endswith("conv_in.weight"))


def torchscript(module: torch.nn.Module, count: int = 0) -> Provocation:
    """A TorchScript file as the extractor, opened by evaluate and given so many images to compare."""

    def provoke(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        path = scene.folder / "net.pt"
        torch.jit.script(module).save(path)
        scene.put({"evaluate.extractor": str(path)})
        before_the_first_job(scene)
        found = fidelity.open_extractor(str(path), path, np.zeros((8, 8, 1), np.uint8))
        fidelity.check_counts(count, count, found, 2, None)

    return provoke


class Flat(torch.nn.Module):
    """An extractor whose features are the pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float()


class Whole(torch.nn.Module):
    """An extractor that gives no features."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def plain(act: Callable[[Scene], Any]) -> Provocation:
    """What no input of a run tells: an act in a folder."""
    return lambda scene, monkeypatch: act(scene)


def patched(where: Any, name: str, value: Any, act: Callable[[Scene], Any]) -> Provocation:
    """The same where something of the machine is another."""

    def provoke(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(where, name, value)
        act(scene)

    return provoke


def altered(scene: Scene) -> None:
    """A result that was edited after it was written."""
    path = scene.folder / "clusters.json"
    files.write_checked_json(path, {"stages": 2})
    path.write_text(path.read_text().replace("2", "3", 1))
    files.read_checked_json(path, "cluster_timesteps")


def full_disk(scene: Scene) -> None:
    """A disk that is full while a file is written."""
    with files.atomic_path(scene.folder / "a.json"):
        raise OSError(errno.ENOSPC, "No space left on device")


def out_of_memory(scene: Scene) -> None:
    """What the command of a stage says of a lack of memory."""
    raise ValueError(explain("retrain", MemoryError()))


def unknown_class(scene: Scene) -> None:
    """A class embedding with a value that is not finite."""
    path = scene.folder / "classes.safetensors"
    save_file({"weight": torch.tensor([[0.0, float("nan")], [0.0, 1.0]])}, path)
    load_class_embedding(path, last_is_empty=False)


def checkpoint(content: bytes) -> Provocation:
    """A training that finds this in its checkpoint."""

    def act(scene: Scene) -> None:
        path = scene.write("a.pt", content)
        with path.open("ab") as file:
            file.write(bytes.fromhex(files.sha256_file(path)) if content else b"x")
        load_checkpoint(path, "")

    return plain(act)


def damaged_piece(scene: Scene) -> None:
    """A piece of unfinished work that was altered."""
    pieces = Pieces(scene.folder, {})
    kept_array(pieces, "a.npy", lambda: np.zeros(3))
    scene.write("a.npy", b"x")
    kept_array(Pieces(scene.folder, {}), "a.npy", lambda: np.zeros(3))


def train(scene: Scene, value: float = 1.0) -> None:
    """A training whose loss is `value` times a weight."""
    model = torch.nn.Linear(1, 1)
    settings = loop.TrainSettings.of(scene.params["retrain"], 0)
    loop.train(model, lambda *_: iter([("loss", model.weight.sum() * value)]), settings)


def other_latents(scene: Scene) -> None:
    """Latents of a data set that was prepared anew."""
    from stagecraft.data.prepared import PreparedData, save
    from stagecraft.data.splits import split

    images = load_source(checked(scene).prepare_data)
    save(
        scene.folder / "data",
        images,
        split(len(images.images), 0.2, 0, None),
        stage_model(scene.params, "prepare_data"),
    )
    files.write_checked_json(scene.folder / "latents" / "index.json", {"data": "0" * 64, "sha256": None})
    assert PreparedData.load(scene.folder / "data").meta["sha256"] != "0" * 64
    TrainingSet.load(scene.folder / "data", scene.folder / "latents")


def vp(scene: Scene) -> VPProcess:
    """The process of a scene."""
    return VPProcess(scene.params["diffusion"])


def clustered(scene: Scene) -> None:
    """A clustering of images that are not finite."""
    y = np.full((32, 4), np.nan, np.float32)
    clustering.cluster(y, vp(scene), checked(scene).cluster_timesteps, 0)


def threshold(s0: float, s1: float) -> Provocation:
    """The rule of thresholds on shares that are the same at all noise levels."""
    t = np.arange(100)
    return plain(lambda scene: partition.threshold_boundaries(t, np.full(100, s0), np.full(100, s1), 0.9))


def scattered(scene: Scene) -> None:
    """An agglomerative clustering of noise levels of which each is like the one after the next."""
    similar = (np.arange(6)[:, None] - np.arange(6)) % 2 == 0
    partition.agglomerative_labels(similar.astype(float), 2)


def many_features(scene: Scene) -> None:
    """Features that take more than max_gib."""
    data = TrainingSet.of_images(np.zeros((16, 8, 8, 1), np.uint8))
    settings = scene.params["cache_features"] | {"max_gib": 1e-6}
    FeatureWriter(
        tiny_unet(), vp(scene), data, [[0, 1000]], CacheFeatures.model_construct(**settings), 0, CPU
    ).check_room(scene.folder)


def large_features(scene: Scene) -> None:
    """Tensors beyond what half precision holds."""
    teacher = tiny_unet()
    with torch.no_grad():
        teacher.conv_in.bias.fill_(1e5)
    data = TrainingSet.of_images(np.zeros((16, 8, 8, 1), np.uint8))
    settings = CacheFeatures.model_construct(**scene.params["cache_features"])
    FeatureWriter(teacher, vp(scene), data, [[0, 1000]], settings, 0, CPU).write(scene.folder / "features", {})


def damaged_features(scene: Scene) -> None:
    """A shard that is no safetensors file."""
    index = {"held_out": 1, "triples_per_interval": 2, "shard_size": 2, "intervals": [[0, 1000]], "sha256": {}}
    files.write_checked_json(scene.folder / "index.json", index)
    scene.write("interval_0-shard_0.safetensors", b"x")
    Features(scene.folder, ["emb"])


def one_candidate() -> tuple[list[Block], Costs]:
    """A block with a single candidate, of three quarters of the teacher's costs."""
    candidate: Candidate = {"spec": {}, "nmse": 0.0, "macs": 100, "params": 100}
    costs = Costs(
        teacher_macs=200,
        teacher_params=200,
        fixed_macs=50,
        fixed_params=50,
        interval_weights=(1.0,),
    )
    return [Block("mid_block", None, candidate, (candidate,))], costs


def results_of(unet: Any, **changes: Any) -> dict[str, Any]:
    """Search results of a teacher, of one stage, with changes to the first."""
    from stagecraft.elastic.kinds import identity_spec
    from stagecraft.networks.families import sites_of

    found = {
        f"{site.name}{'.interval_0' * site.per_range}": {
            "identity": identity_spec(unet.get_submodule(site.name)),
            "stream": None,
        }
        for site in sites_of(unet)
    }
    name = min(found)
    return found | {name: found[name] | changes}


class Student:
    """A student as far as its config goes."""

    class config:
        boundaries: tuple[int, ...] = (500,)
        architecture: dict[str, Any] = {}  # noqa: RUF012


def other_params(scene: Scene) -> None:
    """A result that carries other params."""
    path = scene.write("a.json", json.dumps({"params": {"seed": 7}}))
    versions.check_carried([path], scene.params)


class Planned:
    """What Snakemake says when it would run more."""

    stdout, stderr = "1 of 1 jobs", ""


def clip_of(scene: Scene, **text: Any) -> Path:
    """A small CLIP model; returns the config of its images."""
    encoder = scene.write("encoder/here").parent
    make_encoder(encoder, ["a test"], 16, 0)
    return save_clip(encoder.parent / "clip", encoder, **text) / "preprocessor_config.json"


def open_clip(scene: Scene) -> ClipModel:
    """The model that `clip_of` wrote."""
    return ClipModel(scene.write("encoder/here").parents[1] / "clip", torch.device("cpu"))


STAGES: dict[str, list[Provocation]] = {
    "image-decoded": [
        bad_image(lambda path: path.read_bytes()[:45]),
        bad_image(lambda path: b"x"),
        bad_image(image_of((1, 8))),
        bad_image(image_of((9, 9))),
    ],
    "classes-weights": [plain(unknown_class)],
    "autoencoder-weights": weights_of("autoencoder"),
    "teacher-weights": weights_of("teacher"),
    "extractor-module": [torchscript(torch.nn.Conv2d(5, 1, 1)), torchscript(Whole())],
    "extractor-many": [torchscript(Flat(), 100)],
    "file-altered": [
        plain(altered),
        plain(lambda scene: files.check_file(scene.folder / "a.npy", "0", "index.json", "encode_latents")),
        plain(lambda scene: files.read_checked_json(scene.write("a.json", "{"), "assemble")),
        plain(lambda scene: files.read_checked_json(scene.write("a.json", "[]"), "assemble")),
    ],
    "file-unwritable": [plain(full_disk)],
    "memory": [plain(out_of_memory)],
    "device-missing": [patched(torch.cuda, "is_available", lambda: False, lambda scene: device.pick_device("cuda", 1))],
    "processes": [
        patched(gpus, "visible_gpus", lambda _: {"0": "0"}, lambda scene: gpus.claim_gpus("cuda", 2)),
        patched(launch, "node_count", lambda _: 2, lambda scene: launch.launch("retrain", [], 3, "cpu")),
        patched(batches, "world_size", lambda: 2, lambda scene: batches.NoisyBatches(None, None, 1, CPU)),  # type: ignore[arg-type]
        patched(loop, "from_main", lambda step: step + 1, train),
    ],
    "checkpoint-damaged": [checkpoint(b""), checkpoint(b"x" * 64)],
    "piece-damaged": [plain(damaged_piece)],
    "training-diverged": [plain(lambda scene: train(scene, torch.inf))],
    "latents-other": [plain(other_latents)],
    "clusters-finite": [plain(clustered)],
    "clusters-none": [threshold(0.0, 0.0), threshold(1.0, 1.0), plain(scattered)],
    "clusters-other": [
        plain(lambda scene: vp(scene).check_intervals({"boundaries": [2000], "intervals": []}, Path("clusters.json")))
    ],
    "features-precision": [plain(large_features)],
    "features-room": [plain(many_features)],
    "features-damaged": [plain(damaged_features)],
    "search-other": [
        plain(lambda scene: check_results(tiny_unet(), results_of(tiny_unet()), 2)),
        plain(lambda scene: check_results(tiny_unet(), results_of(tiny_unet(), identity={}), 1)),
        plain(lambda scene: stream_of(results_of(tiny_unet(), stream=[[0]]))),
        plain(lambda scene: check_results(tiny_unet(), dict([*results_of(tiny_unet()).items()][1:]), 1)),
        plain(lambda scene: check_times({"mid_block": {"candidates": [{"macs": 1}]}})),
    ],
    "latency-table": [
        plain(lambda scene: LatencyTable.read(scene.write("a.json", "{}"))),
        plain(lambda scene: LatencyTable({"layers": {}}, "a.json").milliseconds(layers_of(tiny_unet()).fixed())),
    ],
    "budget-infeasible": [
        plain(lambda scene: select_budget(*one_candidate(), Budget(0.1, 1.0, 1.0))),
        plain(lambda scene: select_random(*one_candidate(), Budget(0.9, 1.0, 1.0), 0)),
    ],
    "boundaries-snapped": [plain(lambda scene: snap(vp(scene), "ddim", 3, [300, 310]))],
    "architecture-other": [
        plain(
            lambda scene: check_teacher(
                tiny_unet(), {"identity": identity_architecture(tiny_unet(layers_per_block=2))}, Path("a.json")
            )
        )
    ],
    "student-other": [plain(lambda scene: check_architecture(Student(), {"boundaries": [400], "unet": {}}, "student"))],
    "classifier-damaged": [plain(lambda scene: read_classifier(scene.write("a.safetensors", b"x")))],
    "clip-works": [
        plain(lambda scene: clip_of(scene).write_text("{}") and open_clip(scene)),
        plain(lambda scene: clip_of(scene, vocab_size=300) and open_clip(scene)),
    ],
    "samples-damaged": [plain(lambda scene: load_samples(scene.write("samples.npz", b"x")))],
    "results-mixed": [
        plain(lambda scene: check_same_run({"boundaries": [1]}, {"clustered": [2], "supernets": {}}, {}))
    ],
    "card-metadata": [
        plain(lambda scene: read_license(None, [str(scene.write("README.md", b"---\nlicense: [mit\n---\n"))])),
        plain(lambda scene: read_license(None, [str(scene.write("README.md", b"---\n- mit\n---\n"))])),
    ],
    "export-packages": [patched(packages, "find_spec", lambda name: None, lambda scene: packages.check_packages())],
    "export-prompts": [plain(lambda scene: packages.refuse_prompts())],
    "export-differs": [
        plain(lambda scene: check_differences({"routed": {"worst": 2e-4}})),
        plain(lambda scene: check_differences({"routed": {"worst": np.nan}})),
    ],
    "record-other": [
        plain(other_params),
        patched(versions, "run_quietly", lambda *_: Planned, lambda scene: versions.commit()),
    ],
}


@pytest.mark.parametrize("name", STAGES)
def test_what_only_a_stage_can_know_is_refused_by_it(scenes, name, monkeypatch):
    messages = []
    for provoke in STAGES[name]:
        with monkeypatch.context() as patch:
            messages.append(" ".join(str(message_of(provoke, scenes(), patch)).split()))
    check_words(name, messages)


def test_every_row_of_the_page_that_names_a_stage_is_provoked():
    assert names() == [*STAGES]
    moments = {moment for name in STAGES for moment in ROWS[name].moment.split(", ")}
    general = {
        "any stage",
        "any stage with networks",
        "any stage that trains on them",
        "any training",
        "export",
        "record",
    }
    assert moments <= {*STAGE_SECTIONS} | general
