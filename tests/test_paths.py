"""Paths of tables: which files they mean, and what is said of those that mean none."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import tells

from tasks.errors import DataError
from tasks.images.listing.folders import Listing
from tasks.images.listing.paths import Matched, match_paths
from tasks.images.listing.sources import list_images
from tasks.images.listing.tables import read_groups

FILES = [f"images/prüfbild {kind} {number:02d}.JPG" for kind in "ab" for number in range(15)]
NFD = [unicodedata.normalize("NFD", file) for file in FILES]


def match(cells: list[str], known: list[str]) -> Matched:
    return match_paths(cells, holds=set(known).__contains__, known=lambda: known, what="exist")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda file: file.replace("/", "\\"), "with \\ as /"),
        (lambda file: f" {file}\t", "spaces"),
        (lambda file: f"./{file}", "./"),
        (lambda file: unicodedata.normalize("NFD", file), "NFC or NFD"),
        (lambda file: unicodedata.normalize("NFD", f" .\\{file} "), "NFC or NFD"),
    ],
    ids=["backslash", "spaces", "dot", "accents", "all"],
)
def test_rewrites_without_doubt_are_taken_and_told_once(
    change: Callable[[str], str], fact: str
) -> None:
    matched = match([change(file) for file in FILES], FILES)
    assert matched.paths == FILES
    assert not matched.missing
    (note,) = matched.notes
    assert tells(note, "30 of 30", fact)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (str.lower, "another case"),
        (lambda file: file[:-4], "with the suffix .JPG"),
        (lambda file: file.replace(".JPG", ".png"), "with the suffix .JPG"),
        (quote, "%20"),
        (lambda file: Path(file).name, "with images/ in front"),
        (lambda file: f"C:\\me\\{file}".replace("/", "\\"), "without C:/me/ in front"),
        (lambda file: f"/content/data/{file}", "without /content/data/ in front"),
        (
            lambda file: f"https://host/set/{quote(file)}?raw=1",
            "without /host/set/ in front, with %20",
        ),
        (lambda file: f"old/{Path(file).name}", "by their names alone"),
        (lambda file: f"old/{Path(file).stem.lower()}.png", "by their names alone"),
        (lambda file: f"D:\\x\\{file[:-4].upper()}.png", "without their first folders, in another"),
    ],
)
def test_rewrites_with_doubt_are_named_once_with_their_number(
    change: Callable[[str], str], fact: str
) -> None:
    matched = match([change(file) for file in FILES], FILES)
    assert len(matched.missing) == 30
    assert not matched.notes
    assert tells(matched.advice, "0 of 30 exist; 30 fit", fact), matched.advice


def test_only_the_missing_ones_are_rewritten() -> None:
    cells = [*FILES[:10], *(file.replace("/", "\\") for file in FILES[10:29]), "gone.png"]
    matched = match(cells, FILES)
    assert matched.paths == [*FILES[:29], "gone.png"]
    assert matched.missing == [29]
    assert tells(matched.advice, "29 of 30 exist", "gone.png")


def test_paths_that_nothing_is_like_are_named() -> None:
    matched = match(["cat/1.png", "hat/a.png", "hat/b.png"], ["cat/1.png"])
    assert tells(matched.advice, "1 of 3 exist", "found for hat/a.png and hat/b.png; bring")


def test_a_rewrite_that_could_mean_two_files_is_not_counted() -> None:
    matched = match(["a.png", "b.png"], ["1/a.png", "2/a.png", "1/b.png"])
    assert tells(matched.advice, "0 of 2 exist; 1 fits", "with 1/ in front")
    two_forms = ["caf\u00e9\u0301.png", "cafe\u0301\u0301.png"]
    assert match(["./x/../cafe\u0301\u0301.png "], two_forms).paths == [two_forms[1]]
    assert match(["caf\u00e9\u0301.png\\"], [*NFD, "q"]).missing == [0]


def test_known_paths_are_asked_for_only_where_one_is_missing() -> None:
    def never() -> list[str]:
        raise AssertionError

    assert match_paths(FILES, holds=lambda _: True, known=never, what="exist").paths == FILES


# in tables ----------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Listing]:
    (tmp_path / "set/images").mkdir(parents=True)
    for file in NFD:
        (tmp_path / "set" / file).write_bytes(b"x")

    def read(cells: list[str], place: str = "set") -> Listing:
        path = tmp_path / place / "t.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("path,label\n" + "".join(f"{cell},x\n" for cell in cells), "utf-8")
        return list_images(path)

    return read


def test_a_csv_reads_files_of_a_mac_and_paths_of_windows(table: Callable[..., Listing]) -> None:
    listing = table([file.replace("/", "\\") for file in FILES])
    assert [image.path for image in listing.images] == sorted(NFD)
    assert tells(listing.notes[0], "30 of 30", "with \\ as /", "NFC or NFD")
    assert not listing.advice


def test_a_csv_with_two_rows_for_one_file_is_refused_however_it_is_written(
    table: Callable[..., Listing],
) -> None:
    with pytest.raises(DataError, match=r"line 3: .* stands in line 2 already, as x"):
        table([NFD[0], FILES[0].replace("/", "\\")])


def test_a_csv_whose_files_lie_below_another_folder_is_told_which(
    table: Callable[..., Listing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd/data").mkdir(parents=True)
    (tmp_path / "cwd/data/1.png").touch()
    monkeypatch.chdir(tmp_path / "cwd")
    listing = table(["data/1.png"], "labels")
    assert tells(listing.advice, "0 of 1 exist", f"below {tmp_path}/cwd", "move the csv")
    assert f"below {tmp_path}:" in table(["set/" + NFD[0]], "labels").advice


def test_a_csv_that_is_a_link_is_told_where_its_files_lie(
    table: Callable[..., Listing], tmp_path: Path
) -> None:
    assert not table(NFD).advice
    (tmp_path / "linked.csv").symlink_to(tmp_path / "set/t.csv")
    assert f"below {tmp_path}/set:" in list_images(tmp_path / "linked.csv").advice


def test_paths_of_groups_are_matched_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("path,group\n" + "".join(f"{file},é \n" for file in FILES), "utf-8")
    assert read_groups(path, NFD) == [(file, "é") for file in NFD]
    path.write_text("path,group\n" + "".join(f"raw/{file},p\n" for file in FILES), "utf-8")
    with pytest.raises(DataError) as caught:
        read_groups(path, NFD)
    assert tells(str(caught.value), "30 of 30 paths", "without raw/ in front")
    assert len(str(caught.value).splitlines()) < 13
    path.write_text("path,group\nimages/none.png,p\n", "utf-8")
    with pytest.raises(DataError) as caught:
        read_groups(path, ["images/nine.png"])
    assert tells(str(caught.value), "1 of 1 paths", "did you mean images/nine.png")
    assert "no file of a like name" not in str(caught.value)


def test_names_alone_of_several_folders_are_told_as_missing_paths(
    table: Callable[..., Listing], tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        table(["a.png", "a.png"])
    assert tells(str(caught.value), "line 3: a.png stands in line 2", "0 of 2 exist")
