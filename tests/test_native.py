"""Native students: plain UNet2DModels, chosen in agreement, sliced from the supernets, loaded without this project."""

import itertools
import os
import subprocess
import sys
from functools import cached_property

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from helpers import preset_params, run_stages, search_space, tiny_unet
from huggingface_hub import ModelCard

from stagecraft.config.sections import Assemble
from stagecraft.elastic.native import NativeBlock, native_architecture
from stagecraft.networks.costs import count_network_macs, count_parameters
from stagecraft.networks.families import family_of, sites_of
from stagecraft.networks.family import NATIVE
from stagecraft.networks.jobs import name_of
from stagecraft.networks.layer import WHOLE
from stagecraft.networks.stream import kept_channels, kept_part
from stagecraft.runtime.files import read_json
from stagecraft.search.architecture import assemble_architecture
from stagecraft.search.importance import native_order
from stagecraft.search.latency import LatencyTable, layers_of
from stagecraft.search.native import native_pairs_to_measure
from stagecraft.search.selection import Block, Budget, Costs, fits, select_budget, totals
from stagecraft.search.space import native_space
from stagecraft.training.student import start_student, to_saved_class, with_decoders

SPACE = search_space({"widths": [0.5, 0.75, 1.0], "channel_multiple": 1, "drop_layers": True, "drop_attention": True})
ASSEMBLE = {"native": True, "rule": "budget", "score": "local", "macs": None, "time": None, "params": None}
ASSEMBLE |= {"params_active": None}
T = torch.tensor([3, 500, 900])
TEACHERS = {
    "deep": {"layers_per_block": 2},
    "scale_shift": {"layers_per_block": 2, "resnet_time_scale_shift": "scale_shift"},
    "one head": {"attention_head_dim": None},
    "resnet samplers": {
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"),
    },
    "no mid block": {"mid_block_type": None, "layers_per_block": 3},
}


class Searched:
    """A teacher with fresh, sorted supernets of all its blocks."""

    def __init__(self, **changes):
        self.unet = tiny_unet(**changes)
        self.family = family_of(self.unet)
        self.form = self.family.native(self.unet)
        rng = np.random.default_rng(0)
        self.order = native_order(self.unet, [rng.random(width).tolist() for width in self.form.widths])
        self.x_t = torch.randn(3, 1, 8, 8)
        with torch.no_grad():
            self.seen = self.family.trace(self.unet, self.x_t, T)
        self.sites = sites_of(self.unet)
        self.supernets = {site.name: self.supernet(site) for site in self.sites}

    def supernet(self, site):
        """A supernet whose channels are sorted."""
        supernet = NativeBlock(self.unet.get_submodule(site.name), self.family, site, self.form, self.order)
        supernet.sort(self.reads(site))
        return supernet

    @cached_property
    def table(self):
        """Latencies of all layers of the native students."""
        pairs = native_pairs_to_measure(self.unet, SPACE)
        return LatencyTable({"layers": {key: 1.0 + len(key) / 100 for key in pairs} | {WHOLE: 99.0}}, "latency.json")

    def reads(self, site):
        """What the teacher's block at a site reads."""
        return [self.seen[name] for name in site.reads]

    def options(self, site):
        """All specs at a site."""
        return native_space(self.unet, site, SPACE, {}).all()

    def agreeing(self, widths, fewest, plain):
        """The specs, by site, with these channels of the levels, the fewest layers or the most, without attention or with."""
        specs = {}
        for site in self.sites:
            wanted = [spec for spec in self.options(site) if is_of(spec[NATIVE], widths)]
            sizes = [(spec[NATIVE]["layers"], spec[NATIVE]["attention"]) for spec in wanted]
            best = max(sizes, key=lambda size: ((-size[0]) if fewest else size[0], size[1] != plain))
            specs[site.name] = wanted[sizes.index(best)]
        return specs

    def student(self, specs, init="inherit"):
        """The student of these specs before its first step, with its architecture."""
        architecture = native_architecture(self.form, specs, self.order)
        names = {name_of(site.name, site.per_range, [0]): site.name for site in self.sites}
        plan = {"unet": architecture, "boundaries": [], "intervals": [[0, 999]], "rule": "budget"}
        plan["chosen"] = {job: {"spec": specs[name]} for job, name in names.items()}
        states = {job: self.supernets[name].state_dict() for job, name in names.items()}
        return start_student(self.unet, plan, init, 0, states.__getitem__).eval(), architecture


def is_of(choice, widths):
    """Whether a choice has these channels of the levels."""
    return all(width == widths[int(level)] for level, width in choice["widths"].items())


@pytest.fixture(scope="module", params=TEACHERS)
def searched(request):
    return Searched(**TEACHERS[request.param])


def students(searched):
    """Specs of students of all levels' widths, layers and attentions at both ends of what there is."""
    levels = range(len(searched.form.widths))
    half = [searched.form.widths[level] // 2 for level in levels]
    narrower = [searched.form.widths[0], *(3 * width // 4 for width in searched.form.widths[1:])]
    alike = [searched.form.widths[0] for _ in levels]
    for widths, fewest, plain in itertools.product((half, narrower, alike), (True, False), (True, False)):
        yield widths, searched.agreeing(widths, fewest, plain)


def test_the_teachers_own_choice_computes_what_the_teacher_does(searched):
    for site in searched.sites:
        outputs = searched.supernets[site.name](searched.options(site)[0], searched.reads(site))
        for name, output in zip(site.writes, outputs, strict=True):
            torch.testing.assert_close(output, searched.seen[name], atol=1e-5, rtol=1e-4)


def test_a_plain_unet_computes_what_the_student_with_a_decoder_does(searched):
    for widths, specs in students(searched):
        student, architecture = searched.student(specs)
        stock = to_saved_class(student, searched.unet)
        assert type(stock) is UNet2DModel and list(stock.config["block_out_channels"]) == widths
        again = UNet2DModel(**{**searched.unet.config, **architecture["native"]})
        again.load_state_dict(stock.state_dict())
        with torch.no_grad():
            wanted = student(searched.x_t, T).sample
            for net in (stock, again.eval(), with_decoders(stock)):
                assert torch.equal(net(searched.x_t, T).sample, wanted)


def test_the_student_has_the_blocks_of_the_supernets(searched):
    for _, specs in students(searched):
        student, architecture = searched.student(specs)
        kept = kept_channels(searched.unet, architecture["stream"])
        for site in searched.sites:
            inputs = [kept_part(name, searched.seen[name], kept) for name in site.reads]
            path = searched.supernets[site.name](specs[site.name], searched.reads(site))
            blocks = searched.family.blocks(student, site)
            assert len(blocks) == bool(specs[site.name][NATIVE]["layers"])
            for block in blocks:
                outputs = searched.family.run(site, block.module, inputs)
                for name, output, supernets in zip(site.writes, outputs, path, strict=True):
                    torch.testing.assert_close(output, kept_part(name, supernets, kept), atol=1e-6, rtol=1e-5)
                    rest = [c for c in range(supernets.shape[1]) if c not in kept[name]]
                    assert not supernets[:, rest].any()


def test_what_a_student_keeps_of_the_input_side_is_the_teachers(searched):
    teacher = searched.unet
    for widths, specs in students(searched):
        student, architecture = searched.student(specs, init="teacher")
        stock = to_saved_class(student, teacher)
        kept = architecture["stream"][0]
        assert torch.equal(stock.conv_in.weight, teacher.conv_in.weight[kept])
        assert torch.equal(stock.conv_out.weight, teacher.conv_out.weight[:, kept])
        own, narrow = (net.time_embedding(net.time_proj(torch.arange(0, 999, 7))) for net in (teacher, stock))
        error = (own - narrow).square().mean() / own.var()
        assert error == 0 if widths[0] == searched.form.widths[0] else error < 0.3


def test_costs_of_the_chosen_are_those_of_the_built_student(searched):
    for _, specs in itertools.islice(students(searched), 0, None, 3):
        results = results_of(searched, {name: [spec] for name, spec in specs.items()})
        table = searched.table
        plan = assemble_architecture(
            searched.unet, results, [1], Assemble.model_construct(**ASSEMBLE | {"macs": 9.0}), 0, table
        )
        own = {name: block["spec"] for name, block in plan["chosen"].items()}
        stock = to_saved_class(
            searched.student({Name(name).site: spec for name, spec in own.items()})[0], searched.unet
        )
        assert plan["expected"]["macs"] == count_network_macs(stock)
        assert plan["expected"]["params"] == count_parameters(stock)
        built = [layer.key for layer in layers_of(stock).own()]
        assert plan["expected"]["time"] == pytest.approx(sum(table.layers[key] for key in built))


class Name(str):
    """The name of a search job."""

    @property
    def site(self):
        return self.partition(".interval")[0]


def results_of(searched, cheaper):
    """Results of a search that scored the teacher's blocks and some others, which are worse by what they save."""
    results = {}
    for site in searched.sites:
        supernet = searched.supernets[site.name]
        latency_of = searched.table.latency_of(searched.unet, site.name)
        identity = searched.options(site)[0]
        candidates = []
        for spec in [*cheaper[site.name], identity]:
            skeleton = supernet.skeleton(spec)
            costs = {
                "macs": searched.family.block_macs(skeleton, site),
                "params": count_parameters(skeleton),
                "time": latency_of(spec),
            }
            candidates.append({"spec": spec, "nmse": 1 / (1 + costs["macs"]), "output": [0.0]} | costs)
        interval = [0] if site.per_range else None
        report = {"block": site.name, "intervals": interval, "identity": identity, "stream": None}
        report |= {"order": {NATIVE: searched.order}, "candidates": candidates, "weights_sha256": ""}
        results[name_of(site.name, site.per_range, [0])] = report
    return results


def agreeing_blocks(seed):
    """Blocks whose candidates each say one or two values that those of others have to share."""
    rng = np.random.default_rng(seed)
    keys = [("a", "b"), ("b",), ("b", "c"), ("a", "c")]
    blocks = []
    for number, own in enumerate(keys):
        candidates = []
        for values in itertools.product(range(1, 4), repeat=len(own)):
            size = sum(values) / len(values) / 3
            costs = {"macs": int(250 * size), "params": int(90 * size + 5 * rng.random())}
            candidate = {"spec": len(candidates), "nmse": float((1.1 - size) ** 2 + 0.3 * rng.random())}
            candidates.append(candidate | costs | {"agrees": dict(zip(own, values, strict=True))})
        blocks.append(Block(f"block{number}", None, candidates[-1], tuple(candidates)))
    return blocks


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [Budget(0.6), Budget(0.7, 0.6), Budget(params_active=0.5), Budget(), Budget(0.2)])
def test_blocks_agree_at_the_smallest_error_that_any_agreeing_choice_has(seed, budget):
    costs = Costs(1000, 400, 20, 10, (1.0,))
    blocks = agreeing_blocks(seed)
    choices = []
    for combination in itertools.product(*(block.candidates for block in blocks)):
        said = {}
        pairs = [pair for candidate in combination for pair in candidate["agrees"].items()]
        if all(said.setdefault(key, value) == value for key, value in pairs):
            choices.append(dict(zip([block.name for block in blocks], combination, strict=True)))
    ratios = [totals(blocks, choice, costs) for choice in choices]
    fitting = [choice for choice, ratio in zip(choices, ratios, strict=True) if fits(ratio, budget)]
    if not fitting:
        smallest = min(ratio["macs_ratio"] for ratio in ratios)
        with pytest.raises(ValueError, match=rf"smallest feasible: {smallest:.4f}\); raise what is below its smallest"):
            select_budget(blocks, costs, budget)
        return

    def score(choice):
        return sum(candidate["nmse"] for candidate in choice.values())

    assert score(select_budget(blocks, costs, budget)) == pytest.approx(min(map(score, fitting)))


def native_smoke(**assemble):
    """The preset smoke for a native student."""
    params = preset_params("smoke") | {"device": "cpu"}
    changes = {
        "cluster_timesteps": {"intervals": 1},
        "search_block": {"channels": 1.0, "steps": 2, "warmup_steps": 1},
        "train_teacher": {"steps": 4, "warmup_steps": 1},
        "train_extractor": {"steps": 10},
        "measure_latency": {"source": "measure", "repeats": 1, "threads": 1},
        "retrain": {"steps": 4, "warmup_steps": 1},
        "sampling": {"steps": 4},
        "assemble": {"native": True, "macs": None, "time": 0.8} | assemble,
    }
    return params | {section: params[section] | values for section, values in changes.items()}


@pytest.fixture(scope="module")
def native_run(tmp_path_factory):
    """The folder results of a whole run for a native student."""
    folder = tmp_path_factory.mktemp("native")
    run_stages(folder, native_smoke())
    return folder / "results"


# What a user runs who has diffusers alone; the project cannot be imported.
PROGRAM = """
import sys

class NoProject:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("stagecraft", "stages"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, NoProject())
import torch
from diffusers import DiffusionPipeline, UNet2DModel

for folder in sys.argv[1:]:
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    assert type(pipeline).__name__ == "DDPMPipeline" and type(pipeline.unet) is type(unet) is UNet2DModel
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), pipeline.unet.parameters(), strict=True))
    images = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 8, 8, 1) and images.std() > 0
"""


def test_a_run_ends_in_a_folder_that_loads_and_samples_without_custom_code(native_run, tmp_path):
    folders = [str(native_run / "student"), str(native_run / "model")]
    assert not [path for folder in folders for _, _, files in os.walk(folder) for path in files if path.endswith(".py")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", PROGRAM, *folders]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_was_predicted_of_a_native_student_is_what_is_measured(native_run):
    metrics, plan = (read_json(native_run / f"{name}.json") for name in ("metrics", "architecture"))
    assert metrics["student"]["macs"] == plan["expected"]["macs"]
    assert metrics["student"]["params"] == plan["expected"]["params"] == metrics["student"]["params_active"]
    assert plan["expected"]["time_ratio"] <= 0.8


def test_the_card_of_a_native_student_loads_it_without_trust(native_run):
    card = ModelCard.load(native_run / "model" / "README.md").text
    assert "It is a plain UNet2DModel" in card and "trust_remote_code" not in card
    assert 'UNet2DModel.from_pretrained("path/or/name", subfolder="unet")' in card
    pipeline = DiffusionPipeline.from_pretrained(native_run / "model")
    assert type(pipeline.unet) is UNet2DModel


def test_the_report_draws_what_a_native_student_has_not(native_run):
    page = (native_run / "report.html").read_text()
    chosen = read_json(native_run / "architecture.json")["chosen"]
    dropped = [name for name, block in chosen.items() if not block["spec"][NATIVE]["layers"]]
    assert page.count("dropped") >= len(dropped) and "1 layer" in page
