"""Teachers and autoencoders from elsewhere: what is read of their folders, and what is refused before the first job and why."""

import json
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DModel, VQModel
from helpers import PROMPTED, VAE, ddpm_params, preset_params, tiny_unet

from stagecraft.config.sections import Everything, GivenAutoencoder, GivenTeacher
from stagecraft.data.survey import Survey
from stagecraft.data.training import TrainingSet
from stagecraft.diffusion.stated import check_steps
from stagecraft.networks.autoencoder import encode, load_given_autoencoder
from stagecraft.networks.given import Space
from stagecraft.networks.given_teacher import open_given_teacher
from stagecraft.networks.pipelines import load_given_teacher
from stagecraft.networks.unet2d import multi_decoder_unet
from stagecraft.networks.unet2d.config import BLOCK_TYPES
from stagecraft.networks.unet2d_condition import config as condition_config
from stagecraft.networks.unet2d_condition import multi_decoder_unet_condition
from stagecraft.networks.weights import find_weights
from stagecraft.preflight.given_models import check_given_autoencoder, check_given_teacher, network_space
from stagecraft.preflight.jobs import autoencoder_files, teacher_files
from stagecraft.preflight.params import validate_params
from stagecraft.preflight.run import check_inputs

LEVELS = {
    "block_out_channels": (16, 16, 32, 32),
    "down_block_types": ("DownBlock2D",) * 4,
    "up_block_types": ("UpBlock2D",) * 4,
}
PLAIN = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A teacher's folder: grey images of 8 x 8 pixels, default DDPM scheduler."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_unet().save_pretrained(folder / "unet")
    DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "a teacher's")


@pytest.fixture
def params(folder) -> dict:
    return given_params(folder)


def given_params(folder: Path, **changes) -> dict:
    params = ddpm_params()
    params["train_teacher"] |= {"source": "path", "path": str(folder)}
    params["search_block"]["channels"] = 1.0
    for section, values in changes.items():
        params[section] |= values
    return params


def survey(side=8, channels=1, classes=None) -> Survey:
    return Survey(40, 10, side, side, channels, classes)


def edit(folder: Path, name="unet/config.json", **changes) -> None:
    data = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in data.items() if value != "absent"}))


def space(params: dict, seen: Survey) -> Space:
    """What the UNet of these params draws."""
    return network_space(Everything.model_validate(params), seen)


def at_start(params: dict, seen: Survey) -> str | None:
    """What is refused before the first job; None for nothing."""
    try:
        check_given_autoencoder(Everything.model_validate(params), seen)
        check_given_teacher(Everything.model_validate(params), seen)
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def in_stage(params: dict, seen: Survey) -> str | None:
    """The same of what loads the teacher in its stage, with images or latents of this size."""
    drawn = space(params, seen)
    labels = None if seen.classes is None else torch.tensor([*seen.classes.values()] * 20)[:40]
    x = torch.zeros(40, drawn.channels, drawn.side, drawn.side)
    images = TrainingSet(x, labels, class_numbers=seen.classes)
    try:
        open_given_teacher(params["train_teacher"]["path"], images, params["diffusion"], drawn)
    except ValueError as error:
        return str(error)
    return None


def remedies(message: str) -> list[tuple[str, str, object]]:
    """(section, key, value) of all params that a message says to set."""
    found = re.findall(
        r"(prepare_data|diffusion|sampling|train_\w+)\.(\w+): (\S+?)(?=[,;]|\s|$)", message.split("; ", 1)[1]
    )
    return [(section, key, yaml.safe_load(value)) for section, key, value in found]


# --- Refused before the first job, and by the stage in the same words ---

REFUSED = {
    "of text models": ({"_class_name": "UNet3DConditionModel"}, {}, "_class_name is 'UNet3DConditionModel'"),
    "of sounds": ({"_class_name": "UNet1DModel"}, {}, "_class_name is 'UNet1DModel'"),
    "a transformer": ({"_class_name": "Transformer2DModel"}, {}, "_class_name is 'Transformer2DModel'"),
    "of no class": ({"_class_name": "absent"}, {}, "_class_name is None"),
    "a block type": ({"down_block_types": ["DownBlock2D", "AttnSkipDownBlock2D"]}, {}, "AttnSkipDownBlock2D is not"),
    "an embedding": ({"class_embed_type": "timestep"}, {}, "class_embed_type is 'timestep'"),
    "prompts": (PROMPTED, {}, "is conditioned on prompts; set encode_prompts.source: path"),
    "fewer widths": ({"block_out_channels": [16]}, {}, "block_out_channels is [16] for 2 levels"),
    "odd groups": ({"norm_num_groups": 5}, {}, "block_out_channels [16, 32] are no multiples of norm_num_groups 5"),
    "no groups": ({"norm_num_groups": 0}, {}, "are no multiples of norm_num_groups 0"),
    "groups unsaid": ({"norm_num_groups": "absent"}, {}, "are no multiples of norm_num_groups 32"),
    "widths of text": ({"block_out_channels": ["16", 32]}, {}, "block_out_channels ['16', 32] are no multiples"),
    "no halving": ({"downsample_type": "none"}, {}, "downsample_type is 'none'"),
    "another size": ({"sample_size": 16}, {}, "sample_size is 16 but the images have 8 pixels a side"),
    "sides that differ": ({"sample_size": [32, 16]}, {}, "sample_size is [32, 16], but only square images"),
    "a size of text": ({"sample_size": "8"}, {}, "sample_size is '8', no side or pair"),
    "three sides": ({"sample_size": [8, 8, 8]}, {}, "sample_size is [8, 8, 8], no side or pair"),
    "colour": ({"in_channels": 3, "out_channels": 3}, {}, "in_channels is 3 but the images have 1 channels"),
    "four channels": ({"in_channels": 4, "out_channels": 4}, {}, "in_channels is 4 but images have 1 or 3 channels"),
    "other outputs": ({"out_channels": 3}, {}, "out_channels is 3 for in_channels 1"),
    "no labels": ({"num_class_embeds": 4}, {}, "num_class_embeds is 4 but the images have no labels"),
    "more classes": (
        {"num_class_embeds": 4},
        {"classes": {"1": 1, "5": 5}},
        "num_class_embeds is 4 but the images have the class 5",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_teacher_that_cannot_be_used_is_refused_at_the_start_and_by_its_stage(folder, params, name):
    changes, images, reason = REFUSED[name]
    edit(folder, **changes)
    message = at_start(params, survey(**images))
    assert message is not None and reason in message and str(folder / "unet" / "config.json") in message
    assert in_stage(params, survey(**images)) == message
    for section, key, value in remedies(message):
        assert (section, key, value) in [("prepare_data", "resolution", 16), ("prepare_data", "channels", 3)]
        params[section][key] = value
        validate_params(params, "params.yaml")
        assert (
            at_start(params, survey(params["prepare_data"]["resolution"] or 8, params["prepare_data"]["channels"] or 1))
            is None
        )


def test_a_teacher_that_fits_is_accepted(folder, params):
    assert at_start(params, survey()) is None and in_stage(params, survey()) is None
    edit(folder, num_class_embeds=6)
    assert at_start(params, survey(classes={"1": 1, "5": 5})) is None


def test_what_is_not_known_of_the_images_is_not_checked(folder, params):
    edit(folder, sample_size=16)
    assert at_start(params, Survey(0, 0)) is None
    edit(folder, in_channels=4, out_channels=4)
    assert "images have 1 or 3" in at_start(params, Survey(0, 0))


def test_the_start_of_a_run_looks_at_the_teacher(folder, params):
    check_inputs(Everything.model_validate(params))
    edit(folder, sample_size=16)
    with pytest.raises(ValueError, match=r"set prepare_data\.resolution: 16 \(.*\), or give another teacher"):
        check_inputs(Everything.model_validate(params))
    params["prepare_data"]["resolution"] = 16
    check_inputs(Everything.model_validate(params))


def test_the_types_of_blocks_are_those_that_can_be_rebuilt():
    assert BLOCK_TYPES == multi_decoder_unet.BLOCK_TYPES
    assert condition_config.BLOCK_TYPES == multi_decoder_unet_condition.BLOCK_TYPES


# --- Sides ---


@pytest.mark.parametrize("size", [8, [8, 8], None, "absent"])
def test_a_size_that_is_a_pair_or_left_out_is_read(folder, params, size):
    edit(folder, sample_size=size)
    assert at_start(params, survey()) is None
    unet, _ = open_given_teacher(
        str(folder),
        TrainingSet(torch.zeros(4, 1, 8, 8)),
        params["diffusion"],
        space(params, survey()),
    )
    assert unet.config["sample_size"] == 8


def teacher_of_levels(folder: Path, size) -> dict:
    shutil.rmtree(folder / "unet")
    tiny_unet(sample_size=size, **LEVELS).save_pretrained(folder / "unet")
    return given_params(folder)


@pytest.mark.parametrize(
    ("size", "side", "offered"),
    [(28, 28, [32, 24]), (None, 28, [32, 24]), (28, 36, [40, 32]), (28, 5, [8]), (None, 4092, [4096, 4088])],
)
def test_sides_that_the_levels_cannot_halve_are_refused_with_some_that_they_can(folder, size, side, offered):
    params = teacher_of_levels(folder, size)
    message = at_start(params, survey(side))
    assert f"{side} pixels cannot be halved 3 time(s)" in message and "resize: pad" in message
    assert in_stage(params, survey(side)) == message
    assert [value for _, _, value in remedies(message)] == offered
    for value in offered:
        validate_params(given_params(folder, prepare_data={"resolution": value}), "params.yaml")
        assert at_start(params, survey(value)) is None


@pytest.mark.parametrize(
    ("size", "side", "accepted"), [(28, 32, True), (None, 16, True), (32, 16, False), (32, 32, True)]
)
def test_a_size_binds_where_the_levels_can_halve_it(folder, size, side, accepted):
    params = teacher_of_levels(folder, size)
    assert (at_start(params, survey(side)) is None) == accepted
    if accepted and side == 32:
        unet, _ = open_given_teacher(
            str(folder),
            TrainingSet(torch.zeros(4, 1, side, side)),
            params["diffusion"],
            space(params, survey(side)),
        )
        assert unet.config["sample_size"] == side
        assert unet(torch.zeros(1, 1, side, side), 0).sample.shape[-1] == side


@pytest.mark.parametrize(
    "change", [{}, {"downsample_type": "resnet", "upsample_type": "resnet"}, {"downsample_padding": 0}]
)
@pytest.mark.parametrize("block", ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"])
def test_what_is_said_of_sides_is_what_a_network_does(tmp_path, change, block):
    up = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D"}.get(block, "ResnetUpsampleBlock2D")
    kinds = {"down_block_types": (block,) * 3, "up_block_types": (up,) * 3, "block_out_channels": (8, 8, 8)}
    unet = tiny_unet(sample_size=None, **kinds, **change)
    unet.save_pretrained(tmp_path / "unet")
    for side in range(4, 14):
        try:
            works = unet(torch.zeros(1, 1, side, side), 0).sample.shape[-1] == side
        except RuntimeError:
            works = False
        assert works == (at_start(given_params(tmp_path), survey(side)) is None), side


def test_a_teacher_that_is_trained_here_needs_sides_that_its_levels_can_halve(params):
    params["train_teacher"] |= {
        "source": "train",
        "path": None,
        "block_out_channels": [8] * 4,
        "attention": [False] * 4,
    }
    message = at_start(params, survey(28))
    assert message.startswith("prepare_data.resolution: 28 pixels cannot be halved 3 time(s)")
    for _, _, value in remedies(message):
        assert at_start(params, survey(value)) is None
    assert "give it fewer levels" in message
    params["train_teacher"] |= {"block_out_channels": [8] * 3, "attention": [False] * 3}
    assert at_start(params, survey(28)) is None
    params["train_teacher"]["class_conditional"] = True
    assert "the images have no labels" in at_start(params, survey(28))
    params["train_autoencoder"] |= {"source": "train", "block_out_channels": [8, 8, 8]}
    assert at_start(params, survey(28, classes={"a": 0})).startswith(
        "prepare_data.resolution: 7 latents cannot be halved 2"
    )
    assert "30 pixels cannot be divided by 4" in at_start(params, survey(30))


def test_in_latents_a_teachers_side_is_that_of_the_latents(folder, tmp_path):
    AutoencoderKL(**VAE).save_pretrained(tmp_path / "vae")
    edit(folder, in_channels=2, out_channels=2)
    params = given_params(folder, train_autoencoder={"source": "path", "path": str(tmp_path / "vae")})
    assert at_start(params, survey(16)) is None
    message = at_start(params, survey(24))
    assert "sample_size is 8 but the autoencoder's latents have 12 latents a side" in message
    assert remedies(message) == [("prepare_data", "resolution", 16)]
    assert "one latent stands for 2 pixels, which 15" in at_start(params, survey(15))
    edit(folder, in_channels=4, out_channels=4)
    assert "in_channels is 4 but the autoencoder's latents have 2 channels" in at_start(params, survey(16))
    VQModel(**VAE | {"vq_embed_dim": 4}).save_pretrained(tmp_path / "vae")
    assert at_start(params, survey(16)) is None
    with torch.no_grad():
        assert encode(load_given_autoencoder(tmp_path / "vae"), torch.zeros(1, 1, 16, 16)).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("changes", "images", "reason"),
    [
        ({"_class_name": "AutoencoderTiny"}, {}, "_class_name is 'AutoencoderTiny'"),
        ({"_class_name": "absent"}, {}, "_class_name is None"),
        ({"in_channels": 4, "out_channels": 4}, {}, "in_channels is 4 but images have 1 or 3 channels"),
        ({"out_channels": 3}, {}, "out_channels is 3 but in_channels is 1"),
        ({}, {"channels": 3}, "in_channels is 1 but the images have 3 channels; set prepare_data.channels: 1"),
        (
            {},
            {"side": 9},
            "set prepare_data.resolution: 12 (resize: pad keeps their pixels) or prepare_data.resolution: 8",
        ),
        ({"block_out_channels": 8}, {}, "block_out_channels is 8, no list"),
        ({"norm_num_groups": 3}, {}, "block_out_channels [8, 16] are no multiples of norm_num_groups 3"),
    ],
)
def test_an_autoencoder_that_cannot_be_used_is_refused_at_the_start(tmp_path, changes, images, reason):
    AutoencoderKL(**VAE).save_pretrained(tmp_path)
    params = preset_params("smoke")
    params["train_autoencoder"] |= {"source": "path", "path": str(tmp_path)}
    assert at_start(params, survey()) is None
    edit(tmp_path, "config.json", **changes)
    assert reason in at_start(params, survey(**images))


# --- Weights ---

KINDS = {"UNet2DModel": tiny_unet, "AutoencoderKL": lambda: AutoencoderKL(**VAE), "VQModel": lambda: VQModel(**VAE)}


def load(kind: str, folder: Path):
    """The model as its stage loads it, after the files that a run depends on are known to be there."""
    if kind == "UNet2DModel":
        files = teacher_files(GivenTeacher.model_construct(source="path", path=str(folder)))
        model = load_given_teacher(folder)
    else:
        files = autoencoder_files(GivenAutoencoder.model_construct(source="path", path=str(folder)))
        model = load_given_autoencoder(folder)
    assert sorted(Path(file).name for file in files) == sorted(file.name for file in folder.iterdir())
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"max_shard_size": "100KB"},
        {"variant": "fp16"},
        {"variant": "fp16", "max_shard_size": "60KB"},
        {"variant": "non_ema"},
    ],
    ids=lambda how: "-".join(map(str, how.values())) or "plain",
)
def test_weights_under_diffusers_other_names_are_read(tmp_path, kind, how):
    torch.manual_seed(0)
    model = KINDS[kind]()
    half = how.get("variant") == "fp16"
    (model.half() if half else model).save_pretrained(tmp_path, **how)
    found = load(kind, tmp_path)
    assert found.dtype == torch.float32
    for name, value in model.float().state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
    if "max_shard_size" in how:
        assert len([*tmp_path.iterdir()]) > 3


def test_of_several_variants_the_most_precise_is_taken(tmp_path):
    unet = tiny_unet()
    unet.save_pretrained(tmp_path, variant="non_ema")
    unet.half().save_pretrained(tmp_path, variant="fp16")
    assert find_weights(tmp_path).variant == "non_ema"
    unet.save_pretrained(tmp_path, variant="bf16")
    assert find_weights(tmp_path).variant == "non_ema"
    unet.float().save_pretrained(tmp_path)
    assert find_weights(tmp_path).variant is None
    (tmp_path / PLAIN).unlink()
    (tmp_path / "diffusion_pytorch_model.non_ema.safetensors").unlink()
    unet.save_pretrained(tmp_path, variant="ema", max_shard_size="100KB")
    assert find_weights(tmp_path).variant == "ema" and find_weights(tmp_path).sharded


@pytest.mark.parametrize(
    ("kind", "how"),
    [("UNet2DModel", "bin"), ("AutoencoderKL", "fp16.bin"), ("VQModel", "bin in shards"), ("UNet2DModel", "pt")],
)
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path, kind, how):
    where = tmp_path / "it's here"
    model = KINDS[kind]()
    model.save_pretrained(where)
    (where / PLAIN).unlink()
    if how == "pt":
        torch.save(model.state_dict(), where / "weights.pt")
    else:
        variant, size = ("fp16" if "fp16" in how else None), ("100KB" if "shards" in how else "10GB")
        model.save_pretrained(where, safe_serialization=False, variant=variant, max_shard_size=size)
    with pytest.raises(ValueError, match=r"safetensors: not found; there is .*, of pickles") as error:
        find_weights(where)
    command = str(error.value).split("if you trust it: ")[1]
    program, *arguments = shlex.split(command)
    assert program == "python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert find_weights(where).files == (where / PLAIN,)
    found = load_given_teacher(where) if kind == "UNet2DModel" else load_given_autoencoder(where)
    assert torch.equal(next(found.parameters()), next(model.parameters()))


def spoiled(change):
    """A header that is changed as a JSON object; the numbers stay."""

    def spoil(file: Path) -> None:
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return spoil


def tensor(header: dict, key: str, value) -> None:
    header["conv_in.weight"][key] = value


DAMAGE = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"more"),
    "page": lambda file: file.write_bytes(b"<html>404: not found, or too many requests</html>"),
    "pointer": lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"),
    "dtype": spoiled(lambda header: tensor(header, "dtype", "F31")),
    "shape": spoiled(lambda header: tensor(header, "shape", [1, 2])),
    "no-shape": spoiled(lambda header: header["conv_in.weight"].pop("shape")),
    "gap": spoiled(lambda header: header.pop("conv_in.weight")),
    "list": spoiled(lambda header: header.update({"conv_in.weight": [1]})),
}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_weights_are_named_at_the_start(folder, params, name, sharded):
    if sharded:
        tiny_unet().save_pretrained(folder / "unet", max_shard_size="200KB")
    weights = find_weights(folder / "unet").files
    file = next(f for f in weights if f.suffix != ".json" and b"conv_in.weight" in f.read_bytes())
    DAMAGE[name](file)
    message = at_start(params, survey())
    assert message.startswith(f"{file}: cannot be loaded as UNet2DModel (")
    assert in_stage(params, survey()) == message


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda unet: next(unet.glob("*-of-*")).unlink(),
            "but diffusion_pytorch_model.safetensors.index.json names it",
        ),
        (lambda unet: (unet / f"{PLAIN}.index.json").unlink(), "without their index; copy diffusion_pytorch_model"),
        (lambda unet: (unet / f"{PLAIN}.index.json").write_text("{"), "not valid JSON"),
        (lambda unet: (unet / f"{PLAIN}.index.json").write_text("{}"), "weight_map is no table"),
        (
            lambda unet: edit(unet, f"{PLAIN}.index.json", weight_map={"conv_in.weight": "../x.safetensors"}),
            "names '../x",
        ),
        (lambda unet: edit(unet, f"{PLAIN}.index.json", weight_map={"a": "x.bin"}), "names 'x.bin'"),
    ],
)
def test_incomplete_shards_are_named_at_the_start(folder, params, spoil, reason):
    (folder / "unet" / PLAIN).unlink()
    tiny_unet().save_pretrained(folder / "unet", max_shard_size="200KB")
    assert at_start(params, survey()) is None
    spoil(folder / "unet")
    assert reason in at_start(params, survey()) and reason in in_stage(params, survey())
    with pytest.raises(ValueError, match=r"^train_teacher\.path: "):
        teacher_files(GivenTeacher(**params["train_teacher"]))


def test_a_shard_that_lacks_what_the_index_says_is_named(folder, params):
    (folder / "unet" / PLAIN).unlink()
    tiny_unet().save_pretrained(folder / "unet", max_shard_size="200KB")
    index = f"{PLAIN}.index.json"
    table = json.loads((folder / "unet" / index).read_text())["weight_map"]
    other = next(name for name in table.values() if name != table["conv_in.weight"])
    edit(folder / "unet", index, weight_map=table | {"conv_in.weight": other})
    assert f"says that {other} holds conv_in.weight, which it lacks" in at_start(params, survey())


def test_safetensors_of_another_name_are_named(folder, params):
    (folder / "unet" / PLAIN).rename(folder / "unet" / "model.safetensors")
    assert "there is model.safetensors; rename it to diffusion_pytorch_model.safetensors" in at_start(params, survey())


# --- A learned variance ---


def test_of_a_learned_variance_the_mean_is_used(folder, params, capsys):
    unet = tiny_unet(out_channels=2)
    unet.save_pretrained(folder / "unet")
    edit(folder, "scheduler/scheduler_config.json", variance_type="learned_range")
    assert at_start(params, survey()) is None
    images = TrainingSet(torch.zeros(4, 1, 8, 8))
    found, _ = open_given_teacher(str(folder), images, params["diffusion"], space(params, survey()))
    assert "a learned variance; only the mean is used" in capsys.readouterr().out
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 500])
    with torch.no_grad():
        torch.testing.assert_close(found(x, t).sample, unet(x, t).sample[:, :1])
    assert found.config["out_channels"] == 1


# --- The search's shares of the residual stream ---


def test_shares_that_are_not_for_the_teachers_levels_are_refused_at_the_start(folder):
    params = teacher_of_levels(folder, 16)
    for shares, reason in (
        ([1.0, 0.5], "[1.0, 0.5] for 4 levels"),
        ([1.0, 0.5, 0.5, 0.5], "search_block.channels[1]: 0.5 for a level as wide as the one before"),
        ([0.5, 0.5, 1.0, 0.75], "search_block.channels[3]: 0.75 for a level as wide"),
    ):
        params["search_block"]["channels"] = shares
        assert reason in at_start(params, survey(16))
    for shares in (0.5, [1.0, 1.0, 0.5, 0.5]):
        params["search_block"]["channels"] = shares
        assert at_start(params, survey(16)) is None


# --- The scheduler ---


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"beta_schedule": "scaled_linear", "beta_end": 0.012}, "beta_schedule is 'scaled_linear'"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'"),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, "prediction_type is 'v_prediction'"),
        ({"beta_start": 1e-05, "_class_name": "PNDMScheduler"}, "beta_start is 1e-05"),
        ({"num_train_timesteps": 500, "_class_name": "HeunDiscreteScheduler"}, "num_train_timesteps is 500"),
    ],
)
def test_a_scheduler_of_another_process_is_refused_with_params_that_are_accepted(folder, params, changes, reason):
    edit(folder, "scheduler/scheduler_config.json", **changes)
    message = at_start(params, survey())
    assert reason in message and in_stage(params, survey()) == message
    for section, key, value in remedies(message):
        params[section][key] = value
    validate_params(params, "params.yaml")
    assert at_start(params, survey()) is None and in_stage(params, survey()) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"beta_schedule": "laplace"}, "beta_schedule is 'laplace', which diffusion.beta_schedule cannot say"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction', which"),
        ({"num_train_timesteps": 1}, "num_train_timesteps is 1, which"),
        ({"beta_start": 0}, "beta_start is 0, which"),
        ({"beta_start": 0.02}, "beta_start is 0.02, not below beta_end 0.02"),
        ({"rescale_betas_zero_snr": True}, "the noise says nothing about the image (prediction_type epsilon)"),
        ({"trained_betas": [0.1] * 1000}, "trained_betas are none of a beta_schedule"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is true (flow matching)"),
        ({"timestep_spacing": "even"}, "timestep_spacing is 'even'"),
        ({"steps_offset": None}, "steps_offset is None"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "(flow matching), no process of diffusion.process: vp"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "(variance exploding), no process"),
        ({"_class_name": ["my", "Own"]}, "_class_name is ['my', 'Own'], no process"),
    ],
)
def test_a_scheduler_that_params_cannot_say_is_refused_by_its_reason(folder, params, changes, reason):
    edit(folder, "scheduler/scheduler_config.json", **changes)
    message = at_start(params, survey())
    assert reason in message and message.endswith("give another teacher") and not remedies(message)
    assert in_stage(params, survey()) == message


def test_steps_that_are_no_different_timesteps_are_refused_with_some_that_are(folder, params):
    params["sampling"] |= {"scheduler": "dpm_solver", "steps": 1000}
    for changes in ({}, {"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"}):
        edit(folder, "scheduler/scheduler_config.json", timestep_spacing="absent")
        edit(folder, "scheduler/scheduler_config.json", **changes)
        message = at_start(params, survey())
        if changes.get("timestep_spacing") == "trailing":
            assert message is None
            continue
        ((section, key, value),) = remedies(message)
        assert at_start(params | {section: params[section] | {key: value}}, survey()) is None
    params["sampling"]["steps"] = 61
    assert "61 steps of dpm_solver with timestep_spacing trailing" in at_start(params, survey())
    with pytest.raises(ValueError, match="16 steps of ddim with timestep_spacing leading"):
        check_steps(
            {"scheduler": "ddim", "steps": 16}, params["diffusion"] | {"num_train_timesteps": 16}, {"steps_offset": 1}
        )


def test_headers_say_what_safetensors_says(whole):
    from safetensors import safe_open

    from stagecraft.networks.weights import read_header

    file = whole / "unet" / PLAIN
    header = read_header(file)
    with safe_open(file, framework="np") as opened:
        assert header.keys() == {*opened.keys()}
        for name in opened.keys():  # noqa: SIM118
            assert header[name]["shape"] == opened.get_slice(name).get_shape()
    assert (
        np.prod(header["conv_in.weight"]["shape"]) == UNet2DModel.from_pretrained(whole / "unet").conv_in.weight.numel()
    )
