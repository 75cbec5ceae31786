"""Values of params that are each fine alone and clash with each other."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from stagecraft.config.keys import SAMPLERS
from stagecraft.config.messages import offer, show
from stagecraft.config.sections import CacheFeatures, ClassEncoder, Everything, Teacher
from stagecraft.diffusion.boundaries import check_given
from stagecraft.diffusion.stated import ZERO_SNR_OF_EPSILON, check_steps
from stagecraft.evaluation.counts import check_features
from stagecraft.networks.given import Sides, Space, why_not_halved, why_undivided
from stagecraft.networks.text_parts import HEAD_WIDTH

Problem = tuple[str, str]  # key, what is wrong and what to do

DIGITS_RESOLUTION = 8  # pixels
INCEPTION_FEATURES = 2048
MAX_SHARDS = 10_000  # per interval


def cross_problems(params: Everything) -> Iterator[Problem]:
    """Problems between values that are each fine alone."""
    yield from diffusion_problems(params)
    yield from latent_problems(params)
    yield from prompt_problems(params)
    if params.train_teacher.source == "train":
        yield from teacher_problems(params.train_teacher)
        yield from resolution_problems(params)
    yield from interval_problems(params)
    yield from snapping_problems(params)
    yield from architecture_problems(params)
    yield from native_problems(params)
    yield from training_problems(params)
    yield from feature_problems(params.cache_features)
    yield from search_problems(params)
    yield from time_problems(params)
    yield from evaluation_problems(params)


def latent_problems(params: Everything) -> Iterator[Problem]:
    """Channels that groups do not divide, images mirrored as latents."""
    settings = params.train_autoencoder
    if settings.source == "train":
        for level, width in enumerate(settings.block_out_channels):
            if width % settings.norm_num_groups:
                key = f"train_autoencoder.block_out_channels[{level}]"
                yield (
                    key,
                    f"{width} is no multiple of norm_num_groups {settings.norm_num_groups}; change one of them",
                )
    if settings.source != "none":
        for section in ("train_teacher", "retrain"):
            if getattr(params, section).horizontal_flip:
                clash = "true, but a mirrored latent is not the latent of a mirrored image; set false"
                yield f"{section}.horizontal_flip", clash


def prompt_problems(params: Everything) -> Iterator[Problem]:
    """Clashes of prompts, and of guidance without them."""
    settings = params.encode_prompts
    guidance = params.evaluate.guidance
    key = "encode_prompts.source"
    if settings.source == "none":
        if guidance != 1:
            yield "evaluate.guidance", f"{guidance:g}, but there are no prompts to guide by; set 1, or choose an {key}"
        if params.evaluate.clip is not None:
            yield (
                "evaluate.clip",
                f"{show(params.evaluate.clip)}, but there are no prompts to compare with; set null, or choose an {key}",
            )
        return
    yield from class_problems(params, settings) if settings.source == "classes" else text_problems(params)
    if params.train_teacher.source == "train":
        if params.train_teacher.class_conditional:
            yield (
                "train_teacher.class_conditional",
                f"true, but {key} {settings.source} already conditions the teacher; set false, or {key}: none",
            )
        if guidance != 1 and settings.empty == 0:
            yield (
                "encode_prompts.empty",
                f"0, but evaluate.guidance {guidance:g} needs training with empty prompts; set 0.1, or evaluate.guidance: 1",
            )


def class_problems(params: Everything, settings: ClassEncoder) -> Iterator[Problem]:
    """Clashes of a class embedding with what it is asked for."""
    if params.evaluate.clip is not None:
        clash = f"{show(params.evaluate.clip)}, but classes are no texts to compare with; set null"
        yield "evaluate.clip", clash
    if settings.last_is_empty:
        return
    for key, value, usual in (
        ("evaluate.guidance", params.evaluate.guidance, 1),
        ("encode_prompts.empty", settings.empty, 0),
    ):
        if value != usual:
            yield (
                key,
                f"{value:g}, but no row of the class embedding stands for no class; set {usual}, or last_is_empty: true",
            )


def text_problems(params: Everything) -> Iterator[Problem]:
    """Clashes with diffusers' text pipelines, and of a text encoder that is made here."""
    settings = params.encode_prompts
    key = "encode_prompts.source"
    if params.train_autoencoder.source == "none":
        yield (
            key,
            f"{settings.source}, but pipelines with prompts work in latents; choose a train_autoencoder.source, "
            f"or {key}: none",
        )
    if params.diffusion.process != "vp":
        yield (
            key,
            f"{settings.source}, but pipelines with prompts support process vp only; set diffusion.process: vp, "
            f"or {key}: none",
        )
    if settings.source == "random" and settings.width % HEAD_WIDTH:
        yield "encode_prompts.width", f"{settings.width} is no multiple of {HEAD_WIDTH}, the width of a head; change it"


def architecture_problems(params: Everything) -> Iterator[Problem]:
    """Clashes of a given architecture, and of a searched one with keys for a given one."""
    settings = params.assemble
    intervals = params.cluster_timesteps.intervals
    widths = settings.decoder_widths
    if params.architecture == "searched":
        if widths is not None:
            yield (
                "assemble.decoder_widths",
                f"{show(widths)} is unused by a searched architecture; set null, or architecture: given",
            )
    else:
        if widths is None or len(widths) != intervals:
            yield (
                "assemble.decoder_widths",
                f"{show(widths)} for {intervals} intervals; give one share of the teacher's channels for each",
            )
        if params.retrain.init == "inherit":
            yield "retrain.init", "inherit, but a given architecture has no supernets; use teacher or scratch"
        if params.retrain.joint_loss != "none":
            yield (
                "retrain.joint_loss",
                f"{params.retrain.joint_loss}, but blocks of given widths imitate no teacher; use none",
            )
    given = params.retrain.interval_probabilities
    if isinstance(given, list) and len(given) != intervals:
        yield "retrain.interval_probabilities", f"{show(given)} for {intervals} intervals; give one number for each"


def native_problems(params: Everything) -> Iterator[Problem]:
    """Clashes of a student of the teacher's own class."""
    if not params.assemble.native:
        return
    key = "assemble.native"
    intervals = params.cluster_timesteps.intervals
    rule = params.assemble.rule
    channels = params.search_block.channels
    if params.architecture == "given":
        yield key, "true, but a given architecture is no native one; set false, or architecture: searched"
    if intervals > 1:
        yield (
            key,
            f"true, but {intervals} intervals need decoders of their own; set cluster_timesteps.intervals: 1, or false",
        )
    if rule in ("local", "uniform"):
        yield key, f"true, but rule {rule} chooses blocks that need not agree; set assemble.rule: budget, or false"
    if channels != 1:
        yield (
            key,
            f"true, but search_block.channels {show(channels)} leaves widths no choice; set channels: 1.0, or false",
        )


def diffusion_problems(params: Everything) -> Iterator[Problem]:
    """A sampler of another process, noise levels that do not rise, more sampler steps than timesteps."""
    process = params.diffusion
    sampler = params.sampling.scheduler
    if sampler not in SAMPLERS[process.process]:
        clash = f"{sampler} is no sampler of process {process.process}, {offer(SAMPLERS[process.process])}"
        yield "sampling.scheduler", clash
        return
    if process.process == "edm" and process.sigma_min >= process.sigma_max:
        yield (
            "diffusion.sigma_min",
            f"{process.sigma_min} is not below sigma_max {process.sigma_max}; lower it",
        )
    if process.process != "vp":
        return
    if process.beta_start >= process.beta_end:
        yield "diffusion.beta_start", f"{process.beta_start} is not below beta_end {process.beta_end}; lower it"
    if process.rescale_betas_zero_snr and process.prediction_type == "epsilon":
        yield (
            "diffusion.rescale_betas_zero_snr",
            f"true, {ZERO_SNR_OF_EPSILON}; set false, or diffusion.prediction_type: v_prediction",
        )
    for key, sampling in samplers(params).items():
        if sampling["steps"] > process.num_train_timesteps:
            yield (
                key,
                f"{sampling['steps']} is more than the {process.num_train_timesteps} timesteps there are; lower it",
            )
        elif params.train_teacher.source == "train":
            # With the settings of its own that a teacher trained here leaves a sampler.
            yield from refusals(check_steps, sampling, params.diffusion.as_dict(), {}, key)


def samplers(params: Everything) -> dict[str, dict[str, Any]]:
    """The `sampling` section as teacher and student are sampled by it, by the key of its number of steps."""
    sampling = params.sampling.as_dict()
    given = params.evaluate.student_steps
    own = {} if given is None else {"evaluate.student_steps": sampling | {"steps": given}}
    return {"sampling.steps": sampling} | own


def refusals(check: Callable[..., None], *arguments: Any) -> Iterator[Problem]:
    """The refusal of a check that stages make as well, `key: what is wrong`."""
    try:
        check(*arguments)
    except ValueError as error:
        key, _, problem = str(error).partition(": ")
        yield key, problem


def teacher_problems(settings: Teacher) -> Iterator[Problem]:
    """Lists of different length, channels that groups or heads do not divide."""
    channels = settings.block_out_channels
    attention = settings.attention
    groups = settings.norm_num_groups
    head = settings.attention_head_dim
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


def resolution_problems(params: Everything) -> Iterator[Problem]:
    """A resolution, where it is known before the images are read, that cannot be halved at every level."""
    data = params.prepare_data
    autoencoder = params.train_autoencoder
    side = data.resolution or (DIGITS_RESOLUTION if data.source == "digits" else None)
    if autoencoder.source == "path":
        return
    factor = None
    if autoencoder.source == "train":
        levels = len(autoencoder.block_out_channels)
        wanted = Sides(2 ** (len(params.train_teacher.block_out_channels) - 1))
        if (problem := why_undivided(side, levels, wanted)) is not None:
            yield "prepare_data.resolution", problem
            return
        factor = 2 ** (levels - 1)
    space = Space(None if side is None else side // (factor or 1), None, factor)
    levels = len(params.train_teacher.block_out_channels)
    where = "train_teacher.block_out_channels"
    if (problem := why_not_halved(space, levels, where, "give it fewer levels")) is not None:
        yield "prepare_data.resolution", problem


def interval_problems(params: Everything) -> Iterator[Problem]:
    """More intervals than there is something to divide, boundaries that do not ascend."""
    settings = params.cluster_timesteps
    diffusion = params.diffusion
    timesteps = diffusion.num_train_timesteps if diffusion.process == "vp" else math.inf
    method = settings.method
    count = settings.intervals
    grid = settings.grid
    low, high = settings.image_range
    if grid > timesteps:
        yield "cluster_timesteps.grid", f"{grid} is more than the {timesteps} timesteps there are; lower it"
    if method == "threshold" and count != 3:
        yield (
            "cluster_timesteps.intervals",
            f"{count}, but the method threshold makes 3; set 3, or cluster_timesteps.method: agglomerative",
        )
    if method in ("agglomerative", "dynamic_programming", "snr", "gradient") and count > grid:
        yield (
            "cluster_timesteps.intervals",
            f"{count} is more than the grid of {grid} noise levels; lower it or raise grid",
        )
    if count > timesteps:
        yield "cluster_timesteps.intervals", f"{count} is more than the {timesteps} timesteps there are; lower it"
    if method == "given" and len(settings.boundaries or []) != count - 1:
        yield (
            "cluster_timesteps.boundaries",
            f"{show(settings.boundaries)} for {count} intervals; give {count - 1} ascending values in {settings.boundaries_in}",
        )
    elif method == "given":
        yield from refusals(check_given, settings.as_dict(), params.diffusion.as_dict())
    if method != "given" and settings.boundaries is not None:
        yield "cluster_timesteps.boundaries", f"{show(settings.boundaries)} is unused by method {method}; set null"
    if low >= high:
        yield "cluster_timesteps.image_range", f"[{low}, {high}] is no range; put the lower end first"


def snapping_problems(params: Everything) -> Iterator[Problem]:
    """Boundaries moved between too few steps of the sampler, or between steps that the student does not take."""
    if not params.assemble.snap_boundaries:
        return
    steps = params.sampling.steps
    own = params.evaluate.student_steps
    count = params.cluster_timesteps.intervals
    if count > steps:
        yield (
            "assemble.snap_boundaries",
            f"true, but sampling.steps {steps} is less than the {count} intervals; set false, or raise sampling.steps",
        )
    if own not in (None, steps):
        yield (
            "evaluate.student_steps",
            f"{own}, but assemble.snap_boundaries moves boundaries between the sampler's {steps} steps; set null, or "
            "sampling.steps to the same number",
        )


def training_problems(params: Everything) -> Iterator[Problem]:
    """A warm-up longer than the training."""
    keys = ["train_autoencoder.steps", "train_teacher.steps", "search_block.steps", "retrain.steps"]
    if params.search_block.ranges == "all":
        keys.append("search_block.refine_steps")
    for key in keys:
        section, name = key.split(".")
        settings = getattr(params, section)
        steps = getattr(settings, name)
        if settings.warmup_steps > steps:
            yield (
                f"{section}.warmup_steps",
                f"{settings.warmup_steps} is more than {key}, which is {steps}; lower it, or raise {name}",
            )


def feature_problems(settings: CacheFeatures) -> Iterator[Problem]:
    """A held-out share that leaves one side without triples, more files than a folder should hold."""
    count = settings.triples_per_interval
    share = settings.held_out
    if count > MAX_SHARDS * settings.shard_size:
        yield (
            "cache_features.shard_size",
            f"{settings.shard_size} of {count} triples_per_interval gives more than {MAX_SHARDS} files an interval; raise it",
        )
    if not 1 <= round(count * share) < count:
        yield (
            "cache_features.held_out",
            f"{share} of {count} triples_per_interval leaves none on one side; raise triples_per_interval",
        )


def search_problems(params: Everything) -> Iterator[Problem]:
    """Shares of the stream for other levels, a score that is not searched, or more triples than are held out."""
    search = params.search_block
    cached = params.cache_features
    teacher = params.train_teacher
    shares = search.channels
    levels = len(teacher.block_out_channels)
    if teacher.source == "train" and isinstance(shares, list) and len(shares) != levels:
        yield (
            "search_block.channels",
            f"{show(shares)} for {levels} levels of train_teacher.block_out_channels; give one share, or one for each level",
        )
    measured = search.output_candidates
    score = params.assemble.score
    if score != "local" and measured < 2:
        yield (
            "search_block.output_candidates",
            f"{measured}, but assemble.score is {score}; set 2 or more, or score: local",
        )
    held_out = round(cached.triples_per_interval * cached.held_out)
    for key in ("local_triples", "output_triples") if measured else ("local_triples",):
        if getattr(search, key) > held_out:
            yield (
                f"search_block.{key}",
                f"{getattr(search, key)} is more than the {held_out} held-out triples per interval; lower it, or raise "
                "cache_features.triples_per_interval",
            )


def time_problems(params: Everything) -> Iterator[Problem]:
    """A budget of time without latencies, or for controls whose layers are not in the space that is measured."""
    limit = params.assemble.time
    rule = params.assemble.rule
    if limit is not None and params.measure_latency.source == "none":
        yield "measure_latency.source", f"none, but assemble.time is {limit}; set measure, or assemble.time: null"
    if limit is not None and rule == "uniform":
        yield (
            "assemble.time",
            f"{limit}, but rule uniform has layers of its own, which are not measured; set null and a budget of macs, "
            "or another rule",
        )


def evaluation_problems(params: Everything) -> Iterator[Problem]:
    """Features that fill no grid; too few samples for their covariance, the subsets of KID, the neighbours, or the report."""
    settings = params.evaluate
    yield from refusals(check_features, params.train_extractor.features)
    features = {"classifier": params.train_extractor.features, "inception-v3-compat": INCEPTION_FEATURES}
    needs = [
        (features.get(settings.extractor, 0) + 1, f"the extractor's {features.get(settings.extractor)} features"),
        (settings.kid_subset_size, f"kid_subset_size {settings.kid_subset_size}"),
        (settings.neighbours + 1, f"{settings.neighbours} neighbours"),
        (params.report.images, f"the {params.report.images} images of the report"),
    ]
    for minimum, what in needs:
        if settings.samples < minimum:
            yield "evaluate.samples", f"{settings.samples} are too few for {what}; the minimum is {minimum}"
