"""LoRA weights that were trained for the teacher, in its student."""

import copy
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers import supernet_of, tiny_prompted_unet
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from stagecraft.data.condition import Condition
from stagecraft.diffusion.losses import predict
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.elastic.block import student_state
from stagecraft.elastic.kinds import identity_spec
from stagecraft.networks.families import family_of, sites_of
from stagecraft.training.student import build_student, warm_start

TEACHER = {"block_out_channels": (8, 8), "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "upsamplers.0.conv", "conv1"]
RANK, ALPHA = 2, 5
T = torch.tensor([10, 490, 500, 990])


def changed(deltas: Mapping[str, torch.Tensor]) -> list[str]:
    """The modules of a LoRA that are not in ResNet layers, whose channels a search puts into another order."""
    return [name for name in deltas if ".resnets." not in name]


def output(net: Any) -> torch.Tensor:
    """What a network predicts at timesteps of both intervals."""
    torch.manual_seed(2)
    with torch.no_grad():
        return predict(net, torch.randn(4, 1, 8, 8), T, Condition({"prompt": torch.randn(4, 5, 6)}))


@pytest.fixture
def teacher() -> Any:
    return tiny_prompted_unet(**TEACHER)


@pytest.fixture
def tensors(teacher: Any) -> dict[str, torch.Tensor]:
    """A LoRA as peft has it, its second matrices random and not zero."""
    trained = copy.deepcopy(teacher)
    trained.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
    torch.manual_seed(1)
    return {name: 0.1 * torch.randn_like(value) for name, value in get_peft_model_state_dict(trained).items()}


@pytest.fixture
def deltas(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What it adds to each weight."""
    pairs = {name: (tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]) for name in names_of(tensors)}
    return {
        name: ALPHA / RANK * torch.einsum("or,r...->o...", up.flatten(1), down) for name, (down, up) in pairs.items()
    }


def names_of(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    return [key.removesuffix(".lora_A.weight") for key in tensors if "lora_A" in key]


def write(folder: Path, form: str, tensors: dict[str, torch.Tensor]) -> None:
    """Save a LoRA as diffusers does, or as the trainers do whose files model sites have most of."""
    if form == "diffusers":
        config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS}
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=tensors, unet_lora_adapter_metadata=config)
        return
    flat = {}
    for name in names_of(tensors):
        key = "lora_unet_" + name.replace(".", "_")
        flat[f"{key}.lora_down.weight"] = tensors[f"{name}.lora_A.weight"]
        flat[f"{key}.lora_up.weight"] = tensors[f"{name}.lora_B.weight"]
        flat[f"{key}.alpha"] = torch.tensor(float(ALPHA))
    folder.mkdir(exist_ok=True)
    save_file(flat, folder / "pytorch_lora_weights.safetensors")


def load(folder: Path, student: Any) -> None:
    """What `load_lora_weights` of a pipeline does with its UNet."""
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        folder, unet_config=student.config, return_lora_metadata=True
    )
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, student, metadata=metadata)


@torch.no_grad()
def merged(net: Any, deltas: Mapping[str, torch.Tensor], names: list[str]) -> Any:
    """A copy of a network with a part of a LoRA added to its weights, in each decoder."""
    copied = copy.deepcopy(net)
    for module, value in copied.named_modules():
        teachers = module.partition(".up_blocks.")
        name = f"up_blocks.{teachers[2]}" if module.startswith("decoders.") else module
        if name in names:
            value.weight += deltas[name]
    return copied


def student_of(teacher: Any, **specs: Any) -> Any:
    """A student of two intervals with a decoder each and the teacher's weights, some layers of some blocks chosen otherwise."""
    architecture = identity_architecture(teacher)
    for name, entries in architecture["blocks"].items():
        ranges = [[0], [1]] if name.startswith("up_blocks") else [[0, 1]]
        spec = entries[0]["spec"] | specs.get(name.replace(".", "_"), {})
        architecture["blocks"][name] = [{"range": part, "spec": spec} for part in ranges]
    student = build_student(teacher, architecture, [500], 0)
    warm_start(student, teacher)
    return student.eval()


def left_out(caplog: Any) -> list[str]:
    """The modules that a warning names."""
    (line,) = [record.getMessage() for record in caplog.records if "LoRA" in record.getMessage()]
    return sorted(line.partition(": left out, as the search dropped, narrowed or reordered these: ")[2].split(", "))


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_a_student_draws_with_the_teachers_lora(teacher, tensors, deltas, form, tmp_path, caplog):
    student = student_of(teacher)
    plain = output(student)
    write(tmp_path, form, tensors)
    with caplog.at_level(logging.WARNING):
        load(tmp_path, student)
    wanted = output(merged(teacher, deltas, changed(deltas)))
    assert (wanted - plain).abs().max() > 1e-2
    torch.testing.assert_close(output(student), wanted, atol=1e-5, rtol=1e-4)
    (line,) = [record.getMessage() for record in caplog.records if "LoRA" in record.getMessage()]
    left = [name for name in deltas if ".resnets." in name]
    assert left and sorted(
        line.partition(": left out, as the search dropped, narrowed or reordered these: ")[2].split(", ")
    ) == sorted(left)
    student.disable_adapters()
    torch.testing.assert_close(output(student), plain)
    student.enable_adapters()
    student.fuse_lora()
    torch.testing.assert_close(output(student), wanted, atol=1e-5, rtol=1e-4)


def test_only_layers_that_are_as_in_the_teacher_get_it(teacher, tensors, deltas, tmp_path, caplog):
    whole = identity_spec(teacher.up_blocks[0])["attentions.0"]
    student = student_of(
        teacher,
        down_blocks_0={"attentions.0": None},
        up_blocks_0={"attentions.0": whole | {"heads": 1}},
        up_blocks_1={"attentions.1": whole | {"feed_forward": 5}},
    )
    write(tmp_path, "diffusers", tensors)
    with caplog.at_level(logging.WARNING):
        load(tmp_path, student)
    other = ["down_blocks.0.attentions.0."]
    other += [f"up_blocks.0.attentions.0.transformer_blocks.0.attn{number}" for number in (1, 2)]
    other.append("up_blocks.1.attentions.1.transformer_blocks.0.ff")
    names = [name for name in changed(deltas) if not name.startswith(tuple(other))]
    assert 0 < len(names) < len(changed(deltas))
    assert left_out(caplog) == sorted(name for name in deltas if name not in names)
    plain = student_of(
        teacher,
        down_blocks_0={"attentions.0": None},
        up_blocks_0={"attentions.0": whole | {"heads": 1}},
        up_blocks_1={"attentions.1": whole | {"feed_forward": 5}},
    )
    torch.testing.assert_close(output(student), output(merged(plain, deltas, names)), atol=1e-5, rtol=1e-4)


def test_a_lora_of_which_nothing_fits_is_refused(teacher, tensors, tmp_path):
    write(tmp_path, "diffusers", {name: value for name, value in tensors.items() if ".resnets." in name})
    with pytest.raises(ValueError, match=r"LoRA: none of its \d+ modules is in this model as it is in the teacher"):
        load(tmp_path, student_of(teacher))
    with pytest.raises(ValueError, match="load_lora_weights"):
        student_of(teacher).load_lora_adapter(str(tmp_path))


@pytest.mark.parametrize(
    "another", [{"cross_attention_dim": 7}, {"block_out_channels": (16, 16)}, {"transformer_layers_per_block": 2}]
)
def test_a_lora_of_another_model_is_refused(teacher, another, tmp_path):
    other = tiny_prompted_unet(**TEACHER | another)
    other.add_adapter(LoraConfig(r=RANK, target_modules=["to_k"]))
    write(tmp_path, "diffusers", get_peft_model_state_dict(other))
    with pytest.raises(ValueError, match=r"LoRA: .*to_k is no module of this shape in the teacher"):
        load(tmp_path, student_of(teacher))


def test_ranks_and_alphas_by_pattern_are_kept(teacher, tmp_path):
    settings = {"r": 2, "lora_alpha": 4, "rank_pattern": {"attn2.to_q": 3}, "alpha_pattern": {".*to_v": 20}}
    trained = copy.deepcopy(teacher)
    trained.add_adapter(LoraConfig(**settings, target_modules=["to_q", "to_v"]))
    torch.manual_seed(1)
    tensors = {name: 0.1 * torch.randn_like(value) for name, value in get_peft_model_state_dict(trained).items()}
    metadata = settings | {"target_modules": ["to_q", "to_v"]}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=tensors, unet_lora_adapter_metadata=metadata)
    student = student_of(teacher)
    load(tmp_path, student)
    load(tmp_path, teacher)
    torch.testing.assert_close(output(student), output(teacher), atol=1e-5, rtol=1e-4)


def test_decoders_get_tensors_of_their_own(teacher, tensors, tmp_path):
    write(tmp_path, "diffusers", tensors)
    student = student_of(teacher)
    state, _, metadata = StableDiffusionPipeline.lora_state_dict(tmp_path, return_lora_metadata=True)
    StableDiffusionPipeline.load_lora_into_unet(state, None, student, metadata=metadata, low_cpu_mem_usage=True)
    own = [value.data_ptr() for name, value in student.named_parameters() if ".lora_" in name]
    assert len(own) == len({*own})
    (adapter,) = student.active_adapters()
    student.save_lora_adapter(tmp_path / "own", adapter_name=adapter)
    (file,) = (tmp_path / "own").iterdir()
    again = student_of(teacher)
    again.load_lora_adapter(load_file(file), prefix=None)
    assert len(own) == sum(".lora_" in name for name, _ in again.named_parameters())


def test_a_student_keeps_the_teachers_order_where_it_keeps_all(teacher):
    """Searches put the most important heads and units first; what a LoRA was trained for is the order of the teacher."""
    torch.manual_seed(3)
    with torch.no_grad():
        seen = family_of(teacher).trace(
            teacher, torch.randn(4, 1, 8, 8), T, Condition({"prompt": torch.randn(4, 5, 6)})
        )
    site = next(site for site in sites_of(teacher) if site.name == "up_blocks.0")
    block = teacher.get_submodule(site.name)
    supernet = supernet_of(teacher, site)
    for _ in range(2):  # a second time from another order
        supernet.sort([seen[name] for name in site.reads])
    whole = identity_spec(block)
    half = whole["attentions.0"] | {"heads": 2, "feed_forward": 8}
    for spec, same in ((whole, True), (whole | {"attentions.0": half}, False)):
        state = student_state(supernet.state_dict(), block, family_of(teacher), site, spec)
        moved = [name for name in state if re.search(r"\.(attn\d\.to_|ff\.).*weight", name)]
        assert len(moved) == 2 * 10
        for name in moved:
            value = block.state_dict()[name]
            kept = same or "attentions.0" not in name or ".attn" in name
            assert (state[name].shape == value.shape and torch.equal(state[name], value)) == kept, name
