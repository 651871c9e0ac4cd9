"""The user's verdicts on labels: what is taken, what is refused, and what follows from them."""

from pathlib import Path

import pytest
from conftest import ImageFolder
from test_ingest import run, warned

from tasks.errors import DataError
from tasks.images.listing.corrections import Corrections, read_corrections

KNOWN = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]


def read(tmp_path: Path, text: str) -> Corrections:
    path = tmp_path / "corrections.csv"
    path.write_text(text)
    return read_corrections(path, KNOWN, {"cat", "dog", "drop"})


@pytest.mark.parametrize(
    "text",
    [
        "path,label,drop\ncat/1.png,dog,\ndog/2.png,,yes\n",
        "drop,path,label\n,cat/1.png, dog \nYES,dog/2.png,\n",
        "path,label,drop\ncat/1.png,dog,no\ndog/2.png,,1\n",
    ],
)
def test_a_row_names_a_class_or_leaves_out(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == Corrections({"cat/1.png": "dog"}, frozenset({"dog/2.png"}))


def test_either_column_does_alone(tmp_path: Path) -> None:
    assert read(tmp_path, "path,drop\ncat/1.png,yes\n").dropped == {"cat/1.png"}
    assert read(tmp_path, "path,label\ncat/1.png,dog\n").labels == {"cat/1.png": "dog"}
    assert read(tmp_path, "path,label,drop\n") == Corrections()


def test_a_class_may_be_called_drop(tmp_path: Path) -> None:
    found = read(tmp_path, "path,label\ncat/1.png,drop\n")
    assert found == Corrections({"cat/1.png": "drop"})


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        ("cat/9.png,dog,", r"line 2: cat/9.png \(did you mean cat/"),
        ("cat/1.png,dogs,", r"line 2: dogs is no class of the source \(did you mean dog"),
        ("cat/1.png,elephant,", "elephant is no class of the source; it has cat, dog and drop"),
        ("cat/1.png,dog,yes", r"both a label \(dog\) and drop"),
        ("cat/1.png,,", "neither a label nor yes"),
        ("cat/1.png,,perhaps", "drop is 'perhaps'; allowed: yes, no"),
        ("cat/1.png,dog,\ncat/1.png,,yes", "line 3: cat/1.png stands in line 2 already"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(tmp_path: Path, row: str, fact: str) -> None:
    with pytest.raises(DataError, match=fact):
        read(tmp_path, f"path,label,drop\n{row}\n")


def test_many_wrong_rows_are_told_in_a_bounded_list(tmp_path: Path) -> None:
    rows = "".join(f"cat/{1 + number % 2}.png,cow\n" for number in range(500))
    with pytest.raises(DataError, match=r"and \d+ more") as error:
        read(tmp_path, f"path,label\n{rows}")
    assert len(str(error.value)) < 2000


def test_verdicts_change_the_manifest_and_are_counted(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    root = image_folder()
    before = run(root, tmp_path / "before")
    assert (before.health.relabeled, before.health.dropped) == (0, 0)
    by_split = {row.split: row for row in before.manifest.rows if row.label == "cat"}
    moved, left_out = by_split["test"], by_split["train"]
    same = next(row for row in before.manifest.rows if row.label == "dog")
    text = f"path,label,drop\n{moved.path},dog,\n{left_out.path},,yes\n{same.path},dog,\n"
    after = run(root, tmp_path / "after", corrections=text)
    labels = {row.path: row.label for row in after.manifest.rows}
    expected = {row.path: row.label for row in before.manifest.rows} | {moved.path: "dog"}
    del expected[left_out.path]
    assert labels == expected
    assert (after.health.relabeled, after.health.dropped) == (1, 1)
    assert warned(after, "ingest.corrections", "1 images have another label", "1 were left out")
    moved_to = next(row.split for row in after.manifest.rows if row.path == moved.path)
    assert warned(after, "1 are tested by it") == (moved_to == "test")
    assert not warned(after, "No image is left")


def test_two_classes_may_become_one(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder()
    before = run(root, tmp_path / "before")
    first, second, *_ = before.manifest.class_names
    rows = [f"{row.path},{second}\n" for row in before.manifest.rows if row.label == first]
    after = run(root, tmp_path / "after", corrections=f"path,label\n{''.join(rows)}")
    assert after.manifest.class_names == before.manifest.class_names[1:]
    assert warned(after, f"No image is left of {first}.")


def test_what_leaves_one_class_is_refused(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder()
    rows = [f"{path.relative_to(root).as_posix()},cat\n" for path in root.glob("*/*.png")]
    with pytest.raises(DataError, match=r"at least two.*corrections left no image of"):
        run(root, tmp_path / "out", corrections=f"path,label\n{''.join(rows)}")
