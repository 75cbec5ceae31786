"""Native students conditioned on prompts: plain UNet2DConditionModels of fewer layers, loaded without this project."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from helpers import run_stages, search_space, text_params, tiny_prompted_unet

from stagecraft.config.sections import Assemble
from stagecraft.diffusion.losses import predict
from stagecraft.elastic.native import NativeBlock, native_architecture
from stagecraft.networks.costs import count_network_macs, count_parameters
from stagecraft.networks.families import example_condition, family_of, sites_of
from stagecraft.networks.family import NATIVE
from stagecraft.networks.jobs import name_of
from stagecraft.networks.layer import WHOLE
from stagecraft.search.architecture import assemble_architecture
from stagecraft.search.latency import LatencyTable, layers_of
from stagecraft.search.native import native_pairs_to_measure
from stagecraft.search.space import native_space
from stagecraft.training.student import start_student, to_saved_class, with_decoders

SPACE = search_space({"widths": [0.5, 1.0], "channel_multiple": 1, "drop_layers": True, "drop_attention": True})
TEACHERS: dict[str, dict[str, Any]] = {
    "Stable Diffusion": {"layers_per_block": 2, "norm_num_groups": 4},
    "XL": {
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 5 + 6 * 4,
    },
    "a decoder of other depths": {
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "transformer_layers_per_block": ((1, 2), (2, 1)),
        "reverse_transformer_layers_per_block": ((1, 1, 2), (1, 2, 1)),
        "mid_block_type": None,
    },
    "no mid block": {"mid_block_type": None, "layers_per_block": [1, 2], "norm_num_groups": 4},
}
T = torch.tensor([3, 500, 900])


class Searched:
    """A teacher with the supernets of all its blocks."""

    def __init__(self, name: str) -> None:
        self.name = name
        changes = TEACHERS[name]
        self.unet: Any = tiny_prompted_unet(**changes)
        self.family = family_of(self.unet)
        self.form = self.family.native(self.unet)
        self.order = {str(level): list(range(width)) for level, width in enumerate(self.form.widths)}
        self.sites = sites_of(self.unet)
        self.x_t = torch.randn(3, self.unet.config["in_channels"], 8, 8)
        shapes = example_condition(self.unet, 3)
        self.condition = type(shapes)({name: torch.randn_like(value) for name, value in shapes.tensors.items()})
        with torch.no_grad():
            self.seen = self.family.trace(self.unet, self.x_t, T, self.condition)
        self.supernets = {site.name: self.supernet(site) for site in self.sites}

    def supernet(self, site: Any) -> NativeBlock:
        supernet = NativeBlock(self.unet.get_submodule(site.name), self.family, site, self.form, self.order)
        supernet.sort([self.seen[name] for name in site.reads])
        return supernet

    def options(self, site: Any) -> list[Any]:
        return native_space(self.unet, site, SPACE, {}).all()

    def agreeing(self, rng: np.random.Generator) -> dict[str, Any]:
        """Specs by site that agree, drawn at random."""
        common: dict[str, int] = {}
        specs = {}
        for site in self.sites:
            fits = [
                spec
                for spec in self.options(site)
                if all(
                    common.get(key, value) == value for key, value in self.form.agreement(site, spec[NATIVE]).items()
                )
            ]
            specs[site.name] = fits[rng.integers(len(fits))]
            common |= self.form.agreement(site, specs[site.name][NATIVE])
        return specs

    def student(self, specs: dict[str, Any]) -> tuple[Any, Any]:
        """The student of these specs before its first step, with its architecture."""
        architecture = native_architecture(self.form, specs, self.order)
        names = {name_of(site.name, site.per_range, [0]): site.name for site in self.sites}
        plan = {"unet": architecture, "boundaries": [], "intervals": [[0, 999]], "rule": "budget"}
        plan["chosen"] = {job: {"spec": specs[name]} for job, name in names.items()}
        states = {job: self.supernets[name].state_dict() for job, name in names.items()}
        return start_student(self.unet, plan, "inherit", 0, states.__getitem__).eval(), architecture


@pytest.fixture(scope="module", params=TEACHERS)
def searched(request: pytest.FixtureRequest) -> Searched:
    torch.manual_seed(0)
    return Searched(request.param)


def test_the_teachers_own_choice_computes_what_the_teacher_does(searched: Searched) -> None:
    for site in searched.sites:
        inputs = [searched.seen[name] for name in site.reads]
        outputs = searched.supernets[site.name](searched.options(site)[0], inputs)
        for name, output in zip(site.writes, outputs, strict=True):
            torch.testing.assert_close(output, searched.seen[name], atol=1e-5, rtol=1e-4)


def test_options_are_layers_depths_and_blocks_without(searched: Searched) -> None:
    options = {site.name: [spec[NATIVE] for spec in searched.options(site)] for site in searched.sites}
    for site, choices in options.items():
        depths = {choice["depth"] for choice in choices}
        deepest = searched.form.depths[site]
        nested = searched.form.nested
        assert depths == {0, *range(deepest if nested else 1, deepest + 1)}
        fewest = searched.form.places[site].layers if nested else 1 + site.startswith("up")
        least = {"mid_block": 0}.get(site, fewest)
        own = searched.form.places[site].layers
        assert {choice["layers"] for choice in choices} == (
            {0, own} if site == "mid_block" else {*range(least, own + 1)}
        )


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_a_plain_unet_has_the_blocks_of_the_supernets(searched: Searched, seed: int) -> None:
    specs = searched.agreeing(np.random.default_rng(seed))
    student, architecture = searched.student(specs)
    for site in searched.sites:
        inputs = [searched.seen[name] for name in site.reads]
        path = searched.supernets[site.name](specs[site.name], inputs)
        for block in searched.family.blocks(student, site):
            outputs = searched.family.run(site, block.module, inputs)
            for output, supernets in zip(outputs, path, strict=True):
                torch.testing.assert_close(output, supernets, atol=1e-6, rtol=1e-5)
    stock = to_saved_class(student, searched.unet)
    again = UNet2DConditionModel(**{**searched.unet.config, **architecture["native"]})
    again.load_state_dict(stock.state_dict())
    wanted = predict(student, searched.x_t, T, searched.condition)
    for net in (stock, again.eval(), with_decoders(stock)):
        assert torch.equal(predict(net, searched.x_t, T, searched.condition), wanted)


@pytest.mark.parametrize("seed", range(3))
def test_costs_of_the_chosen_are_those_of_the_built_student(searched: Searched, seed: int) -> None:
    table_of = {key: 1.0 + len(key) / 100 for key in native_pairs_to_measure(searched.unet, SPACE)}
    table = LatencyTable({"layers": table_of | {WHOLE: 99.0}}, "latency.json")
    specs = searched.agreeing(np.random.default_rng(seed))
    rule = {"native": True, "rule": "budget", "score": "local", "macs": 9.0, "time": None, "params": None}
    settings = Assemble.model_construct(**rule, params_active=None)
    plan = assemble_architecture(searched.unet, results_of(searched, specs, table), [1], settings, 0, table)
    chosen = {name.partition(".interval")[0]: block["spec"] for name, block in plan["chosen"].items()}
    assert chosen == specs
    stock = to_saved_class(searched.student(chosen)[0], searched.unet)
    assert plan["expected"]["macs"] == count_network_macs(stock)
    assert plan["expected"]["params"] == count_parameters(stock)
    built = [layer.key for layer in layers_of(stock).own()]
    assert plan["expected"]["time"] == pytest.approx(sum(table.layers[key] for key in built))


def results_of(searched: Searched, specs: dict[str, Any], table: LatencyTable) -> dict[str, Any]:
    """Results of a search that scored these blocks and the teacher's, which are worse, so that these are chosen."""
    results = {}
    for site in searched.sites:
        candidates = []
        identity = searched.options(site)[0]
        for error, spec in enumerate([specs[site.name], identity]):
            skeleton = searched.supernets[site.name].skeleton(spec)
            costs = {"macs": searched.family.block_macs(skeleton, site), "params": count_parameters(skeleton)}
            costs["time"] = table.latency_of(searched.unet, site.name)(spec)
            candidates.append({"spec": spec, "nmse": float(error), "output": [0.0]} | costs)
        report = {
            "block": site.name,
            "intervals": [0] if site.per_range else None,
            "identity": identity,
            "stream": None,
        }
        report |= {"order": {NATIVE: searched.order}, "candidates": candidates, "weights_sha256": ""}
        results[name_of(site.name, site.per_range, [0])] = report
    return results


def test_a_run_ends_in_a_pipeline_that_loads_without_custom_code(tmp_path: Path) -> None:
    params = text_params(cluster_timesteps={"intervals": 1}, search_block={"channels": 1.0}, assemble={"native": True})
    run_stages(tmp_path, params)
    folder = tmp_path / "results" / "model"
    pipeline = DiffusionPipeline.from_pretrained(str(folder))
    assert type(pipeline) is StableDiffusionPipeline and type(pipeline.unet) is UNet2DConditionModel
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(["a handwritten two"], num_inference_steps=2, output_type="np", guidance_scale=3.0).images
    assert np.isfinite(images).all()
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert metrics["student"]["params"] == count_parameters(pipeline.unet) < metrics["teacher"]["params"]
