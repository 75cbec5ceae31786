"""Elastic blocks: one set of weights, every sub-block a slice of it."""

import copy

import numpy as np
import pytest
import torch
from helpers import search_space, space_of, supernet_of, tiny_unet

from stagecraft.elastic.block import student_state
from stagecraft.elastic.kinds import identity_spec
from stagecraft.networks.families import family_of, site_named, sites_of
from stagecraft.networks.jobs import Job
from stagecraft.networks.unet2d.multi_decoder_unet import apply_spec
from stagecraft.search.space import BlockSpace, key_of

SETTINGS = {"widths": [0.25, 0.5, 1.0], "kernels": [1, 3], "drop_layers": True, "drop_attention": True}
SETTINGS |= {"stream": [0.5, 1.0], "channel_multiple": 1}


def sites_with_tensors(unet):
    with torch.no_grad():
        seen = family_of(unet).trace(unet, torch.randn(4, 1, 8, 8), torch.tensor([0, 10, 500, 999]))
    return [(site, [seen[n] for n in site.reads], [seen[n] for n in site.writes]) for site in sites_of(unet)]


@pytest.fixture(params=["default", "scale_shift"])
def net(request):
    return tiny_unet(resnet_time_scale_shift=request.param, layers_per_block=2)


def test_blocks_fed_with_traced_borders_give_the_traced_outputs(net):
    for site, inputs, outputs in sites_with_tensors(net):
        again = family_of(net).run(site, net.get_submodule(site.name), inputs)
        for got, want in zip(again, outputs, strict=True):
            torch.testing.assert_close(got, want)


def test_the_largest_path_of_a_fresh_supernet_is_the_teacher_before_and_after_sorting(net):
    for site, inputs, outputs in sites_with_tensors(net):
        block = net.get_submodule(site.name)
        supernet, spec = supernet_of(net, site), identity_spec(block)
        for _ in range(2):
            for got, want in zip(supernet(spec, inputs), outputs, strict=True):
                torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
            supernet.sort(inputs)


def test_sorting_puts_the_most_important_groups_first(net):
    site, inputs, _ = sites_with_tensors(net)[0]
    with torch.no_grad():
        net.get_submodule(site.name).resnets[0].conv2.weight[:, :4] = 0
    supernet = supernet_of(net, site)
    supernet.sort(inputs)
    weight = supernet.block.resnets[0].conv2.weight
    assert weight[:, -4:].abs().max() == 0 and weight[:, :4].abs().max() > 0
    assert supernet.other_kernels["resnets-0-conv2-1"][:, -4:].abs().max() == 0


def test_an_extracted_sub_block_equals_the_supernets_path(net):
    rng = np.random.default_rng(0)
    for site, inputs, _ in sites_with_tensors(net):
        block = net.get_submodule(site.name)
        supernet = supernet_of(net, site)
        space = BlockSpace(block, search_space(SETTINGS), supernet.sort(inputs))
        for spec in [space.smallest(), space.identity, *(space.draw(rng) for _ in range(5))]:
            copied = apply_spec(copy.deepcopy(block), spec).eval()
            copied.load_state_dict(student_state(supernet.state_dict(), block, family_of(net), site, spec))
            with torch.no_grad():
                pairs = zip(supernet(spec, inputs), family_of(net).run(site, copied, inputs), strict=True)
                for path, extracted in pairs:  # a slice lies elsewhere than a copy of it, which BLAS may round by
                    torch.testing.assert_close(path, extracted, atol=1e-6, rtol=1e-5)


def test_every_path_trains_its_own_weights_only(net):
    site, inputs, _ = sites_with_tensors(net)[0]
    supernet = supernet_of(net, site, [1, 3])
    spec = identity_spec(supernet.block)
    spec["resnets.0"] = {"width": 8, "kernels": [1, 3]}
    sum(out.square().sum() for out in supernet(spec, inputs)).backward()
    assert supernet.other_kernels["resnets-0-conv1-1"].grad[:8].abs().sum() > 0
    assert supernet.other_kernels["resnets-0-conv1-1"].grad[8:].abs().sum() == 0
    assert supernet.block.resnets[0].conv1.weight.grad is None


def test_a_layer_reads_and_writes_its_most_important_groups_only(net):
    site, inputs, _ = sites_with_tensors(net)[0]
    block = net.get_submodule(site.name)
    with torch.no_grad():
        block.resnets[0].conv1.weight[:, 4:8] = 0
        block.resnets[0].conv2.weight[8:12] = 0
        block.resnets[0].conv2.bias[8:12] = 0
    supernet = supernet_of(net, site, [3])
    order = supernet.sort(inputs)["resnets.0"]
    assert order["reads"][-1] == 1 and order["writes"][-1] == 2
    layer = {"width": 16, "kernels": [3, 3], "reads": [0, 2, 3], "writes": [0, 1, 3]}
    spec = identity_spec(block)
    without = spec | {"resnets.0": layer}
    for got, want in zip(supernet(without, inputs), supernet(spec, inputs), strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_channels_that_are_not_written_pass_a_layer_by(net):
    site, inputs, _ = sites_with_tensors(net)[0]
    supernet = supernet_of(net, site, [3])
    spec = identity_spec(supernet.block)
    spec["resnets.0"] = {"width": 4, "kernels": [3, 3], "writes": [1]}
    spec["resnets.1"] = None
    states = supernet(spec, inputs)
    assert torch.equal(states[0][:, :4], inputs[1][:, :4]) and torch.equal(states[0][:, 8:], inputs[1][:, 8:])
    assert not torch.equal(states[0][:, 4:8], inputs[1][:, 4:8])


def test_the_space_holds_the_teacher_and_its_sample_is_seeded_and_without_repetition(net):
    space = space_of(net.up_blocks[0], SETTINGS)
    one, two = (space.first(100, np.random.default_rng(3)) for _ in range(2))
    assert one == two and one[0] == space.identity == identity_spec(net.up_blocks[0])
    assert len({str(spec) for spec in one}) == len(one) == 100
    assert space.smallest() in one
    small = space_of(net.down_blocks[0], SETTINGS | {"kernels": [3], "drop_layers": False, "stream": [1.0]})
    assert len(small.first(100, np.random.default_rng(0))) == len(small) == len(small.all()) == 9
    assert len(space) == ((3 * 4 * 4 + 1) ** 3) * 2**3


def test_children_are_new_members_of_the_space_near_their_parents(net):
    space = space_of(net.down_blocks[1], SETTINGS)
    parents = space.first(20, np.random.default_rng(0))[-2:]
    found = space.children(parents, 30, parents, np.random.default_rng(1))
    assert len({key_of(spec) for spec in [*found, *parents]}) == 32
    for child in found:
        assert all(choice in space.choices[name].all() for name, choice in child.items())
        foreign = [name for name in child if child[name] not in [parent[name] for parent in parents]]
        assert len(foreign) <= 1


def test_a_small_space_runs_out_of_children_near_their_parents_and_still_gives_all(net):
    space = space_of(net.down_blocks[0], SETTINGS | {"kernels": [3], "drop_layers": False, "stream": [1.0]})
    known = [space.identity]
    found = space.children(known, len(space) - 1, known, np.random.default_rng(0))
    assert {key_of(spec) for spec in [*found, *known]} == {key_of(spec) for spec in space.all()}


def test_widths_are_whole_groups(net):
    space = space_of(net.down_blocks[0], SETTINGS | {"widths": [0.1, 0.3, 0.6]})
    assert {layer["width"] for choices in space.choices.values() for layer in choices.all() if layer} == {4, 8, 16}


def test_channels_come_in_the_multiples_that_the_processor_wants(net):
    def channels(multiple):
        found = set()
        for site in sites_of(net):
            block = net.get_submodule(site.name)
            space = space_of(
                block, SETTINGS | {"widths": [0.1, 0.4, 0.6], "stream": [0.3], "channel_multiple": multiple}
            )
            assert space.first(1, np.random.default_rng(0))[0] == space.identity
            for spec in [space.smallest(), *space.first(40, np.random.default_rng(0))]:
                layers = apply_spec(copy.deepcopy(block), spec).modules()
                convs = [m for m in layers if isinstance(m, torch.nn.Conv2d)]
                found |= {size for conv in convs for size in (conv.in_channels, conv.out_channels)}
        return found

    assert {size % 8 for size in channels(8)} == {0}
    assert {size % 8 for size in channels(1)} == {0, 4}
    assert channels(1000) <= {16, 32, 48, 64}  # the teacher's own


def test_jobs_name_sites_and_intervals(net):
    assert Job.parse("up_blocks.1.interval_2") == Job("up_blocks.1", (2,))
    assert Job.parse("up_blocks.1.interval_1-3") == Job("up_blocks.1", (1, 2, 3))
    assert Job.parse("mid_block") == Job("mid_block")
    assert site_named(net, "mid_block").writes == ("mid",)
    for name in ("up_blocks.1.interval_2", "up_blocks.0.interval_0-2", "down_blocks.0"):
        assert Job.parse(name).name == name
    with pytest.raises(ValueError, match=r"block 'down_blocks\.9': the teacher has down_blocks\.0"):
        site_named(net, "down_blocks.9")


def test_a_spec_names_layers_that_can_be_changed(net):
    for name in ("resnets.9", "upsamplers.0", "attentions.0", "resnets", "resnets.-1"):
        with pytest.raises(ValueError, match=f"{name} is no layer of a DownBlock2D that can be changed"):
            apply_spec(copy.deepcopy(net.down_blocks[0]), {name: None})
