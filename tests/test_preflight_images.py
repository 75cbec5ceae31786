"""What the images tell of a run is refused before the first job, and the remedies that are named are accepted."""

import re
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from helpers import preset_params, tiny_unet
from PIL import Image

from stagecraft.config.sections import Everything
from stagecraft.preflight import run as preflight


@pytest.fixture
def params() -> dict[str, Any]:
    return preset_params("smoke")


@pytest.fixture
def archive(tmp_path, params):
    """A function that makes an npz archive the source of the params: images of a size, perhaps labels."""

    def use(count=100, side=8, **arrays):
        height, width = (side, side) if isinstance(side, int) else side
        np.savez(tmp_path / "a.npz", images=np.zeros((count, height, width), np.uint8), **arrays)
        params["prepare_data"] |= {"source": "npz", "path": str(tmp_path / "a.npz")}

    return use


def check_inputs(params) -> None:
    """What a run that ends in an evaluation checks before its first job."""
    checked = Everything.model_validate(params)
    preflight.check_inputs(checked)
    preflight.check_counts(checked)


def refused(params) -> str:
    with pytest.raises(ValueError) as caught:
        check_inputs(params)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(params, key, value):
    section, name = key.split(".")
    params[section][name] = value


@pytest.mark.parametrize("preset", ["digits", "smoke", "diffnas", "multistage", "edm", "flow", "latent"])
def test_presets_of_the_digits_are_not_refused(preset):
    check_inputs(preset_params(preset))


# --- how many images ---


@pytest.mark.parametrize(
    ("count", "changes", "message"),
    [
        (40, {}, "32 training images are too few for evaluate.kid_subset_size 64; at least 64 are needed"),
        (20, {"evaluate.kid_subset_size": 16}, "16 training images are too few for train_extractor.features 16"),
        (90, {"evaluate.neighbours": 72}, "72 training images are too few for evaluate.neighbours 72; at least 73"),
        (12, {}, "evaluate.kid_subset_size 64, train_extractor.features 16; at least 64 are needed"),
        (90, {"prepare_data.held_out": 0.9}, "9 training images are too few"),
    ],
)
def test_too_few_images_for_a_figure_are_refused_and_what_lowers_the_need_is_accepted(
    params, archive, count, changes, message
):
    archive(count)
    for key, value in changes.items():
        put(params, key, value)
    said = refused(params)
    assert said.startswith("prepare_data: ") and message in said
    for key, value in re.findall(r"(\w+\.\w+) to (\d+)", said.partition(", or lower ")[2]):
        put(params, key, int(value))
    check_inputs(params)


def test_as_many_images_as_the_message_asks_for_are_enough(params, archive):
    archive(40)
    least = int(re.search(r"at least (\d+) are needed", refused(params))[1])
    params["prepare_data"]["held_out"] = 0.5
    archive(2 * least - 2)
    refused(params)
    archive(2 * least)
    check_inputs(params)


def test_what_other_extractors_need_is_asked_of_them_alone(params, archive, tmp_path):
    archive(100)
    params["train_extractor"]["features"] = 512
    params["evaluate"]["extractor"] = "inception-v3-compat"
    assert refused(params).endswith("features of inception-v3-compat: 2048; at least 2049 are needed")
    params["evaluate"]["extractor"] = str(tmp_path / "identity.pt")
    torch.jit.script(torch.nn.Identity()).save(params["evaluate"]["extractor"])
    check_inputs(params)


def test_the_weights_of_an_extractor_must_be_in_the_cache(params, tmp_path, monkeypatch):
    params["evaluate"] |= {"extractor": "inception-v3-compat", "kid_subset_size": 64}
    monkeypatch.setattr(preflight, "INCEPTION_FEATURES", 64)
    for variable, cache in (("XDG_CACHE_HOME", tmp_path / "torch"), ("TORCH_HOME", tmp_path / "home")):
        monkeypatch.setenv(variable, str(tmp_path if variable == "XDG_CACHE_HOME" else cache))
        said = refused(params)
        place = re.search(rf"needs the file ({cache}/hub/checkpoints/\S+\.pth), part of", said)[1]
        (cache / "hub" / "checkpoints").mkdir(parents=True)
        shutil.copy(__file__, place)
        check_inputs(params)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_images_that_cannot_be_split_are_refused(params, archive, count):
    archive(count)
    assert f"only {count} images, too few to split" in refused(params)


def test_images_that_were_left_out_are_named_with_the_shortage(params, tmp_path):
    for number in range(20):
        Image.new("L", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "photo.heic").touch()
    params["prepare_data"] |= {"source": "folder", "path": str(tmp_path)}
    assert refused(params).endswith("(left out: 1 .heic; convert them to PNG, JPEG or WebP to have them read)")


# --- sides ---


def deeper(params, levels):
    params["train_teacher"] |= {"block_out_channels": [8] * levels, "attention": [False] * levels}
    params["search_block"]["channels"] = 1.0


@pytest.mark.parametrize(
    ("side", "levels", "autoencoder", "asked"),
    [
        (28, 4, 1, ["32", "24"]),
        (10, 3, 1, ["12", "8"]),
        (9, 2, 2, ["12", "8"]),
        (6, 1, 2, None),
        (14, 3, 2, ["16", "8"]),
    ],
)
def test_sides_that_cannot_be_halved_are_refused_with_sides_that_can(params, archive, side, levels, autoencoder, asked):
    archive(side=side)
    deeper(params, levels)
    if autoencoder > 1:
        params["train_autoencoder"] |= {"source": "train", "block_out_channels": [8] * autoencoder}
    if asked is None:
        check_inputs(params)
        return
    said = refused(params)
    assert "prepare_data.resolution: " in said and "resize: pad" in said
    assert re.findall(r"(?:set|or) prepare_data\.resolution: (\d+)", said) == asked
    for resolution in asked:
        params["prepare_data"] |= {"resolution": int(resolution), "resize": "pad"}
        check_inputs(params)


def test_the_side_of_a_folder_s_first_image_counts(params, tmp_path):
    for number in range(100):
        Image.new("L", (28, 28)).save(tmp_path / f"{number:03}.png")
    params["prepare_data"] |= {"source": "folder", "path": str(tmp_path)}
    check_inputs(params)
    deeper(params, 4)
    assert "28 pixels cannot be halved 3 time(s)" in refused(params)


def test_a_given_autoencoder_says_what_it_divides_by(params, archive, tmp_path):
    archive(side=10)
    folder = tmp_path / "vae"
    levels = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "in_channels": 1, "out_channels": 1}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    AutoencoderKL(**levels, **kinds, latent_channels=4, sample_size=16).save_pretrained(folder)
    params["train_autoencoder"] |= {"source": "path", "path": str(folder)}
    said = refused(params)
    assert "one latent stands for 4 pixels, which 10 is no multiple of" in said
    for resolution in re.findall(r"(?:set|or) prepare_data\.resolution: (\d+)", said):
        params["prepare_data"] |= {"resolution": int(resolution), "resize": "pad"}
        check_inputs(params)


def test_images_that_are_not_square_are_refused(params, archive):
    archive(side=(16, 32))
    assert "32x16 pixels are not square; set prepare_data.resolution" in refused(params)
    params["prepare_data"]["resolution"] = 16
    check_inputs(params)


# --- classes ---


@pytest.mark.parametrize("conditional", [True, False])
def test_a_class_conditional_teacher_needs_labels(params, archive, conditional):
    params["train_teacher"]["class_conditional"] = conditional
    archive(labels=np.arange(100) % 3)
    check_inputs(params)
    archive()
    if conditional:
        assert refused(params).startswith("train_teacher.class_conditional: true, but the images have no labels")
    else:
        check_inputs(params)


@pytest.fixture
def given(params, tmp_path):
    """A function that makes a class-conditional teacher the teacher of the params."""

    def use(classes):
        tiny_unet(num_class_embeds=classes).save_pretrained(tmp_path / "teacher" / "unet")
        params["train_teacher"] |= {"source": "path", "path": str(tmp_path / "teacher")}

    return use


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 3, 5, 7], None),
        ([0, 9], None),
        ([4, 4], None),
        ([1, 10], "the images have the class 10"),
        (None, "no labels"),
    ],
)
def test_labels_are_the_classes_of_a_given_teacher(params, archive, given, labels, message):
    given(10)
    archive(**({} if labels is None else {"labels": np.resize(labels, 100)}))
    if message is None:
        check_inputs(params)
    else:
        assert (
            f"unet/config.json: num_class_embeds is 10 but {'the images have ' * (labels is None)}{message}"
            in refused(params)
        )


@pytest.fixture
def class_folders(params, tmp_path):
    """A function that makes class folders with images the source of the params."""

    def use(names):
        shutil.rmtree(tmp_path / "raw", ignore_errors=True)
        for name in names:
            (tmp_path / "raw" / name).mkdir(parents=True)
            for number in range(40):
                Image.new("L", (8, 8)).save(tmp_path / "raw" / name / f"{number}.png")
        params["prepare_data"] |= {"source": "folder", "path": str(tmp_path / "raw")}

    return use


@pytest.mark.parametrize("names", [["cat", "dog", "fish"], ["0", "1", "x"], ["0", "2"], ["02", "1"]])
def test_class_folders_that_a_given_teacher_knows_are_accepted(params, given, class_folders, names):
    given(3)
    class_folders(names)
    check_inputs(params)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog"], "2 named classes (cat, dog), which leaves open which they are"),
        (["a", "b", "c", "d"], "4 named classes"),
        (["1", "2", "x"], "the class folder 1 is its class 0 in the order of names"),
        (["0", "1", "10"], "the images have the class 10"),
        (["0", "3"], "the images have the class 3"),
    ],
)
def test_class_folders_that_a_given_teacher_does_not_know_are_refused(params, given, class_folders, names, message):
    given(3)
    class_folders(names)
    said = refused(params)
    assert message in said
    assert "0 to 2" in said  # the remedy: folders of these names
    class_folders(["0", "1", "2"][: len(names)])
    check_inputs(params)
