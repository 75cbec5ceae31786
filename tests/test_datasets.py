"""What the sources, the split and the prepared folder promise for good input."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import prepare_data_keys, settings
from PIL import Image

from stagecraft.config.stages import PrepareData
from stagecraft.data.prepared import PreparedData, save
from stagecraft.data.sources import load_source, source_fingerprint
from stagecraft.data.splits import split


def grey(side=8, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (side, side), dtype, endpoint=True)


def rgb(side=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def load_one(folder, **changes):
    return load_source(settings(path=folder, **changes)).images[0]


def load_array(tmp_path, array, **changes):
    """Load one image given as an array, stored as PNG."""
    Image.fromarray(array).save(tmp_path / "a.png")
    return load_one(tmp_path, **changes)


def prepare(folder, images, seed=0, held_out=0.2):
    params = PrepareData(seed=seed, prepare_data=settings(source="digits", held_out=held_out))
    save(folder, images, split(len(images.images), held_out, seed, images.labels), params)
    return folder


@pytest.fixture(scope="module")
def digits():
    return load_source(settings(source="digits"))


# --- digits ---


def test_digits_are_1797_grey_images_over_the_full_range_with_labels(digits):
    assert digits.images.shape == (1797, 8, 8, 1) and digits.images.dtype == np.uint8
    assert digits.images.min() == 0 and digits.images.max() == 255 and len(np.unique(digits.images)) == 17
    assert digits.labels.dtype == np.int64 and digits.class_names == [str(label) for label in range(10)]


def test_digits_follow_resolution_and_channels():
    images = load_source(settings(source="digits", resolution=16, channels=3)).images
    assert images.shape == (1797, 16, 16, 3) and (images[..., 0] == images[..., 2]).all()


# --- folder: formats ---


def test_grey_and_rgb_png_are_read_bit_exactly(tmp_path):
    assert np.array_equal(load_array(tmp_path, grey())[..., 0], grey())
    assert np.array_equal(load_array(tmp_path, rgb()), rgb())


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp"])
def test_jpeg_and_webp_are_read_whatever_the_case_of_their_ending(tmp_path, name):
    kind = "WEBP" if name.endswith("webp") else "JPEG"
    Image.fromarray(np.full((8, 8, 3), (200, 60, 30), np.uint8)).save(tmp_path / name, kind, quality=95)
    assert np.abs(load_one(tmp_path).astype(int) - (200, 60, 30)).max() < 12


def test_16_bit_grey_is_scaled_to_8_bit(tmp_path):
    array = grey(dtype=np.uint16)
    assert np.array_equal(load_array(tmp_path, array)[..., 0], np.rint(array / 257).astype(np.uint8))


@pytest.mark.parametrize("mode, channels", [("RGBA", 3), ("LA", 1)])
def test_transparent_pixels_lie_over_white(tmp_path, mode, channels):
    image = Image.new(mode, (8, 8), (10, 200, 30, 255) if mode == "RGBA" else (10, 255))
    image.paste((0,) * len(mode), (0, 0, 4, 4))
    image.save(tmp_path / "a.png")
    loaded = load_one(tmp_path)
    assert loaded.shape == (8, 8, channels) and (loaded[0, 0] == 255).all() and loaded[7, 7, 0] == 10


def test_palette_images_give_their_colours_and_transparency(tmp_path):
    image = Image.fromarray(np.kron([[0, 1], [1, 2]], np.ones((4, 4))).astype(np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "a.png", transparency=2)
    loaded = load_one(tmp_path)
    assert loaded[0, 0].tolist() == [255, 0, 0]
    assert loaded[0, 7].tolist() == [0, 255, 0]
    assert loaded[7, 7].tolist() == [255, 255, 255]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    Image.fromarray(grey()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(load_one(tmp_path)[..., 0], np.rot90(grey(), -1))


# --- folder: size and channels ---


def test_crop_keeps_the_centre_and_squash_keeps_all(tmp_path):
    array = np.repeat(np.uint8([0, 90, 180, 250]), 8)[None].repeat(8, 0)  # 8 high, 32 wide, four squares
    cropped = load_array(tmp_path, array, resolution=8, resize="crop")[..., 0]
    squashed = load_array(tmp_path, array, resolution=8, resize="squash")[..., 0]
    assert np.array_equal(cropped, array[:, 12:20])
    assert squashed[0, 0] < 5 and squashed[0, 7] > 245


@pytest.mark.parametrize("side, filter_", [(32, Image.Resampling.LANCZOS), (6, Image.Resampling.BICUBIC)])
def test_images_shrink_by_lanczos_and_grow_by_bicubic(tmp_path, side, filter_):
    expected = np.asarray(Image.fromarray(rgb(side)).resize((16, 16), filter_))
    assert np.array_equal(load_array(tmp_path, rgb(side), resolution=16), expected)


def test_sizes_may_differ_when_a_resolution_is_set(tmp_path):
    for side in (5, 8, 40):
        Image.fromarray(grey(side)).resize((side, side + 3)).save(tmp_path / f"{side}.png")
    assert load_source(settings(path=tmp_path, resolution=12)).images.shape == (3, 12, 12, 1)


def test_one_colour_image_makes_all_rgb_and_rgb_files_without_colour_count_as_grey(tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.png")
    Image.fromarray(grey()).convert("RGB").save(tmp_path / "b.png")
    images = load_source(settings(path=tmp_path)).images
    assert images.shape[3] == 1 and np.array_equal(images[0], images[1])
    Image.fromarray(rgb()).save(tmp_path / "c.png")
    images = load_source(settings(path=tmp_path)).images
    assert images.shape[3] == 3 and np.array_equal(images[0, ..., 1], grey())


def test_channels_can_be_forced(tmp_path):
    assert load_array(tmp_path, rgb(), channels=1).shape == (8, 8, 1)
    assert load_array(tmp_path, grey(), channels=3).shape == (8, 8, 3)


# --- folder: names and labels ---


def save_files(folder, names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / name)


def test_files_are_sorted_by_relative_path_on_any_number_of_threads(tmp_path):
    save_files(tmp_path, ["c.png", "a.png", "b.png"])
    for threads in (1, 4):
        images = load_source(settings(path=tmp_path), threads).images
        assert images[:, 0, 0, 0].tolist() == [1, 2, 0]


def test_first_level_folders_are_classes_in_the_order_of_their_names(tmp_path):
    save_files(tmp_path, ["dog/b.png", "cat/deep/er/a.png", "dog/a.png"])
    images = load_source(settings(path=tmp_path))
    assert images.class_names == ["cat", "dog"] and images.labels.tolist() == [0, 1, 1]
    assert images.images[:, 0, 0, 0].tolist() == [1, 2, 0]


@pytest.mark.parametrize("names", [["a.png", "b.png"], ["only/a.png", "only/b.png"]])
def test_top_level_images_and_a_single_class_have_no_labels(tmp_path, names):
    save_files(tmp_path, names)
    images = load_source(settings(path=tmp_path))
    assert images.labels is None and images.class_names is None


def test_hidden_files_and_other_endings_are_ignored(tmp_path):
    save_files(tmp_path, ["a.png", ".thumbs/b.png", ".c.png"])
    (tmp_path / "README").write_text("no image")
    (tmp_path / "labels.txt").write_text("no image")
    assert len(load_source(settings(path=tmp_path)).images) == 1


# --- npz ---


@pytest.mark.parametrize("name", ["images", "arr_0"])
def test_npz_gives_images_and_their_labels(tmp_path, name):
    array = np.stack([rgb(seed=seed) for seed in range(3)])
    np.savez_compressed(tmp_path / "a.npz", **{name: array, "labels": np.int32([7, 1, 7])})
    images = load_source(settings(source="npz", path=tmp_path / "a.npz"))
    assert np.array_equal(images.images, array)
    assert images.labels.tolist() == [7, 1, 7] and images.class_names == ["1", "7"]


def test_npz_without_labels_or_channel_axis_can_be_resized(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 20, 30), np.uint8))
    images = load_source(settings(source="npz", path=tmp_path / "a.npz", resolution=16))
    assert images.images.shape == (3, 16, 16, 1) and images.labels is None


# --- fingerprint ---


def test_fingerprint_changes_with_any_image_and_with_nothing_else(tmp_path):
    save_files(tmp_path, ["cat/a.png", "dog/b.png"])
    before = source_fingerprint(settings(path=tmp_path))
    (tmp_path / "notes.txt").write_text("no image")
    assert source_fingerprint(settings(path=tmp_path)) == before
    os.utime(tmp_path / "dog/b.png", ns=(1, 1))
    touched = source_fingerprint(settings(path=tmp_path))
    (tmp_path / "dog/b.png").rename(tmp_path / "dog/c.png")
    assert len({before, touched, source_fingerprint(settings(path=tmp_path))}) == 3


def test_fingerprint_of_an_npz_changes_with_the_file_and_that_of_digits_never(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 8, 8), np.uint8))
    before = source_fingerprint(settings(source="npz", path=tmp_path / "a.npz"))
    os.utime(tmp_path / "a.npz", ns=(1, 1))
    assert source_fingerprint(settings(source="npz", path=tmp_path / "a.npz")) != before
    assert source_fingerprint(settings(source="digits")) == "digits"


def test_fingerprint_imports_neither_numpy_nor_pillow(tmp_path):
    save_files(tmp_path, ["a.png"])
    program = (
        "import sys; from stagecraft.data.sources import source_fingerprint as f;"
        "from stagecraft.config.sections import ImageFiles;"
        f"f(ImageFiles(**{prepare_data_keys(path=tmp_path)!r})); assert not {{'numpy', 'PIL', 'sklearn'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- split ---


@pytest.mark.parametrize("n, held_out, expected", [(10, 0.2, 2), (1797, 0.2, 359), (10, 0.001, 1), (10, 0.999, 9)])
def test_split_holds_out_the_share_and_leaves_none_empty(n, held_out, expected):
    train, held = split(n, held_out, 0, None)
    assert len(held) == expected and train.dtype == held.dtype == np.int64
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(n))
    assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()


def test_split_is_stratified_and_keeps_the_total():
    labels = np.repeat([0, 1, 2], [100, 51, 7])
    _, held = split(len(labels), 0.2, 3, labels)
    assert len(held) == 32 and np.abs(np.bincount(labels[held]) - np.array([20, 10.2, 1.4])).max() < 1


def test_split_depends_on_the_seed_alone():
    assert np.array_equal(split(100, 0.2, 1, None)[1], split(100, 0.2, 1, None)[1])
    assert not np.array_equal(split(100, 0.2, 1, None)[1], split(100, 0.2, 2, None)[1])


# --- prepared ---


def test_prepared_data_comes_back_as_saved(tmp_path, digits):
    data = PreparedData.load(prepare(tmp_path / "prepared", digits))
    assert (data.resolution, data.channels, data.meta["count"]) == (8, 1, 1797)
    assert np.array_equal(data.images, digits.images) and np.array_equal(data.labels, digits.labels)
    assert np.array_equal(data.train_images, digits.images[data.train_index])
    assert np.array_equal(data.held_out_images, digits.images[data.held_out_index])
    assert isinstance(data.images, np.memmap)


def test_unknown_labels_are_saved_as_an_empty_array(tmp_path):
    save_files(tmp_path / "raw", [f"{number}.png" for number in range(10)])
    folder = prepare(tmp_path / "prepared", load_source(settings(path=tmp_path / "raw")))
    stored = np.load(folder / "labels.npy")
    assert stored.shape == (0,) and stored.dtype == np.int64 and PreparedData.load(folder).labels is None


def test_two_runs_write_the_same_bytes(tmp_path):
    for run in ("one", "two"):
        prepare(tmp_path / run, load_source(settings(source="digits")))
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"images.npy", "labels.npy", "meta.json"}
    digests = {
        run: [hashlib.sha256((tmp_path / run / name).read_bytes()).digest() for name in names] for run in ("one", "two")
    }
    assert digests["one"] == digests["two"]
