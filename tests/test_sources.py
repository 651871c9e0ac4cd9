"""Sources of images: class folders, split folders, csv tables, descriptors of packaged data."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.artifacts.words import printable
from tasks.errors import DataError
from tasks.images.listing.folders import Listing
from tasks.images.listing.names import nearest_name
from tasks.images.listing.sources import digest_of_files, list_images, read_descriptor, resolve_root
from tasks.images.listing.tables import read_groups

ROOT = Path(__file__).parent.parent


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return root


def found(listing: Listing) -> list[tuple[str, str, str | None]]:
    return [(image.path, image.label, image.split) for image in listing.images]


# folders ------------------------------------------------------------------------------------------


def test_class_folders_give_labels_sorted_by_code_point(tmp_path: Path) -> None:
    listing = list_images(tree(tmp_path, "b/1.png", "a/2.png", "a/10.png", "Z/0.png"))
    assert found(listing) == [
        ("Z/0.png", "Z", None),
        ("a/10.png", "a", None),
        ("a/2.png", "a", None),
        ("b/1.png", "b", None),
    ]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_give_splits(tmp_path: Path, val: str) -> None:
    listing = list_images(tree(tmp_path, "train/a/1.png", f"{val}/a/2.png", "test/b/3.png"))
    assert {(image.label, image.split) for image in listing.images} == {
        ("a", "train"),
        ("a", "val"),
        ("b", "test"),
    }


@pytest.mark.parametrize("words", [("bus", "car", "train"), ("passed", "test"), ("a", "dev")])
def test_the_word_of_one_split_among_classes_is_a_class(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    listing = list_images(tree(tmp_path, *(f"{word}/1.png" for word in words)))
    assert [(image.label, image.split) for image in listing.images] == [
        (word, None) for word in words
    ]


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    tree(tmp_path, "train/a/1.png", "val/a/2.png", "valid/a/3.png")
    with pytest.raises(DataError, match=r"val and valid both mean val"):
        list_images(tmp_path)


def test_test_without_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found only test and val; allowed: train"):
        list_images(tree(tmp_path, "val/a/1.png", "test/a/1.png"))


def test_what_systems_leave_behind_is_counted_and_no_class(tmp_path: Path) -> None:
    kept = tree(tmp_path, "a/1.png", "b/2.png")
    tree(
        kept,
        ".DS_Store",
        "__MACOSX/a/._1.png",
        ".ipynb_checkpoints/x.png",
        "a/Thumbs.db",
        "a/.ipynb_checkpoints/1-checkpoint.png",
        "b/desktop.ini",
        "README.md",
    )
    listing = list_images(kept)
    assert {image.label for image in listing.images} == {"a", "b"}
    assert listing.ignored == {".md": 1, "hidden": 3, "left by a system": 3}
    assert listing.rejected == ()


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (("a/1.png", "b/1.png", "2.jpg"), "2.jpg"),
        (("a/1.png", "b/x/1.png", "b/2.png"), "b/x/"),
        (("train/a/1.png", "train/b/1.png", "train/2.jpg"), "train/2.jpg"),
    ],
    ids=["at the root", "nested", "at the root of a split"],
)
def test_images_elsewhere_than_in_class_folders_are_refused(
    tmp_path: Path, paths: tuple[str, ...], named: str
) -> None:
    with pytest.raises(DataError, match=r"expected .*/<class>/<image>") as caught:
        list_images(tree(tmp_path, *paths))
    assert f"\n  {named}" in str(caught.value)


def test_an_empty_class_folder_is_named_with_what_to_do(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "c/.gitkeep")
    with pytest.raises(DataError, match=r"fill or remove them:\n  c \(1 file ignored\)$"):
        list_images(tmp_path)


def test_an_empty_source_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images; expected .*<class>/<image>"):
        list_images(tmp_path)


def test_links_are_what_they_lead_to_wherever_that_lies(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", "1.png", "blob", "dogs/1.png")
    root = tree(tmp_path / "raw", "a/1.png", "b/1.png")
    (root / "a" / "inside.png").symlink_to(root / "b" / "1.png")
    (root / "a" / "out.png").symlink_to(outside / "1.png")
    (root / "a" / "relative.png").symlink_to("../../outside/blob")
    (root / "dog").symlink_to(outside / "dogs")
    listing = list_images(root)
    assert [(image.path, image.label) for image in listing.images] == [
        ("a/1.png", "a"),
        ("a/inside.png", "a"),
        ("a/out.png", "a"),
        ("a/relative.png", "a"),
        ("b/1.png", "b"),
        ("dog/1.png", "dog"),
    ]
    assert not listing.rejected
    assert listing.linked == ("dog",)


def test_split_folders_may_be_links_too(tmp_path: Path) -> None:
    tree(tmp_path / "disk", "a/1.png", "b/1.png")
    root = tree(tmp_path / "raw", "test/a/1.png", "test/b/1.png")
    (root / "train").symlink_to(tmp_path / "disk")
    assert [(image.path, image.split) for image in list_images(root).images] == [
        ("test/a/1.png", "test"),
        ("test/b/1.png", "test"),
        ("train/a/1.png", "train"),
        ("train/b/1.png", "train"),
    ]


def test_links_that_lead_nowhere_or_back_and_pipes_are_left_out_with_a_reason(
    tmp_path: Path,
) -> None:
    root = tree(tmp_path / "raw", "a/1.png", "b/1.png")
    (root / "a" / "gone.png").symlink_to(root / "nothing.png")
    (root / "a" / "loop.png").symlink_to(root / "a" / "loop.png")
    (root / "a" / "self").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(tmp_path)
    (root / "class").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nothing")
    os.mkfifo(root / "b" / "pipe.png")
    (root / "b" / "to-pipe.png").symlink_to(root / "b" / "pipe.png")
    listing = list_images(root)
    assert [image.path for image in listing.images] == ["a/1.png", "b/1.png"]
    assert {item.path: item.reason for item in listing.rejected} == {
        "a/gone.png": "link to nothing",
        "a/loop.png": "link in a loop",
        "a/self": "link to a folder above itself",
        "a/up": "link to a folder above itself",
        "b/pipe.png": "not a regular file (pipe)",
        "b/to-pipe.png": "not a regular file (pipe)",
        "class": "link to a folder above itself",
        "gone": "link to nothing",
    }


def test_a_source_that_is_a_link_itself_is_read(tmp_path: Path) -> None:
    real = tree(tmp_path / "real", "a/1.png", "b/1.png")
    (tmp_path / "link").symlink_to(real)
    listing = list_images(tmp_path / "link")
    assert len(listing.images) == 2
    assert listing.origin.root == (tmp_path / "link").as_posix()


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "a/1.png", "b/1.png")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("tasks.images.listing.folders.os.scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be listed \(Permission denied\).*chmod"):
        list_images(tmp_path)


def test_odd_file_names_are_listed_and_odd_class_names_refused(tmp_path: Path) -> None:
    tree(tmp_path, "a/1\n2.png", "a/\U0001f984.png", "a/end .png", "b/1.png", "b/cr\r.png")
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    listing = list_images(tmp_path)
    assert [image.path for image in listing.images] == [
        "a/1\n2.png",
        "a/end .png",
        "a/\udcff.png",
        "a/\U0001f984.png",
        "b/1.png",
    ]
    assert [item.reason for item in listing.rejected] == ["name holds a carriage return"]
    tree(tmp_path, "new\nline/1.png")
    with pytest.raises(DataError, match=r"new\\nline: .*class folder"):
        list_images(tmp_path)


# csv ----------------------------------------------------------------------------------------------

Table = Callable[[str], Path]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    tree(tmp_path, "img/1.png", "img/2.png", "img/3.png")

    def write(text: str) -> Path:
        path = tmp_path / "images.csv"
        path.write_bytes(text.encode("utf-8"))
        return path

    return write


def test_a_csv_gives_paths_labels_splits_and_groups(table: Table, tmp_path: Path) -> None:
    absolute = tmp_path / "img" / "1.png"
    listing = list_images(
        table(
            f"\ufeffpath,label,split,group\r\n{absolute},b,train,p1\r\n\r\n"
            "img/3.png,a,validation,\r\n./img/2.png,a,Test,p2\r\n"
        )
    )
    assert [(i.path, i.label, i.split, i.group) for i in listing.images] == [
        ("img/1.png", "b", "train", "p1"),
        ("img/2.png", "a", "test", "p2"),
        ("img/3.png", "a", "val", None),
    ]
    assert listing.origin.kind == "csv"
    assert resolve_root(listing.origin) == tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path;label\nimg/1.png;a\n", r":1: .*'path;label'; allowed: path,label\[,split"),
        ("path,label,labels\n", r":1: .*'path,label,labels'; allowed"),
        ("path,label,label\n", r":1: .*'path,label,label'; allowed"),
        ("", r":1: .*''; allowed.*empty"),
        ("path,label\n", r"no images; .* path,label"),
        ("path,label\nimg/1.png\n", r":2: 1 cell, expected 2 \(path,label\)"),
        ("path,label\nimg/1.png,\n", r"line 2: label ''; allowed: .*printable"),
        ("path,label\n\nimg/1.png,a\nimg/1.png,b\n", r"line 4: img/1\.png .*line 3"),
        ("path,label\n../x.png,a\n", r"below it; 0 of 1 exist.*\.\./x\.png"),
        ("path,label\n/etc/passwd,a\n", r"line 2: path '/etc/passwd'; allowed: .*below"),
        ("path,label\n,a\n", r"line 2: path ''"),
        ("path,label,split\nimg/1.png,a,dog\n", r"split 'dog'; allowed: train, val, test"),
        ("path,label,split\nimg/1.png,a,\nimg/2.png,a,val\n", r"line 2: no split; allowed: all"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_line(table: Table, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_images(table(text))


def test_a_csv_leads_through_links_but_never_to_pipes(table: Table, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "img" / "pipe")
    (tmp_path / "img" / "out").symlink_to("/etc/hostname")
    (tmp_path / "img" / "loop").symlink_to(tmp_path / "img" / "loop")
    listing = list_images(
        table("path,label\nimg/pipe,a\nimg/out,a\nimg/1.png,a\nimg/missing.png,b\nimg,a\n")
    )
    assert {item.path: item.reason for item in listing.rejected} == {
        "img": "not a regular file (folder)",
        "img/pipe": "not a regular file (pipe)",
    }
    assert [image.path for image in listing.images] == ["img/1.png", "img/missing.png", "img/out"]


# groups -------------------------------------------------------------------------------------------


def test_groups_may_be_empty_and_an_image_may_stand_in_two(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("path,group\n")
    assert read_groups(path, ["a/1.png"]) == []
    path.write_text("path,group\na/1.png,ann\na/1.png,camera 2\n")
    assert read_groups(path, ["a/1.png"]) == [("a/1.png", "ann"), ("a/1.png", "camera 2")]


def test_unknown_paths_of_groups_are_named_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("path,group\nraw/cat/0001.jpg,ann\ncat/0002.jpg,ann\n")
    with pytest.raises(DataError, match=r"1 of 2 paths .*\n  line 2: raw/cat.*mean cat/0001.jpg"):
        read_groups(path, ["cat/0001.jpg", "cat/0002.jpg"])


def test_a_group_without_a_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("path,group\na,  \n")
    with pytest.raises(DataError, match=r"groups.csv:2: the group has no name"):
        read_groups(path, ["a"])


def test_missing_groups_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv: cannot be read \(No such file"):
        read_groups(tmp_path / "none.csv", [])


# descriptors --------------------------------------------------------------------------------------

DESCRIPTOR = """\
kind: package
name: Cells
distribution: cell-images
version: "1.0"
package: cell_images_for_test
root: data
table: {file: labels.csv, delimiter: whitespace, columns: [path, p], path: path}
label:
  column: p
  ranges: {good: {below: 0.5}, bad: {at_least: 0.5}}
  rule: bad from one half on
sha256: "%s"
license: CC0
citation: nobody
caution: cells of one module are not told apart
"""


@pytest.fixture
def descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tree(tmp_path / "site" / "cell_images_for_test", "__init__.py", "data/i/1.png")
    (package / "data" / "labels.csv").write_text("i/2.png  0.5\ni/1.png 0.3333\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    path = tmp_path / "cells.yaml"
    path.write_text(DESCRIPTOR % ("0" * 64))
    return path


def test_a_packaged_data_set_is_labeled_by_its_rule(descriptor: Path, tmp_path: Path) -> None:
    listing = list_images(descriptor)
    assert found(listing) == [("i/1.png", "good", None), ("i/2.png", "bad", None)]
    assert listing.origin.label_rule == "bad from one half on"
    assert listing.origin.license == "CC0"
    assert listing.origin.caution == "cells of one module are not told apart"
    assert resolve_root(listing.origin) == tmp_path / "site" / "cell_images_for_test" / "data"
    assert str(tmp_path) not in listing.origin.model_dump_json()


def test_labels_may_be_listed_values_or_the_cell_itself(descriptor: Path) -> None:
    text = descriptor.read_text()
    ranges = "  ranges: {good: {below: 0.5}, bad: {at_least: 0.5}}\n"
    descriptor.write_text(text.replace(ranges, '  values: {x: ["0.5"], y: ["0.3333", "1"]}\n'))
    assert [image.label for image in list_images(descriptor).images] == ["y", "x"]
    descriptor.write_text(text.replace(ranges, ""))
    assert [image.label for image in list_images(descriptor).images] == ["0.3333", "0.5"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("root: data", "rot: data", r"rot .*did you mean root\?"),
        ("root: data\n", "", r"root is missing"),
        ("kind: package", "kind: url", r"kind: Input should be 'package'"),
        ("column: p\n", "column: q\n", r"column 'q' .*\['path', 'p'\]"),
        ("  rule:", "  values: {a: [b]}\n  rule:", r"ranges and values"),
        ("name: Cells", "name: [", r"not readable as YAML"),
        ("{below: 0.5}", "{under: 0.5}", r"label\.ranges\.good\.under "),
        ("{below: 0.5}", "{below: 0.2}", r"line 2: no label fits p '0.3333'"),
        ("{below: 0.5}", "{below: 0.6}", r"line 1: 2 labels fit p '0.5'"),
        ("columns: [path, p]", "columns: [path, p, q]", r"line 1: 2 cells, expected path, p and q"),
        ("labels.csv", "label.csv", r"has no file data/label.csv"),
    ],
)
def test_a_wrong_descriptor_is_refused(descriptor: Path, old: str, new: str, message: str) -> None:
    descriptor.write_text(descriptor.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        list_images(descriptor)


def test_a_table_that_leads_out_of_the_package_is_refused(descriptor: Path) -> None:
    table = descriptor.parent / "site" / "cell_images_for_test" / "data" / "labels.csv"
    table.write_text("../secret.png 0.1\nno-number.png x\n")
    with pytest.raises(DataError, match=r"line 1: path '../secret.png'\n  line 2: no label fits"):
        list_images(descriptor)


def test_a_missing_package_says_what_to_install(descriptor: Path) -> None:
    descriptor.write_text(descriptor.read_text().replace("cell_images_for_test", "not_there_xyz"))
    with pytest.raises(
        DataError, match=r'not_there_xyz.*pip install .*"cell-images==1.0".*make run'
    ):
        list_images(descriptor)


def test_the_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    # printf '%s  a\n%s  b\n' 111... 222... | sha256sum
    expected = "7365ea48c8a3989cf164ca67f5d934c9a11269a628308b0fe529b6e4bc1c694d"
    files = [("b", "2" * 64), ("a", "1" * 64)]
    assert digest_of_files(files) == digest_of_files(files[::-1]) == expected


def test_the_embedded_data_set_has_the_published_counts() -> None:
    pytest.importorskip("elpv_dataset")
    listing = list_images(ROOT / "data" / "sources" / "elpv.yaml")
    labels = [image.label for image in listing.images]
    # Deitsch et al. 2019, table 2: 1,508 + 295 cells up to 1/3, 106 + 715 from 2/3 on.
    assert (labels.count("functional"), labels.count("defective")) == (1803, 821)
    assert (resolve_root(listing.origin) / listing.images[0].path).is_file()
    assert read_descriptor(ROOT / "data" / "sources" / "elpv.yaml").version == "1.0.0.post1"


# all kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["images.zip", "list.txt"])
def test_other_files_are_no_source(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError, match=rf"{name}: .*; allowed: a folder.*csv.*yaml"):
        list_images(tmp_path / name)


def test_a_missing_source_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"raw: no such .*set ingest\.source"):
        list_images(tmp_path / "raw")


def test_a_folder_that_has_gone_is_named(tmp_path: Path) -> None:
    origin = list_images(tree(tmp_path / "raw", "a/1", "b/1")).origin
    (tmp_path / "raw").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"raw: .*is gone; run ingest again"):
        resolve_root(origin)


def test_names_are_shown_as_any_terminal_can() -> None:
    assert printable("é 猫\n\udcff") == "é 猫\\n\\xff"


def test_the_nearest_name_prefers_the_same_file_name() -> None:
    assert nearest_name("x/7.png", ["a/1.png", "b/7.png"]) == " (did you mean b/7.png?)"
    assert nearest_name("zzz", ["abc"]) == ""
