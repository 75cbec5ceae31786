"""The student model: what it must share with its teacher, and where its samples go."""

import copy
import json
import re

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from helpers import spec_at, tiny_unet, with_ranges

from stagecraft.diffusion.vp import VPProcess
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.evaluation.cost import count_macs
from stagecraft.networks.costs import count_parameters
from stagecraft.networks.pipelines import load_given_teacher, load_student, save_pipeline
from stagecraft.networks.unet.costs import block_macs
from stagecraft.networks.unet2d.multi_decoder_unet import MultiDecoderUNet2DModel, apply_spec
from stagecraft.training.student import build_student


def student_of(unet, boundaries, architecture=None):
    """A student with the teacher's weights wherever shapes agree."""
    architecture = architecture or identity_architecture(unet, len(boundaries) + 1)
    student = build_student(unet, architecture, boundaries, seed=0).eval()
    own = student.state_dict()
    for name, value in unet.state_dict().items():
        decoder = name.startswith(("up_blocks", "conv_norm_out", "conv_out"))
        names = [f"decoders.{k}.{name}" for k in range(student.num_intervals)] if decoder else [name]
        own |= {key: value for key in names if key in own and own[key].shape == value.shape}
    student.load_state_dict(own)
    return student


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resnet_time_scale_shift": "scale_shift"},
        {"time_embedding_type": "fourier"},
        {"center_input_sample": True},
        {"mid_block_type": None},
        {"add_attention": False, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
        {"downsample_type": "resnet", "upsample_type": "resnet"},
    ],
    ids=lambda changes: next(iter(changes), "plain"),
)
def test_identity_spec_with_the_teachers_weights_is_the_teacher_bit_for_bit(changes):
    unet = tiny_unet(**changes)
    student, x = student_of(unet, [300, 700]), torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        for t in (1, 299, 300, 700, 999):
            assert torch.equal(student(x, t).sample, unet(x, t).sample)


def test_class_conditional_identity_is_the_teacher():
    unet = tiny_unet(num_class_embeds=10)
    student, x, labels = student_of(unet, [500]), torch.randn(3, 1, 8, 8), torch.tensor([1, 2, 3])
    with torch.no_grad():
        assert torch.equal(student(x, 7, class_labels=labels).sample, unet(x, 7, class_labels=labels).sample)
    with pytest.raises(ValueError, match="class_labels"):
        student(x, 7)


def test_every_sample_of_a_mixed_batch_gets_the_decoder_of_its_own_timestep(unet):
    student = student_of(unet, [300, 700])
    with torch.no_grad():
        for k, decoder in enumerate(student.decoders):
            decoder.conv_out.bias.fill_(float(k))
        x, t = torch.randn(7, 1, 8, 8), torch.tensor([999, 0, 300, 299, 700, 699, 5])
        together = student(x, t).sample
        alone = torch.cat([student(x[i : i + 1], t[i]).sample for i in range(len(t))])
    assert student.interval_of(t).tolist() == [2, 0, 1, 0, 2, 1, 0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert (together - student_of(unet, [300, 700])(x, t).sample).abs().max() > 0.9


def test_gradients_of_a_mixed_batch_reach_only_the_decoders_in_it(unet):
    student = student_of(unet, [300, 700])
    student(torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 800, 900])).sample.square().mean().backward()
    touched = [any(p.grad is not None for p in decoder.parameters()) for decoder in student.decoders]
    assert touched == [True, False, True]


def test_narrow_layers_kernels_and_dropped_parts_cost_what_they_should(unet):
    architecture = identity_architecture(unet, 1)
    spec = spec_at(architecture, "up_blocks.0")
    spec |= {"resnets.0": {"width": 8, "kernels": [1, 3]}, "resnets.1": None}
    spec |= {"attentions.0": None, "attentions.1": None}
    student = student_of(unet, [], architecture)
    built = student.decoders[0].blocks[0]
    assert built.resnets[0].conv1.weight.shape == (8, 64, 1, 1)
    assert built.resnets[0].norm2.num_groups == 1
    assert [name for name, _ in built.resnets[1].named_parameters()] == ["conv_shortcut.weight", "conv_shortcut.bias"]
    assert block_macs(built, 4) < block_macs(unet.up_blocks[0], 4)
    assert count_parameters(built) < count_parameters(unet.up_blocks[0])
    assert student(torch.randn(2, 1, 8, 8), 3).sample.shape == (2, 1, 8, 8)


PART = {"width": 16, "kernels": [3, 3], "reads": [0, 2], "writes": [1, 2, 3]}


@pytest.mark.parametrize("scale_shift", ["default", "scale_shift"])
def test_a_layer_that_reads_and_writes_parts_does_what_the_whole_one_does_with_zeros_elsewhere(scale_shift):
    unet = tiny_unet(resnet_time_scale_shift=scale_shift)
    whole = unet.down_blocks[0].resnets[0]
    part = apply_spec(copy.deepcopy(unet.down_blocks[0]), {"resnets.0": PART}).resnets[0].eval()
    read, written = [*range(4), *range(8, 12)], list(range(4, 16))
    with torch.no_grad():
        state = whole.state_dict()
        for name in ("norm1.weight", "norm1.bias"):
            state[name] = state[name][read]
        state["conv1.weight"] = state["conv1.weight"][:, read]
        state |= {f"conv2.{name}": state[f"conv2.{name}"][written] for name in ("weight", "bias")}
        part.load_state_dict(state)
        whole.conv1.weight[:, [i for i in range(16) if i not in read]] = 0
        for parameter in (whole.conv2.weight, whole.conv2.bias):
            parameter[[i for i in range(16) if i not in written]] = 0
        x, emb = torch.randn(2, 16, 8, 8), torch.randn(2, whole.time_emb_proj.in_features)
        torch.testing.assert_close(part(x, emb), whole(x, emb), atol=1e-5, rtol=1e-5)


def test_a_student_with_partial_layers_costs_what_is_counted_and_is_loaded_by_diffusers(
    unet, tmp_path, diffusion_settings
):
    architecture = identity_architecture(unet, 2)
    spec_at(architecture, "down_blocks.0")["resnets.0"] = PART
    spec_at(architecture, "up_blocks.0", 1)["resnets.1"] = PART | {"width": 8, "kernels": [1, 3]}
    student = student_of(unet, [300], architecture)
    built = student.down_blocks[0]
    assert block_macs(unet.down_blocks[0], 8) - block_macs(built, 8) == 9 * 64 * (16 * 16 * 2 - 8 * 16 - 16 * 12)
    assert count_macs(student, (1, 8, 8), 0) == count_macs(unet, (1, 8, 8), 0) - 9 * 64 * (
        16 * 16 * 2 - 8 * 16 - 16 * 12
    )
    save_pipeline(tmp_path / "student", student, VPProcess(diffusion_settings).scheduler(), {"seed": 0})
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student", trust_remote_code=True)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        for t in (5, 800):
            assert torch.equal(pipeline.unet(x, t).sample, student(x, t).sample)


@pytest.mark.parametrize("key", ["reads", "writes"])
@pytest.mark.parametrize("groups", [[], [4], [-1, 0], [1, 0], [2, 2]])
def test_groups_that_a_layer_has_not_are_refused(unet, key, groups):
    architecture = identity_architecture(unet, 1)
    spec_at(architecture, "down_blocks.0")["resnets.0"][key] = groups
    with pytest.raises(ValueError, match=re.escape(f"{key} {groups} are no ascending groups of 0 to 3")):
        build_student(unet, architecture, [], seed=0)


@pytest.mark.parametrize("width", [6, 0, 66])
def test_a_width_that_breaks_groups_is_refused(unet, width):
    architecture = identity_architecture(unet, 1)
    spec_at(architecture, "down_blocks.0")["resnets.0"]["width"] = width
    with pytest.raises(ValueError, match=f"width {width} is no multiple of the group size 4"):
        build_student(unet, architecture, [], seed=0)


def test_one_decoder_per_stage_is_demanded(unet):
    with pytest.raises(ValueError, match=r"ranges \[\[0, 1\]\] of down_blocks.0 do not tile 3 intervals"):
        build_student(unet, identity_architecture(unet, 2), [100, 200], seed=0)


def test_saved_student_is_loaded_by_diffusers_and_samples_with_its_schedulers(unet, tmp_path, diffusion_settings):
    student = student_of(unet, [300, 700])
    save_pipeline(tmp_path / "student", student, VPProcess(diffusion_settings).scheduler(), {"seed": 0})
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student", trust_remote_code=True)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(pipeline.unet(x, 5).sample, student(x, 5).sample)
        assert torch.equal(load_student(tmp_path / "student")(x, 5).sample, student(x, 5).sample)
    pipeline.set_progress_bar_config(disable=True)
    for scheduler in (type(pipeline.scheduler), DDIMScheduler, DPMSolverMultistepScheduler):
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
        assert pipeline(batch_size=2, num_inference_steps=5, output_type="np").images.shape == (2, 8, 8, 1)
    assert not list((tmp_path / "student").rglob("*.bin"))
    assert json.loads((tmp_path / "student" / "params.json").read_text()) == {"seed": 0}


def test_teacher_folders_that_cannot_be_used_are_named(unet, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: not found"):
        load_given_teacher(tmp_path)
    unet.save_pretrained(tmp_path / "unet")
    load_given_teacher(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").rename(tmp_path / "weights")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors: not found"):
        load_given_teacher(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_given_teacher(tmp_path)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    unsupported = copy.deepcopy(config) | {"down_block_types": ["DownBlock2D", "AttnSkipDownBlock2D"]}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(unsupported))
    with pytest.raises(ValueError, match="block type AttnSkipDownBlock2D is not supported"):
        load_given_teacher(tmp_path)


SHARED = [[[0, 1], [2]], [[0], [1, 2]]]


def sharing(unet, ranges=SHARED):
    """A student of three stages that shares blocks, with random weights in each."""
    student = MultiDecoderUNet2DModel(
        unet=dict(unet.config), architecture=with_ranges(identity_architecture(unet, 3), ranges), boundaries=[300, 700]
    ).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return student


def test_stages_of_a_range_run_the_same_block_and_others_another(unet):
    student = sharing(unet)
    first, second, third = student.decoders
    assert first.blocks[0] is second.blocks[0] is not third.blocks[0]
    assert first.blocks[1] is not second.blocks[1] and second.blocks[1] is third.blocks[1]
    assert first.head[2] is not second.head[2] and second.head[2] is third.head[2]
    own = build_student(unet, identity_architecture(unet, 3), [300, 700], 0)
    blocks = [count_parameters(block) for block in unet.up_blocks]
    head = count_parameters(unet.conv_norm_out) + count_parameters(unet.conv_out)
    assert count_parameters(own) - count_parameters(student) == sum(blocks) + head


def test_all_shared_is_one_ordinary_unet(unet):
    ranges = [[[0, 1, 2]]] * 2
    student = MultiDecoderUNet2DModel(
        unet=dict(unet.config), architecture=with_ranges(identity_architecture(unet, 3), ranges), boundaries=[300, 700]
    ).eval()
    state = {
        name: value
        for name, value in unet.state_dict().items()
        if not name.startswith(("up_", "conv_norm", "conv_out"))
    }
    state |= {f"decoders.0.{name}": value for name, value in unet.state_dict().items() if name not in state}
    student.load_state_dict(state)
    x, t = torch.randn(6, 1, 8, 8), torch.tensor([0, 299, 300, 699, 700, 999])
    assert count_parameters(student) == count_parameters(unet)
    assert torch.equal(student(x, t).sample, unet(x, t).sample)


def test_a_mixed_batch_through_shared_blocks_is_that_of_single_samples(unet):
    student, x = sharing(unet), torch.randn(6, 1, 8, 8)
    t = torch.tensor([900, 10, 500, 299, 300, 700])
    singly = torch.cat([student(x[i : i + 1], t[i]).sample for i in range(len(t))])
    assert torch.allclose(student(x, t).sample, singly, atol=1e-5)


def test_a_student_that_shares_blocks_is_copied_saved_and_loaded(unet, tmp_path):
    student, x, t = sharing(unet), torch.randn(3, 1, 8, 8), torch.tensor([0, 500, 999])
    copied = copy.deepcopy(student)
    assert copied.decoders[0].blocks[0] is copied.decoders[1].blocks[0] is not student.decoders[0].blocks[0]
    student.save_pretrained(tmp_path)
    loaded = MultiDecoderUNet2DModel.from_pretrained(tmp_path).eval()
    assert torch.equal(copied(x, t).sample, student(x, t).sample)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in student.state_dict().items())
    assert torch.allclose(loaded(x, t).sample, student(x, t).sample, atol=1e-5)
    assert loaded.half().decoders[1].blocks[0].resnets[0].conv1.weight.dtype == torch.float16


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([[[0, 2], [1]], [[0, 1, 2]]], r"ranges \[\[0, 2\], \[1\]\] of up_blocks.0 do not tile 3 intervals"),
        ([[[0, 1]], [[0, 1, 2]]], "do not tile"),
        ([[[0, 1, 2], []], [[0, 1, 2]]], "do not tile"),
    ],
)
def test_ranges_that_do_not_tile_the_stages_are_refused(unet, ranges, message):
    with pytest.raises(ValueError, match=message):
        sharing(unet, ranges)


def test_an_architecture_has_every_block_and_one_of_each_in_the_encoder(unet):
    architecture = identity_architecture(unet, 2)
    entry = architecture["blocks"]["mid_block"][0]
    architecture["blocks"]["mid_block"] = [entry | {"range": [0]}, entry | {"range": [1]}]
    with pytest.raises(ValueError, match=r"mid_block has ranges \[\[0\], \[1\]\], but only up blocks can have several"):
        build_student(unet, architecture, [500], 0)
    del architecture["blocks"]["mid_block"]
    with pytest.raises(ValueError, match=r"blocks down_blocks\.0, .* for a UNet with .*mid_block"):
        build_student(unet, architecture, [500], 0)
