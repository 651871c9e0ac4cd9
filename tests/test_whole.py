"""What holds no pixels of the first picture decides nothing; where pixels are missing is said."""

import io
import random
from typing import Any

import numpy as np
import pytest
from conftest import tells
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from test_decode import attempt, decode, encode, noise, pixels_of, png_chunk

from tasks.errors import ImageError

MEBIBYTE = 1 << 20


def smooth(mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(1).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((70, 50), Image.Resampling.BICUBIC).convert(mode)


def is_read_with(content: bytes, whole: bytes, *facts: str) -> bool:
    """Whether the same pixels come out, and a remark tells these facts."""
    decoded = decode(content)
    assert np.array_equal(decoded.image, pixels_of(whole))
    return any(tells(warning, *facts) for warning in decoded.warnings)


# PNG ----------------------------------------------------------------------------------------------


def with_chunk(content: bytes, chunk: bytes, before: bytes = b"IDAT") -> bytes:
    at = content.index(before) - 4
    return content[:at] + chunk + content[at:]


def spoiled(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


@pytest.mark.parametrize("packed", [False, True])
def test_png_text_of_any_size_is_ignored(packed: bool) -> None:
    image, notes = noise(), PngInfo()
    notes.add_text("workflow", "x" * (MEBIBYTE + 1), zip=packed)
    notes.add_itxt("story", "y" * (MEBIBYTE + 1), zip=packed)
    assert is_read_with(encode(image, "PNG", pnginfo=notes), encode(image, "PNG"), "text", "1 MiB")


def test_png_text_at_the_limit_is_kept_without_a_remark() -> None:
    notes = PngInfo()
    notes.add_text("workflow", "x" * (MEBIBYTE - 100), zip=True)
    assert decode(encode(noise(), "PNG", pnginfo=notes)).warnings == ()


def test_png_profile_of_any_size_is_ignored() -> None:
    image = noise()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(MEBIBYTE)
    content = encode(image, "PNG", icc_profile=profile)
    assert is_read_with(content, encode(image, "PNG"), "color profile", "1 MiB")


@pytest.mark.parametrize(
    ("name", "said"),
    [(b"tEXt", "text"), (b"iCCP", "color profile"), (b"eXIf", "EXIF"), (b"gAMA", "chunk gAMA")],
)
def test_png_metadata_that_fail_their_checksum_are_ignored(name: bytes, said: str) -> None:
    whole = encode(noise(), "PNG")
    content = with_chunk(whole, spoiled(png_chunk(name, b"abc\0\0defg")))
    assert is_read_with(content, whole, said, "CRC")


@pytest.mark.parametrize("data", [b"", b"x", b"name\0\1junk"])
def test_png_profile_that_is_not_packed_is_ignored(data: bytes) -> None:
    whole = encode(noise(), "PNG")
    content = with_chunk(whole, png_chunk(b"iCCP", data))
    assert is_read_with(content, whole, "color profile", "damaged")


@pytest.mark.parametrize("name", [b"gAMA", b"pHYs", b"cHRM", b"sRGB", b"zTXt", b"prVt"])
def test_png_chunks_without_pixels_may_hold_anything(name: bytes) -> None:
    whole = encode(noise(), "PNG")
    for data in (b"", b"x", b"x\0\7"):
        content = with_chunk(whole, png_chunk(name, data))
        assert np.array_equal(pixels_of(content), pixels_of(whole))


def test_png_transparency_that_fails_its_checksum_is_damage() -> None:
    content = encode(Image.new("P", (9, 9)), "PNG", transparency=0)
    at = content.index(b"tRNS") + 4
    with pytest.raises(ImageError, match=r"damaged .*tRNS.*CRC"):
        decode(content[:at] + b"\x07" + content[at + 1 :])


@pytest.mark.parametrize("tail", [b"", b"\0\0\0", b"\0" * 400, b"a maker's trailer, of a kind"])
def test_png_without_its_end_is_whole_wherever_after_the_pixels_it_ends(tail: bytes) -> None:
    whole = encode(noise(), "PNG")
    end = whole.index(b"IEND") - 4
    for at in range(end, len(whole)):
        assert is_read_with(whole[:at] + tail, whole, "end marker", "missing")


@pytest.mark.parametrize("tail", [b"", b"\0" * 400, b"a maker's trailer, of a kind"])
@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_png_cut_anywhere_before_the_end_of_its_pixels_is_refused(mode: str, tail: bytes) -> None:
    whole = encode(smooth(mode), "PNG")
    for at in range(8, whole.index(b"IEND") - 4, 3):
        assert isinstance(attempt(whole[:at] + tail), str)


def animation(kind: str) -> tuple[Image.Image, bytes]:
    frames = [noise(30, 20), *(Image.new("RGB", (30, 20), color) for color in ("lime", "blue"))]
    options = {"lossless": True} if kind == "WEBP" else {}
    return frames[0], encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def test_later_frames_of_an_animated_png_decide_nothing() -> None:
    first, content = animation("PNG")
    at = content.index(b"fdAT")
    broken = content[: at + 8] + bytes([content[at + 8] ^ 1]) + content[at + 9 :]
    for changed in (content, broken, content[: at + 20]):
        decoded = decode(changed)
        assert np.array_equal(decoded.image, first)
        assert "holds 3 frames; the first one is used" in decoded.warnings


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_later_frames_that_are_cut_off_decide_nothing(kind: str) -> None:
    first, content = animation(kind)
    decoded = decode(content[:-20])
    assert np.array_equal(decoded.image, pixels_of(encode(first, kind, lossless=True)))
    assert any(tells(warning, "first") for warning in decoded.warnings)


# WebP ---------------------------------------------------------------------------------------------


def test_webp_whose_metadata_are_cut_off_is_whole() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a long description" * 20
    content = encode(noise(), "WEBP", exif=exif, lossless=True)
    plain = encode(noise(), "WEBP", lossless=True)
    assert is_read_with(content[:-30], plain, "end", "missing")


# JPEG ---------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 1},
    "rows": {"restart_marker_rows": 1, "quality": 95, "subsampling": 0},
    "progressive rows": {"progressive": True, "restart_marker_rows": 1},
}
TAILS = (b"", b"\xff", b"\0" * 500, b"SEFH\x6b\0\0\0 maker's trailer SEFT")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_jpeg_without_end_marker_has_all_its_pixels(mode: str, options: dict[str, Any]) -> None:
    whole = encode(smooth(mode), "JPEG", **options)
    assert whole.endswith(b"\xff\xd9")
    for tail in TAILS:
        assert is_read_with(whole[:-2] + tail, whole, "end marker", "missing")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_jpeg_that_lacks_pixels_is_refused(mode: str, options: dict[str, Any]) -> None:
    whole = encode(smooth(mode), "JPEG", **options)
    places = random.Random(7).sample(range(2, len(whole) - 60), 40)
    scans = [
        at for at in range(2, len(whole) - 60) if whole[at : at + 2] in (b"\xff\xc4", b"\xff\xda")
    ]
    for at in (*places, *scans):  # cut also between two scans, where nothing is half
        for tail in TAILS:
            assert isinstance(attempt(whole[:at] + tail), str), (at, tail)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_jpeg_cut_by_a_few_bytes_is_never_read_with_other_pixels(options: dict[str, Any]) -> None:
    whole = encode(noise(40, 33), "JPEG", **options)
    expected = pixels_of(whole)
    for at in range(len(whole) - 40, len(whole)):
        outcome = attempt(whole[:at])
        assert isinstance(outcome, str) or np.array_equal(outcome.image, expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", ["baseline", "restarts", "rows"])
def test_jpeg_that_was_closed_behind_a_half_is_refused(mode: str, kind: str) -> None:
    whole = encode(smooth(mode), "JPEG", **KINDS[kind])
    half = (whole.index(b"\xff\xda") + len(whole)) // 2
    with pytest.raises(ImageError, match="truncated"):
        decode(whole[:half].rstrip(b"\xff") + b"\xff\xd9")


def test_jpeg_that_ends_in_gray_is_whole() -> None:
    image = smooth()
    image.paste((128, 128, 128), (0, 25, 70, 50))
    content = encode(image, "JPEG")
    assert np.array_equal(decode(content).image, np.asarray(Image.open(io.BytesIO(content))))


def test_half_an_upload_says_where_it_ends() -> None:
    content = encode(smooth(), "JPEG")
    with pytest.raises(ImageError) as caught:
        decode(content[:700])
    assert tells(str(caught.value), "truncated", "byte 700", "pixel")
