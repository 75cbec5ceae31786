"""One search job: the supernet of one block (and, in the decoder, of one interval) trained, and its sub-blocks scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file

from stagecraft.config import sections
from stagecraft.config.stages import SearchBlock
from stagecraft.elastic.block import ElasticBlock
from stagecraft.elastic.native import NativeBlock
from stagecraft.elastic.searchable import Order
from stagecraft.networks.costs import count_parameters, count_tail_macs
from stagecraft.networks.families import family_of, site_named
from stagecraft.networks.family import Module, Spec
from stagecraft.networks.jobs import Job
from stagecraft.networks.stream import kept_channels, narrowed_teacher
from stagecraft.runtime.files import check_file, read_checked_json, sha256_file
from stagecraft.runtime.journal import Pieces
from stagecraft.search.features import Features
from stagecraft.search.importance import choose_stream, native_order
from stagecraft.search.latency import LatencyTable
from stagecraft.search.results import SearchReport, read_result
from stagecraft.search.selection import Candidate
from stagecraft.search.space import BlockSpace, native_space
from stagecraft.search.supernet import (
    RANDOM_PATHS,
    BlockScore,
    OutputScore,
    SandwichLoss,
    explore,
    score_outputs,
    sort_supernet,
)
from stagecraft.training.loop import TrainSettings, train


@dataclass(frozen=True)
class Spending:
    """MACs that a search job takes.

    Args:
        sub_block_macs: MACs for one sample of all candidates or a subset, the teacher's shape first.
        count: candidates in all.
        measured: those whose effect on the output is measured.
        tail_macs: MACs for one sample of the teacher from the block to the output.
    """

    sub_block_macs: Sequence[int]
    count: int
    measured: int
    tail_macs: int

    def macs(self, settings: sections.SearchBlock, steps: int, intervals: int) -> dict[str, float]:
        """MACs: `training`, backward passes as two forward ones and random paths as the mean candidate; `scoring`.

        The effect on the output takes the sub-block and the teacher from there on.
        """
        macs = self.sub_block_macs
        step = macs[0] + min(macs) + RANDOM_PATHS * sum(macs) / len(macs)
        local = intervals * settings.local_triples * sum(macs) * self.count / len(macs)
        output = intervals * settings.output_triples * self.measured * self.tail_macs
        return {"training": 3.0 * steps * settings.batch_size * step, "scoring": float(local + output)}


@dataclass(frozen=True)
class TrainedSupernet:
    """A trained supernet to start from: its state, the order of its channels, the hash of its file."""

    weights: dict[str, torch.Tensor]
    order: dict[str, Order]
    sha256: str

    @classmethod
    def read(cls, report: Path, weights: Path) -> Self:
        """The supernet of a finished search job; ValueError when a file is not as it was written."""
        job = read_result(report)
        check_file(weights, job["weights_sha256"], report, "search_block")
        return cls(load_file(weights), dict(job["order"]), job["weights_sha256"])


class SearchJob:
    """A search job on the features of one teacher.

    With `search_block.channels` below 1 it is a search in the block of the teacher narrowed to the most important channels of its
    residual stream, and imitates those channels of the features; the score `output` puts them into the whole teacher.

    Args:
        params: the params of the stage `search_block`.
        name: `down_blocks.0`, `mid_block`, or, for a range of intervals, `up_blocks.0.interval_2` or `up_blocks.0.interval_0-1`.
        folder: the feature cache.
        checkpoint: where training keeps its state, and scoring, in a folder of the same name, its pieces.
        importance: how important the channels of the residual stream are, as `rank_channels` writes it.
        start: the supernet of a search over all intervals, weights and `order` of its report, to fine-tune from; None starts
            from the teacher's block.
        latency: the times of layers, as `measure_latency` writes them; None as a file without any.

    Raises:
        ValueError: the teacher has no such block, or a file is not as it was written.
    """

    def __init__(
        self,
        params: SearchBlock,
        teacher: Module,
        name: str,
        folder: Path,
        device: torch.device,
        checkpoint: Path,
        importance: Path,
        start: TrainedSupernet | None = None,
        latency: Path | None = None,
    ) -> None:
        self.params = params
        self.settings = params.search_block
        self.name = name
        self.checkpoint = checkpoint
        self.teacher = teacher.requires_grad_(False).to(device)
        self.folder = folder
        job = Job.parse(name)
        self.site = site_named(teacher, job.site)
        self.intervals = None if job.intervals is None else list(job.intervals)
        ranked = read_checked_json(importance, "rank_channels")
        self.stream_triples: int = ranked["stream_triples"]
        self.stream = choose_stream(
            teacher, self.settings.channels, ranked["stream_importance"], self.settings.channel_multiple
        )
        self.kept = kept_channels(teacher, self.stream)
        narrowed = narrowed_teacher(self.teacher, self.stream)
        self.block = narrowed.get_submodule(self.site.name)
        self.latency_of = latencies_of(narrowed, self.site.name, latency)
        self.features = self._open([*self.site.reads, *self.site.writes], self.kept)
        self.family = family_of(teacher)
        self.supernet = self._make_supernet(ranked["stream_importance"]).to(device)
        self.steps = self.settings.steps if start is None else self.settings.refine_steps
        self.space = self._make_space(self._prepare(start))
        self.fingerprint = self._made_from(start)
        times = {} if latency is None else {"latency": sha256_file(latency)}
        self.pieces = Pieces(checkpoint.with_suffix(""), self.fingerprint | times)

    @property
    def native(self) -> bool:
        """Whether the search is for a native student."""
        return self.params.assemble.native

    def _make_supernet(self, importance: list[list[float]]) -> ElasticBlock:
        if not self.native:
            return ElasticBlock(self.block, self.family, self.site, self.settings)
        order = native_order(self.teacher, importance)
        return NativeBlock(self.block, self.family, self.site, self.family.native(self.teacher), order)

    def _make_space(self, orders: dict[str, Order]) -> BlockSpace:
        if self.native:
            return native_space(self.teacher, self.site, self.settings, orders)
        return BlockSpace(self.block, self.settings, orders)

    def _made_from(self, start: TrainedSupernet | None) -> dict[str, object]:
        made_from: dict[str, object] = {
            "params": self.params.as_given(),
            "features": sha256_file(self.folder / "index.json"),
            "stream": self.stream,
        }
        return made_from | ({} if start is None else {"start": start.sha256})

    def _open(self, names: list[str], kept: dict[str, torch.Tensor]) -> Features:
        return Features(self.folder, names, self.intervals, kept)

    def _prepare(self, start: TrainedSupernet | None) -> dict[str, Order]:
        """Give the supernet its first weights; returns the order of its channels."""
        if start is None:
            return sort_supernet(self.supernet, self.features, len(self.site.reads))
        self.supernet.load_state_dict(start.weights)
        return start.order

    def train(self) -> list[dict[str, float]]:
        """Train the supernet; returns the loss history."""
        inputs = len(self.site.reads)
        settings = self.settings
        loss = SandwichLoss(
            self.supernet, self.space, self.features, inputs, settings.batch_size, self.params.precision
        )
        return train(
            self.supernet,
            loss,
            replace(TrainSettings.of(settings, self.params.seed), steps=self.steps),
            checkpoint=self.checkpoint,
            fingerprint=self.fingerprint,
            label=f"search_block {self.name}",
        ).history

    def scores(self) -> list[Candidate]:
        """Every candidate with its costs and both scores; of a native student's, which have to agree, all that there are."""
        count = len(self.space) if self.native else self.settings.candidates
        candidates = explore(self.space, self.block_score(), count, self.params.seed, self.pieces)
        most = self.settings.output_candidates
        if not most:
            return [{**candidate, "output": None} for candidate in candidates]
        measured = None if self.native else most
        return score_outputs(self.supernet, candidates, self.output_score(), measured, self.pieces)

    def block_score(self) -> BlockScore:
        """A function that measures the error of the block's own outputs."""
        inputs = len(self.site.reads)
        triples = self.settings.local_triples
        return BlockScore(self.supernet, self.features, inputs, triples, self.latency_of)

    def output_score(self) -> OutputScore:
        """A function that measures the change of the teacher's prediction."""
        features = self._open(OutputScore.names(self.teacher, self.site, self.kept), {})
        return OutputScore(self.teacher, self.site, features, self.settings.output_triples, self.kept)

    def measured(self, spec: Spec) -> Candidate:
        """One sub-block of the supernet as it is, with its costs and both scores."""
        (candidate,) = self.block_score()([spec])
        return {**candidate, "output": self.output_score()(self.supernet, spec)}

    def run(self) -> SearchReport:
        """Train the supernet and score its sub-blocks."""
        history = self.train()
        candidates = self.scores()
        block = self.teacher.get_submodule(self.site.name)
        return {
            "block": self.site.name,
            "intervals": self.intervals,
            "identity": self.space.identity,
            "stream": self.stream,
            "space_size": len(self.space),
            "order": self.space.orders,
            "teacher_macs": self.family.block_macs(block, self.site),
            "teacher_params": count_parameters(block),
            "macs_spent": self.macs_spent(candidates),
            "triples": self.features.total,
            "stream_triples": self.stream_triples,
            "candidates": candidates,
            "log": history,
            "params": self.params.as_given(),
        }

    def macs_spent(self, candidates: list[Candidate]) -> dict[str, float]:
        """MACs of the job; see `Spending`."""
        macs = [candidate["macs"] for candidate in candidates]
        measured = sum(candidate["output"] is not None for candidate in candidates)
        spending = Spending(macs, len(macs), measured, count_tail_macs(self.teacher, self.site))
        return spending.macs(self.settings, self.steps, len(self.features.intervals))

    def clean_up(self) -> None:
        """Remove the checkpoints, which only a killed run needs."""
        self.checkpoint.unlink(missing_ok=True)
        self.pieces.remove()


def latencies_of(unet: Module, name: str, latency: Path | None) -> Callable[[Spec], float] | None:
    """A function from a block's spec to its latency, from a file of `measure_latency`; None where nothing was measured."""
    table = None if latency is None else LatencyTable.of_stage(latency)
    return None if table is None else table.latency_of(unet, name)
