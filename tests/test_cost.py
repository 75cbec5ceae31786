"""What is counted: MACs, parameters and speed."""

import copy

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from stagecraft.evaluation import cost, speed
from stagecraft.networks.costs import count_network_macs, count_tail_macs
from stagecraft.networks.families import family_of, sites_of

SHAPE = (1, 8, 8)


def tiny_unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


class TinyNet(nn.Module):
    """A convolution and a linear layer, with the call of a UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3, padding=1)
        self.linear = nn.Linear(5, 7)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> UNet2DOutput:
        return UNet2DOutput(sample=self.linear(self.conv(x).mean(dim=(2, 3))))


class IntervalNet(nn.Module):
    """One decoder below t = 10, a larger one from there on."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(1, 4, 1, bias=False)
        self.decoders = nn.ModuleList([nn.Conv2d(4, 1, 1, bias=False), nn.Conv2d(4, 1, 3, padding=1, bias=False)])

    def forward(self, x: torch.Tensor, t: torch.Tensor | float) -> UNet2DOutput:
        return UNet2DOutput(sample=self.decoders[int(t >= 10)](self.encoder(x)))


def test_macs_are_the_closed_form_of_a_small_net() -> None:
    expected = 8 * 8 * 5 * 9 + 5 * 7
    assert cost.count_macs(TinyNet(), SHAPE, 0) == expected
    assert cost.count_macs_with_attention(TinyNet(), SHAPE, 0) == expected


def test_attention_adds_its_two_products() -> None:
    unet = tiny_unet()
    tokens, width, layers = 4 * 4, 16, 1 + 1 + 2  # down block, mid block, up block with one layer more
    products = 2 * tokens * tokens * width * layers
    assert cost.count_macs_with_attention(unet, SHAPE, 0) - cost.count_macs(unet, SHAPE, 0) == products


def test_counting_leaves_the_model_alone() -> None:
    unet = tiny_unet()
    before = copy.deepcopy(unet.state_dict())
    cost.model_cost(unet, SHAPE, [], [10])
    after = unet.state_dict()
    assert before.keys() == after.keys()
    assert not any("total_ops" in name for name, _ in unet.named_buffers())


def test_macs_are_weighted_by_the_steps_of_each_interval() -> None:
    found = cost.model_cost(IntervalNet(), SHAPE, [10.0], [30, 10])
    cheap, dear = 64 * (4 + 4), 64 * (4 + 36)
    assert found["macs_per_interval"] == [cheap, dear]
    assert found["macs"] == (30 * cheap + 10 * dear) / 40
    assert (found["params"], found["params_active"]) == (4 + 4 + 36, 4 + 36)


def test_a_model_without_decoders_has_one_interval_and_all_parameters_active() -> None:
    found = cost.model_cost(TinyNet(), SHAPE, [10.0], [30, 10])
    assert found["macs_per_interval"][0] == found["macs_per_interval"][1] == found["macs"]
    assert found["params"] == found["params_active"] == 9 * 5 + 5 + 5 * 7 + 7


def test_one_timestep_lies_in_each_interval() -> None:
    assert cost.interval_timesteps([]) == [0]
    assert cost.interval_timesteps([100.0, 400.0]) == [99.0, 100.0, 400.0]


def test_a_clock_that_wanders_does_not_change_a_models_share() -> None:
    clock = [1.0, 1.0, 3.0, 3.0, 3.0]
    seconds = {("teacher", 0): clock, ("student", 0): [0.5 * second for second in clock]}
    seconds["student", 0][0] = 9.0  # something else had the core
    found = speed.sampling_seconds(seconds, {"teacher": [10], "student": [8]})
    assert found == {"teacher": 30.0, "student": 30.0 * 0.4}


def test_throughput_sums_the_sampler_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"encoder": 0.0, "first": 0.5, "second": 0.25}
    monkeypatch.setattr(speed, "time_evaluation", lambda model, x, t: seconds["first" if t < 10 else "second"])
    monkeypatch.setattr(speed, "time_by_operation", lambda *_: {"convolution": 1.0})
    found = speed.measure_speed(
        {"student": IntervalNet()},
        SHAPE,
        [10.0],
        {"student": [4, 8]},
        batch=16,
        repeats=3,
        device=torch.device("cpu"),
        precision="fp32",
    )
    throughput = {
        "images_per_second": 16 / (4 * 0.5 + 8 * 0.25),
        "milliseconds": 1000 * 4 / 16 / 12,
        "peak_memory_mib": None,
    }
    assert found == {"student": throughput | {"time_by_operation": {"convolution": 1.0}}}


def test_time_is_divided_among_kinds_of_operations() -> None:
    shares = speed.time_by_operation(tiny_unet(), torch.randn(8, *SHAPE), [5, 500], [3, 1])
    assert sum(shares.values()) == pytest.approx(1) and set(shares) == {*speed.KINDS, speed.OTHER}
    assert shares["convolution"] > 0.1 and shares["normalisation"] > 0


def test_a_machine_without_a_gpu_is_profiled_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    speed.time_by_operation(tiny_unet(), torch.randn(8, *SHAPE), [5, 500], [3, 1])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::addmm", "matrix product"),
        ("aten::native_group_norm", "normalisation"),
        ("aten::silu", "activation"),
        ("aten::copy_", speed.OTHER),
    ],
)
def test_operations_are_known_by_their_names(name: str, kind: str) -> None:
    assert speed.kind_of(name) == kind


def test_the_tail_of_a_block_runs_from_its_input_to_the_output() -> None:
    unet = tiny_unet()
    sites = sites_of(unet)
    fixed = family_of(unet).fixed_costs(unet)
    assert count_tail_macs(unet, sites[0]) == count_network_macs(unet) - fixed.entrance_macs
    own = family_of(unet).block_macs(unet.get_submodule(sites[-1].name), sites[-1])
    assert count_tail_macs(unet, sites[-1]) == own + fixed.head_macs
