"""Layouts of folders: which are read, and what is said of the others."""

from pathlib import Path

import pytest
from conftest import tells

from tasks.errors import DataError
from tasks.images.listing.sources import list_images


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def refusal(root: Path, *paths: str) -> str:
    with pytest.raises(DataError) as caught:
        list_images(tree(root, *paths))
    return str(caught.value)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "dev", "test"),
        ("Train", "Validate", "holdout"),
        ("01_train", "02_val", "03_test"),
        ("train_set", "eval", "TEST"),
    ],
)
def test_splits_by_other_names_are_read(tmp_path: Path, train: str, val: str, test: str) -> None:
    listing = list_images(tree(tmp_path, f"{train}/a/1.png", f"{val}/a/2.png", f"{test}/a/3.png"))
    assert {Path(image.path).name: image.split for image in listing.images} == {
        "1.png": "train",
        "2.png": "val",
        "3.png": "test",
    }


@pytest.mark.parametrize(
    "folders", ["train test", "Training dev Test-Set", "train_1 train_2", "test", "train test more"]
)
def test_flat_splits_are_never_classes(tmp_path: Path, folders: str) -> None:
    names = folders.split()
    text = refusal(tmp_path, *(f"{name}/1.png" for name in names))
    assert tells(text, names[0], "path,label,split", "/<class>/<image>")


@pytest.mark.parametrize("names", ["train_cat test_cat train_dog", "cat-TRAIN cat-val dog-train"])
def test_a_split_and_a_class_in_one_name_are_no_class(tmp_path: Path, names: str) -> None:
    text = refusal(tmp_path, *(f"{name}/1.png" for name in names.split()))
    assert tells(text, *names.split()[:2], "to train/cat", "path,label,split")


def test_split_words_within_names_of_classes_do_not_matter(tmp_path: Path) -> None:
    names = ["test_tube", "train_station", "dog"]
    listing = list_images(tree(tmp_path, *(f"{name}/1.png" for name in names)))
    assert {image.label for image in listing.images} == set(names)


@pytest.mark.parametrize("paths", ["train/train/a/1.png", "train/a/1.png test/test/1.png"])
def test_a_split_in_a_folder_of_its_name_is_told(tmp_path: Path, paths: str) -> None:
    text = refusal(tmp_path, "val/a/2.png", *paths.split())
    assert "patients" not in text
    assert tells(text, "a level too many", "one level up")


def test_a_class_may_be_called_test_in_every_split(tmp_path: Path) -> None:
    files = ("train/test/1.png", "train/control/2.png", "test/test/3.png", "test/control/4.png")
    listing = list_images(tree(tmp_path, *files))
    assert {image.label for image in listing.images} == {"test", "control"}


def test_an_empty_folder_in_a_class_folder_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a/empty").mkdir(parents=True)
    listing = list_images(tree(tmp_path, "a/1.png", "b/1.png", "b/notes/readme.txt"))
    assert [image.path for image in listing.images] == ["a/1.png", "b/1.png"]
    assert listing.ignored == {".txt": 1}


def test_an_unlabeled_test_folder_beside_train_is_named_once(tmp_path: Path) -> None:
    images = [f"test/{number}.jpg" for number in range(60)]
    text = refusal(tmp_path, "train/a/1.png", "train/b/1.png", *images)
    assert tells(text, "test holds 60 files and no class folders", "out of the source")
    assert len(text.splitlines()) == 1


def test_a_folder_that_is_no_split_beside_splits_is_named(tmp_path: Path) -> None:
    text = refusal(tmp_path, "train/a/1.png", "test/a/1.png", "unlabeled/a/1.png")
    assert tells(text, "unlabeled is no word for a split", "test and train")
    assert "did you mean" not in text


def test_class_folders_beside_a_test_folder_are_told_to_go_below_train(tmp_path: Path) -> None:
    text = refusal(tmp_path, "a/1.png", "b/1.png", "test/a/1.png", "test/b/1.png")
    assert tells(text, "test holds folders, unlike a and b", "into a folder train")


def test_an_empty_folder_and_one_of_companions_beside_splits_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    listing = list_images(tree(tmp_path, "train/a/1.png", "val/b/1.png", "notes/readme.txt"))
    assert {image.split for image in listing.images} == {"train", "val"}


@pytest.mark.parametrize("below", ["train/{}/1.png", "{}/1.png"])
def test_a_level_too_many_is_named_with_the_path_to_set(tmp_path: Path, below: str) -> None:
    paths = [f"download/set/{below.format(name)}" for name in ("cat", "dog")]
    text = refusal(tmp_path, *paths, "README.txt", "__MACOSX/x.png", "labels/1.txt")
    assert f"set ingest.source to {tmp_path.as_posix()}/download/set," in text


@pytest.mark.parametrize("split", ["", "train/"])
def test_folders_of_patients_below_classes_are_told_with_a_row(tmp_path: Path, split: str) -> None:
    paths = [f"{split}{label}/p{n}/{n}.png" for label in ("ill", "well") for n in range(30)]
    text = refusal(tmp_path, *paths)
    assert tells(text, "path,label,group", f"{split}ill/p0/0.png,ill,p0")
    assert len(text.splitlines()) < 13


def test_classes_below_patients_are_told_with_a_row(tmp_path: Path) -> None:
    paths = [f"p{n}/{label}/{n}.png" for label in ("ill", "well") for n in range(3)]
    text = refusal(tmp_path, *paths)
    assert tells(text, "ill and well", "p0/ill/0.png,ill,p0", "p0/ill/0.png,p0,ill")


def test_splits_below_classes_are_told_to_go_above(tmp_path: Path) -> None:
    text = refusal(tmp_path, *(f"{c}/{s}/1.png" for c in ("cat", "dog") for s in ("test", "train")))
    assert tells(text, "below the classes (cat and dog)", "test/cat", "cat/test/1.png,cat,test")


def test_images_without_any_folder_are_told_to_need_labels(tmp_path: Path) -> None:
    assert tells(refusal(tmp_path, "1.png", "2.png"), "2 files", "one folder for each class")


@pytest.mark.parametrize("split", ["", "train/"])
def test_folders_whose_names_look_the_same_are_one_class(tmp_path: Path, split: str) -> None:
    names = ["caf\u00e9", "cafe\u0301", "cat", "cat "]
    listing = list_images(tree(tmp_path, *(f"{split}{name}/1.png" for name in names)))
    assert [image.label for image in listing.images].count("caf\u00e9") == 2
    assert [image.label for image in listing.images].count("cat") == 2
    assert tells(" ".join(listing.notes), "'cafe\\u0301' and 'caf\\xe9'", "'cat' and 'cat '")


def test_the_layout_of_detection_with_splits_is_named(tmp_path: Path) -> None:
    paths = (
        f"{a}/{s}/1.{x}"
        for a, x in (("images", "jpg"), ("labels", "png"))
        for s in ("train", "val")
    )
    assert tells(refusal(tmp_path, *paths), "object detection", "boxes")


def test_the_layout_of_detection_is_named(tmp_path: Path) -> None:
    text = refusal(tmp_path, "train/images/1.png", "train/labels/1.txt")
    assert tells(text, "object detection", "train/labels (1 file ignored)")


def test_the_same_class_in_several_splits_is_no_remark(tmp_path: Path) -> None:
    assert not list_images(tree(tmp_path, "train/a/1.png", "test/a/1.png")).notes


def test_companions_beside_images_are_counted_by_kind(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "a/1.txt", "a/1.xml", "a/1.jpg~", "a/2.jpg.part", "a/Icon\r")
    listing = list_images(tree(tmp_path, "b/blob", "b/photo.unknown", "b/2.txt"))
    assert [image.path for image in listing.images] == ["a/1.jpg", "b/blob", "b/photo.unknown"]
    assert listing.ignored == {
        ".txt": 2,
        ".xml": 1,
        "backup": 1,
        "left by a system": 1,
        "unfinished download": 1,
    }


def test_a_link_into_an_annex_that_was_not_fetched_says_so(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a/2.png").symlink_to("../.git/annex/objects/x/y")
    (rejected,) = list_images(tmp_path).rejected
    assert tells(rejected.reason, "link to nothing", "git annex get")
