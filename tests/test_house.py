"""The house: imports run one way, and what the library is said to take by registration it takes."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, space_of, supernet_of, tiny_unet
from torch import nn

from stagecraft.elastic import kinds
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.elastic.block import student_state
from stagecraft.elastic.searchable import Choice, Choices, Description, Order, Searchable, Settings
from stagecraft.networks.families import family_of, sites_of
from stagecraft.networks.unet2d import multi_decoder_unet
from stagecraft.search.latency import layers_of
from stagecraft.training.student import build_student, warm_start

PACKAGE = ROOT / "stagecraft"
# Every room may import those before it.
ROOMS = ["runtime", "config", "data", "diffusion", "networks", "elastic", "training", "search"]
ROOMS += ["clustering", "evaluation", "report", "preflight"]
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
