"""UNets conditioned on prompts: their sites and costs, the student, and the search of their transformers."""

import copy
import itertools
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers import (
    FEW_FEATURES,
    LITTLE_SEARCH,
    ROOT,
    activated,
    search_space,
    space_of,
    spec_at,
    supernet_of,
    tiny_prompted_unet,
)

from stagecraft.config.sections import Assemble, CacheFeatures, Retrain
from stagecraft.config.stages import SearchBlock
from stagecraft.data.condition import Condition
from stagecraft.data.prompts import Prompts
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.losses import predict
from stagecraft.diffusion.vp import VPProcess
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.elastic.block import student_state
from stagecraft.elastic.kinds import describe_choice, identity_spec
from stagecraft.evaluation.cost import count_macs, model_cost
from stagecraft.networks.configs import CONFIGS, check_config
from stagecraft.networks.costs import count_network_macs, count_parameters
from stagecraft.networks.families import condition_names, example_condition, family_of, sites_of
from stagecraft.networks.pipelines import load_student, save_pipeline
from stagecraft.networks.stream import narrowed_teacher
from stagecraft.networks.unet2d_condition import config as configs
from stagecraft.networks.unet2d_condition import multi_decoder_unet_condition as students
from stagecraft.runtime.files import write_checked_json
from stagecraft.search import importance
from stagecraft.search.architecture import assemble_architecture, given_architecture
from stagecraft.search.features import FeatureWriter
from stagecraft.search.importance import measure_importance
from stagecraft.search.job import SearchJob
from stagecraft.search.latency import Stopwatch, layers_of
from stagecraft.search.space import BlockSpace
from stagecraft.training.joint import JointLoss
from stagecraft.training.loop import TrainSettings, train
from stagecraft.training.student import build_student, start_student, student_batches, warm_start

CPU = torch.device("cpu")
SPACE = {"widths": [0.5, 1.0], "kernels": [3], "stream": [1.0], "channel_multiple": 1}
SPACE |= {"drop_layers": True, "drop_attention": True}

# Tiny ones of the kinds of Stable Diffusion 1 and 2 and SDXL, and of other settings that a config may have.
XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 3),
    "use_linear_projection": True,
    "attention_head_dim": (2, 4),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + 5,
}
TINY = {
    "1": {},
    "2": {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True},
    "xl": XL,
    "classes": {"num_class_embeds": 3},
    "no middle": {"mid_block_type": None},
    "scale_shift": {"resnet_time_scale_shift": "scale_shift"},
    "layers of each level": {"layers_per_block": (2, 1), "center_input_sample": True},
}


@pytest.fixture(params=TINY)
def net(request):
    return tiny_prompted_unet(**TINY[request.param])


def condition_of(net, count):
    """A random condition of the kind that a network is given."""
    torch.manual_seed(1)
    example = example_condition(net, count).tensors
    return Condition(
        {
            name: torch.randint(3, tensor.shape) if name == "labels" else torch.randn(tensor.shape)
            for name, tensor in example.items()
        }
    )


def sites_with_tensors(net, count=4):
    with torch.no_grad():
        t = torch.linspace(0, 999, count).long()
        seen = family_of(net).trace(net, torch.randn(count, 1, 8, 8), t, condition_of(net, count))
    return [(site, [seen[n] for n in site.reads], [seen[n] for n in site.writes]) for site in sites_of(net)]


# --- Configs ---


def config_of(name):
    return json.loads((ROOT / "tests" / "unets" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "params", "macs", "blocks"),
    [
        ("stable-diffusion-v1-5", 859.5e6, 339e9, 9),
        ("stable-diffusion-2-1", 865.9e6, 339e9, 9),
        ("stable-diffusion-xl-base-1.0", 2567e6, None, 7),
    ],
)
def test_real_configs_have_the_published_costs(name, params, macs, blocks):
    with torch.device("meta"):
        net = UNet2DConditionModel.from_config(config_of(name))
    family_of(net).adapt(net, 64)
    assert count_parameters(net) == pytest.approx(params, rel=0.001)
    assert macs is None or count_network_macs(net) == pytest.approx(macs, rel=0.01)
    sites = sites_of(net)
    assert len(sites) == blocks and {site.tokens for site in sites} == {0, 77}
    spaces = [space_of(net.get_submodule(site.name), SPACE) for site in sites]
    assert all(len(space) > 8 for space in spaces)
    cheapest = min(sites, key=lambda site: family_of(net).block_macs(net.get_submodule(site.name), site))
    assert family_of(net).block_macs(net.get_submodule(cheapest.name), cheapest) > 0
    named = CONFIGS["UNet2DConditionModel"].sites(config_of(name))
    assert [*named.shared, *named.per_range] == [site.name for site in sites]


def test_the_costs_of_a_network_are_the_sum_of_its_parts(net):
    norms = sum(
        4 * site.side**2 * module.weight.numel()  # thop's count of LayerNorms, which a search leaves out
        for site in sites_of(net)
        for module in net.get_submodule(site.name).modules()
        if isinstance(module, torch.nn.LayerNorm)
    )
    assert count_macs(net, (1, 8, 8), 0) == count_network_macs(net) + norms


REFUSED = {
    "a block": (
        {"up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D"]},
        "block type SimpleCrossAttnUpBlock2D is",
    ),
    "a middle": (
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        "block type UNetMidBlock2DSimpleCrossAttn is not",
    ),
    "a projection": ({"encoder_hid_dim": 5}, "encoder_hid_dim is 5, but only None is supported"),
    "concatenated classes": ({"class_embeddings_concat": True}, "class_embeddings_concat is True, but only False is"),
    "images added": ({"addition_embed_type": "image"}, "addition_embed_type is 'image', but only text_time is"),
    "several widths": ({"cross_attention_dim": [4, 6]}, r"cross_attention_dim is \[4, 6\], but only one width"),
    "odd heads": ({"attention_head_dim": 3}, r"attention_head_dim is 3, no number of heads that divides .* \[8, 16\]"),
    "fewer heads": ({"attention_head_dim": [2]}, r"attention_head_dim is \[2\], no number of heads"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_configs_that_cannot_be_searched_are_named(tmp_path, name):
    changes, message = REFUSED[name]
    tiny_prompted_unet().save_config(tmp_path)
    path = tmp_path / "config.json"
    check_config(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        check_config(path)


def test_the_types_of_blocks_are_those_that_can_be_rebuilt():
    assert configs.BLOCK_TYPES == students.BLOCK_TYPES


def test_a_network_says_what_it_is_given(net):
    assert {"prompt"} <= condition_names(net)
    given = example_condition(net, 2)
    assert predict(net, torch.zeros(2, 1, 8, 8), torch.tensor([5, 6]), given).shape == (2, 1, 8, 8)


# --- The student ---


@torch.no_grad()
def test_identity_spec_with_the_teachers_weights_is_the_teacher_bit_for_bit(net):
    student = build_student(net, identity_architecture(net, 3), [300, 700], 0).eval()
    warm_start(student, net)
    x, given = torch.randn(3, 1, 8, 8), condition_of(net, 3)
    for t in (1, 299, 300, 700, 999):
        wanted = predict(net, x, t, given)
        assert torch.equal(predict(student, x, t, given), wanted) and wanted.abs().max() > 0.01
    other = {name: tensor.flip(0) for name, tensor in given.tensors.items()}
    assert (predict(student, x, 5, Condition(other)) - predict(net, x, 5, given)).abs().max() > 1e-4
    assert count_parameters(student) > count_parameters(net)


@torch.no_grad()
def test_a_mixed_batch_of_prompts_and_timesteps_is_that_of_single_samples(net):
    student = build_student(net, identity_architecture(net, 3), [300, 700], 0).eval()
    x, t, given = torch.randn(6, 1, 8, 8), torch.tensor([900, 10, 500, 299, 300, 700]), condition_of(net, 6)
    singly = torch.cat([predict(student, x[i : i + 1], t[i], given.rows(slice(i, i + 1))) for i in range(6)])
    torch.testing.assert_close(predict(student, x, t, given), singly, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_given_to_a_student_is_asked_for():
    net = tiny_prompted_unet(**XL)
    student = build_student(net, identity_architecture(net), [], 0).eval()
    x, given = torch.randn(1, 1, 8, 8), condition_of(net, 1).arguments()
    with pytest.raises(ValueError, match="added_cond_kwargs must be given"):
        student(x, 5, given["encoder_hidden_states"])
    with pytest.raises(ValueError, match="cross_attention_kwargs are not supported"):
        student(x, 5, **given, cross_attention_kwargs={"scale": 0.5})


PROGRAM = """
import sys
from dataclasses import replace
import torch
from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

folder, answers = sys.argv[1:]
kind = get_class_from_dynamic_module(
    folder, "multi_decoder_unet_condition.py", class_name="MultiDecoderUNet2DConditionModel", trust_remote_code=True
)
assert not [name for name in sys.modules if name.startswith("stagecraft")]
student = kind.from_pretrained(folder).eval()
inputs = torch.load(answers)
with torch.no_grad():
    torch.save(student(*inputs).sample, answers)
student.save_pretrained(folder + "-again")
"""


def test_a_saved_student_needs_its_own_file_alone(tmp_path):
    net = tiny_prompted_unet()
    architecture = identity_architecture(net, 2)
    spec_at(architecture, "down_blocks.0")["attentions.0"] = {"layers": [0], "heads": 1, "feed_forward": 5}
    spec_at(architecture, "up_blocks.1", 1)["attentions.0"] = None
    student = build_student(net, architecture, [500], 0).eval()
    student.save_pretrained(tmp_path / "student")
    inputs = (torch.randn(2, 1, 8, 8), torch.tensor([5, 900]), torch.randn(2, 4, 6))
    torch.save(inputs, tmp_path / "answers.pt")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "student"), str(tmp_path / "answers.pt")]
    home = activated() | {"PYTHONPATH": "", "HF_HOME": str(tmp_path / "hf")}
    result = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "answers.pt"), student(*inputs).sample)
    file = "multi_decoder_unet_condition.py"
    assert (tmp_path / "student-again" / file).read_bytes() == (tmp_path / "student" / file).read_bytes()


@torch.no_grad()
def test_some_channels_of_the_stream_are_kept_with_what_reads_and_writes_them(net):
    stream = [[*range(0, 8, 2)], [*range(0, 16, 2)]]
    narrowed = narrowed_teacher(net, stream)
    x, given = torch.randn(2, 1, 8, 8), condition_of(net, 2)
    assert count_network_macs(narrowed) < count_network_macs(net)
    student = build_student(net, identity_architecture(narrowed) | {"stream": stream}, [], 0).eval()
    warm_start(student, narrowed)
    assert torch.equal(predict(student, x, 5, given), predict(narrowed, x, 5, given))


def test_decoders_of_given_widths_have_whole_heads_and_cost_what_is_counted(net):
    plan = given_architecture(net, [10, 15], [1.0, 0.5])
    student = start_student(net, plan | {"boundaries": [400]}, "scratch", 0, dict.__getitem__).eval()
    narrow = student.decoders[1].blocks[-1]
    assert [resnet.conv2.out_channels for resnet in narrow.resnets] == [4] * len(narrow.resnets)
    counted = model_cost(student, (1, 8, 8), [400], [10, 15])["macs"]
    assert counted == pytest.approx(plan["expected"]["macs"], rel=0.03)  # which leaves out LayerNorms


# --- The search ---


@torch.no_grad()
def test_blocks_fed_with_traced_borders_give_the_traced_outputs(net):
    for site, inputs, outputs in sites_with_tensors(net):
        again = family_of(net).run(site, net.get_submodule(site.name), inputs)
        for got, want in zip(again, outputs, strict=True):
            torch.testing.assert_close(got, want)


@torch.no_grad()
def test_the_largest_path_of_a_supernet_is_the_teacher_before_and_after_sorting(net):
    for site, inputs, outputs in sites_with_tensors(net):
        supernet, spec = supernet_of(net, site), identity_spec(net.get_submodule(site.name))
        for _ in range(2):
            for got, want in zip(supernet(spec, inputs), outputs, strict=True):
                torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
            supernet.sort(inputs)


@torch.no_grad()
def assert_built_as_sliced(net, site, inputs, spec, supernet, state):
    built = family_of(net).rebuild(copy.deepcopy(net.get_submodule(site.name)), spec).eval()
    built.load_state_dict(state)
    for path, extracted in zip(supernet(spec, inputs), family_of(net).run(site, built, inputs), strict=True):
        torch.testing.assert_close(path, extracted, atol=1e-6, rtol=1e-5)


def kept_or_dropped(space):
    """All candidates of a space whose layers are the teacher's or dropped."""
    columns = [(space.identity[name], None) for name in space.choices]
    return [dict(zip(space.choices, row, strict=True)) for row in itertools.product(*columns)]


def test_every_candidate_builds_and_equals_its_slice_of_the_supernet():
    """All of blocks with one transformer; of those with two every choice of each layer, and whatever is dropped."""
    net = tiny_prompted_unet(**XL)
    settings = search_space(SPACE | {"widths": [0.4, 1.0]})
    tried = 0
    for site, inputs, _ in sites_with_tensors(net):
        supernet = supernet_of(net, site)
        space = BlockSpace(net.get_submodule(site.name), settings, supernet.sort(inputs))
        specs = space.all() if len(space) <= 100 else [*space.covering(), *kept_or_dropped(space)]
        tried += len(specs)
        for spec in specs:
            assert_built_as_sliced(net, site, inputs, spec, supernet, supernet.weights(spec))
    assert tried > 100


def test_drawn_candidates_of_all_kinds_of_networks_equal_their_slices(net):
    rng = np.random.default_rng(0)
    for site, inputs, _ in sites_with_tensors(net):
        block, supernet = net.get_submodule(site.name), supernet_of(net, site)
        space = BlockSpace(block, search_space(SPACE), supernet.sort(inputs))
        for spec in [space.smallest(), *(space.draw(rng) for _ in range(2))]:
            state = student_state(supernet.state_dict(), block, family_of(net), site, spec)
            assert_built_as_sliced(net, site, inputs, spec, supernet, state)


@torch.no_grad()
def test_sorting_puts_what_adds_nothing_last():
    net = tiny_prompted_unet(**XL)
    site, inputs, _ = next(row for row in sites_with_tensors(net) if row[0].name == "mid_block")
    layers = net.mid_block.attentions[0].transformer_blocks
    layers[0].attn2.to_out[0].weight[:, :4] = 0  # its first head
    layers[0].ff.net[2].weight[:, 0] = 0  # its first unit
    for linear in (layers[1].attn1.to_out[0], layers[1].attn2.to_out[0], layers[1].ff.net[2]):
        linear.weight.zero_()
        linear.bias.zero_()
    supernet = supernet_of(net, site)
    wanted = supernet(identity_spec(net.mid_block), inputs)
    order = supernet.sort(inputs)["attentions.0"]
    assert sorted(order["layers"]) == [0, 1, 2] and order["layers"][-1] == 1
    sorted_layer = supernet.block.attentions[0].transformer_blocks[0]
    assert sorted_layer.attn2.to_out[0].weight[:, -4:].abs().max() == 0
    assert sorted_layer.ff.net[2].weight[:, -1].abs().max() == 0
    without = identity_spec(net.mid_block) | {"attentions.0": {"layers": [0, 2], "heads": 4, "feed_forward": 64}}
    for got, want in zip(supernet(without, inputs), wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_the_options_of_a_transformer():
    block = tiny_prompted_unet(**XL).mid_block
    choices = space_of(block, SPACE).choices["attentions.0"]
    assert (choices.layers, choices.heads, choices.feed_forward) == ([[0, 1], [0, 1, 2]], [2, 4], [32, 64])
    assert len(choices) == len(choices.all()) == 9 and choices.all()[-1] is None
    assert choices.plain() == [choices.all()[7], choices.all()[0], None] and choices.smallest() == choices.all()[0]
    whole = space_of(block, SPACE | {"drop_layers": False, "drop_attention": False}).choices["attentions.0"]
    assert len(whole) == 4 and all(choice["layers"] == [0, 1, 2] for choice in whole.all())
    wide = space_of(block, SPACE | {"channel_multiple": 48}).choices["attentions.0"]
    assert (wide.heads, wide.feed_forward) == ([4], [48, 64])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"layers": [3], "heads": 2, "feed_forward": 8}, r"layers \[3\] are no ascending groups of 0 to 2"),
        ({"layers": [], "heads": 2, "feed_forward": 8}, "layers"),
        ({"layers": [0], "heads": 0, "feed_forward": 8}, "heads 0"),
        ({"layers": [0], "heads": 2, "feed_forward": 0}, "feed_forward 0"),
    ],
)
def test_parts_that_a_transformer_has_not_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        students.build_transformer(tiny_prompted_unet(**XL).mid_block.attentions[0], choice)


def test_choices_are_described():
    identity = {"layers": [0, 1, 2], "heads": 4, "feed_forward": 64}
    half = describe_choice("attentions.0", {"layers": [1], "heads": 2, "feed_forward": 32}, identity)
    assert (half.text, half.share) == ("1 layer(s) · 2 heads · 32", pytest.approx(1 / 6))
    assert describe_choice("attentions.0", None, identity).text == "no transformer"
    assert describe_choice("attentions.0", {}, {}).text == "attention"


def test_layers_are_timed_one_by_one_and_which_were_dropped_is_no_matter_of_time():
    net = tiny_prompted_unet(**XL)
    layers = layers_of(net)
    space = space_of(net.mid_block, SPACE)
    spec = space.identity | {"attentions.0": {"layers": [0, 1], "heads": 2, "feed_forward": 32}}
    other = spec | {"attentions.0": {"layers": [1, 2], "heads": 2, "feed_forward": 32}}
    keys, others = ([layer.key for layer in layers.block("mid_block", one)] for one in (spec, other))
    assert keys == others and keys != [layer.key for layer in layers.block("mid_block", space.identity)]
    assert len(layers.block("mid_block", space.identity | {"attentions.0": None})) == 2
    timed = {layer.key: (layer, layer) for layer in (layers.together(), *layers.own())}
    assert all(time > 0 for time in Stopwatch(CPU, 2, 1, "fp32").measure(timed).values())


# --- From features to a trained student ---


SETTINGS = SPACE | LITTLE_SEARCH


def test_prompts_go_from_features_to_a_trained_student(digits, diffusion_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(importance, "BATCHES", 2)
    net, process, data = tiny_prompted_unet(), VPProcess(diffusion_settings), TrainingSet.of_images(digits)
    labels = torch.arange(len(data)) % 10  # which this network is not given
    data = replace(data, labels=labels, prompts=Prompts(Condition({"prompt": torch.randn(9, 4, 6)}), labels % 9))
    features = tmp_path / "features"
    sizes = CacheFeatures.model_construct(**FEW_FEATURES)
    FeatureWriter(net, process, data, process.edges([400]), sizes, 0, CPU).write(features, {})
    levels = measure_importance(net, process, data, 0, CPU)
    ranked = tmp_path / "importance.json"
    write_checked_json(ranked, {"stream_importance": levels, "stream_triples": 0})
    params = SearchBlock.of(
        {"seed": 0, "device": "cpu", "precision": "fp32", "search_block": SETTINGS, "assemble.native": False}
    )
    results, states = {}, {}
    for site in sites_of(net):
        for name in [f"{site.name}.interval_{k}" for k in (0, 1)] if site.per_range else [site.name]:
            job = SearchJob(params, net, name, features, CPU, tmp_path / "work" / f"{name}.pt", ranked)
            results[name] = job.run() | {"weights_sha256": ""}
            states[name] = job.supernet.state_dict()
    rule = {"rule": "budget", "score": "combined", "macs": 0.7, "time": None, "params": None, "params_active": None}
    rule |= {"native": False}
    plan = assemble_architecture(net, results, [10, 15], Assemble.model_construct(**rule), 0)
    assert 0.4 < plan["expected"]["macs_ratio"] <= 0.7
    student = start_student(net, plan | {"boundaries": [400]}, "inherit", 0, states.__getitem__)
    how = Retrain.model_construct(steps=4, joint_loss="constant", ramp=1.0, output_weight=9.0, jacobian_weight=1.0)
    how = how.model_copy(update={"batch_size": 8, "horizontal_flip": False, "interval_probabilities": "density"})
    batches = student_batches(data, process, net, [400], how, CPU)
    loss = JointLoss(student, net, batches, how, "fp32")
    history = train(student, loss, TrainSettings(steps=4, learning_rate=1e-3)).history
    assert {"blocks", "end_to_end"} <= {name for entry in history for name in entry}
    save_pipeline(tmp_path / "student", student, process.scheduler(), {})
    loaded, weights = load_student(tmp_path / "student"), student.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
