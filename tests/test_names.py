"""Names: words for splits, companions, likeness, and names that are no text."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import tells

from tasks.errors import DataError
from tasks.images.listing.names import check_names, nearest_name, split_of, why_ignored


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Train TRAINING train_1 trainA 01_train train2017 train_set trainval trn"),
        ("val", "val valid validation Validate val2017 dev devset eval evaluation val_set dev-2"),
        ("test", "test Testing test-set testset 03_test holdout hold-out hold_out TestSet test.1"),
        (None, "cat train_cat test_dog images set1 data latest contest testimony 1 evaluated _ é"),
    ],
)
def test_the_usual_names_of_splits_are_understood_and_no_others(
    split: str | None, names: str
) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


COMPANIONS = (
    "x.txt X.XML 1.json a.csv x.jpg~ x.jpg.crdownload x.png.part Thumbs.db .DS_Store ._x.jpg"
    " desktop.ini x.jpg:Zone.Identifier x.jpg.bak x.xmp"
)


@pytest.mark.parametrize("name", [*COMPANIONS.split(), "Icon\r"])
def test_companions_are_told_by_name(name: str) -> None:
    assert why_ignored(name)


@pytest.mark.parametrize(
    "name", ["x.jpg", "x", "blob.3f2a", "x.jpg_large", "x.raw", "Icon", "x.txt.jpg", "partial"]
)
def test_all_else_is_judged_by_its_content(name: str) -> None:
    assert why_ignored(name) is None


def test_a_folder_may_be_called_like_a_companion_but_not_like_what_systems_leave() -> None:
    assert why_ignored("notes.txt", folder=True) is None
    assert why_ignored("__MACOSX", folder=True)
    assert why_ignored(".ipynb_checkpoints", folder=True)


@pytest.mark.parametrize(
    ("name", "known", "facts"),
    [
        ("caf\u00e9/1.jpg", "cafe\u0301/1.jpg", ("caf\\xe9", "cafe\\u0301")),
        ("cat/1.jpg", "\u0441at/1.jpg", ("\\u0441at", "'cat/1.jpg'")),
        ("cat/a 1.jpg", "cat/a\u00a01.jpg", ("a\\xa01",)),
        ("cat/1.jpg", "cat\u200b/1.jpg", ("cat\\u200b",)),
    ],
    ids=["forms of accents", "another alphabet", "a space", "nothing to see"],
)
def test_what_looks_the_same_is_shown_as_escapes(
    name: str, known: str, facts: tuple[str, ...]
) -> None:
    assert tells(nearest_name(name, [known]), *facts)


def test_names_that_are_no_utf8_are_told_and_the_command_renames_them(tmp_path: Path) -> None:
    root = tmp_path / "it's raw"
    for name in (b"cat/caf\xe9.jpg", b"cat/\x81.jpg", b".hidden/\xfc/\xe4.txt", b"ok/\xc3\xa9.jpg"):
        path = os.path.join(os.fsencode(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(name)
    with pytest.raises(DataError, match=r"4 names") as caught:
        check_names(root)
    text = str(caught.value)
    assert tells(text, "cat/caf\\xe9.jpg", ".hidden/\\xfc/\\xe4.txt")
    command = next(line for line in text.splitlines() if line.startswith("python3 -c"))
    subprocess.run(["bash", "-c", command], check=True)
    check_names(root)
    assert (root / "cat/café.jpg").read_bytes() == b"cat/caf\xe9.jpg"
    assert (root / ".hidden/ü/ä.txt").read_bytes() == b".hidden/\xfc/\xe4.txt"
    assert (root / "cat/\\x81.jpg").exists()


def test_the_command_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "é").write_bytes(b"kept")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9")).write_bytes(b"kept too")
    with pytest.raises(DataError) as caught:
        check_names(tmp_path)
    command = next(line for line in str(caught.value).splitlines() if line.startswith("python3"))
    subprocess.run(["bash", "-c", command], check=True)
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"kept", b"kept too"]


def test_the_list_of_such_names_is_bounded(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / os.fsdecode(b"\xff%d" % number)).touch()
    with pytest.raises(DataError, match=r"100 names") as caught:
        check_names(tmp_path)
    assert "... and 90 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 15
