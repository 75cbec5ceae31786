"""The params: read, validated, cut into what each stage needs. Light, as a Snakefile imports it: no torch, no NumPy."""

import difflib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from stagecraft.diffusion.boundaries import check_given
from stagecraft.diffusion.keys import OPTIONAL_KEYS, PROCESS_KEYS, SAMPLERS
from stagecraft.diffusion.stated import ZERO_SNR_OF_EPSILON, check_steps
from stagecraft.evaluation.counts import check_features
from stagecraft.networks.given import Sides, Space, why_not_halved, why_undivided
from stagecraft.networks.weights import find_weights
from stagecraft.runtime.files import pipeline_file

Params = dict[str, Any]
Problem = tuple[str, str]  # key, what is wrong and what to do

PROJECT = Path(__file__).parents[2]
SCHEMA = PROJECT / "workflow" / "schemas" / "params.schema.yaml"
EXAMPLE = PROJECT / "presets" / "digits.yaml"
DIGITS_RESOLUTION = 8  # pixels
INCEPTION_FEATURES = 2048
MAX_SHARDS = 10_000  # per stage

# The keys of `search_block` that say which layer shapes there are.
SPACE_KEYS = ("channels", "channel_multiple", "widths", "stream", "kernels", "drop_layers", "drop_attention")

# Sections, or single keys of one, `section.key`.
STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "prepare_data": ("seed", "prepare_data"),
    "train_autoencoder": ("seed", "device", "precision", "train_autoencoder"),
    "encode_latents": ("device",),
    "train_teacher": ("seed", "device", "precision", "diffusion", "train_teacher"),
    "train_extractor": ("seed", "device", "train_extractor"),
    "cluster_timesteps": ("seed", "device", "diffusion", "cluster_timesteps"),
    "cache_features": ("seed", "device", "architecture", "diffusion", "cache_features"),
    "rank_channels": ("seed", "device", "architecture", "diffusion", "search_block.channels"),
    "measure_latency": (
        *("device", "precision", "architecture", "measure_latency"),
        *(f"search_block.{key}" for key in SPACE_KEYS),
    ),
    "search_block": ("seed", "device", "precision", "search_block"),
    "collect_search": ("architecture",),
    "assemble": ("seed", "architecture", "diffusion", "sampling", "assemble"),
    "retrain": ("seed", "device", "precision", "diffusion", "sampling", "retrain"),
    "evaluate": ("seed", "device", "precision", "diffusion", "sampling", "evaluate"),
    "report": ("report",),
}


def load_params(path: Path | str) -> Params:
    """Read and validate a params file; ValueError, one line, for anything wrong in it."""
    params = read_params(Path(path))
    validate_params(params, str(path))
    return params


def read_params(path: Path) -> Params:
    """Read a YAML mapping; ValueError, with the line, when it is none or would not be read as it is written."""
    try:
        text = path.read_text(encoding="utf-8")
        params = yaml.load(text, PlainLoader)
        # A file for --configfile may be JSON, in which 1e-3 is a number.
        params = json.loads(text) if path.suffix == ".json" else params
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not found; copy {os.path.relpath(EXAMPLE)} to it") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ValueError(f"{path}:{place} not valid YAML: {problem}") from error
    if not isinstance(params, dict):
        raise ValueError(f"{path}: holds {show(params)} instead of sections; copy {os.path.relpath(EXAMPLE)} to it")
    return params


class PlainLoader(yaml.SafeLoader):
    """The safe loader without what hides values: keys given twice, of which the last would win, and aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node that is no alias; a few aliases can stand for more values than memory holds."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"*{event.anchor} is an alias; write the value out"
            raise yaml.constructor.ConstructorError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Construct a mapping whose keys differ."""
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def typed(value: Any) -> Any:
    """Give nested texts the types that YAML gives them, as Snakemake's --config leaves them all texts."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    try:
        return yaml.safe_load(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError, RecursionError):
        return value


def validate_params(params: Params, origin: str) -> None:
    """Raise ValueError with the first problem: unknown or missing key, wrong type or range, values that clash."""
    problem = next(iter([*schema_problems(params)] or cross_problems(params)), None)
    if problem is not None:
        raise ValueError(f"{origin}: {problem[0]}: {problem[1]}")


def stage_params(params: Params, stage: str) -> Params:
    """The sections and single keys of the params that `stage` reads; no other change can alter its results."""
    return {name: param_at(params, name) for name in STAGE_SECTIONS[stage]}


def param_at(params: Params, name: str) -> Any:
    """The value under `section` or `section.key`; None when there is none."""
    section, _, key = name.partition(".")
    return params.get(section, {}).get(key) if key else params.get(section)


# --- What the job graph needs to know ---


def block_names(params: Params) -> list[str]:
    """Names of the block searches in network order, up blocks once per range of stages; none for a given architecture.

    Raises ValueError when the teacher's folder (source `path`) is incomplete.
    """
    if params["architecture"] == "given":
        return []
    levels, has_mid = teacher_shape(params["train_teacher"])
    down = [f"down_blocks.{i}" for i in range(levels)]
    up = [f"up_blocks.{i}.stage_{name}" for name in range_names(params) for i in range(levels)]
    return [*down, *(["mid_block"] if has_mid else []), *up]


def range_names(params: Params) -> list[str]:
    """The ranges of contiguous stages that up blocks are searched for, as job names have them: `2`, or `0-1`."""
    count, which = params["cluster_timesteps"]["stages"], params["search_block"]["ranges"]
    ranges = [(first, last) for first in range(count) for last in range(first, count)]
    if which != "all":
        ranges = [
            (first, last) for first, last in ranges if (first == last if which == "own" else last - first == count - 1)
        ]
    return [str(first) if first == last else f"{first}-{last}" for first, last in ranges]


def refined_from(params: Params) -> dict[str, str]:
    """For each search that is fine-tuned from another's supernet, by name, that of all stages."""
    last = params["cluster_timesteps"]["stages"] - 1
    if params["search_block"]["ranges"] != "all" or not last:
        return {}
    found = {name: f"{name.partition('.stage_')[0]}.stage_0-{last}" for name in block_names(params) if "stage_" in name}
    return {name: start for name, start in found.items() if name != start}


def teacher_shape(settings: Params) -> tuple[int, bool]:
    """Number of resolution levels of the teacher, and whether it has a mid block."""
    if settings["source"] == "train":
        return len(settings["block_out_channels"]), True
    unet = read_teacher_config(settings)
    return len(unet["down_block_types"]), unet.get("mid_block_type", "UNetMidBlock2D") is not None


def read_teacher_config(settings: Params) -> Params:
    """unet/config.json of a given teacher; ValueError when it is not that of a UNet2DModel."""
    config = Path(teacher_files(settings)[0])
    try:
        unet: Params = json.loads(config.read_text(encoding="utf-8"))
        len(unet["down_block_types"]), unet.get("mid_block_type")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{config}: not the config of a diffusers UNet2DModel; give another train_teacher.path"
        ) from error
    return unet


def teacher_files(settings: Params) -> list[str]:
    """Files of the teacher's folder that a run reads, none for source `train`; ValueError when one is missing."""
    if settings["source"] == "train":
        return []
    folder = Path(settings["path"])
    config = pipeline_file(folder, "unet", "config.json")
    if not config.is_file():
        raise ValueError(
            f"train_teacher.path: {config} not found; give a diffusers pipeline folder with safetensors weights"
        )
    files = [config, *weights_files("train_teacher.path", config.parent)]
    scheduler = pipeline_file(folder, "scheduler", "scheduler_config.json")
    return [str(file) for file in [*files, *([scheduler] if scheduler.is_file() else [])]]


def weights_files(key: str, folder: Path) -> list[Path]:
    """Files of the weights in a model's folder, all shards and their index; ValueError, naming the key, when one is missing."""
    try:
        return [*find_weights(folder).files]
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def runs_in_latents(params: Params) -> bool:
    """Whether the diffusion runs in the latents of an autoencoder."""
    return bool(params["train_autoencoder"]["source"] != "none")


def needs_own_pipeline(params: Params) -> bool:
    """Whether the pipeline folders hold a pipeline of their own, as diffusers' DDPMPipeline would not draw what they can.

    stagecraft/networks/pipelines.py decides the same by the models.
    """
    settings = params["train_teacher"]
    conditional = settings["class_conditional"]
    if settings["source"] == "path":
        conditional = read_teacher_config(settings).get("num_class_embeds") is not None
    return runs_in_latents(params) or params["diffusion"]["process"] == "edm" or bool(conditional)


def autoencoder_files(settings: Params) -> list[str]:
    """Files of an autoencoder's folder that a run reads, none but for source `path`; ValueError when one is missing."""
    if settings["source"] != "path":
        return []
    config = Path(settings["path"]) / "config.json"
    if not config.is_file():
        raise ValueError(
            f"train_autoencoder.path: {config} not found; give an AutoencoderKL's or VQModel's folder with safetensors weights"
        )
    return [str(file) for file in [config, *weights_files("train_autoencoder.path", config.parent)]]


def latency_files(settings: Params) -> list[str]:
    """The table that the `measure_latency` section names, none but for source `path`; ValueError when there is no such file.

    One that the working folder lacks is taken from the project, whose presets name tables of its own.
    """
    if settings["source"] != "path":
        return []
    for path in (Path(settings["path"]), PROJECT / settings["path"]):
        if path.is_file():
            return [str(path)]
    raise ValueError(
        f"measure_latency.path: {settings['path']} not found; give a results/latency.json, or source: measure"
    )


def extractor_files(settings: Params) -> list[str]:
    """The TorchScript file that the `evaluate` section names, if any; ValueError when there is no such file."""
    name = settings["extractor"]
    if name in ("classifier", "inception-v3-compat"):
        return []
    if not Path(name).is_file():
        raise ValueError(
            f"evaluate.extractor: {show(name)} is neither classifier, inception-v3-compat nor a TorchScript file"
        )
    return [name]


# --- Single values: the schema ---


def is_integer(_: Any, value: Any) -> bool:
    """Whether a value is a whole number written as one: neither true nor 3.0."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(_: Any, value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@cache
def validator() -> Any:
    """The validator of the schema, with strict numbers."""
    base = jsonschema.Draft202012Validator
    types = base.TYPE_CHECKER.redefine_many({"integer": is_integer, "number": is_number})
    return jsonschema.validators.extend(base, type_checker=types)(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))


def schema_problems(params: Params) -> Iterator[Problem]:
    """Unknown keys first, as a misspelt key is also a missing one; then the rest in the order of the file."""
    errors = sorted(validator().iter_errors(params), key=lambda error: error.validator != "additionalProperties")
    for error in errors:
        yield describe(error)


def describe(error: Any) -> Problem:
    """The key and a sentence for an error of jsonschema."""
    known, path, value, limit = (
        error.schema.get("properties", {}),
        error.absolute_path,
        error.instance,
        error.validator_value,
    )
    if error.validator == "additionalProperties":
        name = next(key for key in value if key not in known)
        return key_name([*path, name]), f"unknown key, {suggest(name, known)}"
    if error.validator == "required":
        name = next(key for key in limit if key not in value)
        return key_name([*path, name]), f"missing; add it ({known[name]['description'].rstrip('.')})"
    sentences: dict[str, Callable[[], str]] = {
        "type": lambda: f"is not {type_name(limit)}{as_number(value, limit)}",
        "enum": lambda: f"is unknown, {offer(limit)}",
        "minimum": lambda: f"is too small, the least is {limit}",
        "maximum": lambda: f"is too large, the most is {limit}",
        "exclusiveMinimum": lambda: f"is too small, it must be above {limit}",
        "exclusiveMaximum": lambda: f"is too large, it must be below {limit}",
        "uniqueItems": lambda: "holds a value twice; remove one",
        "minItems": lambda: f"is too short, the least length is {limit}",
        "maxItems": lambda: f"is too long, the greatest length is {limit}",
        "minLength": lambda: "is empty; fill it in",
    }
    sentence = sentences.get(error.validator, lambda: f"is not allowed: {error.schema['description'].rstrip('.')}")()
    return key_name(path), f"{show(value)} {sentence}"


def key_name(path: Iterable[Any]) -> str:
    """A path as text: section.key[index]."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return " ".join(text.removeprefix(".").split()) or "params"


def suggest(name: Any, known: Iterable[str]) -> str:
    """A question with the closest known name, or all known names."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {close[0]}?" if close else offer(known)


def offer(values: Iterable[Any]) -> str:
    """The values that may be used."""
    names = ["null" if value is None else str(value) for value in values]
    return f"use {'one of ' if len(names) > 1 else ''}{', '.join(names)}"


def show(value: Any) -> str:
    """A value as the user would write it, on one line and not too long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def type_name(types: str | list[str]) -> str:
    """Types of JSON in plain words."""
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
    words |= {"array": "a list", "object": "a section of keys", "null": "null"}
    return " or ".join(words[name] for name in ([types] if isinstance(types, str) else types))


def as_number(value: Any, types: str | list[str]) -> str:
    """A hint for 1e-3, which is text in YAML, and for 3.0 where a whole number is wanted."""
    wants = [types] if isinstance(types, str) else types
    try:
        number = float(value) if isinstance(value, str | float) else math.nan
    except ValueError:
        number = math.nan
    if number.is_integer() and {"integer", "number"} & {*wants}:
        return f"; write {int(number)}"
    return f"; write {number}" if math.isfinite(number) and "number" in wants else ""


# --- Values that clash ---


def cross_problems(params: Params) -> Iterator[Problem]:
    """Problems between values that are each fine alone."""
    yield from path_problems(params)
    # Later checks read the keys that these find missing.
    if found := [*process_problems(params)]:
        yield from found
        return
    yield from diffusion_problems(params)
    yield from latent_problems(params)
    if params["train_teacher"]["source"] == "train":
        yield from teacher_problems(params["train_teacher"])
        yield from resolution_problems(params)
    yield from stage_problems(params)
    yield from architecture_problems(params)
    yield from training_problems(params)
    yield from feature_problems(params["cache_features"])
    yield from search_problems(params)
    yield from time_problems(params)
    yield from evaluation_problems(params)


def path_problems(params: Params) -> Iterator[Problem]:
    """A source that needs a path, a path that its source would ignore, names that cannot be shown or used."""
    pathless = {"prepare_data": ("digits",), "train_autoencoder": ("none", "train"), "train_teacher": ("train",)}
    pathless |= {"measure_latency": ("none", "measure")}
    for section, sources in pathless.items():
        source, path = params[section]["source"], params[section]["path"]
        if source in sources and path is not None:
            others = "folder or npz" if section == "prepare_data" else "path"
            yield (
                f"{section}.path",
                f"{show(path)} is unused by source {source}; set source to {others}, or path to null",
            )
        if source not in sources and path is None:
            yield f"{section}.path", f"null, but source {source} needs one; set it"
    named = [*((section, "path") for section in pathless), ("evaluate", "extractor")]
    for section, key in named:
        path = params[section][key] or ""
        if not path.isprintable():
            yield f"{section}.{key}", f"{path!r} holds a character that cannot be printed; rename the file or folder"
        # Among a rule's inputs, where these two go, Snakemake takes {name} for a wildcard.
        if section != "prepare_data" and {"{", "}"} & {*path}:
            yield f"{section}.{key}", f"{show(path)} holds a brace, a wildcard to Snakemake; rename the file or folder"


def process_problems(params: Params) -> Iterator[Problem]:
    """Keys of another process, missing keys of this one, a sampler of another."""
    settings, sampler = params["diffusion"], params["sampling"]["scheduler"]
    name = settings["process"]
    for key in PROCESS_KEYS[name]:
        if key not in settings:
            described = validator().schema["properties"]["diffusion"]["properties"][key]["description"]
            yield f"diffusion.{key}", f"missing; add it, as process {name} needs it ({described.rstrip('.')})"
    for key in settings:
        if key != "process" and key not in PROCESS_KEYS[name] + OPTIONAL_KEYS[name]:
            yield f"diffusion.{key}", f"unused by process {name}; remove it"
    if sampler not in SAMPLERS[name]:
        yield "sampling.scheduler", f"{sampler} is no sampler of process {name}, {offer(SAMPLERS[name])}"


def latent_problems(params: Params) -> Iterator[Problem]:
    """Channels that groups do not divide, images mirrored as latents."""
    settings = params["train_autoencoder"]
    if settings["source"] == "train":
        for level, width in enumerate(settings["block_out_channels"]):
            if width % settings["norm_num_groups"]:
                key = f"train_autoencoder.block_out_channels[{level}]"
                yield (
                    key,
                    f"{width} is no multiple of norm_num_groups {settings['norm_num_groups']}; change one of them",
                )
    if settings["source"] != "none":
        for section in ("train_teacher", "retrain"):
            if params[section]["horizontal_flip"]:
                yield (
                    f"{section}.horizontal_flip",
                    "true, but a mirrored latent is not the latent of a mirrored image; set false",
                )


def architecture_problems(params: Params) -> Iterator[Problem]:
    """What a given architecture needs, and what a searched one does not take."""
    settings, stages = params["assemble"], params["cluster_timesteps"]["stages"]
    widths = settings["decoder_widths"]
    if params["architecture"] == "searched":
        if widths is not None:
            yield (
                "assemble.decoder_widths",
                f"{show(widths)} is unused by a searched architecture; set null, or architecture: given",
            )
        if not settings["shared_encoder"]:
            yield "assemble.shared_encoder", "false, but a search shares the encoder; set true, or architecture: given"
    else:
        if widths is None or len(widths) != stages:
            yield (
                "assemble.decoder_widths",
                f"{show(widths)} for {stages} stages; give one share of the teacher's channels for each",
            )
        if params["retrain"]["init"] == "inherit":
            yield "retrain.init", "inherit, but a given architecture has no supernets; use teacher or scratch"
        if params["retrain"]["joint_loss"] != "none":
            yield (
                "retrain.joint_loss",
                f"{params['retrain']['joint_loss']}, but blocks of given widths imitate no teacher; use none",
            )
    given = params["retrain"]["stage_probabilities"]
    if isinstance(given, list) and len(given) != stages:
        yield "retrain.stage_probabilities", f"{show(given)} for {stages} stages; give one number for each"


def diffusion_problems(params: Params) -> Iterator[Problem]:
    """Noise levels that do not rise, more sampler steps than timesteps."""
    process, steps = params["diffusion"], params["sampling"]["steps"]
    if process["process"] == "edm" and process["sigma_min"] >= process["sigma_max"]:
        yield (
            "diffusion.sigma_min",
            f"{process['sigma_min']} is not below sigma_max {process['sigma_max']}; lower it",
        )
    if process["process"] != "vp":
        return
    if process["beta_start"] >= process["beta_end"]:
        yield "diffusion.beta_start", f"{process['beta_start']} is not below beta_end {process['beta_end']}; lower it"
    if process.get("rescale_betas_zero_snr") and process["prediction_type"] == "epsilon":
        yield (
            "diffusion.rescale_betas_zero_snr",
            f"true, {ZERO_SNR_OF_EPSILON}; set false, or diffusion.prediction_type: v_prediction",
        )
    if steps > process["num_train_timesteps"]:
        yield (
            "sampling.steps",
            f"{steps} is more than the {process['num_train_timesteps']} timesteps there are; lower it",
        )
    elif params["train_teacher"]["source"] == "train":
        # With the settings of its own that a teacher trained here leaves a sampler.
        yield from refusals(check_steps, params["sampling"], params["diffusion"], {})


def refusals(check: Callable[..., None], *arguments: Any) -> Iterator[Problem]:
    """The refusal of a check that stages make as well, `key: what is wrong`."""
    try:
        check(*arguments)
    except ValueError as error:
        key, _, problem = str(error).partition(": ")
        yield key, problem


def teacher_problems(settings: Params) -> Iterator[Problem]:
    """Lists of different length, channels that groups or heads do not divide."""
    channels, attention = settings["block_out_channels"], settings["attention"]
    groups, head = settings["norm_num_groups"], settings["attention_head_dim"]
    if len(attention) != len(channels):
        yield (
            "train_teacher.attention",
            f"{len(attention)} values for {len(channels)} levels of block_out_channels; give one for each",
        )
    for level, (width, attends) in enumerate(zip(channels, attention, strict=False)):
        key = f"train_teacher.block_out_channels[{level}]"
        if width % groups:
            yield key, f"{width} is no multiple of norm_num_groups {groups}; change one of them"
        # The mid block, of the last level's width, always has attention.
        if width % head and (attends or level == len(channels) - 1):
            yield key, f"{width} is no multiple of attention_head_dim {head}; change one of them"


def resolution_problems(params: Params) -> Iterator[Problem]:
    """A resolution, where it is known before the images are read, that cannot be halved at every level."""
    data, autoencoder = params["prepare_data"], params["train_autoencoder"]
    side = data["resolution"] or (DIGITS_RESOLUTION if data["source"] == "digits" else None)
    if autoencoder["source"] == "path":
        return
    factor = None
    if autoencoder["source"] == "train":
        levels = len(autoencoder["block_out_channels"])
        wanted = Sides(2 ** (len(params["train_teacher"]["block_out_channels"]) - 1))
        if (problem := why_undivided(side, levels, wanted)) is not None:
            yield "prepare_data.resolution", problem
            return
        factor = 2 ** (levels - 1)
    space = Space(None if side is None else side // (factor or 1), None, factor)
    levels, where = len(params["train_teacher"]["block_out_channels"]), "train_teacher.block_out_channels"
    if (problem := why_not_halved(space, levels, where, "give it fewer levels")) is not None:
        yield "prepare_data.resolution", problem


def stage_problems(params: Params) -> Iterator[Problem]:
    """More stages than there is something to divide, boundaries that do not ascend."""
    settings, diffusion = params["cluster_timesteps"], params["diffusion"]
    timesteps = diffusion["num_train_timesteps"] if diffusion["process"] == "vp" else math.inf
    method, count, grid = settings["method"], settings["stages"], settings["grid"]
    low, high = settings["image_range"]
    if grid > timesteps:
        yield "cluster_timesteps.grid", f"{grid} is more than the {timesteps} timesteps there are; lower it"
    if method == "threshold" and count != 3:
        yield "cluster_timesteps.stages", f"{count}, but the method threshold makes 3; set 3 or take agglomerative"
    if method in ("agglomerative", "dynamic_programming", "snr", "gradient") and count > grid:
        yield (
            "cluster_timesteps.stages",
            f"{count} is more than the grid of {grid} noise levels; lower it or raise grid",
        )
    if count > timesteps:
        yield "cluster_timesteps.stages", f"{count} is more than the {timesteps} timesteps there are; lower it"
    if method == "given" and len(settings["boundaries"] or []) != count - 1:
        yield (
            "cluster_timesteps.boundaries",
            f"{show(settings['boundaries'])} for {count} stages; give {count - 1} ascending noise levels",
        )
    elif method == "given":
        yield from refusals(check_given, settings, params["diffusion"])
    if method != "given" and settings["boundaries"] is not None:
        yield "cluster_timesteps.boundaries", f"{show(settings['boundaries'])} is unused by method {method}; set null"
    if params["assemble"]["snap_boundaries"] and count > params["sampling"]["steps"]:
        yield (
            "assemble.snap_boundaries",
            f"true, but {params['sampling']['steps']} sampling.steps give {count} stages no step each; set false or raise them",
        )
    if low >= high:
        yield "cluster_timesteps.image_range", f"[{low}, {high}] is no range; put the lower end first"


def training_problems(params: Params) -> Iterator[Problem]:
    """A warm-up longer than the training."""
    for section in ("train_autoencoder", "train_teacher", "search_block", "retrain"):
        warmup, steps = params[section]["warmup_steps"], params[section]["steps"]
        if section == "search_block" and params[section]["ranges"] == "all":
            steps = min(steps, params[section]["refine_steps"])
        if warmup > steps:
            yield f"{section}.warmup_steps", f"{warmup} is more than the {steps} steps there are; lower it"


def feature_problems(settings: Params) -> Iterator[Problem]:
    """A held-out share that leaves one side without triples, more files than a folder should hold."""
    count, share = settings["triples_per_stage"], settings["held_out"]
    if count > MAX_SHARDS * settings["shard_size"]:
        yield (
            "cache_features.shard_size",
            f"{settings['shard_size']} of {count} triples_per_stage gives more than {MAX_SHARDS} files a stage; raise it",
        )
    if not 1 <= round(count * share) < count:
        yield (
            "cache_features.held_out",
            f"{share} of {count} triples_per_stage leaves none on one side; raise triples_per_stage",
        )


def search_problems(params: Params) -> Iterator[Problem]:
    """Shares of the stream for other levels, a score that is not searched, or more triples than are held out."""
    search, cached, teacher = params["search_block"], params["cache_features"], params["train_teacher"]
    shares, levels = search["channels"], len(teacher["block_out_channels"])
    if teacher["source"] == "train" and isinstance(shares, list) and len(shares) != levels:
        yield (
            "search_block.channels",
            f"{show(shares)} for {levels} levels of train_teacher.block_out_channels; give one share, or one for each level",
        )
    measured, score = search["output_candidates"], params["assemble"]["score"]
    if score != "local" and measured < 2:
        yield (
            "search_block.output_candidates",
            f"{measured}, but assemble.score is {score}; set 2 or more, or score: local",
        )
    held_out = round(cached["triples_per_stage"] * cached["held_out"])
    for key in ("local_triples", "output_triples") if measured else ("local_triples",):
        if search[key] > held_out:
            yield (
                f"search_block.{key}",
                f"{search[key]} of the {held_out} held-out triples per stage (cache_features); lower it",
            )


def time_problems(params: Params) -> Iterator[Problem]:
    """A budget of time without latencies, or for controls whose layers are not in the space that is measured."""
    limit, rule = params["assemble"]["time"], params["assemble"]["rule"]
    if limit is not None and params["measure_latency"]["source"] == "none":
        yield "measure_latency.source", f"none, but assemble.time is {limit}; set measure, or assemble.time: null"
    if limit is not None and rule == "uniform":
        yield "assemble.time", f"{limit}, but rule uniform has layers of its own, which are not measured; set null"


def evaluation_problems(params: Params) -> Iterator[Problem]:
    """Features that fill no grid; too few samples for their covariance, the subsets of KID, the neighbours, or the report."""
    settings = params["evaluate"]
    yield from refusals(check_features, params["train_extractor"]["features"])
    features = {"classifier": params["train_extractor"]["features"], "inception-v3-compat": INCEPTION_FEATURES}
    needs = [
        (features.get(settings["extractor"], 0) + 1, f"the extractor's {features.get(settings['extractor'])} features"),
        (settings["kid_subset_size"], f"kid_subset_size {settings['kid_subset_size']}"),
        (settings["neighbours"] + 1, f"{settings['neighbours']} neighbours"),
        (params["report"]["images"], f"the {params['report']['images']} images of the report"),
    ]
    for least, what in needs:
        if settings["samples"] < least:
            yield "evaluate.samples", f"{settings['samples']} are too few for {what}; the least is {least}"
