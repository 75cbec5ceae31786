"""The families of diffusers' UNets as the library sees them: their sites, what passes between them, and how to run their blocks.

The tensors between blocks, each named once: `emb` (N, D); `skip.0` (conv_in's output), `skip.1`, ... (every state that a down
block emits, the last of a block being its output); `mid`; `up.0`, `up.1`, ... (each up block's output), all N,C,H,W; and, where
blocks have cross-attention, `prompt`, the encoder's hidden states (N, tokens, D).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from stagecraft.data.condition import UNCONDITIONAL, Condition
from stagecraft.diffusion.losses import predict
from stagecraft.networks.family import (
    Architecture,
    FixedCosts,
    Module,
    ResidualStream,
    Site,
    Spec,
    Stream,
    StudentBlock,
)
from stagecraft.networks.unet.costs import block_macs, fixed_costs
from stagecraft.networks.unet.given_decoders import decoder_costs, widen_decoders
from stagecraft.networks.unet.layers import UNetLayers
from stagecraft.networks.unet.names import DOWN, MID, PROMPT, UP
from stagecraft.networks.unet.native import stock_model
from stagecraft.networks.unet.stream import level_of, residual_stream
from stagecraft.networks.unet.student import read_by

IN_DECODER = (UP, "conv_norm_out", "conv_out")


class UNetFamily(ABC):
    """A family of diffusers' UNets: what is the same in all of them."""

    teacher_class: Any
    student_class: Any
    native_class: Any

    def tokens(self, net: Module) -> int:
        """How many hidden states of an encoder a network's blocks read; 0 where none has cross-attention."""
        return 0

    @abstractmethod
    def head_unit(self, net: Module, level: int) -> int:
        """The number of which a level's channels must be multiples, so that its attentions have whole heads."""

    @abstractmethod
    def example_condition(self, net: Module, count: int) -> Condition:
        """The arguments beside `count` samples for measurements of a network or student."""

    def adapt(self, teacher: Module, side: int) -> Module:
        """Give a teacher, in place, a side, and of an output head with a learned variance the mean alone."""
        channels = teacher.config["in_channels"]
        if teacher.config["out_channels"] == 2 * channels:
            output = teacher.conv_out
            output.weight = torch.nn.Parameter(output.weight.detach()[:channels].clone())
            output.bias = torch.nn.Parameter(output.bias.detach()[:channels].clone())
            output.out_channels = channels
        teacher.register_to_config(out_channels=channels, sample_size=side)
        return teacher

    def sites(self, net: Module) -> list[Site]:
        """The places of all blocks, in the order in which they run."""
        side = net.config["sample_size"] or 0  # unknown until a teacher is fitted to its images
        deepest = len(net.down_blocks) - 1
        tokens = self.tokens(net)
        sites = []
        states = ["skip.0"]
        for i, block in enumerate(net.down_blocks):
            count = len(block.resnets) + (block.downsamplers is not None)
            emitted = [f"skip.{len(states) + j}" for j in range(count)]
            sites.append(self.site(f"{DOWN}.{i}", block, [states[-1]], emitted, side >> i, tokens))
            states += emitted
        hidden = states[-1]
        if net.mid_block is not None:
            sites.append(self.site(MID, net.mid_block, [hidden], ["mid"], side >> deepest, tokens))
            hidden = "mid"
        for i, block in enumerate(net.up_blocks):
            count = len(block.resnets)
            reads = [hidden, *states[-count:]]
            sites.append(self.site(f"{UP}.{i}", block, reads, [f"up.{i}"], side >> (deepest - i), tokens))
            states = states[:-count]
            hidden = f"up.{i}"
        return sites

    def site(
        self, name: str, block: Module, reads: Sequence[str], writes: Sequence[str], side: int, tokens: int
    ) -> Site:
        """The site of a block that reads these states beside the time embedding and, with cross-attention, the prompt."""
        attends = getattr(block, "has_cross_attention", False)
        given = ("emb", PROMPT) if attends else ("emb",)
        return Site(name, (*given, *reads), tuple(writes), name.startswith(UP), side, tokens if attends else 0)

    def run(self, site: Site, block: Module, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run a block on what its site reads; returns what it writes."""
        emb, *states = tensors
        prompt = read_by(block, states.pop(0) if PROMPT in site.reads else None)
        hidden, *skips = states
        if is_down(site):
            return as_many(block(hidden, emb, *prompt)[1], len(site.writes), block)
        if not skips:
            return (block(hidden, emb, *prompt),)
        # A block of fewer layers passes over the skip tensors before the last.
        count = len(block.resnets)
        return (block(hidden, (*skips[: count - 1], skips[-1]), emb, *prompt),)

    def trace(
        self, net: Module, x_t: torch.Tensor, t: torch.Tensor, condition: Condition = UNCONDITIONAL
    ) -> dict[str, torch.Tensor]:
        """All tensors between blocks in one forward pass, and the prediction as `output`; x_t is N,C,H,W, t is (N,)."""
        seen: dict[str, torch.Tensor] = {}
        handles = [
            net.get_submodule(site.name).register_forward_hook(keep_outputs(site, seen), with_kwargs=True)
            for site in self.sites(net)
        ]
        handles.append(net.conv_in.register_forward_hook(lambda module, args, output: seen.update({"skip.0": output})))
        try:
            seen["output"] = predict(net, x_t, t, condition)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    def tail_reads(self, net: Module, site: Site) -> tuple[str, ...]:
        """The tensors that `tail` needs beside what the site writes."""
        known = set(site.writes)
        needed = []
        for later in self.sites_after(net, site):
            needed += [name for name in later.reads if name not in known]
            known |= {*later.reads, *later.writes}
        return tuple(needed)

    def tail(
        self, net: Module, site: Site, outputs: Sequence[torch.Tensor], seen: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """The prediction (N,C,H,W) of a UNet whose block at a site gave these outputs; `seen` holds its `tail_reads`."""
        seen = seen | dict(zip(site.writes, outputs, strict=True))
        hidden = outputs[-1]
        for later in self.sites_after(net, site):
            written = self.run(later, net.get_submodule(later.name), [seen[name] for name in later.reads])
            seen.update(zip(later.writes, written, strict=True))
            hidden = written[-1]
        return net.conv_out(net.conv_act(net.conv_norm_out(hidden)))

    def blocks(self, student: Module, site: Site) -> list[StudentBlock]:
        """The blocks of a student at one of the teacher's sites, one for each range of intervals; none where it has none."""
        index = site.name.rpartition(".")[2]
        blocks = []
        for entry in student.config["architecture"]["blocks"].get(site.name, ()):
            if site.per_range:
                module = student.decoders[entry["range"][0]].blocks[int(index)]
            else:
                module = student.get_submodule(site.name)
            blocks.append(StudentBlock(module, entry["spec"], entry["range"]))
        return blocks

    def rebuild(self, block: Module, spec: Spec) -> Module:
        """A block of the teacher, changed in place as a spec says; weights of changed layers are left to the caller."""
        return self.student_class.rebuilder.apply_spec(block, spec)

    def block_macs(self, block: Module, site: Site) -> int:
        """MACs of a block at a site for one sample."""
        return block_macs(block, site.side, site.tokens)

    def fixed_costs(self, net: Module) -> FixedCosts:
        """Costs of a UNet beside its blocks."""
        return fixed_costs(net)

    def layers(self, net: Module, identities: Mapping[str, Spec]) -> UNetLayers:
        """The layers of a UNet, to be measured one by one."""
        condition = self.example_condition(net, 1)
        rebuilder = self.student_class.rebuilder
        return UNetLayers(net, identities, rebuilder, condition, self.tokens(net), self.native(net))

    def residual_stream(self, net: Module) -> ResidualStream:
        """The residual stream of a UNet."""
        return residual_stream(net, self.sites(net))

    def narrow(self, net: Module, stream: Stream) -> Module:
        """A copy of a UNet with these channels of its residual stream alone; see `Rebuilder.narrow_stream`."""
        return self.student_class.rebuilder.narrow_stream(copy.deepcopy(net), stream)

    def widen_decoders(self, net: Module, identity: Architecture, widths: Sequence[float]) -> Architecture:
        """The identity with decoders whose channels are shares of the teacher's, in whole groups and attention heads."""
        units = {site.name: self.head_unit(net, level_of(net, site)) for site in self.decoder_sites(net)}
        return widen_decoders(net, self.decoder_sites(net), units, identity, widths)

    def decoder_costs(self, net: Module, architecture: Architecture) -> list[tuple[int, int]]:
        """MACs for one sample and parameters of every interval's decoder, its output head included."""
        return decoder_costs(net, self.student_class.rebuilder, self.decoder_sites(net), architecture)

    def build_student(self, teacher: Module, architecture: Architecture, boundaries: Sequence[float]) -> Module:
        """A student with random weights."""
        config = student_config(teacher, self.student_class.repeated, architecture, boundaries)
        return self.student_class(**config)

    def copy_fixed(self, student: Module, teacher: Module) -> None:
        """Copy all but the blocks, the output head into every decoder that has its own."""
        own = student.state_dict()
        with torch.no_grad():
            for name, value in teacher.state_dict().items():
                if not name.startswith((DOWN, MID, UP)):
                    for own_copy in copies_of(own, name, student.num_intervals):
                        own_copy.copy_(value)

    def copy_all(self, student: Module, teacher: Module) -> None:
        """Copy the teacher's weights in place, into every decoder.

        A tensor of another shape gets what both have in common, its first channels, and keeps its random values in the rest; so
        only decoders of the teacher's own shape start as copies of it.
        """
        own = student.state_dict()
        with torch.no_grad():
            for name, value in teacher.state_dict().items():
                for own_copy in copies_of(own, name, student.num_intervals):
                    common = tuple(slice(min(sizes)) for sizes in zip(own_copy.shape, value.shape, strict=True))
                    own_copy[common].copy_(value[common])

    def native(self, net: Module) -> Any:
        """The students of a teacher that its own class can express."""
        sites = self.sites(net)
        return self.native_class(net, sites, residual_stream(net, sites).levels)

    def stock(self, student: Module) -> Module:
        """The network of the teacher's own class that a native student is."""
        return stock_model(self.teacher_class, student)

    def decoder_sites(self, net: Module) -> list[Site]:
        """The sites of the up blocks."""
        return [site for site in self.sites(net) if site.per_range]

    def sites_after(self, net: Module, site: Site) -> list[Site]:
        """The sites whose blocks run after that of one."""
        sites = self.sites(net)
        return sites[sites.index(site) + 1 :]


def student_config(
    teacher: Module, repeated: Sequence[str], architecture: Architecture, boundaries: Sequence[float]
) -> dict[str, object]:
    """The arguments of a student's class, which repeats some of the teacher's config."""
    config = {key: value for key, value in teacher.config.items() if not key.startswith("_")}
    how: dict[str, object] = {"unet": config, "architecture": architecture, "boundaries": list(boundaries)}
    return how | {key: config[key] for key in repeated}


def copies_of(own: Mapping[str, torch.Tensor], name: str, intervals: int) -> list[torch.Tensor]:
    """A student's own weights that stand for one of the teacher's: in every decoder that has one, or one outside of them."""
    copies = [f"decoders.{k}.{name}" for k in range(intervals)] if name.startswith(IN_DECODER) else [name]
    return [own[copy] for copy in copies if copy in own]


def is_down(site: Site) -> bool:
    """Whether a site is in the encoder, where a block emits several states."""
    return site.name.startswith(DOWN)


def as_many(states: tuple[torch.Tensor, ...], count: int, block: Module) -> tuple[torch.Tensor, ...]:
    """The states that a down block emits, that of its last layer also for layers that it has not."""
    layers = len(block.resnets)
    return (*states[:layers], *[states[layers - 1]] * (count - len(states)), *states[layers:])


def keep_outputs(site: Site, seen: dict[str, torch.Tensor]) -> Callable[..., None]:
    """A forward hook that keeps what the block at a site writes, the time embedding and the prompt."""

    def hook(module: Module, args: tuple[Any, ...], kwargs: Mapping[str, torch.Tensor], output: Any) -> None:
        states = output[1] if is_down(site) else (output,)
        # Attention leaves channels-last strides; torch 2.12's CPU GroupNorm crashes in the backward pass on such an input
        # when the input itself needs no gradient, as a block's input here. At 1 x 1 pixels contiguous() would keep them.
        seen.update(zip(site.writes, (state.flatten().view(state.shape) for state in states), strict=True))
        if is_down(site):
            seen["emb"] = kwargs["temb"]
        if PROMPT in site.reads:
            seen[PROMPT] = kwargs["encoder_hidden_states"]

    return hook
