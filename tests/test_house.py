"""The house: imports run one way, and what the library is said to take by registration it takes."""

import ast
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from chain import Chain, ChainConfig, ChainFamily, ChainStudent
from helpers import FEW_FEATURES, LITTLE_SEARCH, ROOT, preset_params, space_of, supernet_of, tiny_unet
from torch import nn

from stagecraft.clustering.gradients import bounded_gradients
from stagecraft.config.overlay import lay_over
from stagecraft.config.sections import Assemble, CacheFeatures, Prepared, Retrain, SearchSpace
from stagecraft.config.stages import PrepareData, SearchBlock
from stagecraft.data.decoding import conform
from stagecraft.data.images import Contents, Images, Look
from stagecraft.data.prepared import PreparedData
from stagecraft.data.sources import SOURCES, source_fingerprint
from stagecraft.data.survey import survey
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.vp import VPProcess
from stagecraft.elastic import kinds
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.elastic.block import student_state
from stagecraft.elastic.searchable import Choice, Choices, Description, Order, Searchable, Settings
from stagecraft.evaluation.cost import model_cost
from stagecraft.networks.configs import CONFIGS
from stagecraft.networks.costs import count_network_macs, count_parameters
from stagecraft.networks.families import FAMILIES, family_of, sites_of
from stagecraft.networks.given import Space
from stagecraft.networks.given_teacher import open_given_teacher
from stagecraft.networks.pipelines import load_student, load_teacher, save_pipeline
from stagecraft.networks.stream import narrowed_teacher
from stagecraft.networks.unet2d import multi_decoder_unet
from stagecraft.networks.unet2d_condition import multi_decoder_unet_condition
from stagecraft.planning.setup import read_setup
from stagecraft.preflight.given_models import check_given_teacher
from stagecraft.preflight.jobs import block_names
from stagecraft.preflight.params import validate_params
from stagecraft.runtime.files import write_checked_json
from stagecraft.search import importance
from stagecraft.search.architecture import assemble_architecture, given_architecture
from stagecraft.search.features import FeatureWriter
from stagecraft.search.importance import measure_importance
from stagecraft.search.job import SearchJob
from stagecraft.search.latency import LatencyTable, Stopwatch, layers_of, pairs_to_measure, within_network
from stagecraft.search.selection import SCORES, Block, Budget, Candidate, Costs, select_budget
from stagecraft.search.space import covering_specs
from stagecraft.training.joint import JointLoss
from stagecraft.training.loop import TrainSettings, train
from stagecraft.training.student import build_student, start_student, warm_start
from stages.prepare_data import prepare_data

PACKAGE = ROOT / "stagecraft"
# Every room may import those before it.
ROOMS = ["runtime", "config", "data", "diffusion", "networks", "elastic", "training", "search"]
ROOMS += ["clustering", "evaluation", "export", "report", "preflight", "planning"]
SPACE = {"widths": [0.5, 1.0], "kernels": [3], "stream": [1.0], "channel_multiple": 1}
SPACE |= {"drop_layers": False, "drop_attention": False}


def imports_of(file: Path) -> Iterator[str]:
    """The modules of the library that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.startswith("stagecraft."))


def test_imports_run_from_later_rooms_to_earlier_ones() -> None:
    upwards = [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for file in PACKAGE.rglob("*.py")
        if file.parent != PACKAGE and file.name != "__main__.py"
        for name in imports_of(file)
        if ROOMS.index(name.split(".")[1]) > ROOMS.index(file.relative_to(PACKAGE).parts[0])
    ]
    assert upwards == []
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == {*ROOMS}


def test_the_library_does_not_know_the_commands() -> None:
    assert not [file for file in PACKAGE.rglob("*.py") if "from stages" in file.read_text()]


REGISTRIES = {"networks/families.py", "networks/configs.py"}  # where families are registered
# Of each family its folder, its words, and who slices the weights of a layer that stands in its students' file.
UNET2D = {"UNet2DModel", "MultiDecoderUNet2DModel", *multi_decoder_unet.BLOCK_TYPES}
CONDITION = {"UNet2DConditionModel", "MultiDecoderUNet2DConditionModel", *multi_decoder_unet_condition.BLOCK_TYPES}
OF_FAMILIES: dict[str, tuple[set[str], set[str]]] = {
    "unet2d": (UNET2D, set()),
    "unet2d_condition": (CONDITION, {"elastic/transformer.py"}),
}


def words_of(file: Path) -> Iterator[str]:
    """The words in names and texts of a file's code, those of docstrings and comments left out."""
    tree = ast.parse(file.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield from re.findall(r"\w+", text)
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name


@pytest.mark.parametrize("family", OF_FAMILIES)
def test_one_family_alone_knows_its_network(family: str) -> None:
    """Neither the library nor the commands import what is in a family's folder, or name its classes and types of blocks."""
    files = {file.relative_to(PACKAGE).as_posix(): file for file in PACKAGE.rglob("*.py")}
    files |= {file.relative_to(ROOT).as_posix(): file for file in (ROOT / "stages").rglob("*.py")}
    own_words, slicing = OF_FAMILIES[family]
    folders = tuple(f"networks/{name}/" for name in OF_FAMILIES)
    outside = {name: file for name, file in files.items() if not name.startswith(folders) and name not in REGISTRIES}
    assert len(outside) > 100
    other = [file for name, file in files.items() if name.startswith(folders) and f"networks/{family}/" not in name]
    assert not [file for file in other if any(family in i.split(".") for i in imports_of(file))]
    importing = {name for name, file in outside.items() if any(family in i.split(".") for i in imports_of(file))}
    assert importing == slicing
    naming = {name: own_words.intersection(words_of(file)) for name, file in outside.items()}
    assert {name: words for name, words in naming.items() if words} == {}
    assert {word for name in files for word in words_of(files[name])} >= own_words, "the search finds what is there"


# --- A kind of layer that is not in the library: downsamplers, with their convolution or a mean over 2 x 2 pixels ---


@dataclass(frozen=True)
class Two:
    """The convolution, or the mean."""

    def __len__(self) -> int:
        return 2

    def all(self) -> list[Choice]:
        return [{"mean": False}, {"mean": True}]

    def plain(self) -> list[Choice]:
        return self.all()

    def smallest(self) -> Choice:
        return {"mean": True}

    def draw(self, rng: np.random.Generator) -> Choice:
        return self.all()[rng.integers(2)]

    def changed(self, choice: Choice, rng: np.random.Generator) -> Choice:
        return self.draw(rng)


class SearchableDownsampler(Searchable):
    """A downsampler that may be a mean."""

    kind = "downsamplers"

    def identity(self) -> Choice:
        return {"mean": False}

    def choices(self, settings: Settings, order: Order) -> Choices:
        return Two()

    @staticmethod
    def describe_choice(choice: Choice, identity: Choice) -> Description:
        assert choice is not None
        return Description("mean of 2x2", 0.1) if choice["mean"] else Description("convolution", 1.0)


class Mean(nn.Module):
    """The mean over 2 x 2 pixels."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return nn.functional.avg_pool2d(hidden_states, 2)


@pytest.fixture
def with_downsamplers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The new kind, registered."""
    monkeypatch.setitem(kinds.KINDS, "Downsample2D", SearchableDownsampler)
    builder = {"downsamplers": lambda layer, choice: Mean() if choice["mean"] else layer}
    for kind, build in builder.items():
        monkeypatch.setitem(multi_decoder_unet.BUILDERS, kind, build)


@torch.no_grad()
@pytest.mark.usefixtures("with_downsamplers")
def test_a_new_kind_of_layer_is_searched_inherited_and_described_by_registration_alone() -> None:
    unet = tiny_unet()
    site = sites_of(unet)[0]
    block = unet.get_submodule(site.name)
    space = space_of(block, SPACE)
    assert "downsamplers.0" in space.identity and len(space) == 2 * 2
    changed = space.identity | {"downsamplers.0": {"mean": True}}
    supernet = supernet_of(unet, site, [3])
    seen = family_of(unet).trace(unet, torch.randn(2, 1, 8, 8), torch.tensor([5, 900]))
    tensors = [seen[name] for name in site.reads]
    for got, want in zip(supernet(space.identity, tensors), [seen[name] for name in site.writes], strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    *_, state, last = supernet(changed, tensors)
    assert torch.equal(last, nn.functional.avg_pool2d(state, 2))
    assert family_of(unet).block_macs(supernet.skeleton(changed), site) < family_of(unet).block_macs(block, site)
    assert kinds.describe_choice("downsamplers.0", {"mean": True}, {"mean": False}).text == "mean of 2x2"


@torch.no_grad()
@pytest.mark.usefixtures("with_downsamplers")
def test_a_student_with_the_new_kind_is_built_and_timed() -> None:
    unet = tiny_unet()
    architecture = identity_architecture(unet)
    same = build_student(unet, copy.deepcopy(architecture), [], 0).eval()
    warm_start(same, unet)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([5, 900])
    assert torch.equal(same(x, t).sample, unet(x, t).sample)
    (entry,) = architecture["blocks"]["down_blocks.0"]
    entry["spec"]["downsamplers.0"] = {"mean": True}
    student = build_student(unet, architecture, [], 0).eval()
    warm_start(student, unet)
    assert not torch.equal(student(x, t).sample, unet(x, t).sample)
    site = sites_of(unet)[0]
    keys = [layer.key for layer in layers_of(unet).block(site.name, entry["spec"])]
    assert any(key.startswith("Mean of 16x8x8") for key in keys)
    supernet = supernet_of(unet, site, [3])
    state = student_state(supernet.state_dict(), unet.get_submodule(site.name), family_of(unet), site, entry["spec"])
    assert not any(name.startswith("downsamplers") for name in state)


# --- A family that is not in the library (chain.py) ---


SETTINGS = SPACE | LITTLE_SEARCH
CPU = torch.device("cpu")


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A teacher of the new family, registered."""
    monkeypatch.setitem(FAMILIES, "Chain", ChainFamily())
    monkeypatch.setitem(CONFIGS, "Chain", ChainConfig())
    torch.manual_seed(0)
    return Chain().eval()


def write_importance(path: Path, teacher: Chain, data: TrainingSet, process: VPProcess) -> None:
    """What rank_channels writes."""
    levels = measure_importance(teacher, process, data, 0, CPU)
    assert len(levels) == 1 and len(levels[0]) == 16 and min(levels[0]) > 0
    write_checked_json(path, {"stream_importance": levels, "stream_triples": 0})


@pytest.mark.parametrize(("channels", "least", "budget"), [(1.0, 0.5, 0.8), (0.5, 0.25, 0.4)])
def test_a_new_family_goes_from_features_to_a_trained_student(
    chain, digits, diffusion_settings, tmp_path, monkeypatch, channels, least, budget
):
    monkeypatch.setattr(importance, "BATCHES", 2)
    teacher, process, data = chain, VPProcess(diffusion_settings), TrainingSet.of_images(digits)
    sizes = CacheFeatures.model_construct(**FEW_FEATURES)
    intervals = process.edges([400])
    FeatureWriter(teacher, process, data, intervals, sizes, 0, CPU).write(tmp_path / "features", {})
    ranked = tmp_path / "importance.json"
    write_importance(ranked, teacher, data, process)
    settings = SETTINGS | {"channels": channels}
    params = SearchBlock.of(
        {"seed": 0, "device": "cpu", "precision": "fp32", "search_block": settings, "assemble.native": False}
    )
    results, states = {}, {}
    for name in ("first", "last.0.interval_0", "last.0.interval_1"):
        job = SearchJob(params, teacher, name, tmp_path / "features", CPU, tmp_path / "work" / f"{name}.pt", ranked)
        results[name] = job.run() | {"weights_sha256": ""}
        states[name] = job.supernet.state_dict()
    rule = {
        "native": False,
        "rule": "budget",
        "score": "combined",
        "macs": budget,
        "time": None,
        "params": None,
        "params_active": None,
    }
    plan = assemble_architecture(teacher, results, [10, 15], Assemble.model_construct(**rule), 0)
    assert plan["unet"]["blocks"].keys() == {"first", "last.0"} and least < plan["expected"]["macs_ratio"] <= budget
    assert ("stream" in plan["unet"]) == (channels < 1)
    chosen = plan | {"boundaries": [400]}
    student = start_student(teacher, chosen, "inherit", 0, states.__getitem__)
    assert count_parameters(student.first) == plan["chosen"]["first"]["params"]
    counted = model_cost(student, data.shape, [400], [10, 15])["macs"]
    assert counted == pytest.approx(plan["expected"]["macs"], rel=0.01)  # which leaves out the time embedding
    retraining = Retrain.model_construct(
        steps=4, joint_loss="constant", ramp=1.0, output_weight=9.0, jacobian_weight=0.0
    )
    batches = NoisyBatches(data, process, 8, CPU)
    loss = JointLoss(student, teacher, batches, retraining, "fp32")
    history = train(student, loss, TrainSettings(steps=4, learning_rate=1e-3)).history
    assert {"blocks", "end_to_end"} <= {name for entry in history for name in entry}
    save_pipeline(tmp_path / "student", student, process.scheduler(), {})
    loaded = load_student(tmp_path / "student")
    weights = student.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    assert type(loaded) is ChainStudent and loaded.config["architecture"] == plan["unet"]


def test_a_new_family_is_timed_layer_by_layer(chain: Chain) -> None:
    narrowed = narrowed_teacher(chain, [list(range(0, 16, 2))])
    settings = SearchSpace.model_construct(**SPACE)
    whole, student = layers_of(chain), layers_of(narrowed)
    pairs = pairs_to_measure(whole, student, covering_specs(narrowed, settings))
    # The ResNet layer, the input and the output layer of 16 and of 8 channels, that of 8 at half its inner width, and all.
    assert len(pairs) == 8
    times = Stopwatch(CPU, 2, 1, "fp32").measure(pairs)
    table = LatencyTable({**within_network(times, whole)}, "latency.json")
    assert table.milliseconds(whole.own()) == pytest.approx(table.of_teacher())
    spec = identity_architecture(narrowed)["blocks"]["first"][0]["spec"]
    assert table.latency_of(narrowed, "first")(spec) > 0


def test_a_new_family_has_decoders_of_given_widths(chain: Chain) -> None:
    plan = given_architecture(chain, [10, 15], [1.0, 0.5])
    student = start_student(chain, plan | {"boundaries": [400]}, "scratch", 0, dict.__getitem__)
    assert [block.resnets[0].conv1.out_channels for block in student.last] == [16, 8]
    counted = model_cost(student, (1, 8, 8), [400], [10, 15])["macs"]
    assert counted == pytest.approx(plan["expected"]["macs"], rel=0.01)


def test_a_new_family_is_clustered_by_its_gradients(chain, digits, diffusion_settings):
    process, data = VPProcess(diffusion_settings), TrainingSet.of_images(digits)
    gradients = bounded_gradients(chain, process, data, 4, np.array([10, 500]), 0)
    assert gradients.shape == (2, count_parameters(chain)) and np.abs(gradients).max() > 0


def test_a_teacher_of_a_new_family_may_come_from_elsewhere(chain, digits, diffusion_settings, tmp_path):
    process, data = VPProcess(diffusion_settings), TrainingSet.of_images(digits)
    save_pipeline(tmp_path / "given", chain, process.scheduler(), {"train_teacher": {"source": "train"}})
    own = load_teacher(tmp_path / "given")
    given, stated = open_given_teacher(str(tmp_path / "given"), data, diffusion_settings, Space(8, 1))
    x_t, t = torch.randn(2, *data.shape), torch.tensor([5, 900])
    for loaded in (own, given):
        assert type(loaded) is Chain and torch.equal(loaded(x_t, t).sample, chain(x_t, t).sample)
    assert stated is not None and stated["num_train_timesteps"] == 1000
    changes = {"train_teacher": {"source": "path", "path": str(tmp_path / "given")}, "diffusion": diffusion_settings}
    changes |= {"search_block": {"channels": 0.5}}  # of all levels alike: a chain has one
    params = validate_params(lay_over(preset_params("smoke"), changes), "params.yaml")
    check_given_teacher(params, survey(params.prepare_data))
    count = params.cluster_timesteps.intervals
    assert [name for name in block_names(params) if ".interval_" not in name] == ["first"]
    assert {name.partition(".interval_")[0] for name in block_names(params)} == {"first", "last.0"} and count > 1
    setup = read_setup(params)
    assert type(setup.teacher) is Chain and next(setup.teacher.parameters()).is_meta
    assert count_network_macs(setup.teacher) == count_network_macs(chain)


# --- A score that is not in the library ---


def test_a_new_score_of_candidates_chooses_by_registration_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def candidate(macs: int, own: float, output: float) -> Candidate:
        return {"spec": {}, "macs": macs, "params": macs, "nmse": own, "output": [output]}

    whole, *others = (candidate(100, 0.0, 0.0), candidate(40, 0.09, 0.01), candidate(50, 0.02, 0.06))
    block = Block("mid_block", None, whole, (whole, *others))
    costs = Costs(teacher_macs=100, teacher_params=100, fixed_macs=0, fixed_params=0, interval_weights=(1.0,))

    def choose(score: str) -> int:
        (chosen,) = select_budget([block], costs, Budget(macs=0.8), score).values()
        return chosen["macs"]

    assert [choose(score) for score in ("local", "output", "combined")] == [50, 40, 40]
    monkeypatch.setitem(SCORES, "worse", max)  # the worse of both errors
    assert choose("worse") == 50


def test_the_params_offer_every_score() -> None:
    assert {*get_args(Assemble.model_fields["score"].annotation)} == {"local", *SCORES}


# --- A source of images that is not in the library: bars of seeded heights ---


class Bars(Prepared):
    source: Literal["bars"]
    path: None
    count: int


class BarsSource:
    """What a module in stagecraft/data/sources has."""

    def load(self, settings: Bars, threads: int) -> Images:
        heights = np.arange(settings.count)[:, None, None, None] % 8
        images = np.where(np.arange(8)[:, None, None] < heights, 255, 0).repeat(8, 2).astype(np.uint8)
        return Images(conform(images, settings, "bars"), self.look(settings).contents, "bars")

    def fingerprint(self, settings: Bars) -> str:
        return f"bars-{settings.count}"

    def look(self, settings: Bars) -> Look:
        return Look(Contents(settings.count), settings.resolution or 8, 1)


def test_a_new_source_of_images_is_surveyed_and_prepared_by_registration_alone(monkeypatch, tmp_path):
    monkeypatch.setitem(SOURCES, "bars", BarsSource())
    keys = {"resolution": 16, "resize": "crop", "channels": 3, "held_out": 0.25}
    settings = Bars(source="bars", path=None, count=40, **keys)
    assert source_fingerprint(settings) == "bars-40"
    seen = survey(settings)
    assert (seen.train, seen.held_out, seen.height, seen.channels, seen.classes) == (30, 10, 16, 3, None)
    prepare_data(PrepareData.model_construct(seed=0, prepare_data=settings), threads=1, output=tmp_path / "prepared")
    assert PreparedData.load(tmp_path / "prepared").train_images.shape == (30, 16, 16, 3)
