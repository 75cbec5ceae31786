"""Bad input to prepare_data ends in one line that says what, where and what to do, and leaves nothing behind."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import prepare_data_keys, section_with, settings
from PIL import Image

from stagecraft.config.stages import PrepareData
from stagecraft.data.prepared import PreparedData, save
from stagecraft.data.sources import load_source, source_fingerprint
from stagecraft.data.splits import split

ROOT = Path(__file__).resolve().parents[1]


def refusal(function, *arguments):
    """Return the one-line message of the ValueError that a call ends in."""
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def refused(**changes):
    return refusal(load_source, settings(**changes))


def refused_npz(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return refused(source="npz", path=tmp_path / "a.npz")


def save_images(folder, count=12, size=(8, 8)):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


PARAMS = PrepareData(seed=0, prepare_data=settings(source="digits"))

# --- settings ---


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"source": "folder", "path": "no/such/folder"}, "no/such/folder: there is no such folder"),
        ({"source": "npz", "path": "no/such.npz"}, "no/such.npz: there is no such file"),
        ({"source": "npz", "path": "."}, "there is no such file"),
    ],
)
def test_impossible_settings_are_named(changes, expected):
    assert expected in refused(**changes)


@pytest.mark.parametrize("changes", [{"path": "no/such/folder"}, {"source": "npz", "path": "no/such.npz"}])
def test_fingerprint_of_a_missing_path_is_refused(changes):
    assert "prepare_data.path" in refusal(source_fingerprint, settings(**changes))


# --- folder ---


def test_empty_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    assert f"{tmp_path}: holds no images" in refused(path=tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_truncated_image_is_named(tmp_path, suffix):
    save_images(tmp_path)
    with Image.open(tmp_path / "07.png") as image:
        image.resize((64, 64)).save(tmp_path / f"07x{suffix}")
    truncate(tmp_path / f"07x{suffix}")
    message = refused(path=tmp_path, resolution=8)
    assert f"07x{suffix}: " in message and "replace or remove the file" in message


@pytest.mark.parametrize("content", [b"no image at all\n", b""])
def test_text_or_nothing_named_png_is_named(tmp_path, content):
    (save_images(tmp_path) / "03.png").write_bytes(content)
    assert "03.png: not a PNG, JPEG or WebP image" in refused(path=tmp_path)


def test_other_format_named_png_is_named(tmp_path):
    Image.new("L", (8, 8)).save(save_images(tmp_path) / "03.png", "GIF")
    assert "03.png: not a PNG, JPEG or WebP image" in refused(path=tmp_path)


def test_corrupted_bytes_end_in_one_line_or_in_an_image(tmp_path):
    clean = (save_images(tmp_path, 1, (16, 16)) / "00.png").read_bytes()
    for position in range(0, len(clean), 7):
        (tmp_path / "00.png").write_bytes(clean[:position] + b"\xff\x00" + clean[position + 2 :])
        try:
            load_source(settings(path=tmp_path))
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path}/00.png") and "\n" not in str(error)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 3)])
def test_images_under_4_pixels_a_side_are_named(tmp_path, size):
    save_images(tmp_path, size=size)
    for resolution in (None, 8):
        assert f"00.png: {size[1]}x{size[0]} pixels" in refused(path=tmp_path, resolution=resolution)


def test_different_sizes_without_a_resolution_name_two_files(tmp_path):
    save_images(tmp_path)
    Image.new("L", (9, 9)).save(tmp_path / "05.png")
    Image.new("L", (10, 9)).save(tmp_path / "06.png")
    message = refused(path=tmp_path)
    assert "00.png has 8x8" in message and "05.png has 9x9" in message and "set prepare_data.resolution" in message


def test_images_that_are_not_square_need_a_resolution(tmp_path):
    save_images(tmp_path, size=(8, 9))
    assert "00.png: 9x8 pixels are not square; set prepare_data.resolution" in refused(path=tmp_path)


def test_images_beside_class_folders(tmp_path):
    save_images(tmp_path)
    save_images(tmp_path / "cats")
    message = refused(path=tmp_path)
    assert "top level (00.png)" in message and "class folders (cats/00.png)" in message


@pytest.mark.parametrize("limit", [40, 20])  # Pillow warns above the limit and refuses above twice the limit
def test_decompression_bomb_is_named(tmp_path, monkeypatch, limit):
    save_images(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    message = refused(path=tmp_path)
    assert "00.png: cannot be decoded" in message and "decompression bomb" in message


# --- npz ---


def test_npz_with_floats(tmp_path):
    assert "images is float32; save the pixels as uint8" in refused_npz(
        tmp_path, images=np.zeros((12, 8, 8), np.float32)
    )


@pytest.mark.parametrize("shape", [(12,), (12, 8), (12, 8, 8, 4), (12, 3, 8, 8), (12, 8, 8, 1, 1)])
def test_npz_with_a_wrong_shape(tmp_path, shape):
    assert f"images has the shape {shape}" in refused_npz(tmp_path, images=np.zeros(shape, np.uint8))


def test_npz_with_images_that_are_too_small_or_not_square(tmp_path):
    assert "images: 2x2 pixels" in refused_npz(tmp_path, images=np.zeros((12, 2, 2), np.uint8))
    assert "9x8 pixels are not square" in refused_npz(tmp_path, images=np.zeros((12, 8, 9), np.uint8))


def test_npz_without_images(tmp_path):
    assert "holds no array called images or arr_0" in refused_npz(tmp_path, pictures=np.zeros((12, 8, 8), np.uint8))


@pytest.mark.parametrize("labels", [np.zeros(11, int), np.zeros(12), np.zeros((12, 1), int)])
def test_npz_with_labels_that_do_not_fit(tmp_path, labels):
    message = refused_npz(tmp_path, images=np.zeros((12, 8, 8), np.uint8), labels=labels)
    assert f"labels is {labels.dtype} of shape {labels.shape}; wanted are 12 integers" in message


def test_npz_with_pickled_objects_is_not_unpickled(tmp_path):
    assert "cannot be read (Object arrays" in refused_npz(tmp_path, images=np.array([{}, None], object))


def test_damaged_npz(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((12, 8, 8), np.uint8))
    truncate(tmp_path / "a.npz")
    assert "a.npz: not an npz archive" in refused(source="npz", path=tmp_path / "a.npz")


def test_npy_named_npz(tmp_path):
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, np.zeros((12, 8, 8), np.uint8))
    assert "a.npz: not an npz archive" in refused(source="npz", path=tmp_path / "a.npz")


# --- split ---


@pytest.mark.parametrize("n", [0, 9])
def test_too_few_images_to_split(n):
    assert f"only {n} images, too few to split" in refusal(split, n, 0.2, 0, None)


@pytest.mark.parametrize("held_out", [0, 1, -0.2, 1.5, float("nan")])
def test_impossible_share(held_out):
    assert f"prepare_data.held_out: {held_out}" in refusal(split, 100, held_out, 0, None)


# --- prepared folder ---


@pytest.fixture
def prepared(tmp_path):
    images = load_source(settings(source="digits"))
    save(tmp_path / "prepared", images, split(1797, 0.2, 0, images.labels), PARAMS)
    return tmp_path / "prepared"


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
def test_missing_file_of_prepared_data(prepared, name):
    (prepared / name).unlink()
    message = refusal(PreparedData.load, prepared)
    assert message == f"{prepared / name}: missing; run prepare_data again (snakemake --forcerun prepare_data)"


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
@pytest.mark.parametrize("keep", [0, 40, 1000])
def test_truncated_file_of_prepared_data(prepared, name, keep):
    (prepared / name).write_bytes((prepared / name).read_bytes()[:keep])
    assert str(prepared / name) in refusal(PreparedData.load, prepared)


@pytest.mark.parametrize(
    "name, array",
    [
        ("images.npy", np.zeros((3, 8, 8, 1), np.uint8)),
        ("images.npy", np.zeros((1797, 8, 8, 1))),
        ("labels.npy", np.zeros(0, np.int64)),
        ("labels.npy", np.zeros(1797)),
        ("labels.npy", np.full(1797, 10)),
    ],
)
def test_other_arrays_than_meta_was_written_for(prepared, name, array):
    np.save(prepared / name, array)
    assert str(prepared / name) in refusal(PreparedData.load, prepared)


@pytest.mark.parametrize("change", [{"train": [0]}, {"held_out": []}, {"count": 5}, {"train": list(range(1797))}])
def test_edited_meta(prepared, change):
    meta = json.loads((prepared / "meta.json").read_text())
    (prepared / "meta.json").write_text(json.dumps(meta | change))
    message = refusal(PreparedData.load, prepared)
    assert re.search(
        r"meta\.json: sha256 \w{12}\.\.\., but its content_sha256 says \w{12}\.\.\.; run prepare_data", message
    )


@pytest.mark.parametrize("content", ["{}", "[]", "", "[" * 100_000, '{"count": ' + "9" * 5000 + "}", '{"a": NaN}'])
def test_another_meta(prepared, content):
    (prepared / "meta.json").write_text(content)
    message = refusal(PreparedData.load, prepared)
    assert message.startswith(f"{prepared / 'meta.json'}: ") and "snakemake --forcerun prepare_data" in message


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
def test_a_changed_pixel_or_label(prepared, name):
    array = np.load(prepared / name)
    array.flat[100] ^= 1
    np.save(prepared / name, array)
    assert f"{name}: sha256" in refusal(PreparedData.load, prepared)


def test_error_while_saving_leaves_the_old_files(prepared, monkeypatch):
    before = {path.name: path.read_bytes() for path in prepared.iterdir()}
    images = load_source(settings(source="digits", resolution=4))
    parts = split(1797, 0.5, 1, images.labels)
    assert refusal(
        save, prepared, images, parts, section_with(PrepareData, seed=math.nan, prepare_data=PARAMS.prepare_data)
    )  # no JSON
    assert {path.name: path.read_bytes() for path in prepared.iterdir()} == before


# --- the command ---


def run_command(output, **changes):
    params = json.dumps({"seed": 0, "prepare_data": prepare_data_keys(**changes)})
    command = [
        sys.executable,
        "-m",
        "stages.prepare_data",
        "--params",
        params,
        "--threads",
        "2",
        "--output",
        str(output),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def damaged(folder):
    truncate(save_images(folder, size=(32, 32)) / "04.png")


def text_file(folder):
    (save_images(folder) / "04.png").write_text("no image")


def too_few(folder):
    save_images(folder, count=9)


@pytest.mark.parametrize(
    "spoil, expected", [(damaged, "04.png"), (text_file, "04.png: not a PNG"), (too_few, "only 9 images")]
)
def test_command_ends_in_one_line_and_leaves_nothing(tmp_path, spoil, expected):
    spoil(tmp_path / "raw")
    output = tmp_path / "prepared"
    output.mkdir()  # as Snakemake does
    run = run_command(output, path=tmp_path / "raw")
    assert run.returncode != 0 and run.stdout == ""
    assert run.stderr.startswith("error: prepare_data: ") and run.stderr.count("\n") == 1 and expected in run.stderr
    assert list(output.iterdir()) == []


def test_command_writes_the_three_files(tmp_path):
    save_images(tmp_path / "raw")
    run = run_command(tmp_path / "prepared", path=tmp_path / "raw")
    assert run.returncode == 0 and run.stderr == ""
    data = PreparedData.load(tmp_path / "prepared")
    assert data.meta["params"]["prepare_data"]["path"] == str(tmp_path / "raw") and len(data.train_images) == 10
