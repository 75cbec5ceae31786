"""The score `output`: what the teacher's prediction loses when one block is exchanged."""

import numpy as np
import pytest
import torch
from helpers import FEW_FEATURES, space_of, supernet_of, tiny_unet

from stagecraft.config.sections import CacheFeatures
from stagecraft.data.condition import class_condition
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.vp import VPProcess
from stagecraft.elastic.architecture import identity_architecture
from stagecraft.networks.families import family_of, sites_of
from stagecraft.networks.unet2d.multi_decoder_unet import MultiDecoderUNet2DModel
from stagecraft.runtime.journal import Pieces
from stagecraft.search.features import Features, FeatureWriter
from stagecraft.search.space import key_of
from stagecraft.search.supernet import (
    BlockScore,
    OutputScore,
    SandwichLoss,
    explore,
    front_of,
    score_outputs,
    with_relative_gradient,
)
from stagecraft.training.loop import TrainSettings, train
from stagecraft.training.student import build_student, warm_start

SPACE = {"widths": [0.5, 1.0], "kernels": [1, 3], "drop_layers": True, "drop_attention": True}
SPACE |= {"stream": [0.5, 1.0], "channel_multiple": 1}
STAGES = [[0, 400], [400, 1000]]
CPU = torch.device("cpu")


@pytest.fixture
def folder(unet, digits, diffusion_settings, tmp_path):
    data = TrainingSet.of_images(digits)
    FeatureWriter(
        unet, VPProcess(diffusion_settings), data, STAGES, CacheFeatures.model_construct(**FEW_FEATURES), 0, CPU
    ).write(tmp_path, {})
    return tmp_path


def test_a_supernet_is_trained_past_draws_that_have_no_weights(unet, folder, monkeypatch):
    site = next(site for site in sites_of(unet) if site.name == "mid_block")
    space, supernet = space_of(unet.mid_block, SPACE), supernet_of(unet, site)
    nothing = {"resnets.0": None, "resnets.1": None, "attentions.0": None}
    assert nothing in space.all()
    monkeypatch.setattr(space, "draw", lambda rng: nothing)
    features = Features(folder, [*site.reads, *site.writes])
    loss = SandwichLoss(supernet, space, features, len(site.reads), 4, "fp32")
    found = train(supernet, loss, TrainSettings(steps=2, learning_rate=1e-3))
    assert {name for record in found.history for name in record} >= {"smallest", "largest"}


def test_a_relative_loss_has_the_value_of_the_loss_and_the_gradient_of_its_logarithm():
    x = torch.tensor([3.0, 0.1], requires_grad=True)
    found = with_relative_gradient(x.square().sum(), 0.5)
    (gradient,) = torch.autograd.grad(found, x)
    (expected,) = torch.autograd.grad(torch.log(x.square().sum() + 0.5), x)
    assert found.item() == pytest.approx(9.01)
    torch.testing.assert_close(gradient, expected)


def scorer(unet, folder, site, triples=6):
    return OutputScore(unet, site, Features(folder, OutputScore.names(unet, site, {})), triples)


@torch.no_grad()
@pytest.mark.parametrize("labels", [None, 3])
def test_the_tail_from_the_teachers_own_outputs_gives_its_prediction(labels):
    unet = tiny_unet(num_class_embeds=labels)
    x_t, t = torch.randn(4, 1, 8, 8), torch.tensor([1, 400, 700, 999])
    seen = family_of(unet).trace(unet, x_t, t, class_condition(None if labels is None else torch.tensor([0, 1, 2, 0])))
    for site in sites_of(unet):
        known = {name: seen[name] for name in family_of(unet).tail_reads(unet, site)}
        got = family_of(unet).tail(unet, site, [seen[name] for name in site.writes], known)
        torch.testing.assert_close(got, seen["output"], atol=1e-5, rtol=1e-4)


def test_the_teachers_shape_with_its_weights_changes_nothing(unet, folder):
    for site in sites_of(unet):
        fresh = supernet_of(unet, site, [1, 3])
        identity = space_of(unet.get_submodule(site.name), SPACE).identity
        assert scorer(unet, folder, site)(fresh, identity) == pytest.approx([0.0, 0.0], abs=1e-6)


@torch.no_grad()
def test_a_sub_block_scores_what_a_student_with_it_alone_loses(unet, folder, diffusion_settings):
    """Against the denoised images of a whole student that differs from the teacher in this block only, on the cached x_t."""
    for site in sites_of(unet):
        block = unet.get_submodule(site.name)
        supernet, spec = supernet_of(unet, site), space_of(block, SPACE).smallest()
        whole = identity_architecture(unet)
        whole["blocks"][site.name][0]["spec"] = spec
        student: MultiDecoderUNet2DModel = build_student(unet, whole, [], 0)
        warm_start(student, unet)
        holder = student.decoders[0] if site.per_range else student
        holder.get_submodule(site.name).load_state_dict(supernet.weights(spec))
        process, cache = VPProcess(diffusion_settings), Features(folder, ["x_t", "t", "output"])
        wanted = []
        for rows in cache.rows(held_out=True).view(2, -1)[:, -6:]:
            x_t, t, output = cache.take(rows, CPU)
            alpha, sigma = (value.float()[:, None, None, None] for value in process.alpha_sigma(t))
            images = [(x_t - sigma * eps) / alpha for eps in (student(x_t, t).sample, output)]
            wanted.append(float(((images[0] - images[1]) / (sigma / alpha).clamp(min=1)).square().mean()))
        assert scorer(unet, folder, site)(supernet, spec) == pytest.approx(wanted, rel=1e-3)
        assert min(wanted) > 0


def test_a_decoder_block_of_one_interval_is_scored_on_its_interval_alone(unet, folder):
    site = sites_of(unet)[-1]
    features = Features(folder, OutputScore.names(unet, site, {}), [1])
    assert len(OutputScore(unet, site, features, 4).batches) == 1
    assert min(Features(folder, ["t"], [1]).take(torch.arange(16), CPU)[0]) >= 400


def test_the_local_score_is_that_of_the_first_held_out_triples_of_every_interval(unet, folder):
    site = sites_of(unet)[1]
    space, supernet = space_of(unet.down_blocks[1], SPACE), supernet_of(unet, site)
    features, inputs = Features(folder, [*site.reads, *site.writes]), len(site.reads)
    spec = space.smallest()
    (found,) = BlockScore(supernet, features, inputs, 3)([spec])
    errors = []
    for rows in ([8, 9, 10], [24, 25, 26]):  # of 16 triples an interval the last 8 are held out
        tensors = features.take(torch.tensor(rows), CPU)
        with torch.no_grad():
            outputs = supernet(spec, tensors[:inputs])
        pairs = zip(outputs, tensors[inputs:], strict=True)
        errors.append(sum(float((a - b).square().mean() / b.var()) for a, b in pairs))
    assert found["nmse"] == pytest.approx(sum(errors) / 2, rel=1e-5) and min(errors) > 0


def test_the_front_is_measured_and_the_rest_is_none(unet, folder):
    site = sites_of(unet)[1]
    block = unet.get_submodule(site.name)
    supernet, space = supernet_of(unet, site), space_of(block, SPACE)
    features = Features(folder, [*site.reads, *site.writes])
    scored = explore(space, BlockScore(supernet, features, len(site.reads), 8), 30, 0, None)
    found = score_outputs(supernet, scored, scorer(unet, folder, site), 5)
    measured = [c for c in found if c["output"] is not None]
    assert [c["spec"] for c in found] == [c["spec"] for c in scored] and found[0]["output"] is not None
    assert len(measured) == 5 == len(front_of(scored, 5))
    cheapest = min(measured, key=lambda c: c["macs"])
    assert cheapest["macs"] == min(c["macs"] for c in scored)
    assert all(len(c["output"]) == 2 for c in measured)


def test_exploring_finds_a_better_front_than_drawing(unet):
    """On a score that is known: what a spec leaves out, which only few specs do well at few MACs."""
    space = space_of(unet.up_blocks[0], SPACE | {"widths": [0.25, 0.5, 0.75, 1.0], "stream": [0.25, 0.5, 0.75, 1.0]})

    def measure(specs):
        found = []
        for spec in specs:
            macs = error = 1
            for i in range(2):
                layer = spec[f"resnets.{i}"]
                sizes = (0, 0, 0)
                if layer:
                    sizes = (len(layer.get("reads", "0123")), layer["width"] // 8, layer["kernels"][0])
                macs += sizes[0] * sizes[1] * sizes[2] ** 2
                error += (4 - sizes[0]) ** 2 + (4 - sizes[1]) * (i + 1) + (3 - sizes[2]) * 9
            found.append({"spec": spec, "nmse": float(error), "macs": macs, "params": macs})
        return found

    def best(candidates):
        return [min(c["nmse"] for c in candidates if c["macs"] <= most) for most in (30, 60, 120, 200)]

    explored = explore(space, measure, 300, 0, None)
    drawn = measure(space.first(300, np.random.default_rng(0)))
    assert len({key_of(c["spec"]) for c in explored}) == 300
    assert sum(best(explored)) < sum(best(drawn)) and all(
        a <= b for a, b in zip(best(explored), best(drawn), strict=True)
    )


def test_exploring_goes_on_from_its_pieces_to_the_same_candidates(unet, folder, tmp_path):
    site = sites_of(unet)[1]
    block = unet.get_submodule(site.name)
    supernet, space = supernet_of(unet, site), space_of(block, SPACE)
    features = Features(folder, [*site.reads, *site.writes])
    measure, calls = BlockScore(supernet, features, len(site.reads), 8), []

    def until(most):
        def counted(specs):
            calls.append(len(specs))
            if len(calls) > most:
                raise KeyboardInterrupt
            return measure(specs)

        return counted

    pieces = Pieces(tmp_path / "pieces", {"made": "with"})
    with pytest.raises(KeyboardInterrupt):
        explore(space, until(1), 60, 0, pieces)
    again = explore(space, until(9), 60, 0, Pieces(tmp_path / "pieces", {"made": "with"}))
    assert again == explore(space, measure, 60, 0, None) and len(again) == min(60, len(space))
