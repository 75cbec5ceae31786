"""A residual stream with some of the teacher's channels: exact where the others say nothing, and the same through all intervals.

In the teachers of most tests the odd channels of the stream are copies of the even ones, and nothing reads them but GroupNorms,
whose statistics copies do not change. Without them such a teacher computes what it did.
"""

import copy
import re

import pytest
import torch
from helpers import FEW_FEATURES, section_with, tiny_unet

from stagecraft.config.sections import Assemble, CacheFeatures, Retrain
from stagecraft.config.stages import SearchBlock
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.batches import NoisyBatches
from stagecraft.diffusion.vp import VPProcess
from stagecraft.evaluation.cost import count_macs
from stagecraft.networks.costs import count_parameters
from stagecraft.networks.families import family_of, site_named, sites_of
from stagecraft.networks.jobs import Job
from stagecraft.networks.stream import kept_channels, kept_part, narrowed_teacher, with_part
from stagecraft.networks.unet2d.multi_decoder_unet import narrow_stream
from stagecraft.runtime.files import write_checked_json
from stagecraft.runtime.seeds import generator_for
from stagecraft.search.architecture import assemble_architecture, stream_of
from stagecraft.search.features import FeatureWriter
from stagecraft.search.importance import choose_stream, measure_importance, stream_importance
from stagecraft.search.job import SearchJob
from stagecraft.training.joint import JointLoss
from stagecraft.training.student import start_student

EVEN = [list(range(0, 16, 2)), list(range(0, 32, 2))]
STAGES, STEPS = [[0, 400], [400, 1000]], [10, 15]
SEARCH = {
    "channels": 0.5,
    "widths": [0.5, 1.0],
    "stream": [0.5, 1.0],
    "channel_multiple": 1,
    "kernels": [3],
    "drop_layers": False,
    "drop_attention": False,
    "steps": 1,
    "batch_size": 8,
    "learning_rate": 1e-5,
    "warmup_steps": 0,
    "candidates": 20,
    "local_triples": 8,
    "output_candidates": 6,
    "output_triples": 4,
    "checkpoint_every": 100,
}
ASSEMBLE = {
    "native": False,
    "rule": "budget",
    "score": "combined",
    "macs": 0.4,
    "time": None,
    "params": 9.0,
    "params_active": 9.0,
}
CPU = torch.device("cpu")


def doubled(**changes):
    """A teacher whose odd channels are copies that no layer reads."""
    unet = tiny_unet(**changes)
    writes, reads = [unet.conv_in], [unet.conv_out]
    for site in sites_of(unet):
        block = unet.get_submodule(site.name)
        samplers = [*(getattr(block, "downsamplers", None) or ()), *(getattr(block, "upsamplers", None) or ())]
        for layer in [*block.resnets, *(s for s in samplers if hasattr(s, "conv1"))]:
            reads.append(layer.conv1)
            writes.append(layer.conv2)
            if layer.conv_shortcut is not None:
                reads.append(layer.conv_shortcut)
                writes.append(layer.conv_shortcut)
        for attention in filter(None, getattr(block, "attentions", None) or []):
            reads += [attention.to_q, attention.to_k, attention.to_v]
            writes.append(attention.to_out[0])
        for sampler in (s for s in samplers if not hasattr(s, "conv1")):
            convolution = next(m for m in sampler.modules() if isinstance(m, torch.nn.Conv2d))
            reads.append(convolution)
            writes.append(convolution)
    with torch.no_grad():
        for layer in reads:
            layer.weight[:, 1::2] = 0
        for layer in writes:
            for parameter in layer.parameters():
                parameter[1::2] = parameter[0::2]
    return unet


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resnet_time_scale_shift": "scale_shift", "layers_per_block": 2},
        {"mid_block_type": None},
        {"downsample_type": "resnet", "upsample_type": "resnet"},
        {"block_out_channels": (32, 32)},
    ],
    ids=lambda changes: next(iter(changes), "plain"),
)
def test_a_stream_without_channels_that_say_nothing_gives_the_teachers_output(changes):
    unet = doubled(**changes)
    stream = [list(range(0, width, 2)) for width in unet.config["block_out_channels"]]
    small, x_t, t = narrowed_teacher(unet, stream), torch.randn(3, 1, 8, 8), torch.tensor([0, 400, 999])
    with torch.no_grad():
        torch.testing.assert_close(small(x_t, t).sample, unet(x_t, t).sample, atol=1e-4, rtol=1e-4)
        whole, part = family_of(unet).trace(unet, x_t, t), family_of(small).trace(small, x_t, t)
        kept = kept_channels(unet, stream)
        assert kept.keys() == whole.keys() - {"emb", "output"}
        for name, tensor in part.items():
            torch.testing.assert_close(tensor, kept_part(name, whole[name], kept), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(with_part(name, whole[name], tensor, kept), whole[name], atol=1e-4, rtol=1e-4)
    assert narrowed_teacher(unet, None) is unet and kept_channels(unet, None) == {}


def test_the_channels_that_matter_are_kept_in_every_group(digits, diffusion_settings):
    unet, process = doubled(), VPProcess(diffusion_settings)
    batches = NoisyBatches(TrainingSet.of_images(digits), process, 64, CPU)
    drawn = [batches(generator_for(0, "stream", step)) for step in range(4)]
    factors = [process.image_factor(batch.t) for batch in drawn]
    found = [level.tolist() for level in stream_importance(unet, drawn, factors, generator_for(0, "signs", 0))]
    assert choose_stream(unet, 0.5, found) == EVEN
    assert choose_stream(unet, 1.0, found) is None
    assert [len(level) for level in choose_stream(unet, 0.6, found, 8)] == [8, 16]
    assert [len(level) for level in choose_stream(unet, 0.7, found, 12)] == [12, 24]
    assert choose_stream(unet, 0.6, found, 64) is None
    assert choose_stream(unet, [0.5, 1.0], found) == [EVEN[0], list(range(32))]
    assert choose_stream(unet, [1.0, 0.5], found) == [list(range(16)), EVEN[1]]
    with pytest.raises(ValueError, match=r"search_block\.channels: \[0\.5\] for 2 levels; give one share"):
        choose_stream(unet, [0.5], found)
    for level, channels in enumerate(choose_stream(unet, 0.01, found)):
        size = len(found[level]) // 4
        assert [channel // size for channel in channels] == [0, 1, 2, 3]
        assert channels == [max(range(g * size, (g + 1) * size), key=found[level].__getitem__) for g in range(4)]
    assert not any(module._forward_hooks for module in unet.modules())


def test_all_channels_are_kept_whatever_they_are_to_be_a_multiple_of():
    unet = tiny_unet(block_out_channels=(20, 32))
    for shares in (1, 1.0, [1.0, 1.0], [1, 1.0]):
        assert choose_stream(unet, shares, None, 8) is None
    ranked = [list(range(20)), list(range(32))]
    assert [len(level) for level in choose_stream(unet, [1.0, 0.5], ranked, 8)] == [20, 16]
    with pytest.raises(ValueError, match="give one share, or one for each level"):
        choose_stream(unet, [1.0], None)


def test_importance_is_the_change_of_the_image_to_first_order(unet, digits, diffusion_settings):
    process = VPProcess(diffusion_settings)
    batch = NoisyBatches(TrainingSet.of_images(digits), process, 16, CPU)(generator_for(0, "stream", 0))
    factor = process.image_factor(batch.t)
    draws = 160
    found = stream_importance(unet, [batch] * draws, [factor] * draws, generator_for(0, "signs", 0))
    masks = [torch.ones(16), torch.ones(32)]
    writers = family_of(unet).residual_stream(unet).writers
    handles = [
        module.register_forward_hook(lambda module, args, output: output * masks[writers[module]][:, None, None])
        for module in writers
    ]
    with torch.no_grad():
        for level, channel in ((0, 3), (0, 12), (1, 5), (1, 30)):
            images = []
            for factor_of_channel in (1.01, 0.99):
                masks[level][channel] = factor_of_channel
                images.append(unet(batch.x_t, batch.t).sample * factor[:, None, None, None])
            masks[level][channel] = 1.0
            change = ((images[0] - images[1]) / 0.02).square().sum()
            assert float(found[level][channel]) / draws == pytest.approx(float(change), rel=0.35)
    for handle in handles:
        handle.remove()


def test_levels_of_equal_width_keep_the_same_channels():
    unet = tiny_unet(
        block_out_channels=(16, 32, 32), down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3
    )
    assert family_of(unet).residual_stream(unet).shared == (0, 1, 1)
    rising = [list(range(16)), list(range(32)), [3 * (32 - i) for i in range(32)]]
    stream = choose_stream(unet, 0.5, rising)
    assert stream[1] == stream[2] == [8 * g + i for g in range(4) for i in range(4)]
    assert choose_stream(unet, [0.5, 0.5, 0.5], rising) == stream
    with pytest.raises(ValueError, match=r"search_block\.channels\[2\]: 0\.75 for a level as wide as the one before"):
        choose_stream(unet, [0.5, 0.5, 0.75], rising)
    x_t = torch.randn(2, 1, 8, 8)
    assert narrowed_teacher(unet, stream)(x_t, 5).sample.shape == x_t.shape
    with pytest.raises(ValueError, match="stream of level 2 is not that of the level before"):
        narrow_stream(copy.deepcopy(unet), [stream[0], stream[1], list(range(16))])


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([EVEN[0]], "stream of 1 levels for a UNet of 2"),
        ([EVEN[0], [0, 1, 40, 41]], "stream [0, 1, 40, 41] are no ascending groups of 0 to 31"),
        ([EVEN[0], EVEN[1][:-1]], "channels, which make no 4 groups"),
    ],
)
def test_a_stream_that_does_not_fit_is_refused(unet, stream, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        narrow_stream(unet, stream)


@pytest.fixture
def searched(digits, diffusion_settings, tmp_path):
    """A doubled teacher, and what all its search jobs report with half of the stream's channels."""
    unet = doubled()
    writer = FeatureWriter(
        unet,
        VPProcess(diffusion_settings),
        TrainingSet.of_images(digits),
        STAGES,
        CacheFeatures.model_construct(**FEW_FEATURES),
        0,
        CPU,
    )
    writer.write(tmp_path / "features", {})
    found = measure_importance(unet, writer.process, writer.data, 0, CPU)
    importance = tmp_path / "importance.json"
    write_checked_json(importance, {"stream_importance": found, "stream_triples": 1024})
    params = {"seed": 0, "precision": "fp32", "search_block": SEARCH, "assemble.native": False}
    results, states = {}, {}
    for site in sites_of(unet):
        for name in [f"{site.name}.interval_{s}" for s in (0, 1)] if site.per_range else [site.name]:
            work = tmp_path / "work" / f"{name}.pt"
            job = SearchJob(SearchBlock.of(params), unet, name, tmp_path / "features", CPU, work, importance)
            results[name], states[name] = job.run() | {"weights_sha256": ""}, job.supernet.state_dict()
    return unet, results, states


def test_blocks_are_searched_in_the_narrowed_teacher_and_scored_in_the_whole_one(searched):
    unet, results, _ = searched
    for name, result in results.items():
        assert result["stream"] == EVEN and result["stream_triples"] > 0
        site = site_named(unet, Job.parse(name).site)
        whole = count_parameters(unet.get_submodule(site.name))
        identity, *others = result["candidates"]
        # The teacher's shape on the kept channels has what the teacher computes, so both errors are those of one small step.
        assert identity["nmse"] < 1e-3 and max(identity["output"]) < 1e-3
        assert identity["params"] < whole == result["teacher_params"]
        assert max(c["nmse"] for c in others) > 10 * identity["nmse"]


def test_the_student_of_a_narrow_stream_is_as_the_architecture_says(searched, digits, diffusion_settings):
    unet, results, states = searched
    plan = assemble_architecture(unet, results, STEPS, Assemble.model_construct(**ASSEMBLE), 0)
    assert plan["unet"]["stream"] == EVEN and plan["expected"]["macs_ratio"] <= 0.4
    chosen = plan | {"boundaries": [400]}
    student = start_student(unet, chosen, "inherit", 0, states.__getitem__)
    counted = [count_macs(student, (1, 8, 8), t) for t in (0, 999)]
    weighted = sum(steps * macs for steps, macs in zip(STEPS, counted, strict=True)) / sum(STEPS)
    assert weighted == pytest.approx(plan["expected"]["macs"], rel=0.02)
    assert count_parameters(student) == plan["expected"]["params"]
    for init in ("inherit", "teacher", "scratch"):
        net = start_student(unet, chosen, init, 0, states.__getitem__)
        batches = NoisyBatches(TrainingSet.of_images(digits), VPProcess(diffusion_settings), 8, CPU)
        settings = section_with(
            Retrain, joint_loss="constant", ramp=0.5, steps=10, output_weight=1.0, jacobian_weight=1.0
        )
        losses = dict(JointLoss(net, unet, batches, settings, "fp32")(0, generator_for(0, "train", 0)))
        assert losses.keys() == {"blocks", "end_to_end"} and all(loss.isfinite() for loss in losses.values())


def test_the_largest_student_of_a_narrow_stream_inherits_all_that_the_teacher_says(searched):
    unet, results, states = searched
    plan = assemble_architecture(unet, results, STEPS, Assemble.model_construct(**ASSEMBLE | {"rule": "largest"}), 0)
    student = start_student(unet, plan | {"boundaries": [400]}, "inherit", 0, states.__getitem__)
    x_t, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 399, 400, 999])
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(x_t, t).sample, unet(x_t, t).sample, atol=0.02, rtol=0.02)


def test_results_of_other_streams_do_not_go_together(searched):
    _, results, _ = searched
    results["mid_block"]["stream"] = None
    with pytest.raises(ValueError, match=r"mid_block\.json: has other channels .*--forcerun search_block"):
        stream_of(results)
