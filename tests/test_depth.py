"""The teacher with whole layers dropped by their effect on its output."""

import sys

import pytest
import torch
from helpers import ROOT, tiny_unet

sys.path.insert(0, str(ROOT / "benchmarks"))

import depth
from matching import Counter, share_of

SHAPE = (1, 8, 8)


def test_every_layer_and_attention_may_go():
    teacher = tiny_unet()
    layers = depth.layers_of(teacher)
    kinds = {kind: sum(layer.name.startswith(kind) for layer in layers) for kind in ("resnets", "attentions")}
    assert kinds == {"resnets": 2 + 2 + 4, "attentions": 1 + 1 + 2} and len({*layers}) == len(layers)


def test_what_is_left_of_the_teacher_has_its_weights():
    teacher, x, t = tiny_unet(), torch.randn(2, *SHAPE), torch.tensor([5, 800])
    whole = depth.without(teacher, [])
    assert torch.equal(whole(x, t).sample, teacher(x, t).sample)
    site = depth.Layer("up_blocks.0", "attentions.1")
    less = depth.without(teacher, [site])
    assert not torch.equal(less(x, t).sample, teacher(x, t).sample)
    kept = {name: value for name, value in whole.state_dict().items() if "up_blocks.0.attentions.1" not in name}
    assert less.state_dict().keys() == kept.keys()
    assert all(torch.equal(value, less.state_dict()[name]) for name, value in kept.items())


def test_sites_are_dropped_for_the_least_sum_of_effects():
    sites = [depth.Layer("mid_block", f"resnets.{index}") for index in range(4)]
    effects = depth.Effects(sites, errors=[1.0, 0.1, 0.5, 0.3], savings=[0.5, 0.1, 0.3, 0.2], whole=0.98)
    # 0.38 must go: {0} costs 1.0, {1, 2} 0.6, {2, 3} 0.8; by error per saving site 1 would be first.
    assert effects.choose(0.6) == [sites[1], sites[2]]
    # 0.48 must go, and no set saves 0.48 to 0.495: of those that save more {2, 3} costs least.
    assert effects.choose(0.5) == [sites[2], sites[3]]
    # 0.29 must go, and not more than 0.311: {2} and {1, 3} do; {1, 3} costs less.
    assert effects.choose(0.69) == [sites[1], sites[3]]
    cheap = depth.Effects(sites, errors=[0.01, 0.1, 0.5, 0.3], savings=[0.5, 0.1, 0.3, 0.2], whole=0.98)
    # {0} would cost least, but leave a budget unspent that {1, 3} meets.
    assert cheap.choose(0.69) == [sites[1], sites[3]]
    assert effects.choose(0.99) == []
    with pytest.raises(ValueError, match=r"budget -0.2 is infeasible \(the smallest feasible is -0.120\)"):
        effects.choose(-0.2)


def test_effects_are_measured_with_one_site_dropped_at_a_time():
    teacher = tiny_unet()
    tensors = len(depth.without(teacher, []).state_dict())
    effects = depth.Effects.measure(teacher, lambda net: float(len(net.state_dict())), Counter(teacher, SHAPE))
    assert effects.layers == depth.layers_of(teacher) and effects.whole == pytest.approx(1.0)
    assert max(effects.errors) < tensors and min(effects.savings) > 0
    dropped = effects.choose(0.5)
    share = share_of(Counter(teacher, SHAPE), depth.without(teacher, dropped), [], [1])
    assert share <= 0.5 and share == pytest.approx(
        1 - sum(s for site, s in zip(effects.layers, effects.savings, strict=True) if site in dropped)
    )
