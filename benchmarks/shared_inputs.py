"""What the runs of benchmarks/compression.py share, made once by the stages themselves: teacher, extractor, search results."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from stagecraft.config.stages import stage_model, stage_params
from stagecraft.preflight.jobs import block_names, refined_from
from stagecraft.preflight.params import load_over, validate_params

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "presets"
LATENCY = "latency.json"
REPEATS = 15  # of a latency, as other jobs run beside
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # environment of a run that has others beside it


def preset_file(given: str) -> Path:
    """The params file of a preset's name, or the file itself."""
    return Path(given) if given.endswith(".yaml") else PRESETS / f"{given}.yaml"


def work_folder(preset: Path) -> Path:
    """Where the benchmarks of a preset work when no --work says another place."""
    return ROOT / "build" / f"compression-{preset.stem}"


def preset_params(preset: Path) -> dict[str, Any]:
    """The whole params of a preset's file; `digits` is the default, params.yaml."""
    return load_over(*[preset] * (preset != preset_file("digits")))


def cpu_params(preset: Path) -> dict[str, Any]:
    """The params of a preset, as the benchmarks run it: on one thread of this machine, whose latencies are measured."""
    params = preset_params(preset) | {"device": "cpu", "precision": "fp32"}
    here = {"source": "measure", "path": None, "threads": 1, "repeats": REPEATS}
    return params | {"measure_latency": params["measure_latency"] | here}


class Shared:
    """Data, extractor and teacher of a preset; and per seed, intervals, width of the stream and space what a search needs.

    Args:
        preset: params file; the teacher has its seed.
        folder: where everything is kept.
        given: a diffusers folder with the teacher; None trains it.
    """

    def __init__(self, preset: Path, folder: Path, given: Path | None = None) -> None:
        self.preset, self.folder, self.given = preset, folder, given
        self.data, self.latents, self.vae = folder / "data", folder / "latents", folder / "autoencoder"
        self.prompts = folder / "prompts"
        self.teacher, self.extractor = folder / "results" / "teacher", folder / "extractor.safetensors"
        self.inputs = {"data": self.data, "latents": self.latents, "prompts": self.prompts}
        self.clock = folder / "clock.lock"  # held by the one process that measures time

    def prepare(self) -> None:
        """Data, autoencoder, latents, extractor, teacher."""
        from stages.encode_latents import encode_latents
        from stages.encode_prompts import encode_prompts
        from stages.prepare_data import prepare_data
        from stages.train_autoencoder import train_autoencoder
        from stages.train_extractor import train_extractor
        from stages.train_teacher import train_teacher

        params, log, data = cpu_params(self.preset), self.folder / "log.json", self.data
        if self.given is not None:
            params["train_teacher"] |= {"source": "path", "path": str(self.given.resolve())}
        self.make(prepare_data, params, self.data / "meta.json", output=self.data)
        self.make(encode_prompts, params, self.prompts / "index.json", data=data, output=self.prompts)
        self.make(train_autoencoder, params, self.vae / "index.json", data=data, output=self.vae, log=log)
        self.make(
            encode_latents, params, self.latents / "index.json", data=data, autoencoder=self.vae, output=self.latents
        )
        self.make(train_extractor, params, self.extractor, data=data, output=self.extractor, log=log)
        made = {"autoencoder": self.vae, "output": self.teacher, "log": self.teacher.parent / "log.json"}
        self.make(train_teacher, params, self.teacher / "sha256.json", **self.inputs, **made)

    def search(self, params: dict[str, Any]) -> Path:
        """The folder with clusters and features of these params' seed and number of intervals; also makes the search results."""
        folder = self.folder / f"search-k{params['cluster_timesteps']['intervals']}-seed{params['seed']}"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            self._search(params, folder)
        return folder

    def results(self, params: dict[str, Any]) -> Path:
        """The folder of the search results of these params, which have one residual stream and space."""
        return self.search(params) / self.results_name(params)

    def _search(self, params: dict[str, Any], folder: Path) -> None:
        from stages.cache_features import cache_features
        from stages.cluster_timesteps import cluster_timesteps
        from stages.collect_search import collect_search
        from stages.measure_latency import measure_latency
        from stages.rank_channels import rank_channels
        from stages.search_block import search_block

        clusters, features = folder / "clusters.json", folder / "results" / "features"
        search = folder / self.results_name(params)
        inputs = self.inputs | {"teacher": self.teacher}
        self.make(cluster_timesteps, params, clusters, **inputs, output=clusters)
        self.make(cache_features, params, features / "index.json", **inputs, clusters=clusters, output=features)
        importance = folder / self.importance_name(params)
        self.make(rank_channels, params, importance, **inputs, output=importance)
        found = {"teacher": self.teacher, "importance": importance, "output": search / LATENCY}
        with FileLock(self.clock):
            self.make(measure_latency, params, search / LATENCY, **found)
        names, starts = self.jobs(params), self.starts(params)
        for name in sorted(names, key=lambda name: name in starts):
            found = {"output": search / f"{name}.json", "weights": search / f"{name}.safetensors"}
            given = {"name": name, "teacher": self.teacher, "features": features, "importance": importance}
            given |= {"latency": search / LATENCY, "start": start_files(search, starts.get(name))}
            self.make(search_block, params, search / f"{name}.json", **given, **found)
        self.make(collect_search, params, search / "index.json", names=names, search=search)

    def results_name(self, params: dict[str, Any]) -> str:
        """The folder of search results of one residual stream and space.

        `search-0.75`, or `search-0.75-0.5` for shares of the stream's levels; behind it what the preset has otherwise, as in
        `search-0.75-ranks-widths`, or `native`.
        """
        settings, usual = params["search_block"], cpu_params(self.preset)["search_block"]
        channels = settings["channels"]
        others = sorted(key for key in settings if key != "channels" and settings[key] != usual[key])
        others += ["native"] * params["assemble"]["native"]
        return "-".join(["search", *map(str, channels if isinstance(channels, list) else [channels]), *others])

    def importance_name(self, params: dict[str, Any]) -> str:
        """The file of the importance of channels that these params are searched with."""
        return f"importance-{self.results_name(params)}.json"

    def jobs(self, params: dict[str, Any]) -> list[str]:
        """Names of the search jobs."""
        return block_names(validate_params(self.of_teacher(params), str(self.preset)))

    def start_of(self, name: str, params: dict[str, Any]) -> list[str]:
        """Report and weights of the supernet that a job is fine-tuned from; none for one that starts from the teacher."""
        return start_files(self.results(params), self.starts(params).get(name))

    def starts(self, params: dict[str, Any]) -> dict[str, str]:
        """For each job that is fine-tuned from another's supernet that other."""
        return refined_from(validate_params(self.of_teacher(params), str(self.preset)))

    def of_teacher(self, params: dict[str, Any]) -> dict[str, Any]:
        """The params of a search on the teacher that is there."""
        given = {"source": "path", "path": str(self.teacher)}
        return params | {"architecture": "searched", "train_teacher": params["train_teacher"] | given}

    def make(self, stage: Callable[..., None], params: dict[str, Any], target: Path, **arguments: Any) -> None:
        """Run a stage unless its target is there, and note the params and the seconds it took beside it.

        Raises:
            ValueError: the target is there, but was made with other params.
        """
        used, note = stage_params(params, stage.__name__), target.with_name(f"{target.stem}.made")
        if target.exists():
            if not note.exists() or json.loads(note.read_text())["params"] != used:
                raise ValueError(
                    f"{target}: not made with the params of {self.preset}; remove it or give another --work"
                )
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        stage(stage_model(params, stage.__name__), threads=1, **arguments)
        write(note, {"seconds": round(time.perf_counter() - begun, 1), "params": used})


def start_files(search: Path, start: str | None) -> list[str]:
    """Report and weights of a search job in a folder of results; none for None."""
    return [] if start is None else [str(search / f"{start}.{kind}") for kind in ("json", "safetensors")]


def write(path: Path, content: dict[str, Any]) -> None:
    """JSON, written aside and renamed."""
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    aside.replace(path)
