"""Deep features reused between a sampler's steps (DeepCache, arXiv 2312.00858), for the teacher and for a student.

Every N-th step runs the whole net. The steps between run the first layers of the encoder and, with their skip tensors, the last
ones of the decoder, on the hidden tensor that the last whole step had there. How many skip tensors are computed is the branch. A
student may instead reuse all that its shared encoder gave, and run its decoder alone: the branch `encoder`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from matching import Evaluation, Meter
from torch import Tensor, nn

from stagecraft.elastic.architecture import identity_architecture
from stagecraft.evaluation.cost import interval_timesteps
from stagecraft.networks.unet.student import interval_of
from stagecraft.networks.unet2d.multi_decoder_unet import MultiDecoderUNet2DModel
from stagecraft.training.student import build_student, warm_start

ENCODER = "encoder"
Branch = int | str  # the number of skip tensors that every step computes, or `encoder`


class Kept(NamedTuple):
    """What a whole step leaves for those after it: a hidden tensor of the decoder, or the encoder's output with all skips."""

    hidden: Tensor
    skips: tuple[Tensor, ...] = ()


def as_student(teacher: UNet2DModel) -> MultiDecoderUNet2DModel:
    """The teacher as a multi-decoder UNet of one interval, with the same output."""
    net = build_student(teacher, identity_architecture(teacher), [], 0)
    warm_start(net, teacher)
    return net.eval()


def branches_of(net: MultiDecoderUNet2DModel, encoder: bool) -> list[Branch]:
    """The branches of a net, the shallowest first; `encoder` says whether the encoder's output may be reused too."""
    count = sum(1 for _ in up_layers(net.decoders[0]))
    return [*range(1, count + 1), *([ENCODER] if encoder else [])]


class Schedule:
    """Which network evaluations of a sampling run are whole.

    Every N-th is, and the first of a run, which begins where t does not fall; where features of a decoder are reused also the
    first of each decoder.
    """

    def __init__(self, every: int, branch: Branch) -> None:
        self.every, self.branch = every, branch
        self.timestep, self.decoder, self.since = float("-inf"), -1, 0

    def is_whole(self, timestep: float, decoder: int) -> bool:
        """Whether the next evaluation, at this t and by this decoder, is whole."""
        begins = timestep >= self.timestep or (decoder != self.decoder and self.branch != ENCODER)
        self.since = 0 if begins or self.since + 1 == self.every else self.since + 1
        self.timestep, self.decoder = timestep, decoder
        return self.since == 0


class FeatureReuse(nn.Module):
    """A net that reuses deep features between the steps of a sampler; the same call, with one t for the whole batch.

    Args:
        net: in eval mode.
        every: N; 1 reuses nothing, and gives the net's own output bit for bit.
        branch: see `branches_of`.
    """

    def __init__(self, net: MultiDecoderUNet2DModel, every: int, branch: Branch) -> None:
        super().__init__()
        self.net, self.branch, self.config = net, branch, net.config
        self.schedule = Schedule(every, branch)
        self.kept: Kept | None = None

    def forward(self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None) -> UNet2DOutput:
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1)
        emb = self.net.embed(timesteps.expand(len(sample)), class_labels)
        number = self.net.paths[int(self.net.interval_of(timesteps)[0])]
        if self.schedule.is_whole(float(timesteps[0]), number) or self.kept is None:
            output, self.kept = run_whole(self.net, sample, emb, number, self.branch)
        else:
            output = run_branch(self.net, sample, emb, number, self.branch, self.kept)
        if self.net.base_config.time_embedding_type == "fourier":
            output = output / timesteps.reshape(-1, 1, 1, 1)
        return UNet2DOutput(sample=output)


class BranchAlone(nn.Module):
    """A step between two whole ones, at one t, to be measured.

    Args:
        x: what the whole step before was given, N,C,H,W.
    """

    def __init__(self, net: MultiDecoderUNet2DModel, branch: Branch, x: Tensor, timestep: float) -> None:
        super().__init__()
        self.net, self.branch, self.config = net, branch, net.config
        self.number = net.paths[int(net.interval_of(torch.tensor([timestep]))[0])]
        with torch.no_grad():
            self.kept = run_whole(net, x, self.embed(x, timestep), self.number, branch)[1]

    def embed(self, x: Tensor, timestep: Tensor | float) -> Tensor:
        """Time embedding of a batch, of class 0 where there are classes."""
        conditional = self.net.class_embedding is not None
        labels = torch.zeros(len(x), dtype=torch.int64, device=x.device) if conditional else None
        return self.net.embed(torch.as_tensor(timestep, device=x.device).reshape(-1).expand(len(x)), labels)

    def forward(self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None) -> UNet2DOutput:
        emb = self.embed(sample, timestep)
        return UNet2DOutput(sample=run_branch(self.net, sample, emb, self.number, self.branch, self.kept))


def run_whole(net: Any, sample: Tensor, emb: Tensor, decoder: int, branch: Branch) -> tuple[Tensor, Kept]:
    """The output of a net, and what the steps after it may reuse."""
    hidden, skips = net.encode(sample, emb)
    first = 0 if isinstance(branch, str) else len(skips) - branch
    kept = Kept(hidden, skips)
    for number, layer in enumerate(up_layers(net.decoders[decoder])):
        if number == first and branch != ENCODER:
            kept = Kept(hidden)
        hidden = layer(hidden, skips[-1 - number], emb)
    return run_head(net.decoders[decoder], hidden), kept


def run_branch(net: Any, sample: Tensor, emb: Tensor, decoder: int, branch: Branch, kept: Kept) -> Tensor:
    """The output of a net from what a whole step has left."""
    if isinstance(branch, str):
        output: Tensor = net.decoders[decoder](kept.hidden, kept.skips, emb)
        return output
    skips, hidden = encode_first(net, sample, emb, branch), kept.hidden
    last = [*up_layers(net.decoders[decoder])][-branch:]
    for layer, skip in zip(last, reversed(skips), strict=True):
        hidden = layer(hidden, skip, emb)
    return run_head(net.decoders[decoder], hidden)


def encode_first(net: Any, sample: Tensor, emb: Tensor, count: int) -> list[Tensor]:
    """The first `count` skip tensors, by the layers that they need."""
    skips = [net.conv_in(2 * sample - 1 if net.base_config.center_input_sample else sample)]
    for block in net.down_blocks:
        for resnet, attention in zip(block.resnets, attentions_of(block), strict=True):
            if len(skips) == count:
                return skips
            hidden = resnet(skips[-1], emb)
            skips.append(hidden if attention is None else attention(hidden))
        for sampler in block.downsamplers or ():
            if len(skips) == count:
                return skips
            skips.append(resample(sampler, skips[-1], emb))
    return skips


class UpLayer(NamedTuple):
    """A ResNet layer of a decoder with what belongs to it: an attention, and behind the last of a block the upsampler."""

    resnet: Any
    attention: Any
    samplers: Sequence[Any]

    def __call__(self, hidden: Tensor, skip: Tensor, emb: Tensor) -> Tensor:
        """Run it on the tensor before and a skip tensor."""
        hidden = self.resnet(torch.cat([hidden, skip], dim=1), emb)
        if self.attention is not None:
            hidden = self.attention(hidden)
        for sampler in self.samplers:
            hidden = resample(sampler, hidden, emb)
        return hidden


def up_layers(decoder: Any) -> Iterator[UpLayer]:
    """The layers of a decoder as they run, one for each skip tensor."""
    for block in decoder.blocks:
        last = len(block.resnets) - 1
        for index, (resnet, attention) in enumerate(zip(block.resnets, attentions_of(block), strict=True)):
            yield UpLayer(resnet, attention, (block.upsamplers or ()) if index == last else ())


def attentions_of(block: Any) -> Sequence[Any]:
    """The attention behind each ResNet layer of a block, None where there is none."""
    return getattr(block, "attentions", None) or [None] * len(block.resnets)


def resample(sampler: Any, hidden: Tensor, emb: Tensor) -> Tensor:
    """Run a downsampler or an upsampler, which may be a ResNet layer."""
    output: Tensor = sampler(hidden, emb) if isinstance(sampler, ResnetBlock2D) else sampler(hidden)
    return output


def run_head(decoder: Any, hidden: Tensor) -> Tensor:
    """The output head of a decoder."""
    for layer in decoder.head:
        hidden = layer(hidden)
    return hidden


class ReuseCosts:
    """What sampling with reused features takes, as a share of the teacher's sampling.

    Args:
        meter: what to measure evaluations with.
        nodes: t of the sampler's evaluations, descending.
    """

    def __init__(
        self, net: MultiDecoderUNet2DModel, branches: Sequence[Branch], meter: Meter, nodes: Sequence[float]
    ) -> None:
        self.nodes, boundaries = nodes, list(net.config["boundaries"])
        intervals = interval_of(torch.tensor(nodes), boundaries).tolist()
        self.intervals, self.paths, times = intervals, net.paths, interval_timesteps(boundaries)
        self.whole = meter.shares([Evaluation(FeatureReuse(net, 1, branches[0]), t) for t in times])
        self.between = {
            branch: meter.shares([Evaluation(BranchAlone(net, branch, meter.x, t), t) for t in times])
            for branch in branches
        }

    def total(self, every: int, branch: Branch) -> float:
        """The share of a sampling run."""
        schedule = Schedule(every, branch)
        taken = [
            self.whole[s] if schedule.is_whole(t, self.paths[s]) else self.between[branch][s]
            for t, s in zip(self.nodes, self.intervals, strict=True)
        ]
        return sum(taken) / len(taken)
