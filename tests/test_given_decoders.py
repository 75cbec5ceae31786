"""Decoders of given widths: shapes, costs, routing, files, and what they start from."""

import copy
import json

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import tiny_unet

from stagecraft.diffusion.registry import make_process
from stagecraft.diffusion.sampling import steps_per_interval
from stagecraft.diffusion.vp import VPProcess
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.elastic.kinds import identity_spec
from stagecraft.evaluation.cost import model_cost
from stagecraft.networks.pipelines import load_student, save_pipeline
from stagecraft.search.architecture import given_architecture
from stagecraft.training.student import build_student, warm_start

BOUNDARIES, STEPS = [300, 700], [5, 3, 2]
VARIANTS = [
    {},
    {"num_class_embeds": 5},
    {"resnet_time_scale_shift": "scale_shift"},
    {"downsample_type": "resnet", "upsample_type": "resnet"},
    {"mid_block_type": None},
    {"layers_per_block": 2, "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2},
    {
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    },
]


def given(unet, widths):
    return given_architecture(unet, STEPS[: len(widths)], widths)


def student_of(unet, widths, boundaries=BOUNDARIES):
    return build_student(unet, given(unet, widths)["unet"], boundaries, 0).eval()


def labels_of(unet, count):
    return None if unet.config["num_class_embeds"] is None else torch.arange(count) % 5


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: next(iter(changes), "plain"))
def test_wider_and_narrower_decoders_cost_what_is_expected(changes):
    unet = tiny_unet(**changes)
    plan, student = given(unet, [1.5, 0.5, 1.0]), student_of(unet, [1.5, 0.5, 1.0])
    found = model_cost(student, (1, 8, 8), BOUNDARIES, STEPS)
    for key in ("macs", "params", "params_active"):
        assert plan["expected"][key] == pytest.approx(found[key], rel=1e-12), key
    wide, narrow, same = found["macs_per_interval"]
    assert narrow < same < wide
    whole = model_cost(unet, (1, 8, 8), [], [1])
    assert same == whole["macs"] == plan["teacher"]["macs"]
    assert plan["expected"]["macs_ratio"] == pytest.approx(found["macs"] / whole["macs"])


def test_channels_are_shares_of_the_teachers_in_whole_groups_and_heads(unet):
    plan = given(unet, [1.5, 0.5, 0.01])
    blocks = plan["unet"]["blocks"]
    channels = [[entry["channels"] for entry in blocks[name]] for name in ("up_blocks.0", "up_blocks.1")]
    assert channels == [[48, 16, 8], [24, 8, 8]]
    for name, width in (("up_blocks.0", 48), ("up_blocks.1", 24)):
        assert {choice["width"] for choice in blocks[name][0]["spec"].values() if choice} == {width}
    assert blocks["down_blocks.0"] == identity_architecture(unet, 3)["blocks"]["down_blocks.0"]
    assert given(unet, [1.0])["unet"] == identity_architecture(unet)
    built = student_of(unet, [1.5, 0.5, 0.01]).decoders[0].blocks[1]
    assert built.resnets[0].conv2.out_channels == 24 and identity_spec(built)["resnets.0"]["width"] == 24


def test_one_width_per_stage_is_demanded(unet):
    with pytest.raises(ValueError, match=r"assemble\.decoder_widths: \[1\.0, 0\.5\] for 3 intervals"):
        given_architecture(unet, STEPS, [1.0, 0.5])


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: next(iter(changes), "plain"))
def test_a_mixed_batch_gives_each_sample_what_it_gets_alone(changes):
    unet = tiny_unet(**changes)
    student = student_of(unet, [1.5, 0.5, 1.0])
    x, t = torch.randn(7, 1, 8, 8), torch.tensor([999, 0, 300, 299, 700, 699, 5])
    labels = labels_of(unet, 7)
    with torch.no_grad():
        together = student(x, t, labels).sample
        alone = torch.cat(
            [student(x[i : i + 1], t[i], None if labels is None else labels[i : i + 1]).sample for i in range(7)]
        )
        others = torch.cat([student(x[i : i + 1], t[i] - 300, labels_of(unet, 1)).sample for i in range(7)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert (together - others).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("conditional", [True, False])
def test_the_identity_is_the_teacher_bit_for_bit_for_every_process(process, conditional):
    unet = tiny_unet(**({"num_class_embeds": 5} if conditional else {}))
    boundaries = [process.at_share(0.3), process.at_share(0.7)]
    student = build_student(unet, identity_architecture(unet, 3), boundaries, 0).eval()
    warm_start(student, unet)
    x, labels = torch.randn(3, 1, 8, 8), labels_of(unet, 3)
    times = [process.at_share(share) for share in (0, 0.1, 0.5, 0.9)] + boundaries
    with torch.no_grad():
        for t in times:
            t = torch.tensor(t)
            assert torch.equal(student(x, t, labels).sample, unet(x, t, labels).sample)
        mixed = torch.tensor([times[0], times[2], times[3]])
        torch.testing.assert_close(
            student(x, mixed, labels).sample, unet(x, mixed, labels).sample, atol=1e-5, rtol=1e-4
        )
        if conditional:
            assert not torch.equal(student(x, t, labels.flip(0)).sample, unet(x, t, labels).sample)


def test_a_warm_start_copies_the_teacher_into_every_decoder_and_what_fits_of_it_into_others(unet):
    student = student_of(unet, [1.0, 1.5, 0.5])
    before = copy.deepcopy(student.state_dict())
    warm_start(student, unet)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(student(x, 10).sample, unet(x, 10).sample)
        assert not torch.equal(student(x, 500).sample, unet(x, 500).sample)
    head = "decoders.{}.conv_out.weight"
    own, taught = student.state_dict(), unet.conv_out.weight
    assert torch.equal(own[head.format(1)][:, :16], taught)
    assert torch.equal(own[head.format(1)][:, 16:], before[head.format(1)][:, 16:])
    assert torch.equal(own[head.format(2)], taught[:, :8])


@pytest.mark.parametrize("kind", ["vp", "edm", "flow", "labels"])
def test_saved_students_are_loaded_and_draw_with_diffusers_alone(tmp_path, settings_of_processes, kind):
    unet = tiny_unet(**({"num_class_embeds": 5} if kind == "labels" else {}))
    process = make_process(settings_of_processes["vp" if kind == "labels" else kind])
    boundaries = [process.at_share(0.4), process.at_share(0.7)]
    student = student_of(unet, [1.5, 0.5, 1.0], boundaries)
    save_pipeline(tmp_path / "student", student, process.scheduler(), {"seed": 0})
    loaded = load_student(tmp_path / "student")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student", trust_remote_code=True)
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([process.at_share(share) for share in (0.1, 0.5, 0.9)])
    labels = labels_of(unet, 3)
    with torch.no_grad():
        wanted = student(x, t, labels).sample
        assert type(loaded) is type(student)
        for other in (loaded, pipeline.unet):
            assert all(torch.equal(value, student.state_dict()[name]) for name, value in other.state_dict().items())
            # The same numbers elsewhere in memory: BLAS may round by their alignment.
            torch.testing.assert_close(other(x, t, labels).sample, wanted)
    pipeline.set_progress_bar_config(disable=True)
    how = {"class_labels": [0, 1, 2]} if kind == "labels" else {"batch_size": 3}
    drawn = pipeline(num_inference_steps=4, output_type="np", generator=torch.Generator().manual_seed(0), **how).images
    assert drawn.shape == (3, 8, 8, 1)
    own = json.loads((tmp_path / "student" / "model_index.json").read_text())["_class_name"]
    assert own == ["multi_stage_pipeline", "MultiStagePipeline"]


def test_costs_weigh_stages_by_the_samplers_steps(unet, diffusion_settings):
    process = VPProcess(diffusion_settings)
    student = student_of(unet, [1.5, 0.5, 1.0])
    samplers = {name: steps_per_interval(process, name, 20, BOUNDARIES) for name in ("ddim", "dpm_solver")}
    found = model_cost(student, (1, 8, 8), BOUNDARIES, samplers["ddim"], [0.2, 0.3, 0.5], samplers)
    wide, narrow, same = found["macs_per_interval"]
    assert found["macs_training"] == pytest.approx(0.2 * wide + 0.3 * narrow + 0.5 * same)
    for name, steps in samplers.items():
        mean = (steps[0] * wide + steps[1] * narrow + steps[2] * same) / 20
        assert found["macs_of_samplers"][name] == pytest.approx(mean)
    assert found["macs"] == found["macs_of_samplers"]["ddim"] != found["macs_of_samplers"]["dpm_solver"]
