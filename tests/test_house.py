"""The house: imports run one way, and what the library is said to take by registration it takes."""

import ast
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from helpers import ROOT, space_of, supernet_of, tiny_unet
from torch import nn

from stagecraft.config.sections import Assemble, CacheFeatures, Retrain
from stagecraft.config.stages import SearchBlock
from stagecraft.data.condition import Condition
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.vp import VPProcess
from stagecraft.elastic import kinds
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.elastic.block import student_state
from stagecraft.elastic.searchable import Choice, Choices, Description, Order, Searchable, Settings
from stagecraft.networks.costs import count_parameters
from stagecraft.networks.families import FAMILIES, family_of, sites_of
from stagecraft.networks.family import Architecture, FixedCosts, Module, Site, Spec, StudentBlock
from stagecraft.networks.unet2d import multi_decoder_unet
from stagecraft.runtime.files import write_checked_json
from stagecraft.search.architecture import assemble_architecture
from stagecraft.search.features import FeatureWriter
from stagecraft.search.job import SearchJob
from stagecraft.search.latency import layers_of
from stagecraft.training.joint import JointLoss
from stagecraft.training.loop import TrainSettings, train
from stagecraft.training.student import build_student, start_student, warm_start

PACKAGE = ROOT / "stagecraft"
# Every room may import those before it.
ROOMS = ["runtime", "config", "data", "diffusion", "networks", "elastic", "training", "search"]
ROOMS += ["clustering", "evaluation", "export", "report", "preflight", "planning"]
SPACE = {"widths": [0.5, 1.0], "kernels": [3], "stream": [1.0], "channel_multiple": 1}
SPACE |= {"drop_layers": False, "drop_attention": False}


def imports_of(file: Path) -> Iterator[str]:
    """The modules of the library that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
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


def test_one_family_alone_knows_its_network() -> None:
    """What is outside of a family's folder imports its family from the registry, but for the student file's own layers."""
    allowed = {"networks/families.py"}
    for file in PACKAGE.rglob("*.py"):
        name = file.relative_to(PACKAGE).as_posix()
        if "networks/unet2d" not in name and name not in allowed:
            assert "networks.unet2d.family" not in file.read_text() or name in KNOWN, name


# Still to learn of families only.
KNOWN = {"training/student.py"}


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


# --- A family that is not in the library: a chain of blocks, with one decoder block for every range of noise levels ---


class Block(nn.Module):
    """Two ResNet layers."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock2D(in_channels=16, temb_channels=8, groups=4) for _ in range(2))

    def forward(self, hidden: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        for resnet in self.resnets:
            hidden = resnet(hidden, emb)
        return hidden


class Chain(nn.Module):
    """An input layer, a block, and for each interval a block and an output layer."""

    def __init__(self, boundaries: list[float] | None = None) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"sample_size": 8, "num_class_embeds": None, "boundaries": boundaries or []}
        self.conv_in = nn.Conv2d(1, 16, 3, padding=1)
        self.time = nn.Linear(1, 8)
        self.first = Block()
        self.last = nn.ModuleList(Block() for _ in range(1 + len(self.config["boundaries"])))
        self.conv_out = nn.Conv2d(16, 1, 3, padding=1)

    def interval_of(self, t: torch.Tensor) -> torch.Tensor:
        return multi_decoder_unet.interval_of(t, self.config["boundaries"])

    def embed(self, t: torch.Tensor) -> torch.Tensor:
        return self.time(t.float()[:, None] / 1000)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> UNet2DOutput:
        emb = self.embed(t)
        hidden = self.first(self.conv_in(x_t), emb)
        parts = zip(hidden.split(1), emb.split(1), self.interval_of(t).tolist(), strict=True)
        return UNet2DOutput(sample=self.conv_out(torch.cat([self.last[interval](h, e) for h, e, interval in parts])))


class ChainFamily:
    """What the library is told of a Chain."""

    def sites(self, net: Module) -> list[Site]:
        return [
            Site("first", ("emb", "in"), ("middle",), False, 8),
            Site("last.0", ("emb", "middle"), ("out",), True, 8),
        ]

    def run(self, site: Site, block: Module, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        emb, hidden = tensors
        return (block(hidden, emb),)

    def trace(self, net: Module, x_t: torch.Tensor, t: torch.Tensor, condition: Condition) -> dict[str, torch.Tensor]:
        seen = {"emb": net.embed(t), "in": net.conv_in(x_t)}
        seen["middle"] = net.first(seen["in"], seen["emb"])
        seen["out"] = net.last[0](seen["middle"], seen["emb"])
        return seen | {"output": net.conv_out(seen["out"])}

    def tail_reads(self, net: Module, site: Site) -> tuple[str, ...]:
        return () if site.per_range else ("emb",)

    def tail(self, net: Module, site: Site, outputs: Sequence[torch.Tensor], seen: dict[str, Any]) -> torch.Tensor:
        (hidden,) = outputs
        return net.conv_out(hidden if site.per_range else net.last[0](hidden, seen["emb"]))

    def blocks(self, student: Module, site: Site) -> list[StudentBlock]:
        entries = student.config["architecture"]["blocks"][site.name]
        modules = [student.last[entry["range"][0]] if site.per_range else student.first for entry in entries]
        return [
            StudentBlock(block, entry["spec"], entry["range"]) for block, entry in zip(modules, entries, strict=True)
        ]

    def rebuild(self, block: Module, spec: Spec) -> Module:
        for name, choice in spec.items():
            index = int(name.partition(".")[2])
            block.resnets[index] = multi_decoder_unet.build_resnet(block.resnets[index], choice)
        return block

    def block_macs(self, block: Module, site: Site) -> int:
        return sum(m.weight.numel() * site.side**2 for m in block.modules() if isinstance(m, nn.Conv2d))

    def fixed_costs(self, net: Module) -> FixedCosts:
        return FixedCosts(9 * 16 * 64, 9 * 16 * 64, count_parameters(net.conv_in), count_parameters(net.conv_out))

    def build_student(self, teacher: Module, architecture: Architecture, boundaries: Sequence[float]) -> Module:
        student = Chain(list(boundaries))
        student.config["architecture"] = architecture
        for site in self.sites(teacher):
            for entry, block in zip(architecture["blocks"][site.name], self.blocks(student, site), strict=True):
                self.rebuild(block.module, entry["spec"])
        return student

    def copy_fixed(self, student: Module, teacher: Module) -> None:
        for name in ("conv_in", "time", "conv_out"):
            getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())

    def copy_all(self, student: Module, teacher: Module) -> None:
        raise NotImplementedError


SETTINGS = SPACE | {"channels": 1.0, "steps": 2, "refine_steps": 2, "batch_size": 8, "learning_rate": 1e-4}
SETTINGS |= {"warmup_steps": 0, "candidates": 9, "ranges": "own", "local_triples": 4, "output_candidates": 4}
SETTINGS |= {"output_triples": 2, "checkpoint_every": 100}
CACHED = {"triples_per_interval": 16, "held_out": 0.5, "batch_size": 8, "shard_size": 8, "max_gib": 1.0}
CPU = torch.device("cpu")


def test_a_new_family_goes_from_features_to_a_trained_student(digits, diffusion_settings, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "Chain", ChainFamily())
    torch.manual_seed(0)
    teacher, process, data = Chain().eval(), VPProcess(diffusion_settings), TrainingSet.of_images(digits)
    sizes = CacheFeatures.model_construct(**CACHED)
    intervals = process.edges([400])
    FeatureWriter(teacher, process, data, intervals, sizes, 0, CPU).write(tmp_path / "features", {})
    importance = tmp_path / "importance.json"
    write_checked_json(importance, {"stream_importance": None, "stream_triples": 0})
    params = SearchBlock.of({"seed": 0, "device": "cpu", "precision": "fp32", "search_block": SETTINGS})
    results, states = {}, {}
    for name in ("first", "last.0.interval_0", "last.0.interval_1"):
        job = SearchJob(params, teacher, name, tmp_path / "features", CPU, tmp_path / "work" / f"{name}.pt", importance)
        results[name] = job.report() | {"weights_sha256": ""}
        states[name] = job.supernet.state_dict()
    budget = {"rule": "budget", "score": "combined", "macs": 0.8, "time": None, "params": None, "params_active": None}
    plan = assemble_architecture(teacher, results, [10, 15], Assemble.model_construct(**budget), 0)
    assert plan["unet"]["blocks"].keys() == {"first", "last.0"} and 0.5 < plan["expected"]["macs_ratio"] <= 0.8
    chosen = plan | {"boundaries": [400]}
    student = start_student(teacher, chosen, "inherit", 0, states.__getitem__)
    assert count_parameters(student.first) == plan["chosen"]["first"]["params"]
    retraining = Retrain.model_construct(
        steps=4, joint_loss="constant", ramp=1.0, output_weight=9.0, jacobian_weight=0.0
    )
    batches = NoisyBatches(data, process, 8, CPU)
    loss = JointLoss(student, teacher, batches, retraining, "fp32")
    history = train(student, loss, TrainSettings(steps=4, learning_rate=1e-3)).history
    assert {"blocks", "end_to_end"} <= {name for entry in history for name in entry}
