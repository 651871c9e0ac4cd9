"""Every image file becomes upright RGB of defined values, or a short reason."""

import io
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tells
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from tasks.errors import ImageError
from tasks.images.decoding.decode import Decoded, decode_image
from tasks.images.decoding.formats import READERS, SUFFIXES

MILLION = 1_000_000
WRITTEN = sorted(set(READERS) - {"HEIC"})  # HEIC is read by an extra
ROOT = Path(__file__).parent.parent


def noise(width: int = 24, height: int = 16, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width) if channels == 1 else (height, width, channels)
    pixels = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(content: bytes, **options: Any) -> Decoded:
    return decode_image(content, **{"max_pixels": MILLION, **options})


def attempt(content: bytes) -> Decoded | str:
    try:
        return decode(content)
    except ImageError as err:
        return str(err)


def pixels_of(content: bytes, **options: Any) -> np.ndarray:
    return np.asarray(decode(content, **options).image)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    chunks = (b"IHDR", header), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_very_pixels(kind: str) -> None:
    image = noise()
    decoded = decode(encode(image, kind))
    assert np.array_equal(decoded.image, image)
    assert (decoded.width, decoded.height, decoded.mode) == (24, 16, "RGB")
    assert (decoded.format, decoded.warnings) == (kind, ())


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_allowed_format_agrees_with_pillow(kind: str) -> None:
    content = encode(noise(), kind)
    assert np.array_equal(pixels_of(content), Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_equals_the_turned_picture(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(noise(), kind, exif=exif, **options)
    stored = encode(noise(), kind, **options)
    expected = Image.open(io.BytesIO(stored)).convert("RGB")
    expected.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's TIFF reader dislikes Pillow's TIFF writer
        decoded = decode(content)
    assert np.array_equal(decoded.image, expected)
    assert (decoded.width, decoded.height) == expected.size
    assert decoded.warnings == ()


def test_turned_picture_is_right_by_hand() -> None:
    # Orientation 6: the camera was held so that the stored left column is the top row.
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encode(Image.fromarray(pixels), "PNG", exif=exif)
    assert np.array_equal(pixels_of(content)[..., 0], np.rot90(pixels, -1))


def test_damaged_exif_is_said_and_the_picture_taken_as_it_is() -> None:
    image = noise()
    content = encode(image, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(content)
    assert np.array_equal(decoded.image, image)
    (warning,) = decoded.warnings
    assert tells(warning, "EXIF", "damaged", "upright")


def test_empty_file() -> None:
    with pytest.raises(ImageError, match=r"^empty file$"):
        decode(b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF"])
def test_half_a_file_is_truncated(kind: str) -> None:
    content = encode(noise(), kind)
    half = content[: len(content) // 2]
    with pytest.raises(ImageError, match=rf"^truncated \(ends at byte {len(half)}, "):
        decode(half)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_jpeg_that_zeros_fill_up_is_truncated() -> None:
    content = encode(noise(200, 200), "JPEG", exif=Image.Exif())
    filled = content[: len(content) // 2].ljust(len(content), b"\0")
    Image.open(io.BytesIO(filled)).load()  # Pillow shows it half gray without a word
    with pytest.raises(ImageError, match="truncated"):
        decode(filled)


def test_jpeg_with_a_trailer_after_its_end_is_whole() -> None:
    content = encode(noise(), "JPEG")
    assert np.array_equal(pixels_of(content + b"\xff\xda" * 50), pixels_of(content))


def test_jpeg_fill_bytes_are_skipped() -> None:
    content = encode(noise(), "JPEG")
    padded = content[:2] + b"\xff" + content[2:]
    assert np.array_equal(pixels_of(padded), pixels_of(content))
    with pytest.raises(ImageError, match="truncated"):
        decode(padded[:-40].ljust(len(padded) + 9, b"\0"))


def test_jpeg_without_segments_is_damaged() -> None:
    with pytest.raises(ImageError, match="damaged"):
        decode(b"\xff\xd8\xff\x01" + b"abcdefgh" * 9)


def test_gif_frame_larger_than_its_header_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encode(noise(100, 100), "GIF")
    small_header = content[:6] + b"\x08\0\x08\0" + content[10:]
    with pytest.raises(ImageError, match="100 x 100 = 10,000"):
        decode(small_header, max_pixels=9_999)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"too many pixels .*Pillow"):
        decode(small_header)


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT"])
def test_flipped_bit_of_a_png_fails_its_crc(name: bytes) -> None:
    content = bytearray(encode(noise(), "PNG"))
    content[content.index(name) + 6] ^= 1
    with pytest.raises(ImageError, match=rf"damaged .*{name.decode()} .*CRC"):
        decode(bytes(content))


def test_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(
        ImageError,
        match=r"60000 x 60000 = 3,600,000,000; allowed: .*1,000,000, ingest\.max_pixels",
    ):
        decode(png_with_header(60_000, 60_000))


def test_bomb_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_with_header(60_000, 60_000))
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from tasks.images.decoding.decode import decode_image\n"
        "content = Path(sys.argv[1]).read_bytes()\n"
        "limit = int(Path('/proc/self/statm').read_text().split()[0]) * 4096 + 300_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try:\n"
        "    decode_image(content, max_pixels=100_000_000)\n"
        "except Exception as err:\n"
        "    print(type(err).__name__, err)\n"
    )
    if not Path("/proc/self/statm").exists() or not hasattr(resource, "RLIMIT_AS"):
        pytest.skip("needs Linux")
    command = [sys.executable, "-c", script, str(tmp_path / "bomb.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ImageError too many pixels")


def test_image_over_the_limit_is_named_and_passes_with_a_higher_one() -> None:
    content = encode(Image.new("L", (120, 90)), "PNG")
    with pytest.raises(ImageError, match=r"too many pixels \(120 x 90 = 10,800"):
        decode(content, max_pixels=10_799)
    assert decode(content, max_pixels=10_800).image.size == (120, 90)


def test_limit_above_pillows_own_holds_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # its error comes above 2,000
    for size in ((40, 40), (100, 100)):
        assert decode(encode(Image.new("RGB", size), "PNG")).image.size == size


def test_memory_error_becomes_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr(READERS["PNG"], "load", fail)
    with pytest.raises(ImageError, match=r"memory; lower ingest\.max_pixels"):
        decode(encode(noise(), "PNG"))


def test_wrong_suffix_is_accepted_with_a_warning() -> None:
    decoded = decode(encode(noise(), "PNG"), suffix=".JPG")
    (warning,) = decoded.warnings
    assert tells(warning, "named .JPG", "PNG")
    assert decode(encode(noise(), "PNG"), suffix=".Png").warnings == ()
    assert set(READERS) <= set(SUFFIXES.values()) <= {*READERS, "AVIF", "HEIC"}


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
WRONG = {
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
    "EPS": (EPS, "PostScript"),
    "HTML": (b"\n<!DOCTYPE html><html>404</html>", "HTML"),
    "SVG": (b'<?xml version="1.0"?>\n<!-- x --><svg xmlns="">', "SVG"),
    "text": ("Größe\n1,2\n".encode(), "text"),
    "long text": (b"a" + ("é" * 600).encode(), "text"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "video": (b"\0\0\0\x18ftypisom\0\0\0\0mp42", "video"),
    "zip": (b"PK\x03\x04\x14\0", "zip"),
    "zeros": (b"\0" * 300, "a file of zero bytes"),
    "dicom": (b"\0" * 128 + b"DICM" + b"\0" * 100, "DICOM; save its pixels as PNG or TIFF"),
    "noise": (b"\x01\x02\xfe\xff\x80\0\0", "unknown"),
    "PSD": (b"8BPS\0\1", "Photoshop"),
    "FITS": (b"SIMPLE  =                    T", "text"),
}


@pytest.mark.parametrize(("content", "name"), WRONG.values(), ids=WRONG.keys())
def test_other_content_is_refused_by_its_name(
    content: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("no other program may be started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(ImageError, match=rf"^not an allowed image format \(looks like {name}"):
        decode(content)


def test_avif_is_told_by_its_brands_whatever_its_name() -> None:
    content = encode(noise(), "AVIF")
    any_picture = content.replace(b"ftypavif", b"ftypmif1", 1)  # the brands behind say avif
    for changed in (content, any_picture):
        decoded = decode(changed, suffix=".jpg")
        assert decoded.format == "AVIF"
        assert any(tells(warning, "named .jpg", "AVIF") for warning in decoded.warnings)


def test_heic_is_read_by_the_extra_or_named_with_what_reads_it() -> None:
    try:
        import pillow_heif
    except ImportError:
        with pytest.raises(ImageError, match=r"HEIC; .*pip install pillow-heif .* dvc repro"):
            decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        return
    file, image = io.BytesIO(), Image.new("RGB", (64, 48), (200, 30, 60))
    pillow_heif.from_pillow(image).save(file, quality=95)
    decoded = decode(file.getvalue())
    assert (decoded.format, decoded.image.size) == ("HEIC", (64, 48))
    assert np.abs(np.asarray(decoded.image).astype(int) - (200, 30, 60)).max() <= 4
    with pytest.raises(ImageError, match="truncated"):
        decode(file.getvalue()[:-20])


def test_cmyk_has_defined_colors() -> None:
    # Pillow: channel = (255 - ink) * (255 - black) / 255.
    content = encode(Image.new("CMYK", (2, 2), (0, 100, 200, 51)), "TIFF")
    assert pixels_of(content)[0, 0].tolist() == [204, 124, 44]


def test_cmyk_jpeg_of_adobe_is_not_inverted() -> None:
    content = encode(Image.new("CMYK", (16, 16), (0, 100, 200, 51)), "JPEG", quality=100)
    assert b"Adobe" in content
    decoded = decode(content)
    assert decoded.mode == "CMYK"
    assert np.abs(np.asarray(decoded.image)[8, 8] - np.array([204, 124, 44])).max() <= 2


def test_ycck_jpeg_is_read_as_cmyk() -> None:
    # Inks are stored inverted as 255, 255, 255, 204. Read as Y, Cb, Cr, K that is R = B = 255 and
    # G = 255 - (0.344 + 0.714) * 127 = 121, inverted twice, times (255 - 51) / 255 of black.
    content = encode(Image.new("CMYK", (16, 16), (0, 0, 0, 51)), "JPEG", quality=100)
    at = content.index(b"Adobe") + 11
    ycck = content[:at] + b"\x02" + content[at + 1 :]
    decoded = decode(ycck)
    assert decoded.mode == "CMYK"
    assert np.abs(np.asarray(decoded.image)[8, 8] - np.array([0, 107, 0])).max() <= 2


RAMP = np.linspace(0, 65535, 64 * 4).astype(np.uint16).reshape(4, 64)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    decoded = decode(encode(Image.fromarray(RAMP), kind))
    gray = np.asarray(decoded.image)[..., 0].ravel()
    assert gray[0] == 0
    assert gray[-1] == 255
    assert (np.diff(gray.astype(int)) >= 0).all()
    assert len(set(gray.tolist())) == 256
    assert decoded.mode in {"I;16", "I"}
    assert decoded.warnings == ()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], [0, 128, 255]),
        ([[0.0, 0.25, 0.5]], [0, 64, 128]),
        ([[-10.0, 0.0, 10.0]], [0, 128, 255]),
        ([[300.0, 300.0, 300.0]], [0, 0, 0]),
    ],
)
def test_floating_point_is_scaled_by_a_rule(values: list[list[float]], expected: list[int]) -> None:
    decoded = decode(encode(Image.fromarray(np.array(values, dtype=np.float32)), "TIFF"))
    assert np.asarray(decoded.image)[0, :, 0].tolist() == expected
    assert decoded.mode == "F"


def test_whole_numbers_beyond_16_bits_are_stretched() -> None:
    values = np.array([[-1, 0, 99_999]], dtype=np.int32)
    decoded = decode(encode(Image.fromarray(values), "TIFF"))
    assert np.asarray(decoded.image)[0, :, 0].tolist() == [0, 0, 255]


def test_nan_is_damage() -> None:
    values = np.array([[0.0, np.nan]], dtype=np.float32)
    with pytest.raises(ImageError, match=r"damaged \(holds NaN"):
        decode(encode(Image.fromarray(values), "TIFF"))


def test_alpha_is_composited_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, color in enumerate([(200, 0, 100, 255), (200, 0, 100, 51), (200, 0, 100, 0)]):
        image.putpixel((x, 0), color)
    # channel * a + 255 * (1 - a) with a = 51 / 255 = 0.2
    expected = [[200, 0, 100], [244, 204, 224], [255, 255, 255]]
    assert pixels_of(encode(image, "PNG"))[0].tolist() == expected


def test_gray_with_alpha_is_composited_on_white() -> None:
    image = Image.new("LA", (1, 1), (100, 51))
    assert pixels_of(encode(image, "PNG"))[0, 0].tolist() == [224] * 3


def test_transparent_color_of_a_palette_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels_of(encode(image, "PNG", transparency=0))[0].tolist() == [[255] * 3, [40, 50, 60]]
    half = encode(image, "PNG", transparency=bytes([51, 255]))
    assert pixels_of(half)[0].tolist() == [[206, 208, 210], [40, 50, 60]]


@pytest.mark.parametrize(("mode", "kind"), [("1", "PNG"), ("L", "JPEG"), ("YCbCr", "TIFF")])
def test_other_modes_become_rgb(mode: str, kind: str) -> None:
    image = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    decoded = decode(encode(image, kind))
    assert decoded.mode == mode
    assert np.asarray(decoded.image).tolist() == [[[255] * 3] * 16] * 16


def test_lab_is_refused() -> None:
    with pytest.raises(ImageError, match=r"color mode \(LAB; save it as RGB"):
        decode(encode(Image.new("LAB", (4, 4)), "TIFF"))


@pytest.mark.parametrize(
    ("kind", "extra"),
    [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})],
)
def test_first_frame_is_taken_and_the_others_counted(kind: str, extra: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **extra)
    decoded = decode(content)
    assert np.asarray(decoded.image)[4, 4].tolist() == [255, 0, 0]
    (warning,) = decoded.warnings
    assert tells(warning, "3 frames", "first")


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_extreme_shapes_work_or_are_named(size: tuple[int, int]) -> None:
    content = encode(Image.new("RGB", size, (9, 8, 7)), "PNG")
    assert decode(content).image.size == size
    with pytest.raises(ImageError, match=rf"too small \({size[0]} x {size[1]} .*ingest.min_side"):
        decode(content, min_side_px=2)


@pytest.mark.parametrize("draft_px", [1, 30, 99, 100, 101, 150, 200, 201, 400, 1000])
def test_draft_never_falls_below_what_is_needed(draft_px: int) -> None:
    content = encode(noise(801, 403), "JPEG")
    decoded = decode(content, draft_px=draft_px)
    shorter = min(decoded.image.size)
    assert shorter >= min(draft_px, 403)
    assert (decoded.width, decoded.height) == (801, 403)
    if draft_px <= 50:
        assert shorter == 51  # an eighth, rounded up


def test_draft_is_for_jpeg_only() -> None:
    assert decode(encode(noise(80, 80), "PNG"), draft_px=10).image.size == (80, 80)


def test_content_after_the_header_may_be_damaged() -> None:
    content = encode(noise(), "GIF")[:24] + b"\xff" * 200
    with pytest.raises(ImageError, match=r"damaged|truncated"):
        decode(content)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of broken metadata
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=st.sampled_from(WRITTEN),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_any_damage_gives_an_image_or_a_reason(kind: str, flips: list[tuple[float, int]]) -> None:
    content = bytearray(encode(noise(), kind))
    for where, value in flips:
        content[int(where * (len(content) - 1))] = value
    outcome = attempt(bytes(content))
    assert isinstance(outcome, str) or outcome.image.mode == "RGB"
    if isinstance(outcome, str):
        assert "object at 0x" not in outcome  # the same damage, the same reason
