"""What each kind of choice in the search space saves in MACs and in time, when a whole network is changed so.

python benchmarks/choices.py --output benchmarks/results/choices.json

On four networks: the teachers of the digits, of Fashion-MNIST and of CIFAR-10 in latents, and the config of
google/ddpm-cifar10-32 with random weights; with one thread and with two. Each changed network takes turns with the unchanged one;
the share is the median of the turns. Nothing else should run meanwhile. A table for each network is printed.

The committed table has more kinds, which the space had then: attentions and shortcuts that read half of the channels, attentions
with half of the heads, convolutions of low rank, and upsamplers with a 1x1 convolution or four "folded" 2x2 ones at the low
resolution. They were removed: some save hardly any time, and a search without the others finds as good blocks (space.py).
"""

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from diffusers import UNet2DModel
from latency import teacher_of
from shared_inputs import cpu_params, preset_file, write

from stagecraft.elastic.architecture import identity_architecture
from stagecraft.elastic.block import natural_orders
from stagecraft.evaluation.cost import count_macs
from stagecraft.evaluation.speed import time_evaluation
from stagecraft.networks.unet.student import Module, group_size
from stagecraft.runtime.threads import keep_freed_memory
from stagecraft.training.student import build_student

Spec = dict[str, Any]
WARM_UP = 2
# config.json of google/ddpm-cifar10-32, as far as it is not the default.
DDPM_CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
}


def half(groups: list[int], share: float = 0.5) -> list[int]:
    """The first groups of a list, as many as the share says."""
    return groups[: max(1, round(share * len(groups)))]


def narrower(spec: Spec, block: Module) -> Spec:
    """Inner widths of half the groups."""
    for name, layer in resnets(spec).items():
        size = group_size(block.get_submodule(name))
        layer["width"] = size * max(1, layer["width"] // size // 2)
    return spec


def partial(spec: Spec, block: Module) -> Spec:
    """Layers that read and write half of their channels."""
    for name, order in natural_orders(block).items():
        spec[name] |= {key: half(groups) for key, groups in order.items()}
    return spec


def first_layers(spec: Spec, block: Module) -> Spec:
    """All but the first layer dropped."""
    return spec | dict.fromkeys(name for name in resnets(spec) if name != "resnets.0")


def kernels(first: int | None, second: int) -> Callable[[Spec, Module], Spec]:
    """Other kernels of the two convolutions, None for the teacher's."""

    def change(spec: Spec, block: Module) -> Spec:
        for layer in resnets(spec).values():
            layer["kernels"] = [first or layer["kernels"][0], second]
        return spec

    return change


def no_attentions(spec: Spec, block: Module) -> Spec:
    """All attentions dropped."""
    return spec | dict.fromkeys(name for name in spec if name.startswith("attentions"))


def resnets(spec: Spec) -> Spec:
    """The ResNet layers of a block."""
    return {name: layer for name, layer in spec.items() if name.startswith("resnets")}


CHOICES: dict[str, Callable[[Spec, Module], Spec]] = {
    "attentions dropped": no_attentions,
    "first layer of each block alone": first_layers,
    "layers read and write half": partial,
    "inner width 0.5": narrower,
    "second kernel 1x1": kernels(None, 1),
    "both kernels 1x1": kernels(1, 1),
}
STREAMS = {"hidden channels 0.75": 0.75, "hidden channels 0.5": 0.5}


@dataclass(frozen=True)
class Net:
    """A network, and the batch that it is timed with."""

    name: str
    unet: Module
    batch: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W of what it draws."""
        config = self.unet.config
        return config["in_channels"], config["sample_size"], config["sample_size"]

    def changed(self, choice: str) -> Module:
        """The network with a choice made everywhere."""
        architecture = identity_architecture(self.unet)
        if choice in STREAMS:
            groups = self.unet.config["norm_num_groups"]
            widths = self.unet.config["block_out_channels"]
            architecture["stream"] = [kept_channels(width, groups, STREAMS[choice]) for width in widths]
            return build_student(self.unet, architecture, [], 0).eval()
        for name, (entry,) in architecture["blocks"].items():
            entry["spec"] = CHOICES[choice](copy.deepcopy(entry["spec"]), self.unet.get_submodule(name))
        return build_student(self.unet, architecture, [], 0).eval()


def kept_channels(width: int, groups: int, share: float) -> list[int]:
    """The first channels of every group, as many as the share says."""
    size = width // groups
    kept = max(1, round(share * size))
    return [group * size + i for group in range(groups) for i in range(kept)]


def networks() -> list[Net]:
    """The four of the table."""
    found = []
    for preset in ("digits", "fashion-mnist", "cifar10-latent"):
        found.append(Net(preset, teacher_of(preset, cpu_params(preset_file(preset))), 32))
    torch.manual_seed(0)
    return [*found, Net("google/ddpm-cifar10-32", UNet2DModel(**DDPM_CIFAR10).eval(), 4)]


@torch.no_grad()
def share_of_time(unet: Module, changed: Module, x_NCHW: torch.Tensor, repeats: int) -> float:
    """Median of the changed network's time over the other's, of evaluations in turn."""
    ratios = []
    for repeat in range(WARM_UP + repeats):
        theirs, ours = (time_evaluation(model, x_NCHW, 500.0) for model in (unet, changed))
        ratios += [ours / theirs] if repeat >= WARM_UP else []
    return median(ratios)


def measure(net: Net, choice: str, threads: list[int], repeats: int) -> dict[str, Any]:
    """Shares of the unchanged network's MACs and time."""
    changed = net.changed(choice)
    x_NCHW = torch.randn((net.batch, *net.shape), generator=torch.Generator().manual_seed(0))
    macs = count_macs(changed, net.shape, 500.0) / count_macs(net.unet, net.shape, 500.0)
    times = {}
    for count in threads:
        torch.set_num_threads(count)
        times[str(count)] = round(share_of_time(net.unet, changed, x_NCHW, repeats), 3)
    return {"choice": choice, "macs": round(macs, 3), "time": times}


def print_table(name: str, rows: list[dict[str, Any]], threads: list[int]) -> None:
    """A network's rows as Markdown."""
    print(f"\n{name}\n\n| choice | MACs | " + " | ".join(f"time, {count} thread(s)" for count in threads) + " |")
    print("| --- | ---: |" + " ---: |" * len(threads))
    for row in rows:
        times = " | ".join(f"{row['time'][str(count)]:.2f}" for count in threads)
        print(f"| {row['choice']} | {row['macs']:.2f} | {times} |")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    results = {}
    for net in networks():
        rows = [measure(net, choice, arguments.threads, arguments.repeats) for choice in [*CHOICES, *STREAMS]]
        results[net.name] = {"batch": net.batch, "rows": rows}
        print_table(net.name, rows, arguments.threads)
        if arguments.output:
            about = {"torch": torch.__version__, "threads": arguments.threads, "repeats": arguments.repeats}
            write(arguments.output, about | {"networks": results})


if __name__ == "__main__":
    main()
