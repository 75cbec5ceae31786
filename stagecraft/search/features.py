"""Teacher features: written once as safetensors shards, read memory-mapped and only as far as a job needs."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stagecraft.config.sections import CacheFeatures
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.process import Process
from stagecraft.networks.families import condition_names, family_of
from stagecraft.networks.family import Module
from stagecraft.networks.stream import kept_part
from stagecraft.runtime.files import (
    atomic_path,
    check_same_hash,
    read_checked_json,
    run_again,
    sha256_tensor,
    write_checked_json,
)
from stagecraft.runtime.journal import Pieces
from stagecraft.runtime.progress import Progress
from stagecraft.runtime.seeds import generator_for

GIB = 2**30
# Always stored in single precision: scores are differences of `output`, and the others are small.
SINGLE = ("output", "x_t", "t", "image_factor")


class FeatureWriter:
    """One teacher pass over (x0, t, eps) triples, t by the process's density within each interval, equally many per interval.

    A shard `interval_<s>-shard_<i>.safetensors` holds `x_t`, `t`, the process's `image_factor` of t, the teacher's `output` and
    all tensors between blocks (see `Family.trace`), these in half precision where the settings say so, for up to `shard_size`
    triples; `index.json` says what there is, with hashes.

    Args:
        settings: the `cache_features` section of the params.
        intervals: [lo, hi) of every interval.
    """

    def __init__(
        self,
        teacher: Module,
        process: Process,
        data: TrainingSet,
        intervals: Sequence[Sequence[float]],
        settings: CacheFeatures,
        seed: int,
        device: torch.device,
    ) -> None:
        self.teacher = teacher
        self.process = process
        self.data = data.only(condition_names(teacher))
        self.intervals = intervals
        self.settings = settings
        self.seed = seed
        self.device = device

    def predicted_bytes(self) -> int:
        """Bytes of all shards, from one triple; the teacher may be on the meta device."""
        per_triple = sum(self.bytes_by_name().values())
        return per_triple * self.settings.triples_per_interval * len(self.intervals)

    def bytes_by_name(self) -> dict[str, int]:
        """Bytes of each tensor of one triple, as it is stored."""
        stored = {name: self._stored(name, tensor) for name, tensor in self.trace_one().items()}
        return {name: tensor.numel() * tensor.element_size() for name, tensor in stored.items()}

    def trace_one(self) -> dict[str, torch.Tensor]:
        """The tensors of the first triple, where the teacher is."""
        return self._trace(0, 0, 1)

    def check_room(self, folder: Path) -> None:
        """Raise a ValueError when the shards would not fit into `max_gib` or onto the disk of `folder`, which may hold some."""
        need = self.predicted_bytes()
        limit = self.settings.max_gib * GIB
        made = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        free = shutil.disk_usage(folder).free + made
        for room, name in ((limit, "cache_features.max_gib allows"), (free, f"the disk of {folder} has")):
            if need > room:
                raise ValueError(
                    f"cache_features.triples_per_interval {self.settings.triples_per_interval}: the features take "
                    f"{need / GIB:.3f} GiB and {name} {room / GIB:.3f} GiB; lower triples_per_interval"
                )

    def write(self, folder: Path, params: Mapping[str, object], **inputs: str) -> Pieces:
        """Write the shards that `folder` does not hold yet, then the index.

        Args:
            params: what the index says the shards were made with.
            inputs: hashes of what they were made from; shards made with other params or inputs are made anew.
        """
        total = self.settings.triples_per_interval
        size = self.settings.shard_size
        pieces = Pieces(folder, {"params": params, "inputs": inputs})
        folder.mkdir(parents=True, exist_ok=True)
        self.check_room(folder)
        progress = Progress("cache_features", total * len(self.intervals))
        hashes: dict[str, dict[str, str]] = {}
        for interval in range(len(self.intervals)):
            for number in range(math.ceil(total / size)):
                name = f"interval_{interval}-shard_{number}.safetensors"
                stop = min((number + 1) * size, total)
                if not pieces.has(name):
                    self._write_shard(pieces.path(name), interval, number * size, stop)
                    pieces.add(name)
                hashes[name] = hash_tensors(pieces.path(name))
                progress.update(interval * total + stop)
        held_out = max(1, round(total * self.settings.held_out))
        index = {
            "intervals": [list(s) for s in self.intervals],
            "triples_per_interval": total,
            "shard_size": size,
            "held_out": held_out,
        }
        write_checked_json(folder / "index.json", index | {"sha256": hashes, "seed": self.seed, "params": params})
        pieces.add("index.json")
        return pieces

    def _write_shard(self, path: Path, interval: int, start: int, stop: int) -> None:
        step = self.settings.batch_size
        batches = [self._triples(interval, first, min(first + step, stop)) for first in range(start, stop, step)]
        tensors = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        with atomic_path(path) as aside:
            # One metadata key: safetensors writes several in an order that changes from run to run.
            save_file(
                tensors,
                aside,
                metadata={"triples": json.dumps({"interval": interval, "start": start, "seed": self.seed})},
            )

    def _triples(self, interval: int, start: int, stop: int) -> dict[str, torch.Tensor]:
        traced = self._trace(interval, start, stop)
        stored = {name: self._stored(name, tensor).contiguous().cpu() for name, tensor in traced.items()}
        for name, tensor in stored.items():
            if tensor.dtype == torch.float16 and not tensor.isfinite().all():
                largest = float(traced[name].abs().max())
                raise ValueError(
                    f"cache_features.precision: fp16, but {name} of the teacher is as large as {largest:.3g}, beyond what fp16 "
                    "holds; set fp32"
                )
        return stored

    def _stored(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor in the precision in which it is written."""
        return tensor.half() if self.settings.precision == "fp16" and name not in SINGLE else tensor

    @torch.no_grad()
    def _trace(self, interval: int, start: int, stop: int) -> dict[str, torch.Tensor]:
        n = stop - start
        generator = generator_for(self.seed, f"features/{interval}", start)
        rows = torch.randint(len(self.data), (n,), generator=generator)
        x0 = self.data.x0(rows)
        t = self.process.draw(n, generator, *self.intervals[interval])
        eps = torch.randn(x0.shape, generator=generator)
        x_t = self.process.noise(x0, eps, t).to(self.device)
        condition = self.data.condition(rows, generator).to(self.device)
        seen = family_of(self.teacher).trace(self.teacher, x_t, t.to(self.device), condition)
        return seen | {"x_t": x_t, "t": t, "image_factor": self.process.image_factor(t)}


def hash_tensors(shard: Path) -> dict[str, str]:
    """SHA-256 of every tensor of a shard, by name: a job checks those that it reads and no other."""
    with safe_open(shard, framework="pt") as file:
        return {name: sha256_tensor(file.get_tensor(name)) for name in sorted(file.keys())}


class Features:
    """Some tensors of some intervals of the feature cache, memory-mapped; `total` is the number of all triples in it.

    Args:
        folder: where index.json and the shards are.
        names: the tensors to read; no other is touched.
        intervals: the intervals to read; None for all.
        kept: the channels of some of the tensors that `take` gives; it gives all of the others.

    Raises:
        ValueError: index.json or one of these tensors is missing or not as it was written.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        intervals: Sequence[int] | None = None,
        kept: dict[str, torch.Tensor] | None = None,
    ) -> None:
        index = read_checked_json(folder / "index.json", "cache_features")
        self.names = list(names)
        self.kept = kept or {}
        self.held_out = index["held_out"]
        self.per_interval = index["triples_per_interval"]
        size = index["shard_size"]
        self.intervals = list(range(len(index["intervals"]))) if intervals is None else list(intervals)
        self.total = self.per_interval * len(index["intervals"])
        per_interval = math.ceil(self.per_interval / size)
        files = [
            folder / f"interval_{interval}-shard_{i}.safetensors"
            for interval in self.intervals
            for i in range(per_interval)
        ]
        self.shards = [self._open(file, index["sha256"].get(file.name, {})) for file in files]
        self.ends = torch.tensor([len(shard[0]) for shard in self.shards]).cumsum(0)

    def _open(self, file: Path, hashes: dict[str, str]) -> list[torch.Tensor]:
        remedy = run_again("cache_features", file)
        try:
            with safe_open(file, framework="pt") as shard:
                tensors = [shard.get_tensor(name) for name in self.names]
        except Exception as error:
            raise ValueError(f"{file}: cannot be read ({error}); {remedy}") from error
        for name, tensor in zip(self.names, tensors, strict=True):
            said = hashes.get(name)
            check_same_hash(file, sha256_tensor(tensor), said, f"{file.parent}/index.json for {name}", remedy)
        return tensors

    def rows(self, held_out: bool) -> torch.Tensor:
        """Row numbers of the held-out or of the training triples of all opened intervals."""
        kept = self.per_interval - self.held_out
        numbers = torch.arange(kept, self.per_interval) if held_out else torch.arange(kept)
        return torch.cat([numbers + self.per_interval * i for i in range(len(self.intervals))])

    def take(self, rows: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
        """The rows of every tensor in single precision, in the order of `names`."""
        shard_of = torch.bucketize(rows.contiguous(), self.ends, right=True)
        pieces = []
        positions = []
        for number in shard_of.unique().tolist():
            chosen = (shard_of == number).nonzero().flatten()
            first = 0 if number == 0 else int(self.ends[number - 1])
            given = zip(self.names, self.shards[number], strict=True)
            pieces.append([kept_part(name, tensor[rows[chosen] - first], self.kept) for name, tensor in given])
            positions.append(chosen)
        back = torch.cat(positions).argsort()
        return [single(torch.cat(column)[back].to(device)) for column in zip(*pieces, strict=True)]


def single(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that was stored in half precision in single precision; any other as it is."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor
