"""The sections of the params as types: one model each, a union where its keys depend on a choice; light: no torch, no NumPy.

A key is a field: its annotation says type and range, its docstring what it does. The JSON schema and docs/params.md follow from
them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WrapValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticKnownError

T = TypeVar("T")


def keep(value: T, check: Callable[[T], object]) -> T:
    """The value as it was written, so that 1 stays 1 in what results carry, checked as the number 1.0."""
    check(value)
    return value


def check_whole(value: T) -> T:
    """The value; an error when it is True or 1.0, which Literal[1] would take for 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def check_differ(values: list[Any]) -> list[Any]:
    """The values; ValueError when two are equal."""
    if any(value in values[:index] for index, value in enumerate(values)):
        raise ValueError("holds a value twice; remove one")
    return values


def check_printable(path: str) -> str:
    """The path; ValueError when it cannot be shown."""
    if not path.isprintable():
        raise ValueError("holds a character that cannot be printed; rename the file or folder")
    return path


def check_no_brace(path: str) -> str:
    """The path, which becomes an input of a rule; ValueError when Snakemake would take a part of it for a wildcard."""
    if {"{", "}"} & {*path}:
        raise ValueError("holds a brace, a wildcard to Snakemake; rename the file or folder")
    return path


def check_hub_name(name: str) -> str:
    """The name; ValueError when no repository of the model hub can have it."""
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII) is None:
        raise ValueError("is no name on the hub; write it as in the address of its page, owner/name")
    return name


def check_license(name: str) -> str:
    """The name; ValueError when it is not of the form that the model hub gives names of licences."""
    if re.fullmatch(r"[a-z0-9.-]+", name) is None:
        raise ValueError("is no licence of the hub; write its short name there, as mit or apache-2.0")
    return name


Count = Annotated[int, Field(ge=1, le=10**9)]
Million = Annotated[int, Field(ge=1, le=10**6)]
Width = Annotated[int, Field(ge=1, le=65536)]
Depth = Annotated[int, Field(ge=1, le=64)]
Number = Annotated[float, Field(allow_inf_nan=False), WrapValidator(keep)]
Positive = Annotated[float, Field(allow_inf_nan=False, gt=0), WrapValidator(keep)]
NotNegative = Annotated[float, Field(allow_inf_nan=False, ge=0), WrapValidator(keep)]
Inside = Annotated[float, Field(allow_inf_nan=False, gt=0, lt=1), WrapValidator(keep)]
Decay = Annotated[float, Field(allow_inf_nan=False, ge=0, lt=1), WrapValidator(keep)]
Rate = Annotated[float, Field(allow_inf_nan=False, gt=0, le=1), WrapValidator(keep)]
UpToOne = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1), WrapValidator(keep)]
Share = Rate
DecoderWidth = Annotated[float, Field(allow_inf_nan=False, gt=0, le=16), WrapValidator(keep)]
Shares = Annotated[
    list[Share], Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(check_differ)
]
OneOrThree = Annotated[Literal[1, 3], BeforeValidator(check_whole)]
Kernels = Annotated[
    list[OneOrThree], Field(min_length=1, json_schema_extra={"uniqueItems": True}), AfterValidator(check_differ)
]
Channels = Annotated[list[Width], Field(min_length=1)]
SourcePath = Annotated[str, Field(min_length=1), AfterValidator(check_printable)]
FilePath = Annotated[SourcePath, AfterValidator(check_no_brace)]
HubName = Annotated[str, AfterValidator(check_hub_name)]
License = Annotated[str, AfterValidator(check_license)]


class Section(BaseModel):
    """Keys and their values, checked as they are made: no value of another type, no unknown key."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)

    def as_dict(self) -> dict[str, Any]:
        """The keys that were given, as JSON has them."""
        return {
            name: value.as_dict() if isinstance(value, Section) else value
            for name, value in self
            if name in self.model_fields_set
        }


# --- The noise process, and its sampler ---


class VP(Section):
    """The discrete variance-preserving process of DDPM."""

    process: Literal["vp"]
    """The discrete variance-preserving process of DDPM."""
    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)]
    """Number of noise levels T; timesteps are 0..T-1."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
    """How beta rises with t, by its name in diffusers."""
    beta_start: Inside
    """First beta (unused by squaredcos_cap_v2)."""
    beta_end: Inside
    """Last beta (unused by squaredcos_cap_v2)."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    """What the network predicts, the noise, v (Salimans & Ho 2022) or, as sample, the image."""
    rescale_betas_zero_snr: bool = False
    """Whether betas are rescaled so that nothing is left of the image at the last timestep (arXiv 2305.08891), for
    v_prediction and sample; may be left out, for false."""


class EDM(Section):
    """The process of Karras et al. 2022."""

    process: Literal["edm"]
    """The process of Karras et al. 2022."""
    sigma_min: Positive
    """Noise level at which sampling ends."""
    sigma_max: Positive
    """Noise level at which sampling starts."""
    sigma_data: Positive
    """Standard deviation of the data, images in [-1, 1] or scaled latents."""
    rho: Positive
    """Exponent of the sampler's noise levels."""
    p_mean: Number
    """Mean of ln sigma in training."""
    p_std: Positive
    """Standard deviation of ln sigma in training."""


class Flow(Section):
    """Rectified flow."""

    process: Literal["flow"]
    """Rectified flow."""
    num_train_timesteps: Annotated[int, Field(ge=2, le=100_000)]
    """The network's time input at pure noise; times lie above 0 and up to it."""
    shift: Annotated[float, Field(allow_inf_nan=False, ge=0.001, le=1000), WrapValidator(keep)]
    """Shift towards noise, in training and sampling (arXiv 2403.03206, eq. 23); 1 for none."""


Diffusion = Annotated[VP | EDM | Flow, Field(discriminator="process")]


class Sampling(Section):
    """The sampler used for all evaluation, of teacher and student alike."""

    scheduler: Literal["ddim", "ddpm", "dpm_solver", "edm_euler", "edm_dpm_solver", "flow_euler"]
    """Sampler, one of ddim, ddpm and dpm_solver for vp, edm_euler or edm_dpm_solver for edm, flow_euler for flow."""
    steps: Count
    """Network evaluations per image."""


# --- Images ---


class Images(Section):
    """How images are prepared, whatever they come from."""

    resolution: Annotated[int, Field(ge=4, le=4096)] | None
    """Side of the prepared square images in pixels; null is the images' own size."""
    resize: Literal["crop", "squash", "pad"]
    """crop scales the short side and cuts the centre, squash ignores the aspect ratio, pad puts the image, scaled down if it is
    larger, on a black square."""
    channels: OneOrThree | None
    """1 is grey, 3 is RGB, null is what the images are."""
    held_out: Inside
    """Share of the images kept from all training, as the reference of a perfect generator; unused where the source has a split
    of its own."""


class Digits(Images):
    """The embedded digits."""

    source: Literal["digits"]
    """The embedded digits."""
    path: None
    """Null, as the digits come with the code."""


class ImageFiles(Images):
    """Images of the user."""

    source: Literal["folder", "npz"]
    """A folder of images (class sub-folders give labels, train and test folders the split), or an npz archive."""
    path: SourcePath
    """The folder or npz file."""


PrepareData = Annotated[Digits | ImageFiles, Field(discriminator="source")]


# --- Training ---


class Optimised(Section):
    """What every training has."""

    steps: Count
    """Optimiser steps."""
    batch_size: Million
    """Samples in a batch."""
    learning_rate: Rate
    """Highest learning rate, reached after warm-up, then decaying by a cosine to 0."""
    checkpoint_every: Count
    """Steps between two checkpoints. A job that is killed continues after the last one."""


class Warmed(Optimised):
    """A training with a warm-up."""

    warmup_steps: Annotated[int, Field(ge=0, le=10**9)]
    """Steps of linear warm-up."""


class Averaged(Warmed):
    """A training of which an average of the weights is kept."""

    ema_decay: Decay
    """Decay of the exponential moving average of the weights, which is what is saved."""
    gradient_clip: Positive | None
    """Largest norm of the gradient; null does not clip."""


class Autoencoder(Averaged):
    """An autoencoder that is trained here; unused for other sources."""

    latent_channels: Annotated[int, Field(ge=1, le=4096)]
    """Channels of the latents."""
    block_out_channels: Channels
    """Channels of each resolution level, from the finest; every level but the last halves the resolution."""
    layers_per_block: Depth
    """ResNet layers in each block."""
    norm_num_groups: Width
    """Groups of every GroupNorm."""
    kl_weight: NotNegative
    """Weight of the KL divergence, summed over the latents and divided by the number of pixels."""


class OwnAutoencoder(Autoencoder):
    """Pixels, or a small AutoencoderKL trained here."""

    source: Literal["none", "train"]
    """None, for pixels, or train a small AutoencoderKL."""
    path: None
    """Null, as no folder is read."""


class GivenAutoencoder(Autoencoder):
    """An autoencoder from elsewhere."""

    source: Literal["path"]
    """Take the folder of an AutoencoderKL or VQModel at path."""
    path: FilePath
    """Folder with config.json and safetensors weights."""


TrainAutoencoder = Annotated[OwnAutoencoder | GivenAutoencoder, Field(discriminator="source")]


class Teacher(Averaged):
    """A teacher that is trained here; unused for one from elsewhere."""

    block_out_channels: Channels
    """Channels of each resolution level, from the finest; the length is the number of down and of up blocks."""
    layers_per_block: Depth
    """ResNet layers in each down block; up blocks have one more."""
    attention: Annotated[list[bool], Field(min_length=1)]
    """For each level, whether its blocks have self-attention."""
    attention_head_dim: Width
    """Channels of one attention head."""
    norm_num_groups: Width
    """Groups of every GroupNorm."""
    dropout: Decay
    """Dropout in ResNet layers while training."""
    class_conditional: bool
    """Whether a teacher trained here is told each image's class."""
    horizontal_flip: bool
    """Mirror images at random while training."""


class OwnTeacher(Teacher):
    """A teacher trained here."""

    source: Literal["train"]
    """Train one."""
    path: None
    """Null, as no folder is read."""


class GivenTeacher(Teacher):
    """A teacher from elsewhere."""

    source: Literal["path"]
    """Take the diffusers pipeline folder at path; then the keys of training and network are unused."""
    path: FilePath
    """Diffusers pipeline folder with unet/config.json and unet/*.safetensors."""


TrainTeacher = Annotated[OwnTeacher | GivenTeacher, Field(discriminator="source")]


class TrainExtractor(Optimised):
    """The small classifier whose features give FID, KID, precision and recall when evaluate.extractor is classifier."""

    features: Annotated[int, Field(ge=2, le=8192)]
    """Length of the feature vector."""
    width: Annotated[int, Field(ge=1, le=4096)]
    """Channels of the first convolution."""


# --- Clustering, features, search ---


class ClusterTimesteps(Section):
    """Noise levels grouped into intervals by how alike their optimal denoisers are."""

    method: Literal["agglomerative", "dynamic_programming", "threshold", "uniform", "snr", "gradient", "given"]
    """agglomerative or dynamic_programming over the similarity of optimal denoisers, threshold (Zhang et al. 2024, 3 intervals),
    uniform in t, snr or gradient (interval clustering, Go et al. 2023), or given by boundaries."""
    intervals: Annotated[int, Field(ge=1, le=8)]
    """Number of intervals K, each with its own decoder; 1 is plain DiffNAS."""
    boundaries: list[Number] | None
    """The first noise level of each interval but the first, ascending, for the method given; null for the others."""
    boundaries_in: Literal["t", "sigma"]
    """What boundaries are in, the network's time t or the noise level sigma."""
    seeds: Annotated[int, Field(ge=1, le=1000)]
    """How often the clustering is done, with seeds that follow each other, for the spread of its boundaries."""
    grid: Annotated[int, Field(ge=2, le=100_000)]
    """Noise levels compared."""
    draws: Annotated[int, Field(ge=2, le=10**8)]
    """Pairs (x0, eps) at every noise level; for threshold, triples (x0, eps, t) in all."""
    eta: Positive
    """Threshold on a coordinate's difference between denoisers, in units of sigma."""
    alpha: Share
    """Share of coordinates that must be within eta for a noise level to join the first or last interval."""
    literal: bool
    """Whether S1 is that of the printed equation 7 of Zhang et al. and not the one they ran."""
    image_range: Annotated[list[Number], Field(min_length=2, max_length=2)]
    """Range that images are mapped to before clustering; latents stay as they are."""


class CacheFeatures(Section):
    """The teacher's tensors at all block borders, which the block searches learn from."""

    triples_per_interval: Annotated[int, Field(ge=2, le=10**9)]
    """Triples (x0, t, eps) per interval."""
    held_out: Inside
    """Share of the triples kept from supernet training, for scoring."""
    batch_size: Million
    """Samples in a batch."""
    shard_size: Count
    """Triples in one file. A job that is killed continues after the last finished file."""
    max_gib: Positive
    """Most room that the features may take, in GiB."""


class Stream(Section):
    """How many channels the residual stream has."""

    channels: Share | Annotated[list[Share], Field(min_length=1)]
    """Share of the channels of the residual stream, which is what passes between layers and to the decoder, that the student
    has: the most important of each GroupNorm group, fixed before the search. 1 leaves the stream as the teacher has it. A list
    gives each resolution level a share of its own, the finest first."""


class SearchSpace(Stream):
    """Which layer shapes there are."""

    channel_multiple: Annotated[int, Field(ge=1, le=1024)]
    """What numbers of channels that come from `channels`, `widths` and `stream` are multiples of, besides whole groups.
    Convolutions of other numbers take as long as those of the next multiple: of 16 in single precision on a CPU with
    AVX-512, of 8 in half precision on a GPU with tensor cores. 1 admits all."""
    widths: Shares
    """Inner widths of a ResNet layer as shares of the teacher's, in whole GroupNorm groups; all of it is always among the
    choices."""
    stream: Shares
    """Shares of the channels that a ResNet layer reads, and that it writes, chosen apart and by importance; the others pass it
    by. All of them is always among the choices."""
    kernels: Kernels
    """Kernel sizes of each convolution; the teacher's is always among them."""
    drop_layers: bool
    """Whether a ResNet layer may be dropped."""
    drop_attention: bool
    """Whether an attention layer may be dropped."""


class SearchBlock(SearchSpace, Warmed):
    """One supernet per block, and per interval for decoder blocks."""

    candidates: Annotated[int, Field(ge=2, le=10**6)]
    """Most sub-blocks scored; a larger space is sampled."""
    ranges: Literal["all", "own", "shared"]
    """Ranges of intervals that a block of the decoder is searched for. all (every contiguous range; the rule budget then decides
    which intervals share a block), own (each interval by itself) or shared (all intervals together, an ordinary UNet)."""
    refine_steps: Count
    """With ranges all, the supernet of all intervals is trained for `steps` and fine-tuned for so many for each other range."""
    local_triples: Count
    """Held-out triples of each interval that the error of their own outputs, the score local, is measured on."""
    output_candidates: Annotated[int, Field(ge=0, le=10**6)]
    """The best of them whose effect on the teacher's denoised image is measured, for the scores output and combined; 0: none."""
    output_triples: Count
    """Held-out triples of each interval that this is measured on."""


# --- Latency and choice ---


class Timing(Section):
    """How layers are timed."""

    threads: Annotated[int, Field(ge=1)]
    """CPU threads that a layer is measured with."""
    batch_size: Annotated[int, Field(ge=1)]
    """Images in a network evaluation."""
    repeats: Annotated[int, Field(ge=1)]
    """Samples of each layer, in turn with the teacher's own in its place; the median counts."""


class OwnLatency(Timing):
    """No latencies, or those of this machine."""

    source: Literal["none", "measure"]
    """None, or measure, on this machine, where nothing else should run then."""
    path: None
    """Null, as no table is read."""


class GivenLatency(Timing):
    """Latencies measured before."""

    source: Literal["path"]
    """Take a results/latency.json kept from before."""
    path: FilePath
    """The kept table."""


MeasureLatency = Annotated[OwnLatency | GivenLatency, Field(discriminator="source")]


class Assemble(Section):
    """One candidate per block is chosen."""

    rule: Literal["budget", "local", "random", "uniform", "largest"]
    """budget minimises the summed scores within the budget, local takes each block's cheapest within its error. Controls are
    random (within the budget), uniform (the same share of every layer's width) and largest (the teacher's blocks,
    whatever the budget)."""
    score: Literal["local", "output", "combined"]
    """What budget sums up, the error of each block's own outputs (local), or of the teacher's denoised image with it (output), or
    the geometric mean of both (combined); each counts by the share of the sampler's steps."""
    macs: Positive | None
    """MACs as a share of the teacher's, weighted by the sampler's steps in each interval; null for no limit."""
    time: Positive | None
    """Time of a network evaluation as a share of the teacher's, likewise, by the table of measure_latency; null for no limit."""
    params: Positive | None
    """Parameters in total as a share of the teacher's; null for no limit."""
    params_active: Positive | None
    """Parameters used at any one step as a share of the teacher's; null for no limit."""
    tau: NotNegative | Literal["auto"]
    """Error allowed above that of the teacher-shaped block by the rule local, a number from 0, or auto to meet the budget."""
    tau_rel: NotNegative
    """The same, relative to the teacher-shaped block's own error."""
    decoder_widths: list[DecoderWidth] | None
    """For a given architecture, the channels of each interval's decoder as a share of the teacher's; null for a searched one."""
    snap_boundaries: bool
    """Move the boundaries to the sampler's nearest steps, and restart multistep solvers there, so that no step mixes two
    decoders."""


class Retrain(Averaged):
    """The assembled student is trained with the dynamic joint loss."""

    init: Literal["inherit", "teacher", "scratch"]
    """Start from the supernets' weights, with every decoder from the teacher's weights, or from scratch."""
    joint_loss: Literal["linear", "constant", "none"]
    """How the weight a of the end-to-end losses against the block losses rises from 0 to 1; none leaves the latter out."""
    ramp: UpToOne
    """With linear, the share of the steps after which the loss is end to end only."""
    output_weight: NotNegative
    """Weight lambda of the teacher's output among the end-to-end losses."""
    jacobian_weight: NotNegative
    """Weight mu of the difference of the student's and the teacher's Jacobian-vector products along random directions. Above 0
    both networks run twice in a step."""
    interval_probabilities: Literal["density", "uniform"] | list[Positive]
    """How often training draws each interval, by the density of t, all alike (uniform), or as given by a list."""
    horizontal_flip: bool
    """Mirror images at random while training."""


class Evaluate(Section):
    """Teacher and student, sampled and scored by the same code."""

    samples: Annotated[int, Field(ge=2, le=10**7)]
    """Images sampled from each model; more than the extractor has features."""
    batch_size: Million
    """Samples drawn at once. A job that is killed continues after the last finished batch."""
    extractor: FilePath
    """classifier (trained by train_extractor), inception-v3-compat, or a TorchScript file, whose code is run."""
    kid_subset_size: Annotated[int, Field(ge=2, le=10**7)]
    """Images in each of KID's subsets."""
    neighbours: Million
    """Neighbours k of precision and recall."""
    speed_batch: Million
    """Images in the batch whose speed is measured."""
    speed_repeats: Million
    """Timed repeats."""


class Report(Section):
    """The page results/report.html."""

    images: Annotated[int, Field(ge=1, le=256)]
    """Images of each model shown."""


class Publish(Section):
    """The folder results/model, ready for a model hub: what its model card says that no file of the run does."""

    license: License | None
    """The student's licence by its short name on the hub; null is that of the given teacher's own model card, or unknown."""
    base_model: HubName | None
    """The given teacher's name on the hub; null leaves it out."""
    dataset: HubName | None
    """The images' name on the hub; null leaves it out."""


# --- All of them ---

Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
Architecture = Literal["searched", "given"]


class Seeded(Section):
    """Draws random numbers."""

    seed: Seed
    """Seed of every random draw; the same params and seed give the same bytes on a CPU."""


class OnDevice(Section):
    """Runs networks."""

    device: Device
    """Where networks run; auto takes the GPU when there is one."""


class Precise(OnDevice):
    """Runs networks in a number format."""

    precision: Precision
    """Number format while training and sampling; bf16 is autocast, weights stay fp32."""


class OfArchitecture(Section):
    """Depends on whether there is a search."""

    architecture: Architecture
    """searched finds the student's blocks by a search; given takes decoders of assemble.decoder_widths, without one."""


class Noised(Section):
    """Knows the noise process."""

    diffusion: Diffusion
    """The noise process, shared by teacher and student. With a teacher from a folder it must be the teacher's own."""


class Sampled(Noised):
    """Knows the sampler."""

    sampling: Sampling
    """The sampler used for all evaluation, of teacher and student alike."""


class Everything(Seeded, Precise, OfArchitecture, Sampled):
    """All sections; `Params` also checks what clashes between them."""

    prepare_data: PrepareData
    """The images a run starts from."""
    train_autoencoder: TrainAutoencoder
    """The autoencoder whose latents the diffusion runs in, or none for pixels."""
    train_teacher: TrainTeacher
    """The teacher, trained here or taken from a diffusers folder."""
    train_extractor: TrainExtractor
    cluster_timesteps: ClusterTimesteps
    cache_features: CacheFeatures
    search_block: SearchBlock
    measure_latency: MeasureLatency
    """Latency of every layer shape in the search space, for a search and a budget of time."""
    assemble: Assemble
    retrain: Retrain
    evaluate: Evaluate
    report: Report
    publish: Publish


@dataclass(frozen=True)
class Choice:
    """A section whose keys depend on one of them.

    Args:
        key: the one that decides, `process` or `source`.
        members: the model for each of its values.
    """

    key: str
    members: dict[str, type[Section]]


def find_choice(field: FieldInfo) -> Choice | None:
    """What a field of the params chooses between; None for an ordinary section."""
    if not isinstance(field.discriminator, str):
        return None
    models = get_args(field.annotation)
    return Choice(field.discriminator, {tag: model for model in models for tag in tags_of(model, field.discriminator)})


def tags_of(model: type[Section], key: str) -> tuple[str, ...]:
    """The values of the key that decides for a model."""
    return get_args(model.model_fields[key].annotation)


CHOICES = {name: choice for name, field in Everything.model_fields.items() if (choice := find_choice(field))}
