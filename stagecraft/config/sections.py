"""The sections of the params as types: one model each, a union where its keys depend on a choice; light: no torch, no NumPy.

A key is a field: its annotation says type and range, `doc` what it does. The JSON schema and docs/params.md follow from them.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WrapValidator
from pydantic_core import PydanticKnownError

T = TypeVar("T")


def doc(text: str) -> Any:
    """A key that must be given, and what it does."""
    return Field(description=" ".join(text.split()))


def keep(value: T, check: Callable[[T], object]) -> T:
    """The value as it was written, so that 1 stays 1 in what results carry, checked as the number 1.0."""
    check(value)
    return value


def check_whole(value: T) -> T:
    """The value; an error when it is True or 1.0, which Literal[1] would take for 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def check_differ(values: list[T]) -> list[T]:
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


Natural = Annotated[int, Field(ge=1)]
Count = Annotated[Natural, Field(le=10**9)]
Million = Annotated[Natural, Field(le=10**6)]
Width = Annotated[Natural, Field(le=65536)]
Depth = Annotated[Natural, Field(le=64)]
Timesteps = Annotated[int, Field(ge=2, le=100_000)]
ImageCount = Annotated[int, Field(ge=2, le=10**7)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Kept = Annotated[T, WrapValidator(keep)]
Number = Kept[Finite]
Positive = Kept[Annotated[Finite, Field(gt=0)]]
NotNegative = Kept[Annotated[Finite, Field(ge=0)]]
Inside = Kept[Annotated[Finite, Field(gt=0, lt=1)]]
Decay = Kept[Annotated[Finite, Field(ge=0, lt=1)]]
Share = Kept[Annotated[Finite, Field(gt=0, le=1)]]
Range = Annotated[list[Number], Field(min_length=2, max_length=2)]
OneOrThree = Annotated[Literal[1, 3], BeforeValidator(check_whole)]
NonEmpty = Annotated[list[T], Field(min_length=1)]
Distinct = Annotated[NonEmpty[T], Field(json_schema_extra={"uniqueItems": True}), AfterValidator(check_differ)]
SourcePath = Annotated[str, Field(min_length=1), AfterValidator(check_printable)]
FilePath = Annotated[SourcePath, AfterValidator(check_no_brace)]
HubName = Annotated[str, AfterValidator(check_hub_name)]
License = Annotated[str, AfterValidator(check_license)]


class Section(BaseModel):
    """Keys and their values, checked as they are made: no value of another type, no unknown key."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    def as_dict(self) -> dict[str, Any]:
        """The keys that were given, as JSON has them."""
        given = {name: value for name, value in self if name in self.model_fields_set}
        return {name: value.as_dict() if isinstance(value, Section) else value for name, value in given.items()}


class VP(Section):
    process: Literal["vp"] = doc("The discrete variance-preserving process of DDPM.")
    num_train_timesteps: Timesteps = doc("Number of noise levels T; timesteps are 0..T-1.")
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = doc("""How beta rises with t, by
        its name in diffusers.""")
    beta_start: Inside = doc("First beta (unused by squaredcos_cap_v2).")
    beta_end: Inside = doc("Last beta (unused by squaredcos_cap_v2).")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = doc("""What the network predicts, the noise, v
        (Salimans & Ho 2022) or, as sample, the image.""")
    rescale_betas_zero_snr: bool = Field(
        default=False,
        description="Whether betas are rescaled so that nothing is left of the image at the last timestep (arXiv 2305.08891), "
        "for v_prediction and sample; may be left out, for false.",
    )


class EDM(Section):
    process: Literal["edm"] = doc("The process of Karras et al. 2022.")
    sigma_min: Positive = doc("Noise level at which sampling ends.")
    sigma_max: Positive = doc("Noise level at which sampling starts.")
    sigma_data: Positive = doc("Standard deviation of the data, images in [-1, 1] or scaled latents.")
    rho: Positive = doc("Exponent of the sampler's noise levels.")
    p_mean: Number = doc("Mean of ln sigma in training.")
    p_std: Positive = doc("Standard deviation of ln sigma in training.")


class Flow(Section):
    process: Literal["flow"] = doc("Rectified flow.")
    num_train_timesteps: Timesteps = doc("The network's time input at pure noise; times lie above 0 and up to it.")
    shift: Kept[Annotated[Finite, Field(ge=0.001, le=1000)]] = doc("""Shift towards noise, in training and sampling
        (arXiv 2403.03206, eq. 23); 1 for none.""")


Diffusion = Annotated[VP | EDM | Flow, Field(discriminator="process")]


class Sampling(Section):
    scheduler: Literal["ddim", "ddpm", "dpm_solver", "edm_euler", "edm_dpm_solver", "flow_euler"] = doc("""Sampler, one
        of ddim, ddpm and dpm_solver for vp, edm_euler or edm_dpm_solver for edm, flow_euler for flow.""")
    steps: Count = doc("Network evaluations per image.")


class Prepared(Section):
    resolution: Annotated[int, Field(ge=4, le=4096)] | None = doc("""Side of the prepared square images in pixels; null
        is the images' own size.""")
    resize: Literal["crop", "squash", "pad"] = doc("""crop scales the short side and cuts the centre, squash ignores the
        aspect ratio, pad puts the image, scaled down if it is larger, on a black square.""")
    channels: OneOrThree | None = doc("1 is grey, 3 is RGB, null is what the images are.")
    held_out: Inside = doc("""Share of the images kept from all training, as the reference of a perfect generator;
        unused where the source has a split of its own.""")


class Digits(Prepared):
    source: Literal["digits"] = doc("The embedded digits.")
    path: None = doc("Null, as the digits come with the code.")


class ImageFiles(Prepared):
    source: Literal["folder", "npz"] = doc("""A folder of images (class sub-folders give labels, train and test folders
        the split), or an npz archive.""")
    path: SourcePath = doc("The folder or npz file.")


PrepareData = Annotated[Digits | ImageFiles, Field(discriminator="source")]


class NoPrompts(Section):
    source: Literal["none"] = doc("None; the network is told at most a class.")
    path: None = doc("Null, as no folder is read.")


class Prompted(Section):
    """Prompts, from the images' metadata.jsonl or metadata.csv, or else from their classes."""

    template: Annotated[str, Field(min_length=1, max_length=1000)] = doc("""The prompt of an image of class {}, where
        images come with no text of their own.""")
    names: Distinct[Annotated[str, Field(min_length=1)]] | None = doc(
        "What stands in it for each class, in their order; null for the classes' own names."
    )
    empty: Decay = doc("Share of the images that are trained on with an empty prompt, for guidance.")


class RandomEncoder(Prompted):
    source: Literal["random"] = doc(
        "A small CLIP text encoder with random weights, and a tokenizer of the prompts' words."
    )
    path: None = doc("Null, as no folder is read.")
    width: Width = doc("Width of its hidden states, a multiple of 8.")


class GivenEncoder(Prompted):
    source: Literal["path"] = doc("Take tokenizer and text_encoder of the diffusers folder at path.")
    path: FilePath = doc("Folder with tokenizer and text_encoder, of SDXL also tokenizer_2 and text_encoder_2.")


class ClassEncoder(Section):
    """Classes in place of prompts, as those of a latent diffusion model on ImageNet."""

    source: Literal["classes"] = doc("Take a class embedding, of which each class number has a row.")
    path: FilePath = doc("Safetensors file with one tensor, of the shape (classes, width).")
    last_is_empty: bool = doc("Whether the last row stands for no class, which guidance needs.")
    empty: Decay = doc("Share of the images that are trained on with no class, for guidance.")


EncodePrompts = Annotated[NoPrompts | RandomEncoder | GivenEncoder | ClassEncoder, Field(discriminator="source")]


class Optimised(Section):
    """What every training has."""

    steps: Count = doc("Optimiser steps.")
    batch_size: Million = doc("Samples in a batch.")
    learning_rate: Share = doc("Highest learning rate, reached after warm-up, then decaying by a cosine to 0.")
    checkpoint_every: Count = doc("Steps between two checkpoints. A job that is killed continues after the last one.")


class Warmed(Optimised):
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = doc("Steps of linear warm-up.")


class Averaged(Warmed):
    """A training of which an average of the weights is kept."""

    ema_decay: Decay = doc("Decay of the exponential moving average of the weights, which is what is saved.")
    gradient_clip: Positive | None = doc("Largest norm of the gradient; null does not clip.")
    gradient_checkpointing: bool = Field(
        default=False,
        description="Whether the backward pass computes the activations within layers again, which takes less memory, a third "
        "more MACs, and gives the same bytes, in bf16 but for rounding; may be left out, for false.",
    )


class Autoencoder(Averaged):
    """An autoencoder that is trained here; unused for other sources."""

    latent_channels: Annotated[Natural, Field(le=4096)] = doc("Channels of the latents.")
    block_out_channels: NonEmpty[Width] = doc(
        "Channels per level, finest first; every level but the last halves the side."
    )
    layers_per_block: Depth = doc("ResNet layers in each block.")
    norm_num_groups: Width = doc("Groups of every GroupNorm.")
    kl_weight: NotNegative = doc("Weight of the KL divergence, summed over the latents, per pixel.")


class OwnAutoencoder(Autoencoder):
    source: Literal["none", "train"] = doc("None, for pixels, or train a small AutoencoderKL.")
    path: None = doc("Null, as no folder is read.")


class GivenAutoencoder(Autoencoder):
    source: Literal["path"] = doc("Take the folder of an AutoencoderKL or VQModel at path.")
    path: FilePath = doc("Folder with config.json and safetensors weights.")


TrainAutoencoder = Annotated[OwnAutoencoder | GivenAutoencoder, Field(discriminator="source")]


class Teacher(Averaged):
    """A teacher that is trained here; unused for one from elsewhere."""

    block_out_channels: NonEmpty[Width] = doc("Channels per level, finest first; each has one down and one up block.")
    layers_per_block: Depth = doc("ResNet layers in each down block; up blocks have one more.")
    attention: NonEmpty[bool] = doc("For each level, whether its blocks have self-attention.")
    attention_head_dim: Width = doc("Channels of one attention head.")
    norm_num_groups: Width = doc("Groups of every GroupNorm.")
    dropout: Decay = doc("Dropout in ResNet layers while training.")
    class_conditional: bool = doc("Whether a teacher trained here is told each image's class.")
    horizontal_flip: bool = doc("Mirror images at random while training.")


class OwnTeacher(Teacher):
    source: Literal["train"] = doc("Train one.")
    path: None = doc("Null, as no folder is read.")


class GivenTeacher(Teacher):
    source: Literal["path"] = doc("""Take the diffusers pipeline folder at path; then the keys of training and network
        are unused.""")
    path: FilePath = doc("Diffusers pipeline folder with unet/config.json and unet/*.safetensors.")


TrainTeacher = Annotated[OwnTeacher | GivenTeacher, Field(discriminator="source")]


class TrainExtractor(Optimised):
    features: Annotated[int, Field(ge=2, le=8192)] = doc("Length of the feature vector.")
    width: Annotated[Natural, Field(le=4096)] = doc("Channels of the first convolution.")


class ClusterTimesteps(Section):
    method: Literal["agglomerative", "dynamic_programming", "threshold", "uniform", "snr", "gradient", "given"] = doc(
        """agglomerative or dynamic_programming over the similarity of optimal denoisers, threshold (Zhang et al. 2024, 3
        intervals), uniform in t, snr or gradient (interval clustering, Go et al. 2023), or given by boundaries."""
    )
    intervals: Annotated[Natural, Field(le=8)] = doc(
        "Timestep intervals K, whose decoder blocks may differ (search_block.ranges); 1: one decoder."
    )
    boundaries: list[Number] | None = doc("""The first noise level of each interval but the first, ascending, for the
        method given; null for the others.""")
    boundaries_in: Literal["t", "sigma"] = doc("What boundaries are in, the network's time t or the noise level sigma.")
    seeds: Annotated[Natural, Field(le=1000)] = doc("Clusterings with consecutive seeds, for the spread of boundaries.")
    grid: Timesteps = doc("Noise levels compared.")
    draws: Annotated[int, Field(ge=2, le=10**8)] = doc("""Pairs (x0, eps) at every noise level; for threshold, triples
        (x0, eps, t) in all.""")
    eta: Positive = doc("Threshold on a coordinate's difference between denoisers, in units of sigma.")
    alpha: Share = doc("Share of coordinates that must be within eta for a level to join the first or last interval.")
    literal: bool = doc("Whether S1 is that of the printed equation 7 of Zhang et al. and not the one they ran.")
    image_range: Range = doc("Range that images are mapped to before clustering; latents stay as they are.")


class CacheFeatures(Section):
    triples_per_interval: Annotated[int, Field(ge=2, le=10**9)] = doc("Triples (x0, t, eps) per interval.")
    held_out: Inside = doc("Share of the triples kept from supernet training, for scoring.")
    batch_size: Million = doc("Samples in a batch.")
    precision: Literal["fp16", "fp32"] = (
        doc("""Number format in which the teacher's tensors are stored; fp16 takes half of
        the room.""")
    )
    shard_size: Count = doc("Triples in one file. A job that is killed continues after the last finished file.")
    max_gib: Positive = doc("Most room that the features may take, in GiB.")


class Stream(Section):
    channels: Share | NonEmpty[Share] = doc("""Share of the channels of the residual stream, which is what passes
        between layers and to the decoder, that the student has: the most important of each GroupNorm group, fixed
        before the search. 1 leaves the stream as the teacher has it. A list gives each resolution level a share of its
        own, the finest first.""")


class SearchSpace(Stream):
    """Which layer shapes there are."""

    channel_multiple: Annotated[Natural, Field(le=1024)] = doc("""What numbers of channels that come from `channels`,
        `widths` and `stream` are multiples of, besides whole groups. Convolutions of other numbers take as long as
        those of the next multiple: of 16 in single precision on a CPU with AVX-512, of 8 in half precision on a GPU
        with tensor cores. 1 admits all.""")
    widths: Distinct[Share] = doc("""Inner widths of a ResNet layer as shares of the teacher's, in whole GroupNorm
        groups; likewise the heads and the inner width of a transformer's layers. All of it is always among the choices.""")
    stream: Distinct[Share] = doc("""Shares of the channels that a ResNet layer reads, and that it writes, chosen apart
        and by importance; the others pass it by. All of them is always among the choices.""")
    kernels: Distinct[OneOrThree] = doc("Kernel sizes of each convolution; the teacher's is always among them.")
    drop_layers: bool = doc("""Whether a ResNet layer may be dropped, and layers of a transformer, of which shares as
        in `widths` are kept.""")
    drop_attention: bool = doc("Whether an attention layer, or a transformer as a whole, may be dropped.")


class SearchBlock(SearchSpace, Warmed):
    candidates: Annotated[int, Field(ge=2, le=10**6)] = doc("Most sub-blocks scored; a larger space is sampled.")
    ranges: Literal["all", "own", "shared"] = doc("""Ranges of intervals that a block of the decoder is searched for.
        all (every contiguous range; the rule budget then decides which intervals share a block), own (each interval by
        itself) or shared (all intervals together, an ordinary UNet).""")
    refine_steps: Count = doc("Fine-tuning steps, with ranges all, from all intervals' supernet to each other range.")
    local_triples: Count = doc("Held-out triples per interval for the score local, the error of the own outputs.")
    output_candidates: Annotated[int, Field(ge=0, le=10**6)] = doc("""The best of them whose effect on the teacher's
        denoised image is measured, for the scores output and combined; 0: none.""")
    output_triples: Count = doc("Held-out triples of each interval that this is measured on.")


class Timing(Section):
    threads: Natural = doc("CPU threads that a layer is measured with.")
    batch_size: Natural = doc("Images in a network evaluation.")
    repeats: Natural = doc("Samples of each layer, in turn with the teacher's own in its place; the median counts.")


class OwnLatency(Timing):
    source: Literal["none", "measure"] = doc("None, or measure, on this machine, where nothing else should run then.")
    path: None = doc("Null, as no table is read.")


class GivenLatency(Timing):
    source: Literal["path"] = doc("Take a results/latency.json kept from before.")
    path: FilePath = doc("The kept table.")


MeasureLatency = Annotated[OwnLatency | GivenLatency, Field(discriminator="source")]


class Native(Section):
    native: bool = doc("""Whether the student is to be of its teacher's own class, which loads without custom code. Then the
        search chooses layers a block, attentions and the mid block, and without cross-attention channels by level (shares
        `widths` of the teacher's), for one interval.""")


class Assemble(Native):
    rule: Literal["budget", "local", "random", "uniform", "largest"] = doc("""budget minimises the summed scores within
        the budget, local takes each block's cheapest within its error. Controls are random (within the budget), uniform
        (the same share of every layer's width) and largest (the teacher's blocks, whatever the budget).""")
    score: Literal["local", "output", "combined"] = doc("""What budget sums up, the error of each block's own outputs
        (local), or of the teacher's denoised image with it (output), or the geometric mean of both (combined); each
        counts by the share of the sampler's steps.""")
    macs: Positive | None = doc("MACs as a share of the teacher's, weighted by the sampler's steps; null for no limit.")
    time: Positive | None = doc("Evaluation time, likewise, by the table of measure_latency; null for no limit.")
    params: Positive | None = doc("Parameters in total as a share of the teacher's; null for no limit.")
    params_active: Positive | None = doc("Parameters used in a step as a share of the teacher's; null for no limit.")
    tau: NotNegative | Literal["auto"] = doc("""Error allowed above that of the teacher-shaped block by the rule local,
        a number from 0, or auto to meet the budget.""")
    tau_rel: NotNegative = doc("The same, relative to the teacher-shaped block's own error.")
    decoder_widths: list[Kept[Annotated[Finite, Field(gt=0, le=16)]]] | None = doc("""For a given architecture, the
        channels of each interval's decoder as a share of the teacher's; null for a searched one.""")
    snap_boundaries: bool = doc("""Move the boundaries to the sampler's nearest steps, and restart multistep solvers
        there, so that no step mixes two decoders.""")


OptimizerName = Literal["adamw", "muon"]


class Retrain(Averaged):
    init: Literal["inherit", "teacher", "scratch"] = doc("""Start from the supernets' weights, with every decoder from
        the teacher's weights, or from scratch.""")
    joint_loss: Literal["linear", "constant", "none"] = doc("""How the weight a of the end-to-end losses against the
        block losses rises from 0 to 1; none leaves the latter out.""")
    ramp: Kept[Annotated[Finite, Field(ge=0, le=1)]] = doc("With linear, share of steps until all loss is end to end.")
    output_weight: NotNegative = doc("Weight lambda of the teacher's output among the end-to-end losses.")
    jacobian_weight: NotNegative = doc("""Weight mu of the difference of the student's and the teacher's Jacobian-vector
        products along random directions. Above 0 both networks run twice in a step.""")
    interval_probabilities: Literal["density", "uniform"] | list[Positive] = doc("""How often training draws each
        interval, by the density of t, all alike (uniform), or as given by a list.""")
    horizontal_flip: bool = doc("Mirror images at random while training.")
    optimizer: OptimizerName = doc("""adamw, or muon for the kernels of convolutions and linear layers, which comes nearer to
        the teacher in as many steps at the same learning_rate.""")


class Evaluate(Section):
    samples: ImageCount = doc("Images sampled from each model; more than the extractor has features.")
    batch_size: Million = doc("Samples drawn at once. A job that is killed continues after the last finished batch.")
    extractor: FilePath = doc("""classifier (trained by train_extractor), inception-v3-compat, or a TorchScript file,
        whose code is run.""")
    kid_subset_size: ImageCount = doc("Images in each of KID's subsets.")
    guidance: Kept[Annotated[Finite, Field(ge=1, le=100)]] = Field(
        default=1.0,
        description="Scale of classifier-free guidance, for teachers conditioned on prompts; may be left out, for 1.",
    )
    student_steps: Count | None = Field(
        default=None,
        description="Network evaluations per image of the student, where they are not to be as many as the teacher's, which are "
        "sampling.steps; may be left out, for null.",
    )
    clip: FilePath | None = Field(
        default=None,
        description="Folder of a CLIPModel with its tokenizer and image processor, by which the agreement of image and prompt is "
        "measured (CLIP score); may be left out, for null.",
    )
    neighbours: Million = doc("Neighbours k of precision and recall.")
    speed_batch: Million = doc("Images in the batch whose speed is measured.")
    speed_repeats: Million = doc("Timed repeats.")


class Report(Section):
    images: Annotated[Natural, Field(le=256)] = doc("Images of each model shown.")


class Publish(Section):
    license: License | None = doc("""The student's licence by its short name on the hub; null is that of the given
        teacher's own model card, or unknown.""")
    base_model: HubName | None = doc("The given teacher's name on the hub; null leaves it out.")
    dataset: HubName | None = doc("The images' name on the hub; null leaves it out.")


class Seeded(Section):
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = doc("""Seed of every random draw; the same params and seed give
        the same bytes on a CPU.""")


class OnDevice(Section):
    device: Literal["auto", "cpu", "cuda"] = doc("Where networks run; auto takes the GPU when there is one.")


class Precise(OnDevice):
    precision: Literal["fp32", "bf16"] = doc("Number format; bf16 is autocast in training and sampling, weights fp32.")


class OfArchitecture(Section):
    architecture: Literal["searched", "given"] = doc("""searched finds the student's blocks by a search; given takes
        decoders of assemble.decoder_widths, without one.""")


class Noised(Section):
    diffusion: Diffusion = doc("""The noise process, shared by teacher and student. With a teacher from a folder it must
        be the teacher's own.""")


class Sampled(Noised):
    sampling: Sampling = doc("The sampler used for all evaluation, of teacher and student alike.")


class Everything(Seeded, Precise, OfArchitecture, Sampled):
    """All sections; `Params` also checks what clashes between them."""

    prepare_data: PrepareData = doc("The images a run starts from.")
    encode_prompts: EncodePrompts = doc(
        "What a text encoder makes of the images' prompts, or an embedding of their classes, for teachers that attend to it."
    )
    train_autoencoder: TrainAutoencoder = doc("The autoencoder whose latents diffusion runs in, or none for pixels.")
    train_teacher: TrainTeacher = doc("The teacher, trained here or taken from a diffusers folder.")
    train_extractor: TrainExtractor = doc("""The small classifier whose features give FID, KID, precision and recall
        when evaluate.extractor is classifier.""")
    cluster_timesteps: ClusterTimesteps = doc("Noise levels, grouped by how alike their optimal denoisers are.")
    cache_features: CacheFeatures = doc("The teacher's tensors at all block borders, which block searches learn from.")
    search_block: SearchBlock = doc("One supernet per block, in the decoder per block and range of intervals.")
    measure_latency: MeasureLatency = doc("Latency of every layer shape searched, for search and a budget of time.")
    assemble: Assemble = doc("One candidate per block is chosen.")
    retrain: Retrain = doc("The assembled student is trained with the dynamic joint loss.")
    evaluate: Evaluate = doc("Teacher and student, sampled and scored by the same code.")
    report: Report = doc("The page results/report.html.")
    publish: Publish = doc("The folder results/model, ready for a model hub.")


class Choice(NamedTuple):
    """A section whose keys depend on one of them: that key, and the model for each of its values."""

    key: str
    members: dict[str, type[Section]]


CHOICES = {
    name: Choice(
        key,
        {tag: model for model in get_args(field.annotation) for tag in get_args(model.model_fields[key].annotation)},
    )
    for name, field in Everything.model_fields.items()
    if isinstance(key := field.discriminator, str)
}
