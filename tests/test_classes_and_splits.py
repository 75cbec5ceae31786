"""Which classes, splits and files of a source are used: what names and numbers say is kept, used, named or refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, prepare_data_keys, settings
from PIL import Image

from stagecraft.config.stages import PrepareData
from stagecraft.data.classes import check_known, check_trained, number_classes
from stagecraft.data.prepared import PreparedData
from stagecraft.data.sources import load_source, source_fingerprint
from stagecraft.data.splits import divide
from stagecraft.data.survey import Survey, survey
from stagecraft.data.training import TrainingSet
from stages.prepare_data import prepare_data


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """The bytes of one PNG, 8x8 grey."""
    path = tmp_path_factory.mktemp("picture") / "a.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path, picture):
    """A function that fills a folder: relative paths, those with a slash at the end as empty folders; returns the folder."""

    def fill(*names):
        for name in names:
            path = tmp_path / "raw" / name
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.write_bytes(picture)
        return tmp_path / "raw"

    return fill


def several(*folders, count=6):
    """Names of some images in each of the folders."""
    return [f"{name}/{number}.png" for name in folders for number in range(count)]


def refusal(call, *arguments):
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(path, source="folder", **changes):
    """The message that the look before the first job and the stage both end with."""
    chosen = settings(path=path, source=source, **changes)
    message = refusal(survey, chosen)
    assert refusal(load_source, chosen) == message
    return message


def look(path, source="folder", **changes):
    """The loaded images; what the survey says of them is true."""
    chosen = settings(path=path, source=source, **changes)
    images, seen = load_source(chosen), survey(chosen)
    train, held_out = divide(images.contents, chosen.held_out, 0)
    assert (seen.train, seen.held_out) == (len(train), len(held_out))
    assert (seen.height, seen.width) == images.images.shape[1:3]
    assert seen.channels in (None, images.images.shape[3])
    assert (seen.classes, seen.notes) == (images.classes, images.contents.notes)
    return images


# --- numbers of classes ---


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["1", "3", "5", "7"], {"1": 1, "3": 3, "5": 5, "7": 7}),
        (["0", "1", "10", "11", "2"], {"0": 0, "1": 1, "2": 2, "10": 10, "11": 11}),
        (["007", "02", "10"], {"02": 2, "007": 7, "10": 10}),
        (["4"], {"4": 4}),
        (["dog", "cat"], {"cat": 0, "dog": 1}),
        (["cat", "Dog", "10"], {"10": 0, "Dog": 1, "cat": 2}),
        (["٣", "٤"], {"٣": 0, "٤": 1}),
        (["-1", "0"], {"-1": 0, "0": 1}),
        (["1.0", "2.0"], {"1.0": 0, "2.0": 1}),
    ],
)
def test_folders_of_numbers_are_those_classes_and_others_count_in_their_order(folder, names, classes):
    images = look(folder(*several(*names, count=10)))
    assert images.classes == classes and list(images.classes.values()) == sorted(classes.values())
    assert images.labels.dtype == np.int64 and images.labels.tolist() == [
        classes[n] for n in sorted(names) for _ in range(10)
    ]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64, ">i4"])
@pytest.mark.parametrize("numbers", [[1, 3, 5, 7], [0, 9, 9, 0], [6, 6, 6, 6]])
@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1")])
def test_labels_of_an_npz_are_kept(tmp_path, dtype, numbers, names):
    labels = np.array(numbers * 5).astype(dtype)
    np.savez(tmp_path / "a.npz", **dict(zip(names, (np.zeros((20, 8, 8), np.uint8), labels), strict=True)))
    images = look(tmp_path / "a.npz", "npz")
    assert images.labels.dtype == np.int64 and images.labels.tolist() == numbers * 5
    assert images.classes == {str(number): number for number in sorted({*numbers})}


def test_true_and_false_are_the_classes_1_and_0(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8), labels=np.arange(20) % 2 == 1)
    assert look(tmp_path / "a.npz", "npz").labels.tolist() == [0, 1] * 10


@pytest.mark.parametrize("labels", [np.arange(20) - 1, np.full(20, 2**63, np.uint64)])
def test_numbers_that_no_class_can_have_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8), labels=labels)
    assert "labels holds the class" in refused(tmp_path / "a.npz", "npz")


def test_two_folders_of_one_number_are_refused(folder):
    assert "class folders 07 and 7 are both class 7; merge them" in refused(folder(*several("7", "07", "1")))


def test_a_folder_of_a_number_that_cannot_be_stored_is_refused(folder):
    assert "class folder 9223372036854775808 is too large" in refused(folder(*several(str(2**63), "1")))


@pytest.mark.parametrize(
    ("names", "classes", "note"),
    [
        (["cat/", *several("dog", "fish")], {"cat": 0, "dog": 1, "fish": 2}, "class folders without images: cat (0)"),
        ([*several("cat"), "dog/"], {"cat": 0, "dog": 1}, "class folders without images: dog (1)"),
        (["0/", *several("2", "5")], {"0": 0, "2": 2, "5": 5}, "classes without images: 0 to 1, 3 to 4"),
        ([*several("0", "1"), "3/"], {"0": 0, "1": 1, "3": 3}, "classes without images: 2 to 3"),
    ],
)
def test_empty_class_folders_count_and_are_named(folder, names, classes, note):
    images = look(folder(*names, *several(next(name.split("/")[0] for name in names if name[-1] != "/"), count=12)))
    assert images.classes == classes and note in images.contents.notes


def test_a_class_folder_with_other_images_only_is_empty(folder):
    path = folder(*several("b", "c"), "a/1.bmp", "a/2.BMP")
    assert look(path).contents.notes == (
        "class folders without images: a (0)",
        "left out: 2 .bmp; convert them to PNG, JPEG or WebP to have them read",
    )


def test_an_empty_class_folder_changes_the_fingerprint_as_it_changes_the_numbers(folder):
    before = source_fingerprint(settings(path=folder(*several("b", "c"))))
    assert source_fingerprint(settings(path=folder("a/"))) != before


def test_hidden_folders_are_no_classes(folder):
    images = look(folder(*several("b", "c"), ".a/", ".ipynb_checkpoints/x.png", "__MACOSX/b/x.png"))
    assert images.classes == {"b": 0, "c": 1}


def test_one_named_class_gives_no_labels_and_says_what_its_folders_would(folder):
    images = look(folder(*several("flowers/rose", "flowers/tulip")))
    (note,) = images.contents.notes
    assert images.labels is None and "flowers is the only class folder" in note
    assert look(note.rpartition("prepare_data.path: ")[2].removesuffix(" for classes in it")).classes == {
        "rose": 0,
        "tulip": 1,
    }


# --- classes of a teacher ---


def in_order(names):
    """Numbers of classes as class folders get them."""
    return number_classes(names, "folder")


NUMBERED, NAMED = {"1": 1, "3": 3, "7": 7}, {"cat": 0, "dog": 1, "fish": 2}


@pytest.mark.parametrize(
    ("classes", "known"),
    [(NUMBERED, 8), (NUMBERED, 1000), (NAMED, 3), ({"0": 0, "1": 1, "x": 2}, 3), ({"4": 4}, 5)]
    + [
        (in_order(names), 3)
        for names in (["c_1", "c_2", "c_3"], ["n01440764", "n01443537", "n01484850"], ["B", "a", "é"])
    ],
)
def test_classes_that_a_teacher_knows(classes, known):
    check_known(classes, known, "config.json: num_class_embeds is")


@pytest.mark.parametrize(
    ("classes", "known", "message"),
    [
        (NUMBERED, 7, "the images have the class 7; give images of its classes 0 to 6"),
        (
            NAMED,
            10,
            "the images have 3 named classes (cat, dog, fish), which leaves open which they are; name the class folders",
        ),
        (NAMED, 2, "the images have 3 named classes"),
        ({"-1": 0, "0": 1}, 2, "the class folder 0 is its class 1"),
        ({"0": 0, "1": 1, "10": 2, "2": 3, "x": 4}, 5, "the class folder 10 is its class 2"),
        (in_order(f"class_{n}" for n in range(11)), 11, "whether class_10 or class_2 is its class 2 depends on"),
        (in_order(["a9", "a10"]), 2, "whether a10 or a9 is its class 0 depends on"),
        (in_order(["1.5 m", "10 m", "2 m"]), 3, "whether 10 m or 2 m is its class 1 depends on"),
        (None, 10, "the images have no labels; give class sub-folders"),
    ],
)
def test_classes_that_a_teacher_does_not_know_are_refused(classes, known, message):
    assert f"t/config.json: num_class_embeds is {known} but {message}" in refusal(
        check_known, classes, known, "t/config.json: num_class_embeds is"
    )


def test_a_teacher_trained_here_has_an_embedding_for_every_number_up_to_the_largest():
    assert check_trained(NUMBERED) == 8 and check_trained(NAMED) == 3
    assert "the largest class number is 20240115" in refusal(check_trained, {"20240115": 20240115, "1": 1})
    assert "the images have no labels" in refusal(check_trained, None)


def test_a_class_without_training_images_keeps_its_embedding():
    data = TrainingSet.of_images(np.zeros((2, 8, 8, 1), np.uint8), [0, 1], class_numbers={"0": 0, "1": 1, "5": 5})
    assert data.classes() == 6 and TrainingSet.of_images(data.x, data.labels).classes() == 2


# --- splits ---


def prepare(tmp_path, path, source="folder", **changes):
    """Run prepare_data; returns what it made."""
    params = PrepareData(seed=0, prepare_data=settings(path=path, source=source, **changes))
    prepare_data(params, threads=1, output=tmp_path / "prepared")
    return PreparedData.load(tmp_path / "prepared")


def rows_of(data, names):
    """Brightness of the images of a split, by which they are told apart."""
    return data.images[names, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train", "test"),
        ("Train", "TEST"),
        ("training", "validation"),
        ("train", "val"),
        ("train", "dev"),
        ("TRAIN", "Eval"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("Train Images", "test-images"),
        ("train_32x32", "valid_32x32"),
        ("train", "test1"),
        ("trainset", "testset"),
        ("cars_train", "cars_test"),
        ("seg-training", "seg-development"),
        ("TrainData", "EvaluationData"),
    ],
)
@pytest.mark.parametrize("classes", [["cat", "dog"], ["3", "10"], [""]])
def test_splits_are_used_as_splits(tmp_path, folder, capsys, train, held_out, classes):
    path = folder(*several(*(f"{train}/{name}".rstrip("/") for name in classes), count=10))
    folder(*several(*(f"{held_out}/{name}".rstrip("/") for name in classes), count=3))
    data = prepare(tmp_path, path, held_out=0.5)
    count = len(classes)
    assert (data.train_index.tolist(), data.held_out_index.tolist()) == (
        [*range(10 * count)],
        [*range(10 * count, 13 * count)],
    )
    assert (
        f"held out: {held_out}/ ({3 * count} images), so prepare_data.held_out is not used" in capsys.readouterr().out
    )
    if classes == [""]:
        assert data.labels is None and data.meta["classes"] is data.meta["class_names"] is None
    else:
        numbers = {"cat": 0, "dog": 1} if "cat" in classes else {"3": 3, "10": 10}
        assert data.classes == numbers and data.meta["class_names"] == [*numbers]
        in_order = [numbers[name] for name in sorted(classes)]
        assert data.labels.tolist() == [n for n in in_order for _ in range(10)] + [
            n for n in in_order for _ in range(3)
        ]


def test_images_of_a_split_stay_in_it(tmp_path, folder):
    path = folder(*several("train", "test", count=0), "train/", "test/", "val/")
    for place, levels in (("train", range(0, 20)), ("test", range(100, 105)), ("val", range(200, 207))):
        for level in levels:
            Image.new("L", (8, 8), level).save(path / place / f"{level:03}.png")
    data = prepare(tmp_path, path)
    assert (rows_of(data, data.train_index), rows_of(data, data.held_out_index)) == ([*range(20)], [*range(100, 105)])
    (note,) = look(path).contents.notes
    assert note == "held out: test/ (5 images), so prepare_data.held_out is not used; left out: val/ (7 images)"


def test_a_linked_split_is_used(tmp_path, folder):
    path = folder(*several("train/a", "train/b"))
    (tmp_path / "elsewhere").mkdir()
    (path / "train").rename(tmp_path / "elsewhere" / "train")
    (path / "train").symlink_to(tmp_path / "elsewhere" / "train")
    assert look(folder(*several("test/a"))).classes == {"a": 0, "b": 1}


def test_a_lone_train_folder_holds_the_images(folder):
    images = look(folder(*several("train/cat", "train/dog"), "annotations/"))
    assert images.classes == {"cat": 0, "dog": 1} and images.contents.held_out is None
    assert images.contents.notes == (
        "all images are those of train/, of which prepare_data.held_out says the share to hold out",
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test/a", "val/a"], "holds splits (test, val) but none to train on"),
        (["test"], "holds splits (test) but none to train on"),
        (
            ["train/a", "test/a", "extra/a"],
            "splits (test, train) lie beside other folders with images (extra)",
        ),
        (["cat", "dog", "train"], "splits (train) lie beside other folders with images (cat, dog)"),
        (["train", "Training", "test"], "Training and train are both the split train; merge them"),
        (["train/a", "train/b", "test/b", "test/c"], "test/c: a class without images in train"),
        (["train/0", "train/1", "test/00"], "test/00: a class without images in train"),
        (["train/only", "test/other"], "test/other: a class without images in train"),
        (["train/a", "train/b", "test"], "images lie in class folders in train but not in test"),
        (["train", "test/a"], "images lie in class folders in test but not in train"),
        (["train/a", "train", "test/a"], "images lie at the top level (0.png) and in class folders (a/0.png)"),
        (["data/train/a", "data/test/a"], "splits (test, train) lie inside data"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], "splits (test, train) lie inside cat"),
        (["train/train/a", "train/train/b"], "splits (train) lie inside train"),
        (["cat/test", "cat", "dog"], "splits (test) lie inside cat"),
        (["images/training_set", "images/test_set"], "splits (test_set, training_set) lie inside images"),
        (["train2014", "train2017", "val2017"], "train2014 and train2017 are both the split train; merge them"),
        (["trainA", "trainB", "testA", "testB"], "holds splits of several sets (testA, testB, trainA, trainB)"),
        (
            ["train", "test_easy", "test_hard"],
            "splits (train) lie beside other folders with images (test_easy, test_hard)",
        ),
    ],
)
def test_splits_that_can_be_understood_in_two_ways_are_refused(folder, names, message):
    assert message in refused(folder(*several(*names)))


@pytest.mark.parametrize("empty", ["train", "test"])
def test_an_empty_split_is_refused(folder, empty):
    path = folder(*several({"train": "test/a", "test": "train/a"}[empty]), f"{empty}/", f"{empty}/1.bmp")
    assert f"{path / empty}: a split that holds no images" in refused(path)


@pytest.mark.parametrize(
    "names", [["data/train/a", "data/test/a"], ["test/a", "test/b"], ["train/a", "train/b", "test"]]
)
def test_the_path_that_a_refusal_names_is_accepted(folder, names):
    message = refused(folder(*several(*names, count=12)))
    look(message.partition("prepare_data.path: ")[2].split(" to ")[0])


def test_names_of_splits_inside_other_names_are_classes(folder):
    assert look(folder(*several("vehicles/bus", "vehicles/train", "latest", "trainers"))).classes == {
        "latest": 0,
        "trainers": 1,
        "vehicles": 2,
    }


@pytest.mark.parametrize(
    "names",
    [
        ["bullet train", "bus"],
        ["test 1", "test 2"],
        ["dog/test1", "dog/test2", "cat/1"],
        ["constrained", "contested"],
        ["train test", "other"],
        ["datasets", "images"],
    ],
)
def test_words_of_splits_among_others_are_no_splits(folder, names):
    images = look(folder(*several(*names)))
    assert [*images.classes] == sorted({name.split("/")[0] for name in names}) and images.contents.held_out is None


def test_images_at_the_top_level_beside_an_empty_split_have_no_labels(folder):
    assert look(folder(*several(".", count=10), "test/")).contents.held_out is None


# --- npz with splits ---


def archive(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return tmp_path / "a.npz"


def zeros(count, *shape):
    return np.zeros((count, *(shape or (8, 8))), np.uint8)


KERAS = {"x_train": zeros(20), "y_train": np.arange(20) % 4, "x_test": zeros(5) + 9, "y_test": np.arange(5) % 4}
MEDMNIST = {
    **{"train_images": zeros(20), "train_labels": np.arange(20)[:, None] % 4, "val_images": zeros(7)},
    **{"val_labels": np.zeros((7, 1), int), "test_images": zeros(5) + 9, "test_labels": np.arange(5)[:, None] % 4},
}


@pytest.mark.parametrize("arrays", [KERAS, MEDMNIST, {k.replace("test", "val"): v for k, v in KERAS.items()}])
def test_splits_of_an_npz_are_used(tmp_path, arrays):
    data = prepare(tmp_path, archive(tmp_path, **arrays), "npz")
    assert rows_of(data, data.train_index) == [0] * 20 and rows_of(data, data.held_out_index) == [9] * 5
    assert data.labels.tolist() == [*np.arange(20) % 4, *np.arange(5) % 4] and data.classes == {
        str(n): n for n in range(4)
    }
    notes = look(tmp_path / "a.npz", "npz").contents.notes
    assert "(5 images), so prepare_data.held_out is not used" in notes[0]
    assert notes[1:] == (("not read of a.npz: val_images, val_labels",) if arrays is MEDMNIST else ())


def test_an_npz_with_a_training_split_only_is_split_by_share(tmp_path):
    images = look(archive(tmp_path, x_train=zeros(20), y_train=np.arange(20)), "npz")
    assert images.contents.held_out is None and "all images are those of x_train" in images.contents.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "of x_train and x_test one has labels (y_train)"),
        ({"y_test": np.arange(5) + 2}, "y_test has the class 4, which y_train lacks"),
        ({"x_test": zeros(5, 9, 9)}, "x_train has the shape (20, 8, 8) but x_test (5, 9, 9)"),
        ({"x_test": zeros(5, 8, 8, 3)}, "x_train has the shape (20, 8, 8) but x_test (5, 8, 8, 3)"),
        ({"x_test": np.zeros((5, 8, 8))}, "x_test is float64; save the pixels as uint8"),
        ({"y_train": np.zeros((20, 4), int)}, "y_train is int64 of shape (20, 4); wanted are 20 integers"),
        ({"y_train": np.arange(20.0)}, "y_train is float64"),
    ],
)
def test_splits_of_an_npz_that_do_not_fit_are_refused(tmp_path, changes, message):
    arrays = {name: array for name, array in (KERAS | changes).items() if array is not None}
    assert message in refused(archive(tmp_path, **arrays), "npz")


# --- what is left out ---


def test_images_of_other_kinds_are_counted_and_named_once(tmp_path, folder, capsys):
    path = folder(
        *several("."),
        *(f"{n}.bmp" for n in range(12)),
        "x.tif",
        "y.TIF",
        "z.tiff",
        "u.gif",
        "v.heic",
        "w.avif",
        "n.txt",
    )
    folder(*several(".", count=10))
    prepare(tmp_path, path)
    said = capsys.readouterr().out
    assert said.startswith("prepare_data: left out: 1 .avif, 12 .bmp, 1 .gif, 1 .heic, 2 .tif, 1 .tiff; convert")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "b", "c.jpeg2000"], "1 .jpeg2000, 2 without an ending"),
        (["x.jpg_large", "x.jpg.part", "y.npy"], "1 .jpg_large, 1 .npy, 1 .part"),
        (["x.zip", "sub/clip.mp4", "sub/X.JP2"], "1 .jp2, 1 .mp4, 1 .zip"),
        (["Thumbs.db", ".DS_Store", "._0.png", "README", "labels.CSV", "x.sha256"], None),
    ],
)
def test_files_that_may_be_images_are_named_and_others_are_not(folder, names, said):
    notes = look(folder(*several(".", count=10), *names)).contents.notes
    ending = "; convert them to PNG, JPEG or WebP to have them read"
    assert notes == (() if said is None else (f"left out: {said}{ending}",))


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JFIF"])
def test_jpeg_of_other_endings_is_read(tmp_path, suffix):
    for number in range(10):
        Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / f"{number}.{suffix}", "JPEG")
    assert look(tmp_path).images.shape == (10, 8, 8, 3)


def test_a_folder_of_other_kinds_only_names_them(folder):
    message = refused(folder("a/1.bmp", "a/2.bmp", "b/3.heic", "b/notes.txt"))
    assert "holds no images that can be read, only 2 .bmp, 1 .heic; convert them to PNG, JPEG or WebP" in message


@pytest.mark.parametrize("names", [[f"{n}.bmp" for n in range(99)], ["sub.tif"]])
def test_too_few_images_name_those_that_were_left_out(folder, names):
    message = refusal(survey, settings(path=folder("a.png", *names)))
    assert "only 1 images, too few to split" in message and f"(left out: {len(names)} .{names[0][-3:]}" in message


@pytest.mark.parametrize(
    ("arrays", "labels", "note"),
    [
        ({"arr_0": zeros(20), "arr_1": np.arange(20) % 3}, True, None),
        ({"arr_0": zeros(20), "arr_1": np.arange(20.0)}, False, "not read of a.npz: arr_1"),
        ({"arr_0": zeros(20), "arr_1": np.zeros((20, 3), int)}, False, "not read of a.npz: arr_1"),
        ({"arr_0": zeros(20), "arr_1": np.arange(19)}, False, "not read of a.npz: arr_1"),
        ({"arr_0": zeros(20), "arr_1": np.arange(20) % 3, "arr_2": zeros(2)}, True, "not read of a.npz: arr_2"),
        ({"arr_0": zeros(20), "arr_1": np.arange(20), "labels": np.arange(20)}, True, "not read of a.npz: arr_1"),
        ({"images": zeros(20), "label": np.arange(20), "arr_0": zeros(3)}, False, "not read of a.npz: label, arr_0"),
        ({"images": zeros(20), "arr_1": np.arange(20)}, False, "not read of a.npz: arr_1"),
    ],
)
def test_arrays_of_an_npz_are_read_or_named(tmp_path, arrays, labels, note):
    images = look(archive(tmp_path, **arrays), "npz")
    assert (images.labels is not None) == labels
    assert [line for line in images.contents.notes if line.startswith("not read")] == ([note] if note else [])


# --- the look before the first job ---


def test_the_digits_are_as_the_survey_knows_them_by_heart():
    assert survey(settings(source="digits")) == Survey(1438, 359, 8, 8, 1, {str(digit): digit for digit in range(10)})
    images = look(None, "digits", resolution=16, resize="pad")
    assert images.contents.count == len(images.images) and sorted({*images.labels.tolist()}) == [
        *images.classes.values()
    ]


def test_a_folder_with_a_resolution_is_surveyed_without_opening_an_image(folder):
    path = folder(*several("a", "b"))
    for file in path.rglob("*.png"):
        file.write_bytes(b"no image")
    seen = survey(settings(path=path, resolution=16))
    assert (seen.train, seen.held_out, seen.height, seen.width, seen.named) == (10, 2, 16, 16, True)
    assert "a/0.png: not a PNG, JPEG or WebP image" in refusal(survey, settings(path=path))


@pytest.mark.parametrize("source", ["folder", "npz"])
def test_images_that_are_not_square_are_refused_and_each_remedy_is_accepted(tmp_path, source):
    if source == "npz":
        path = archive(tmp_path, images=zeros(10, 16, 32))
    else:
        path = tmp_path
        for number in range(10):
            Image.new("L", (32, 16), number).save(path / f"{number}.png")
    message = refused(path, source)
    assert "32x16 pixels are not square; set prepare_data.resolution, as only squares can be prepared" in message
    policies = message.partition("says how: ")[2].rstrip(")").split(", ")
    assert policies == ["crop", "squash", "pad"]
    for policy in policies:
        for resolution in (16, 32):
            assert look(path, source, resolution=resolution, resize=policy).images.shape == (
                10,
                resolution,
                resolution,
                1,
            )


def test_looking_loads_neither_numpy_nor_torch(tmp_path, picture):
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(picture)
    program = (
        "import sys; from stagecraft.data.survey import survey;"
        "from stagecraft.config.sections import Digits, ImageFiles;"
        f"survey(ImageFiles(**{prepare_data_keys(path=tmp_path, resolution=8)!r}));"
        f"survey(Digits(**{prepare_data_keys(source='digits')!r}));"
        "print({'numpy', 'PIL', 'sklearn', 'torch'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert result.stdout == "set()\n"


# --- pad ---


@pytest.mark.parametrize(
    ("size", "side", "inside"), [((28, 28), 32, (2, 2)), ((20, 28), 32, (6, 2)), ((7, 5), 8, (0, 1))]
)
def test_pad_keeps_the_pixels_of_images_that_fit(tmp_path, size, side, inside):
    array = np.random.default_rng(0).integers(1, 256, (size[1], size[0], 3), np.uint8)
    for number in range(10):
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    padded = look(tmp_path, resolution=side, resize="pad").images[0]
    left, top = inside
    assert np.array_equal(padded[top : top + size[1], left : left + size[0]], array)
    assert np.count_nonzero(padded) == array.size


@pytest.mark.parametrize(
    ("size", "rows"), [((64, 32), range(8, 24)), ((40, 40), range(0, 32)), ((4096, 4), range(15, 16))]
)
def test_pad_scales_down_images_that_do_not_fit_and_keeps_their_shape(tmp_path, size, rows):
    for number in range(10):
        Image.new("L", size, 200).save(tmp_path / f"{number}.png")
    padded = look(tmp_path, resolution=32, resize="pad").images[0, :, :, 0]
    assert [row for row in range(32) if padded[row].any()] == [*rows] and (padded[rows[0]] == 200).all()


def test_the_classes_are_in_meta(tmp_path, folder):
    prepare(tmp_path, folder(*several("1", "3", "10")))
    meta = json.loads((tmp_path / "prepared" / "meta.json").read_text())
    assert meta["classes"] == {"1": 1, "3": 3, "10": 10}
