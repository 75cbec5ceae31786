"""The student that a plan counts with, before there is a search: how many MACs the budgets leave it."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from stagecraft.elastic.block import natural_orders
from stagecraft.elastic.native import NativeBlock
from stagecraft.elastic.searchable import Order
from stagecraft.networks.costs import count_network_macs, count_parameters, count_tail_macs
from stagecraft.networks.families import family_of, site_named, sites_of
from stagecraft.networks.family import NATIVE, Module, Site, Spec, Stream
from stagecraft.networks.jobs import Job
from stagecraft.networks.stream import narrowed_teacher
from stagecraft.planning.setup import Setup
from stagecraft.preflight.jobs import latency_files, refined_from, search_jobs
from stagecraft.search.architecture import assemble_architecture, given_architecture
from stagecraft.search.importance import choose_stream, native_order
from stagecraft.search.job import Spending
from stagecraft.search.latency import LatencyTable
from stagecraft.search.results import SearchResult
from stagecraft.search.selection import Budget
from stagecraft.search.space import BlockSpace, native_space
from stagecraft.search.supernet import SAMPLED

MOST_SPECS = 40  # candidates of a block that a plan looks at


@dataclass(frozen=True)
class Search:
    """The search of a run, without its scores: the candidates that it begins with, by site."""

    setup: Setup

    @property
    def teacher(self) -> Module:
        """On the meta device."""
        return self.setup.teacher

    @cached_property
    def stream(self) -> Stream | None:
        """Channels of the residual stream, as many as the student will have."""
        settings = self.setup.params.search_block
        widths = family_of(self.teacher).residual_stream(self.teacher).widths
        alike = [[1.0] * width for width in widths]
        return choose_stream(self.teacher, settings.channels, alike, settings.channel_multiple)

    @cached_property
    def narrowed(self) -> Module:
        """The teacher with these channels."""
        return narrowed_teacher(self.teacher, self.stream)

    @cached_property
    def table(self) -> LatencyTable | None:
        """The table of latencies that the params name; None where there is none before the run."""
        files = latency_files(self.setup.params.measure_latency)
        return LatencyTable.read(Path(*files)) if files else None

    @cached_property
    def candidates(self) -> dict[str, list[dict[str, Any]]]:
        """The candidates with which the search of each site begins, the teacher's shape first."""
        return {site.name: list(self.first_candidates(site)) for site in sites_of(self.narrowed)}

    @property
    def native(self) -> bool:
        """Whether it is for a native student."""
        return self.setup.params.assemble.native

    def orders(self, site: Site) -> Mapping[str, Order]:
        """The parts of a block's layers as they stand."""
        if not self.native:
            return natural_orders(self.narrowed.get_submodule(site.name))
        widths = family_of(self.teacher).residual_stream(self.teacher).widths
        return {NATIVE: native_order(self.teacher, [[1.0] * width for width in widths])}

    def space(self, site: Site) -> BlockSpace:
        """The space of a site; how many groups are kept counts for MACs, and not which."""
        if self.native:
            return native_space(self.teacher, site, self.setup.params.search_block, self.orders(site))
        block = self.narrowed.get_submodule(site.name)
        return BlockSpace(block, self.setup.params.search_block, self.orders(site))

    def first_candidates(self, site: Site) -> Iterator[dict[str, Any]]:
        """The candidates with which the search of a site begins, at most `MOST_SPECS`, with their costs."""
        space = self.space(site)
        most = self.most_candidates(space)
        count = most if len(space) <= most else math.ceil(most * SAMPLED)
        latency_of = None if self.table is None else self.table.latency_of(self.narrowed, site.name)
        for spec in space.first(min(count, MOST_SPECS), np.random.default_rng(self.setup.params.seed)):
            times = {} if latency_of is None else {"time": latency_of(spec)}
            yield self.costs_of(site, spec) | times

    def most_candidates(self, space: BlockSpace) -> int:
        """Candidates that are scored at most; of a native student's all are."""
        return len(space) if self.native else self.setup.params.search_block.candidates

    def costs_of(self, site: Site, spec: Spec) -> dict[str, Any]:
        """A spec with its MACs and parameters."""
        family = family_of(self.narrowed)
        block = self.narrowed.get_submodule(site.name)
        if self.native:
            order = self.orders(site)[NATIVE]
            skeleton = NativeBlock(block, family, site, family.native(self.teacher), order).skeleton(spec)
        else:
            skeleton = family.rebuild(copy.deepcopy(block), spec)
        return {"spec": spec, "macs": family.block_macs(skeleton, site), "params": count_parameters(skeleton)}

    def macs_spent(self) -> list[dict[str, float]]:
        """MACs of every search job; see `Spending`."""
        params = self.setup.params
        refined = refined_from(params)
        everywhere = self.setup.intervals
        settings = params.search_block
        spent = []
        for job in search_jobs(params):
            steps = settings.refine_steps if job.name in refined else settings.steps
            spent.append(self.spending(job.site).macs(settings, steps, len(job.intervals or range(everywhere))))
        return spent

    def spending(self, name: str) -> Spending:
        """MACs of the search at a site."""
        settings = self.setup.params.search_block
        site = site_named(self.narrowed, name)
        space = self.space(site)
        count = min(len(space), self.most_candidates(space))
        measured = count if self.native else min(count, settings.output_candidates)
        sample = [candidate["macs"] for candidate in self.candidates[name]]
        return Spending(sample, count, measured, count_tail_macs(self.teacher, site))

    def student_macs(self) -> float:
        """MACs of the student: what a given architecture has, else the most that the budgets leave to the first candidates.

        Without a budget, or where these candidates cannot meet it, they are the teacher's times the smallest share given.
        """
        params = self.setup.params
        teacher = count_network_macs(self.teacher)
        budgets = Budget.of(params.assemble).limits()
        steps = [1] * self.setup.intervals
        if params.architecture == "given":
            widths = params.assemble.decoder_widths or []
            return float(given_architecture(self.teacher, steps, widths)["expected"]["macs"])
        if params.assemble.rule == "largest" or not budgets:
            return float(teacher)
        try:
            return self.largest_within_budgets()
        except ValueError:
            return teacher * min(1.0, *(share for key, share in budgets.items() if key in ("macs", "time")))

    def largest_within_budgets(self) -> float:
        """MACs of the largest student of the first candidates; ValueError when none meets the budgets."""
        params = self.setup.params
        changes: dict[str, Any] = {"rule": "budget", "score": "local"}
        if self.table is None:  # not known before the run: time is taken for MACs
            limits = [limit for limit in (params.assemble.macs, params.assemble.time) if limit is not None]
            changes |= {"time": None, "macs": min(limits, default=None)}
        settings = params.assemble.model_copy(update=changes)
        steps = [1] * self.setup.intervals
        results = {job.name: self.result_of(job) for job in map(self.shared_job, sites_of(self.narrowed))}
        chosen = assemble_architecture(self.teacher, results, steps, settings, params.seed, self.table)
        return float(chosen["expected"]["macs"])

    def shared_job(self, site: Site) -> Job:
        """The search at a site that all intervals share."""
        return Job(site.name, tuple(range(self.setup.intervals)) if site.per_range else None)

    def result_of(self, job: Job) -> SearchResult:
        """A stand-in for a search's result, in which each candidate's error is the MACs that it saves."""
        candidates = self.candidates[job.site]
        identity = candidates[0]
        scores = [{"nmse": float(identity["macs"] - one["macs"]), "output": None} for one in candidates]
        report = {
            "block": job.site,
            "intervals": None if job.intervals is None else list(job.intervals),
            "identity": identity["spec"],
            "candidates": [one | score for one, score in zip(candidates, scores, strict=True)],
            "order": self.orders(site_named(self.teacher, job.site)),
            "stream": self.stream,
            "weights_sha256": "",
        }
        return cast(SearchResult, report)
