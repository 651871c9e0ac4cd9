"""The ingest stage from files to files: manifest, health, quarantine, origin, and its log."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT, ImageFolder, draw_image
from PIL import Image, ImageOps
from ruamel.yaml import YAML

from tasks.artifacts.records import Health, ImageSource, read_record
from tasks.artifacts.tables import Manifest, Rejected, read_manifest, read_rows
from tasks.errors import DataError
from tasks.images.listing.sources import resolve_root
from tasks.ingest import main


class Result(NamedTuple):
    manifest: Manifest
    health: Health
    origin: ImageSource
    folder: Path


def run(
    source: Path,
    folder: Path,
    groups: str = "path,group\n",
    corrections: str = "path,label,drop\n",
    **values: object,
) -> Result:
    """Run the stage as its command line does, with some values of params.yaml changed."""
    folder.mkdir(exist_ok=True)
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    named = {name: str(folder / f"{name}.csv") for name in ("groups", "corrections")}
    named["source"] = str(source)
    params["ingest"].update({**named, **values})
    yaml.dump(params, folder / "params.yaml")
    (folder / "groups.csv").write_text(groups)
    (folder / "corrections.csv").write_text(corrections)
    outs = {
        "manifest": "manifest.csv",
        "health": "health.json",
        "quarantine": "quarantine.csv",
        "origin": "source.json",
        "conversion": "conversion.json",
        "facts": "facts.csv",
    }
    arguments = [word for name, file in outs.items() for word in (f"--{name}", str(folder / file))]
    main([*arguments, "--params", str(folder / "params.yaml")])
    return Result(
        read_manifest(folder / "manifest.csv"),
        read_record(folder / "health.json", Health),
        read_record(folder / "source.json", ImageSource),
        folder,
    )


def warned(result: Result, *facts: str) -> bool:
    """Whether one warning tells all these facts."""
    return any(all(fact in words for fact in facts) for words in result.health.warnings)


def test_a_clean_folder_becomes_a_sorted_manifest(
    image_folder: ImageFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = image_folder()
    result = run(root, tmp_path / "out")
    rows = result.manifest.rows
    assert [row.path for row in rows] == sorted(row.path for row in rows)
    assert len(rows) == 90
    assert {(row.width, row.height, row.mode) for row in rows} == {(40, 32, "RGB")}
    assert all(row.group == row.sha256[:16] for row in rows)
    assert result.health.warnings == []
    assert result.health.width == result.health.width[:1] * 3 == [40, 40, 40]
    assert resolve_root(result.origin) == root
    counts = result.health.split_counts
    assert sum(counts.values()) == 90
    splits = [f"{split} {count}" for split, count in counts.items()]
    for fact in ("90 images", "3 classes", "cat 30", "0 bad", "0 copies", "90 groups", *splits):
        assert fact in caplog.messages[-1]


def test_the_same_files_give_the_same_bytes(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder()
    first = run(root, tmp_path / "one").folder
    monkeypatch.setenv("REGRAFT_WORKERS", "5")
    second = run(root, tmp_path / "two").folder
    for name in ("manifest.csv", "health.json", "quarantine.csv", "source.json", "conversion.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_bad_files_are_left_out_and_listed(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder()
    (root / "cat" / "000.png").write_bytes(b"")
    (root / "dog" / "notes").write_text("remember the milk")
    (root / "dog" / "Thumbs.db").write_bytes(b"x")
    result = run(root, tmp_path / "out", max_bad_fraction=0.1)
    rejected = read_rows(tmp_path / "out" / "quarantine.csv", Rejected)
    assert [item.path for item in rejected] == ["cat/000.png", "dog/notes"]
    assert result.health.rejected_reasons == {
        "empty file": 1,
        "not an allowed image format": 1,
    }
    assert (result.health.images, result.health.rejected, result.health.ignored_files) == (89, 2, 1)
    assert warned(result, "2 files", "1 empty file", "1 not an allowed image format")
    assert warned(result, "1 file was ignored")


def test_too_many_bad_files_stop_the_run_with_the_whole_list_and_no_manifest(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    root = image_folder()
    for number in range(15):
        (root / "cat" / f"{number:03d}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"15 of 90 files cannot be used.*quarantine\.csv"):
        run(root, tmp_path / "out")
    assert len(read_rows(tmp_path / "out" / "quarantine.csv", Rejected)) == 15
    assert not (tmp_path / "out" / "manifest.csv").exists()
    assert not list((tmp_path / "out").glob(".*"))


def test_copies_of_any_kind_never_cross_splits(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder()
    families = []
    for number in range(12):
        original = root / "fox" / f"{number:03d}.png"
        image = Image.open(original).convert("RGB")
        names = [f"fox/{kind}{number}.{end}" for kind, end in (("c", "png"), ("m", "png"))]
        shutil.copy(original, root / names[0])
        ImageOps.mirror(image).save(root / names[1])
        image.resize((80, 64), Image.Resampling.BICUBIC).save(root / f"fox/r{number}.bmp")
        families.append({f"fox/{number:03d}.png", *names, f"fox/r{number}.bmp"})
    result = run(root, tmp_path / "out")
    by_path = {row.path: row for row in result.manifest.rows}
    for family in families:
        assert len({by_path[path].group for path in family}) == 1
        assert len({by_path[path].split for path in family}) == 1
    assert result.health.groups == 90
    assert result.health.exact_duplicates == 12
    assert result.health.near_duplicates == 36


def test_the_users_groups_never_cross_splits(image_folder: ImageFolder, tmp_path: Path) -> None:
    # As in a data set of hand signs, where each student gave ten pictures with running numbers.
    classes = ("one", "two", "three")
    root = image_folder(classes, images=40)
    students = {
        f"{label}/{number:03d}.png": f"student {number // 2}"
        for label in classes
        for number in range(40)
    }
    lines = "".join(f"{path},{student}\n" for path, student in students.items())
    result = run(root, tmp_path / "out", groups="path,group\n" + lines)
    assert {row.path: row.group for row in result.manifest.rows} == students
    assert result.health.groups == 20
    splits = {(row.group, row.split) for row in result.manifest.rows}
    assert len(splits) == 20


def test_leaks_between_given_splits_are_reported_and_not_moved(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    root = image_folder(("train", "val", "test"), images=0)
    for number, split in enumerate(("train", "val", "test")):
        for label in range(2):
            (root / split / "ab"[label]).mkdir()
            for image in range(12):
                picture = draw_image(label, 100 * number + image)
                picture.save(root / split / "ab"[label] / f"{image}.png")
    shutil.copy(root / "train" / "a" / "3.png", root / "test" / "a" / "copy.png")
    result = run(root, tmp_path / "out")
    assert result.health.split_leaks == [["test/a/copy.png", "train/a/3.png"]]
    assert result.health.warnings[0].startswith("LEAK: 1 picture ")
    assert "1 of your 25 test images stands in train too" in result.health.warnings[0]
    assert result.health.split_counts == {"train": 24, "val": 24, "test": 25}
    grouped = run(root, tmp_path / "out", groups="path,group\ntrain/a/1.png,p\nval/b/1.png,p\n")
    assert warned(grouped, "LEAK: 2 groups")


def test_one_picture_under_two_labels_is_reported_and_kept(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    root = image_folder()
    shutil.copy(root / "cat" / "001.png", root / "dog" / "odd\nname.png")
    result = run(root, tmp_path / "out")
    assert result.health.label_conflicts == [["cat/001.png", "dog/odd\\nname.png"]]
    assert len(result.manifest.rows) == 91
    assert warned(result, "1 picture ", "labels", "cat/001.png", "dog/odd")


def test_odd_file_names_survive_in_every_file(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder()
    odd = ['comma, quote".png', "line\nfeed.png", "\U0001f98a .png"]
    for number, name in enumerate(odd):
        draw_image(2, 500 + number).save(root / "fox" / name)
    (root / "fox" / "empty \U0001f98a.png").write_bytes(b"")
    result = run(root, tmp_path / "out")
    paths = {row.path for row in result.manifest.rows}
    assert {f"fox/{name}" for name in odd} <= paths
    assert all((root / path).is_file() for path in paths)
    json.loads((tmp_path / "out" / "health.json").read_text("utf-8"))
    assert (
        read_rows(tmp_path / "out" / "quarantine.csv", Rejected)[0].path
        == "fox/empty \U0001f98a.png"
    )


def test_names_that_are_no_utf8_stop_the_run_before_any_file_is_opened(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    root = image_folder()
    (root / "fox" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)1 name .*\n  fox/\\xff\.png"):
        run(root, tmp_path / "out")


def test_a_single_class_is_refused(image_folder: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found 1 class \(cat\); a classifier needs at least"):
        run(image_folder(("cat",)), tmp_path / "out")


def test_a_class_without_a_usable_file_is_refused(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    root = image_folder(("cat", "dog", "fox"), images=12)
    shutil.rmtree(root / "fox")
    (root / "fox").mkdir()
    (root / "fox" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"classes without a usable file: fox"):
        run(root, tmp_path / "out", max_bad_fraction=0.5)


def test_classes_to_look_at_are_mentioned(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder(("Cat", "cat", "caf\u00e9", "cafe\u0301"), images=8)
    for number in range(200):
        draw_image(1, 1000 + number).save(root / "cat" / f"more{number}.png")
    result = run(root, tmp_path / "out")
    assert result.health.imbalance == 26
    assert warned(result, "26 to 1", "cat 208", "Cat 8")
    assert warned(result, "'Cat' = 'cat'")
    assert warned(result, "'cafe\\u0301' and 'caf\\xe9' are read as one class")
    assert warned(result, "10 training images", "Cat and caf\u00e9")


def test_a_large_set_of_look_alikes_is_mentioned(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder()
    for number in range(30):
        shutil.copy(root / "cat" / "001.png", root / "cat" / f"copy{number}.png")
    result = run(root, tmp_path / "out")
    assert warned(result, "31 images", "alike", "group")


def test_what_the_decoder_converted_is_summed_up(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder()
    for number in (3, 4):
        path = root / "cat" / f"{number:03d}.png"
        path.rename(path.with_suffix(".jpg"))
    link = root / "linked"
    link.symlink_to(root)
    result = run(root, tmp_path / "out")
    assert warned(result, "2 images", "cat/003.jpg", "PNG")
    assert warned(result, "links", "not read: linked")


def test_a_class_behind_a_link_is_read_and_told(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder()
    shutil.move(root / "cat", tmp_path / "elsewhere")
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    result = run(root, tmp_path / "out")
    assert result.health.images == 90
    assert warned(result, "links: cat", "DVC")


def test_a_csv_with_splits_and_groups_is_ingested(
    image_folder: ImageFolder, tmp_path: Path
) -> None:
    root = image_folder(("a", "b"), images=12)
    table = root / "images.csv"
    splits = ["train", "train", "val", "test"]
    rows = [f"{'ab'[n % 2]}/{n // 2:03d}.png" for n in range(24)]
    table.write_text(
        "path,label,split,group\n"
        + "".join(
            f"{path},label {path[0]},{splits[n // 2 % 4]},person {n // 2 % 4}\n"
            for n, path in enumerate(rows)
        )
    )
    result = run(table, tmp_path / "out")
    assert result.health.classes == ["label a", "label b"]
    assert result.health.split_counts == {"train": 12, "val": 6, "test": 6}
    assert {row.group for row in result.manifest.rows} == {f"person {n}" for n in range(4)}
    assert result.origin.kind == "csv"


@pytest.mark.slow
def test_the_embedded_data_set_is_sound_and_carries_its_license(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("elpv_dataset")
    caplog.set_level(logging.INFO)
    result = run(ROOT / "data" / "sources" / "elpv.yaml", tmp_path / "out")
    assert result.health.images == 2624
    assert result.health.rejected == 0
    assert any("from 44 solar modules" in warning for warning in result.health.warnings)
    assert result.health.near_duplicates > 100  # cells photographed twice and sister wafers
    assert any("CC BY-NC-SA 4.0" in message for message in caplog.messages)
    written = "".join(file.read_text("utf-8") for file in (tmp_path / "out").glob("*.[cj]s*"))
    assert str(ROOT) not in written
    assert "site-packages" not in written
