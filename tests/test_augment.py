"""The augment stage packs what the manifest lists: same bytes always, and nothing that changed."""

import hashlib
import io
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, ImageFolder, tells
from PIL import Image

from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import (
    SPLITS,
    AugmentPolicy,
    Conversion,
    ImageSource,
    Split,
    read_record,
    write_record,
)
from tasks.artifacts.tables import Manifest, ManifestRow, write_manifest
from tasks.augment import describe_policy, main, render_rows
from tasks.errors import ArtifactError, DataError
from tasks.images.contact_sheet import SHEET_IMAGES, Strip, choose_strips, draw_contact_sheet
from tasks.images.decoding.conversion import settle_conversion
from tasks.images.views import read_view
from tasks.params import Params
from tasks.runtime.parallel import AHEAD, map_in_order

PX = 32
SPLIT_OF: list[Split] = ["train", "train", "val", "test"]


def manifest_of(root: Path) -> Manifest:
    """Every image of a folder of class folders, two of four for training."""
    rows = []
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        content = path.read_bytes()
        width, height = Image.open(io.BytesIO(content)).size
        relative = path.relative_to(root).as_posix()
        sha256 = hashlib.sha256(content).hexdigest()
        split = SPLIT_OF[number % 4]
        rows.append(
            ManifestRow(relative, path.parent.name, split, relative, sha256, width, height, "RGB")
        )
    return Manifest(rows)


class Project:
    """A folder with images, the files of ingest and parameters, on which the stage can run."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        manifest: Manifest | None = None,
        conversion: Conversion | None = None,
    ) -> None:
        self.folder, self.root = folder, root
        folder.mkdir(exist_ok=True)
        self.manifest = manifest or manifest_of(root)
        write_manifest(folder / "manifest.csv", self.manifest)
        nothing = {"package": None, "license": None, "citation": None, "label_rule": None}
        origin = ImageSource(kind="folder", name="raw", root=str(root), **nothing)
        write_record(folder / "origin.json", origin)
        write_record(folder / "conversion.json", conversion or settle_conversion([]))

    def run(self, out: str = "out", **values: Any) -> Path:
        text = (ROOT / "params.yaml").read_text()
        for key, value in {"image_px": PX, "views": 2, "policy": "heavy", **values}.items():
            start = text.index(f"  {key}: ", text.index("\naugment:"))
            text = text[:start] + f"  {key}: {value} " + text[text.index("#", start) :]
        (self.folder / "params.yaml").write_text(text)
        folder = self.folder / out
        arguments = {
            "params": self.folder / "params.yaml",
            "manifest": self.folder / "manifest.csv",
            "origin": self.folder / "origin.json",
            "conversion": self.folder / "conversion.json",
            **{split: folder / split for split in SPLITS},
            "sheet": folder / "contact_sheet.jpg",
            "policy": folder / "policy.json",
        }
        main([part for name, path in arguments.items() for part in (f"--{name}", str(path))])
        return folder


@pytest.fixture
def project(tmp_path: Path, image_folder: ImageFolder) -> Project:
    return Project(tmp_path / "project", image_folder(images=8))


def all_bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows_by_path(project: Project, out: Path) -> dict[str, np.ndarray]:
    store = PixelStore.open(out / "train")
    views = np.arange(1 + store.info.views)
    rows = project.manifest.of("train")
    return {row.path: store.rows(store.row_of(i) + views) for i, row in enumerate(rows)}


# the stage ----------------------------------------------------------------------------------------


def test_training_images_get_views_and_the_others_are_clean(project: Project) -> None:
    out = project.run()
    for split, count, views in (("train", 12, 2), ("val", 6, 0), ("test", 6, 0)):
        info = PixelStore.open(out / split).info
        assert (info.count, info.views, info.image_px) == (count, views, PX)


def test_clean_rows_are_the_clean_views_of_the_files(project: Project) -> None:
    out = project.run()
    for split in SPLITS:
        store = PixelStore.open(out / split)
        for pixels, row in zip(
            store.rows(store.clean_rows()), project.manifest.of(split), strict=True
        ):
            content = (project.root / row.path).read_bytes()
            expected = read_view(content, image_px=PX, fit="squash", max_pixels=10**6).pixels
            assert np.array_equal(pixels, expected)


def test_views_of_an_image_differ(project: Project) -> None:
    views = rows_by_path(project, project.run())
    assert views
    for clean, first, second in views.values():
        assert not np.array_equal(clean, first)
        assert not np.array_equal(first, second)


def test_same_bytes_twice_and_whatever_the_workers(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for number, workers in enumerate((1, 3, 3)):
        monkeypatch.setenv("REGRAFT_WORKERS", str(workers))
        written.append(all_bytes(project.run(out=f"out{number}")))
    assert written[0] == written[1] == written[2]
    assert len(written[0]) == 8  # info and one shard a split, sheet and policy


def test_views_stay_when_other_images_are_added_or_renamed(project: Project) -> None:
    before = rows_by_path(project, project.run())
    Image.effect_noise((40, 40), 50).save(project.root / "cat" / "0000.png")
    (project.root / "fox" / "007.png").rename(project.root / "fox" / "999.png")
    grown = Project(project.folder, project.root)
    after = rows_by_path(grown, grown.run(out="grown"))
    shared = sorted(before.keys() & after.keys())
    assert len(shared) > 3
    assert len(after) > len(before)
    assert all(np.array_equal(before[path], after[path]) for path in shared)


def test_a_policy_that_changes_nothing_packs_copies(project: Project) -> None:
    out = project.run(views=0, policy="none")
    rows = rows_by_path(project, out)
    assert {len(views) for views in rows.values()} == {1}
    with Image.open(out / "contact_sheet.jpg") as sheet:
        assert sheet.size == (2 * 16 - 24 + 8 * (144 + 24), 2 * 16 - 8 + 176)


def test_policy_says_what_was_done(project: Project) -> None:
    out = project.run(image_px=33)
    policy = read_record(out / "policy.json", AugmentPolicy)
    assert (policy.policy, policy.views, policy.image_px, policy.fit) == ("heavy", 2, 33, "squash")
    assert policy.ranges["crop_scale_min"] == 0.3
    assert policy.images == {"train": 12, "val": 6, "test": 6}
    assert policy.bytes == {"train": 12 * 3 * 3267, "val": 6 * 3267, "test": 6 * 3267}
    (note,) = policy.notes
    assert tells(note, "24 of 24 images", "33 a side", "enlarged")
    for split in SPLITS:
        store = PixelStore.open(out / split)
        every = np.arange(store.info.count * (1 + store.info.views))
        assert store.rows(every).nbytes == policy.bytes[split]


@pytest.mark.parametrize(
    ("fit", "facts"), [("squash", [("2.5 times as long as wide", "stretched")]), ("pad", [])]
)
def test_what_the_fit_does_to_long_images_is_said(
    tiny_params: Params, fit: str, facts: list[tuple[str, str]]
) -> None:
    row = ManifestRow("a/1.png", "a", "train", "a", "00", 100, 40, "RGB")
    params = tiny_params.augment.model_copy(update={"fit": fit})
    notes = describe_policy(Manifest([row]), params).notes
    assert len(notes) == len(facts)
    assert all(tells(note, *told) for note, told in zip(notes, facts, strict=True))


def test_every_changed_file_is_named_and_old_outputs_stay(project: Project) -> None:
    before = all_bytes(project.run())
    (project.root / "cat" / "003.png").unlink()
    (project.root / "dog" / "001.png").write_bytes(b"something else")
    (project.root / "fox" / "002.png").unlink()
    (project.root / "fox" / "002.png").mkdir()
    with pytest.raises(DataError) as caught:
        project.run()
    facts = (
        ("3 of 24 images", str(project.root)),
        ("'cat/003.png'", "No such file"),
        ("'dog/001.png'", "content", "sha256"),
        ("'fox/002.png'", "Is a directory"),
        ("run ingest again",),
    )
    for line, told in zip(str(caught.value).splitlines(), facts, strict=True):
        assert tells(line, *told)
    assert all_bytes(project.folder / "out") == before


def test_only_the_first_changed_files_are_listed(project: Project) -> None:
    shutil.rmtree(project.root / "cat")
    shutil.rmtree(project.root / "dog")
    with pytest.raises(DataError, match=r"16 of 24 images") as caught:
        project.run()
    *_, listed, rest, _ = str(caught.value).splitlines()
    assert tells(listed, "'dog/001.png'", "No such file")
    assert "6 more" in rest


def test_a_listed_file_that_cannot_be_decoded_is_named(project: Project) -> None:
    path = project.root / "cat" / "000.png"
    path.write_bytes(path.read_bytes()[:-20])
    broken = hashlib.sha256(path.read_bytes()).hexdigest()
    rows = list(project.manifest.rows)
    rows[0] = ManifestRow(rows[0].path, "cat", "train", "g", broken, 40, 32, "RGB")
    with pytest.raises(DataError, match=r"'cat/000.png': truncated .* run ingest again"):
        Project(project.folder, project.root, Manifest(rows)).run()


def test_a_full_disk_is_said_before_anything_is_written(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ArtifactError, match=r"need 0.00 GB .* lower augment.views"):
        project.run()
    assert not (project.folder / "out").exists()


def test_larger_than_the_manifest_says_is_refused(tiny_params: Params) -> None:
    file = io.BytesIO()
    Image.new("RGB", (50, 50)).save(file, "PNG")
    row = ManifestRow("a/1.png", "a", "train", "a", "00", 49, 50, "RGB")
    with pytest.raises(DataError, match="too many pixels"):
        render_rows(
            file.getvalue(), row, tiny_params.augment, settle_conversion([]), seed=1, views=0
        )


# contact sheet ------------------------------------------------------------------------------------


def strip_of(caption: str, views: int, value: int = 0) -> Strip:
    return Strip(caption, np.full((views, PX, PX, 3), value, dtype=np.uint8))


def test_contact_sheet_shows_the_classes_in_turn(project: Project) -> None:
    out = project.run()
    strips = choose_strips(project.manifest, PixelStore.open(out / "train"), seed=17)
    captions = [strip.caption for strip in strips]
    assert captions == sorted(captions)
    assert sorted(map(captions.count, ("cat", "dog", "fox"))) == [2, 3, 3]
    assert len(strips) == SHEET_IMAGES
    rows = rows_by_path(project, out)
    for strip in strips:
        assert any(np.array_equal(strip.views, views) for views in rows.values())


@pytest.mark.parametrize(("views", "across"), [(1, 8), (2, 4), (4, 2), (5, 1), (20, 1)])
def test_contact_sheet_holds_every_strip(views: int, across: int) -> None:
    strips = [strip_of("a", views, 255 if number else 0) for number in range(8)]
    sheet = Image.open(io.BytesIO(draw_contact_sheet(strips)))
    tiles = min(views, 8)
    assert sheet.width == 2 * 16 - 24 + across * (tiles * 152 - 8 + 24)
    assert sheet.height == 2 * 16 - 8 + (8 // across) * (24 + 144 + 8)
    assert (np.asarray(sheet)[16 + 24 : 16 + 24 + 144, 16 : 16 + 144] < 5).all()  # first tile
    assert (np.asarray(sheet)[16:40, 16:160] < 100).any()  # its caption


def test_contact_sheet_of_few_images_is_narrow() -> None:
    sheet = Image.open(io.BytesIO(draw_contact_sheet([strip_of("a", 4), strip_of("b", 4)])))
    assert sheet.height == 2 * 16 - 8 + 176


@pytest.mark.parametrize("caption", ["", "a" * 300, "tab\tand\nline", "caf\udce9", "Größe"])
def test_any_class_name_can_be_drawn_inside_its_tile(caption: str) -> None:
    sheet = np.asarray(Image.open(io.BytesIO(draw_contact_sheet([strip_of(caption, 2, 255)]))))
    between = sheet[16:40, 16 + 144 + 2 : 16 + 152]
    assert between.min() > 200


# threads ------------------------------------------------------------------------------------------


def test_results_come_in_order_whatever_finishes_first() -> None:
    def wait_and_give(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    assert list(map_in_order(wait_and_give, range(40), workers=4)) == list(range(40))
    assert list(map_in_order(wait_and_give, [], workers=2)) == []


def test_few_results_wait_in_memory() -> None:
    begun: list[int] = []
    results = map_in_order(begun.append, range(1000), workers=2)
    next(results)
    time.sleep(0.02)
    assert len(begun) <= AHEAD * 2
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= AHEAD * 2


def test_an_exception_comes_at_its_turn_and_ends_the_work() -> None:
    lock, begun = threading.Lock(), []

    def fail_at_five(number: int) -> int:
        with lock:
            begun.append(number)
        if number == 5:
            raise ValueError("five")
        return number

    got: list[int] = []
    with pytest.raises(ValueError, match="five"):
        got.extend(collect(map_in_order(fail_at_five, range(1000), workers=2), got.append))
    assert got == [0, 1, 2, 3, 4]
    assert len(begun) < 5 + 2 * AHEAD * 2


def collect(results: Any, take: Callable[[int], None]) -> Sequence[int]:
    for result in results:
        take(result)
    return []
