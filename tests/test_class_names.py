"""Names of classes that may be meant as one, or as none."""

import time
from pathlib import Path

import pytest
from conftest import tells

from tasks.errors import DataError
from tasks.images.listing.class_names import about_names, say_twins
from tasks.images.listing.folders import Listing
from tasks.images.listing.sources import list_images


def told(*names: str) -> str:
    return " ".join(about_names(names))


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("1", "1.0", "01", "+1", "2"), "'+1' = '01' = '1'"),
        (("0", "0.00"), "'0' = '0.00'"),
        (("Cat", "cat", "dog"), "'Cat' = 'cat'"),
        (("cafe", "caf\u00e9"), "'cafe' = 'caf\\xe9'"),
        (("cat", "\u0441at"), "'cat' = '\\u0441at'"),
        (("cat", "c\u200bat"), "'cat' = 'c\\u200bat'"),
        (("hot dog", "hot_dog", "hot-dog"), "'hot dog' = 'hot-dog' = 'hot_dog'"),
    ],
)
def test_classes_that_look_the_same_are_named(names: tuple[str, ...], shown: str) -> None:
    assert tells(told(*names), "probably one", shown)


@pytest.mark.parametrize(
    "pair",
    [("kitchen", "kitchn"), ("scratch", "scrach"), ("cracked", "carcked"), ("cracks", "crack"),
     ("wood panel", "wood pannel"), ("functional", "functionel")],
)  # fmt: skip
def test_a_typing_error_in_a_long_name_is_named(pair: tuple[str, str]) -> None:
    one, other = sorted(pair)
    assert tells(told(*pair, "other"), "one letter", f"{one!r} and {other!r}")


@pytest.mark.parametrize(
    "names",
    [
        ("A", "B"), ("class1", "class2"), ("class01", "class10"), ("cat", "car"), ("1", "2", "10"),
        ("typical", "atypical"), ("defect a", "defect b"), ("kitten", "mitten"), ("-1", "1"),
        ("left lung", "left hand"), ("grade II", "grade III"), ("2019", "2020"), ("bar", "bark"),
        ("functional", "defective"), ("10", "1"), ("1.5", "15"), ("stage A1", "stage B1"),
    ],
)  # fmt: skip
def test_names_that_are_meant_to_differ_are_not_mentioned(names: tuple[str, ...]) -> None:
    assert told(*names) == ""


def test_words_for_a_missing_label_are_asked_about() -> None:
    assert tells(told("cat", "None"), "Is 'None' a class?")
    assert tells(told("nan", "NA"), "'NA' and 'nan'")
    assert told("nanny", "nothing") == ""


def test_a_class_is_told_which_one_has_a_like_name() -> None:
    twins = say_twins(["circel", "circle", "Cat", "cat", "dog"])
    assert twins.keys() == {"circel", "circle", "Cat", "cat"}
    assert "'circle'" in twins["circel"]
    assert "'cat'" in twins["Cat"]


def test_many_classes_are_compared_quickly_and_told_briefly() -> None:
    names = [f"{chr(97 + n % 26) * 3}species{chr(97 + n // 26 % 26)}{n}x" for n in range(3_000)]
    names += [name.upper() for name in names]
    started = time.monotonic()
    text = told(*names)
    assert time.monotonic() - started < 20
    assert tells(text, "and 2,997 more")
    assert len(text) < 600


# in tables ----------------------------------------------------------------------------------------


def read(folder: Path, *labels: str) -> Listing:
    for number, _ in enumerate(labels):
        (folder / f"{number}.png").touch()
    rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
    (folder / "t.csv").write_text("path,label\n" + rows, "utf-8")
    return list_images(folder / "t.csv")


def test_labels_of_a_csv_lose_the_spaces_around_them_and_have_one_form(tmp_path: Path) -> None:
    listing = read(tmp_path, " cat", "cat\u00a0", "caf\u00e9", "cafe\u0301\t", "01", "1.0")
    labels = [image.label for image in listing.images]
    assert labels == ["cat", "cat", "caf\u00e9", "caf\u00e9", "01", "1.0"]


@pytest.mark.parametrize("label", ["nan", "NaN", "<NA>", "null", "#N/A", "", "  "])
def test_a_row_without_a_label_is_refused_with_its_line(tmp_path: Path, label: str) -> None:
    with pytest.raises(DataError, match=r"line 3: label"):
        read(tmp_path, "cat", label, "dog")


@pytest.mark.parametrize("label", ["None", "NA", "none"])
def test_what_may_be_a_class_is_kept(tmp_path: Path, label: str) -> None:
    assert read(tmp_path, "cat", label).images[1].label == label
