"""Checking of image files: what is bad, why, and when it stops the run."""

import hashlib
import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from conftest import draw_image, tells, with_values
from PIL import Image

from tasks.artifacts.records import ImageSource
from tasks.artifacts.tables import Rejected
from tasks.errors import DataError
from tasks.images.listing.folders import ListedImage, Listing, Pin
from tasks.images.listing.sources import digest_of_files
from tasks.images.validate import (
    Inspection,
    check_pin,
    check_share_of_bad,
    inspect_images,
    kinds_of_reasons,
)
from tasks.params import IngestParams, Params

ORIGIN = ImageSource(
    kind="folder",
    name="cells",
    root="raw",
    package=None,
    license=None,
    citation=None,
    label_rule=None,
)


def encoded(kind: str, number: int = 0, size: tuple[int, int] = (40, 32)) -> bytes:
    buffer = io.BytesIO()
    draw_image(0, number, size).save(buffer, kind)
    return buffer.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """A whole PNG file of some bytes that claims to hold a huge picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def flip_byte(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def params_of(params: Params, **values: object) -> IngestParams:
    return with_values(params, {f"ingest.{key}": value for key, value in values.items()}).ingest


def inspect(
    root: Path, files: dict[str, bytes], params: IngestParams, workers: int = 1
) -> Inspection:
    for path, content in files.items():
        (root / path).write_bytes(content)
    return inspect_listed(root, sorted(files), params, workers)


def inspect_listed(
    root: Path, paths: list[str], params: IngestParams, workers: int = 1
) -> Inspection:
    images = tuple(ListedImage(path, "a") for path in paths)
    return inspect_images(root, Listing(ORIGIN, images), params, workers=workers)


BAD = {
    "01_empty.jpg": (b"", "empty file"),
    "02_half.jpg": (encoded("JPEG")[: len(encoded("JPEG")) // 2], "truncated (ends at byte"),
    "03_crc.png": (flip_byte(encoded("PNG"), 200), "CRC"),
    "04_bomb.png": (png_bomb(60_000, 60_000), "too many pixels"),
    "05_large.png": (
        encoded("PNG", size=(400, 300)),
        "allowed: at most 100,000, ingest.max_pixels",
    ),
    "07_page.jpg": (b"<html><body>404 Not Found</body></html>", "HTML"),
    "07_paper.jpg": (b"%PDF-1.7 ...", "PDF"),
    "07_drawing.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript"),
    "07_notes.txt": (b"remember the milk", "not an allowed image format"),
    "13_tiny.png": (
        encoded("PNG", size=(20, 11)),
        "too small (20 x 11 pixels; allowed: at least 12",
    ),
}


def test_all_bad_files_are_found_at_once_with_their_reason(
    tmp_path: Path, default_params: Params
) -> None:
    files = {name: content for name, (content, _) in BAD.items()} | {"good.png": encoded("PNG")}
    found = inspect(tmp_path, files, params_of(default_params, max_pixels=100_000, min_side_px=12))
    assert [image.listed.path for image in found.images] == ["good.png"]
    assert [item.path for item in found.rejected] == sorted(BAD)
    assert all(BAD[item.path][1] in item.reason for item in found.rejected)


def test_facts_of_a_good_file(tmp_path: Path, default_params: Params) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    draw_image(1, 1).convert("L").save(turned, "JPEG", exif=exif)
    found = inspect(tmp_path, {"a.png": turned.getvalue()}, default_params.ingest)
    (image,) = found.images
    assert (image.width, image.height, image.mode) == (32, 40, "L")
    assert image.sha256 == hashlib.sha256(turned.getvalue()).hexdigest()
    assert image.look is not None
    assert len(image.look) == 32
    assert image.warnings == ("named .png but its content is JPEG",)


def test_the_result_does_not_depend_on_the_number_of_threads(
    tmp_path: Path, default_params: Params
) -> None:
    files = {f"{number:03d}.png": encoded("PNG", number) for number in range(150)}
    files["007.png"] = b""
    one = inspect(tmp_path, files, default_params.ingest, workers=1)
    assert inspect(tmp_path, files, default_params.ingest, workers=5) == one
    assert len(one.images) == 149


def test_pipes_missing_and_unreadable_files_never_hang_or_stop_the_others(
    tmp_path: Path, default_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    (tmp_path / "locked.png").write_bytes(encoded("PNG"))
    (tmp_path / "failing.png").write_bytes(encoded("PNG"))
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:  # also where the tests run as root
        if path.name == "locked.png":
            raise PermissionError(13, "Permission denied")
        if path.name == "failing.png":
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    names = ["failing.png", "good.png", "locked.png", "missing.png", "pipe.png"]
    found = inspect_listed(tmp_path, names, default_params.ingest)
    assert {item.path: item.reason for item in found.rejected} == {
        "failing.png": "cannot be read (Input/output error)",
        "locked.png": "permission denied (give yourself the right to read it: chmod u+r)",
        "missing.png": "no such file",
        "pipe.png": "not a regular file (pipe)",
    }
    assert len(found.images) == 1


def test_a_file_too_large_for_memory_is_not_read(tmp_path: Path, default_params: Params) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate((1 << 30) + 1)  # sparse: takes no disk
    found = inspect_listed(tmp_path, ["huge.png"], default_params.ingest)
    assert found.rejected[0].reason == "too large (1,073,741,825 bytes)"


def test_an_interrupt_ends_the_check(
    tmp_path: Path, default_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(content: bytes, **limits: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.images.validate.decode_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        inspect(tmp_path, {"a.png": b"x"}, default_params.ingest)


# policy -------------------------------------------------------------------------------------------


def inspection(good: int, bad: int, tmp_path: Path, params: Params) -> Inspection:
    files = {f"good{number}.png": encoded("PNG", number) for number in range(good)}
    files |= {f"bad{number:02d}\n.png": b"" for number in range(bad)}
    return inspect(tmp_path, files, params.ingest)


def test_quarantine_tolerates_exactly_the_largest_share(
    tmp_path: Path, default_params: Params
) -> None:
    found = inspection(6, 2, tmp_path, default_params)
    path = tmp_path / "quarantine.csv"
    check_share_of_bad(found, params_of(default_params, max_bad_fraction=0.25), written_to=path)
    with pytest.raises(DataError, match=r"2 of 8 files.*0\.24 \(ingest\.max_bad_fraction"):
        check_share_of_bad(found, params_of(default_params, max_bad_fraction=0.24), written_to=path)


def test_fail_stops_at_any_bad_file_and_shows_ten(tmp_path: Path, default_params: Params) -> None:
    found = inspection(1, 12, tmp_path, default_params)
    params = params_of(default_params, on_bad="fail", max_bad_fraction=1.0)
    with pytest.raises(DataError, match=r"12 of 13 files .*; allowed: none") as caught:
        check_share_of_bad(found, params, written_to=tmp_path / "quarantine.csv")
    lines = str(caught.value).splitlines()
    assert "quarantine.csv" in lines[0]
    assert lines[1] == "  bad00\\n.png: empty file"
    assert lines[11] == "  ... and 2 more"
    assert len(lines) == 12


def classes_with_bad(
    tmp_path: Path, params: IngestParams, **classes: tuple[int, int]
) -> Inspection:
    """Classes by name, each of so many good and bad files."""
    listed = []
    for label, (good, bad) in classes.items():
        for number in range(good + bad):
            path = f"{label}{number}.png"
            (tmp_path / path).write_bytes(encoded("PNG", number) if number < good else b"")
            listed.append(ListedImage(path, label))
    return inspect_images(tmp_path, Listing(ORIGIN, tuple(listed)), params, workers=2)


def test_a_class_that_loses_most_of_its_files_stops_the_run_and_is_named(
    tmp_path: Path, default_params: Params
) -> None:
    params = params_of(default_params, max_bad_fraction=0.05)
    found = classes_with_bad(tmp_path, params, common=(400, 0), rare=(8, 20))
    assert found.rejected_by_class == {"rare": 20}
    with pytest.raises(DataError) as caught:
        check_share_of_bad(found, params, written_to=tmp_path / "quarantine.csv")
    message = str(caught.value)
    assert tells(message, "20 of 428", "rare (20 of 28)", "0.1 of a class", "quarantine.csv")
    assert "common" not in message
    wide = params_of(default_params, max_bad_fraction=0.75)  # larger than what the class lost
    check_share_of_bad(found, wide, written_to=tmp_path / "quarantine.csv")


@pytest.mark.parametrize(
    ("good", "bad", "stops"),
    [(9, 1, False), (2, 2, False), (1, 3, True), (27, 3, False), (26, 3, True)],
)
def test_a_small_class_may_lose_two_files_and_a_larger_one_a_tenth(
    good: int, bad: int, stops: bool, tmp_path: Path, default_params: Params
) -> None:
    params = params_of(default_params, max_bad_fraction=0.05)
    found = classes_with_bad(tmp_path, params, common=(100, 0), other=(good, bad))
    if stops:
        with pytest.raises(DataError, match=rf"other \({bad} of {good + bad}\)"):
            check_share_of_bad(found, params, written_to=tmp_path)
    else:
        check_share_of_bad(found, params, written_to=tmp_path)


def test_no_bad_file_passes_every_policy(tmp_path: Path, default_params: Params) -> None:
    found = inspection(1, 0, tmp_path, default_params)
    params = params_of(default_params, on_bad="fail", max_bad_fraction=0.0)
    check_share_of_bad(found, params, written_to=tmp_path)
    assert found.rejected == ()


def test_reasons_are_counted_by_their_kind() -> None:
    reasons = ["empty file", "too small (1 x 1)", "too small (2 x 1)"]
    rejected = [Rejected(str(number), reason) for number, reason in enumerate(reasons)]
    assert kinds_of_reasons(rejected) == {"empty file": 1, "too small": 2}


# pin ----------------------------------------------------------------------------------------------


def test_packaged_files_must_be_the_pinned_ones(tmp_path: Path, default_params: Params) -> None:
    files = {"1.png": encoded("PNG", 1), "2.png": b"bad, and yet part of the package"}
    found = inspect(tmp_path, files, default_params.ingest)
    (tmp_path / "labels.csv").write_bytes(b"1.png 0\n")
    everything = files | {"labels.csv": b"1.png 0\n"}
    right = digest_of_files(
        (path, hashlib.sha256(content).hexdigest()) for path, content in everything.items()
    )
    check_pin(tmp_path, Listing(ORIGIN, (), pin=Pin(right, "labels.csv", "install it")), found)
    (tmp_path / "labels.csv").write_bytes(b"1.png 1\n")
    with pytest.raises(DataError, match=rf"expected {right}\); install it"):
        check_pin(tmp_path, Listing(ORIGIN, (), pin=Pin(right, "labels.csv", "install it")), found)


def test_other_sources_have_no_pin(tmp_path: Path, default_params: Params) -> None:
    found = inspect(tmp_path, {"1.png": encoded("PNG")}, default_params.ingest)
    check_pin(tmp_path / "nowhere", Listing(ORIGIN, ()), found)
    assert found.digests == (("1.png", hashlib.sha256(encoded("PNG")).hexdigest()),)
