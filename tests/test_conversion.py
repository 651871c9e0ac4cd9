"""One rule by which a set becomes 8-bit sRGB: ground of transparency, depth and color profiles."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tells
from PIL import Image, ImageCms, ImageDraw
from test_decode import decode, encode, noise, pixels_of, png_chunk
from test_validate import ORIGIN

from tasks.artifacts.records import Conversion
from tasks.images.decoding.conversion import ColorFacts, settle_conversion
from tasks.images.listing.folders import ListedImage, Listing
from tasks.images.perceptual import hash_gray, shrink_to_gray
from tasks.images.validate import Inspection, inspect_images
from tasks.params import Params

WHITE, BLACK, GRAY = (255,) * 3, (0,) * 3, (128,) * 3


def drawing(color: tuple[int, int, int], number: int = 0) -> Image.Image:
    """A shape on a transparent ground."""
    image = Image.new("RGBA", (60, 60), (*color, 0))
    at = 5 + number % 20
    ImageDraw.Draw(image).ellipse((at, 10, at + 30, 45), fill=(*color, 255))
    return image


def inspect(
    root: Path, params: Params, classes: dict[str, list[bytes]], **options: Any
) -> Inspection:
    listed = []
    for label, contents in classes.items():
        for number, content in enumerate(contents):
            path = f"{label}{number:03d}.png"
            (root / path).write_bytes(content)
            listed.append(ListedImage(path, label))
    listing = Listing(ORIGIN, tuple(listed))
    return inspect_images(root, listing, params.ingest, **{"workers": 2, **options})


def drawings(*colors: tuple[int, int, int]) -> list[bytes]:
    return [encode(drawing(color, number), "PNG") for number, color in enumerate(colors)]


# transparency -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colors", "ground"),
    [
        ([WHITE, (250, 246, 240)], BLACK),
        ([BLACK, (20, 20, 60)], WHITE),
        ([(255, 255, 0), (0, 200, 0)], WHITE),  # yellow is bright, but stands out from white
        ([WHITE, BLACK], GRAY),
        ([GRAY, GRAY], WHITE),
        ([GRAY, WHITE], BLACK),
        ([GRAY, WHITE, BLACK], (255, 0, 255)),
    ],
)
def test_the_ground_is_that_on_which_the_drawings_are_seen(
    colors: list[tuple[int, int, int]],
    ground: tuple[int, int, int],
    tmp_path: Path,
    default_params: Params,
) -> None:
    found = inspect(tmp_path, default_params, {"a": drawings(*colors), "b": drawings(*colors)})
    assert found.conversion.background == ground
    assert found.conversion.transparent == 2 * len(colors)
    for image in found.images:
        content = (tmp_path / image.listed.path).read_bytes()
        pixels = pixels_of(content, conversion=found.conversion).astype(int)
        assert pixels[0, 0].tolist() == list(ground)
        assert np.ptp(pixels, axis=(0, 1)).max() > 60


def test_one_class_that_would_be_hidden_decides(tmp_path: Path, default_params: Params) -> None:
    photos = [encode(noise(30, 30 + number), "PNG") for number in range(40)]
    found = inspect(tmp_path, default_params, {"a": photos, "b": [*photos[:9], *drawings(WHITE)]})
    assert found.conversion.background == BLACK
    (note,) = found.conversion.notes
    assert tells(note, "1 images", "transparent", "black", "1 on white", "0 on black")


def test_a_rare_drawing_does_not_turn_the_ground_of_all(
    tmp_path: Path, default_params: Params
) -> None:
    many = drawings(*[(90, 90, 90)] * 150, WHITE)
    assert inspect(tmp_path, default_params, {"a": many}).conversion.background == WHITE


def test_opaque_alpha_is_no_transparency(tmp_path: Path, default_params: Params) -> None:
    image = Image.new("RGBA", (40, 40), (*WHITE, 255))
    found = inspect(tmp_path, default_params, {"a": [encode(image, "PNG")]})
    assert found.conversion == settle_conversion([])
    assert found.conversion.background == WHITE


def test_the_rule_does_not_depend_on_order_or_threads(
    tmp_path: Path, default_params: Params
) -> None:
    files = {"a": drawings(WHITE, BLACK, WHITE), "b": drawings(BLACK, GRAY)}
    one = inspect(tmp_path, default_params, files, workers=1)
    assert inspect(tmp_path, default_params, files, workers=4) == one
    pairs = [(image.listed.label, image.color) for image in one.images]
    assert settle_conversion(pairs[::-1]) == one.conversion


def test_looks_are_those_of_the_converted_pictures(tmp_path: Path, default_params: Params) -> None:
    coarse = np.random.default_rng(3).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((90, 90), Image.Resampling.BICUBIC).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 45, 90))
    found = inspect(tmp_path, default_params, {"a": [*drawings(WHITE), encode(picture, "PNG")]})
    for image in found.images:
        content = (tmp_path / image.listed.path).read_bytes()
        alone, together = (decode(content, conversion=c).image for c in (None, found.conversion))
        assert image.look == hash_gray(shrink_to_gray(together))
    assert hash_gray(shrink_to_gray(alone)) != image.look is not None


# depth --------------------------------------------------------------------------------------------


def deep(values: Any, kind: str = "PNG") -> bytes:
    return encode(Image.fromarray(np.asarray(values)), kind)


def gradient(high: int) -> np.ndarray:
    return np.linspace(0, high, 60 * 60).astype(np.uint16).reshape(60, 60)


@pytest.mark.parametrize(
    ("high", "white"),
    [
        (255, 255),
        (256, 511),
        (1023, 1023),
        (4095, 4095),
        (4096, 8191),
        (9000, 16383),
        (16383, 16383),
        (65535, 65535),
    ],
)
def test_white_is_the_smallest_full_range_that_holds_the_set(
    high: int, white: int, tmp_path: Path, default_params: Params
) -> None:
    files = {"a": [deep(gradient(high)), deep(gradient(high // 4))]}
    found = inspect(tmp_path, default_params, files)
    assert found.conversion.integers == (0, white)
    assert found.conversion.deep == 2
    bright, dark = (pixels_of(content, conversion=found.conversion).max() for content in files["a"])
    assert bright == round(high * 255 / white)
    assert dark == round(high // 4 * 255 / white)  # stays dark beside the bright one


def test_negative_integers_take_the_extremes_of_the_set(
    tmp_path: Path, default_params: Params
) -> None:
    values = np.arange(-1000, 3000, 10, dtype=np.int32).reshape(20, 20)
    files = {"a": [deep(values, "TIFF"), deep(values // 2, "TIFF")]}
    found = inspect(tmp_path, default_params, files)
    assert found.conversion.integers == (-1000, 2990)
    half = pixels_of(files["a"][1], conversion=found.conversion)
    assert (half.min(), half.max()) == (round(500 * 255 / 3990), round(2495 * 255 / 3990))
    assert any(tells(note, "-1000", "2990") for note in found.conversion.notes)


def test_an_odd_value_that_sets_the_range_of_all_is_told(
    tmp_path: Path, default_params: Params
) -> None:
    files = [deep(gradient(4095), "TIFF")] * 9
    usual = inspect(tmp_path, default_params, {"a": files}).conversion.notes
    assert not any("missing data" in note for note in usual)
    odd = gradient(4095).astype(np.float32)
    plain = [deep(odd.copy(), "TIFF")] * 9
    odd[0, 0] = -3.4e38
    notes = inspect(tmp_path, default_params, {"b": [*plain, deep(odd, "TIFF")]}).conversion.notes
    assert any(tells(note, "-3.4e+38", "at most 4095", "missing data") for note in notes)


def test_floating_point_is_told_apart_from_integers(tmp_path: Path, default_params: Params) -> None:
    files = {"a": [deep(gradient(100).astype(np.float32), "TIFF"), deep(gradient(4095))]}
    conversion = inspect(tmp_path, default_params, files).conversion
    assert (conversion.floats, conversion.integers) == ((0.0, 100.0), (0, 4095))
    unit = {"a": [deep(np.full((20, 20), 0.25, np.float32), "TIFF")]}
    assert inspect(tmp_path, default_params, unit).conversion.floats == (0.0, 1.0)


def test_values_beyond_the_range_of_the_set_are_clipped() -> None:
    known = settle_conversion([("a", ColorFacts(integers=(0, 4095)))])
    pixels = pixels_of(deep(gradient(20_000)), conversion=known)
    assert pixels.max() == 255
    assert pixels[0, -1, 0] == round(int(gradient(20_000)[0, -1]) * 255 / 4095)


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, RGB or RGBA: uint16 (height, width, channels)."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def deep_tiff(values: np.ndarray, order: str) -> bytes:
    """An uncompressed TIFF of 16-bit RGB in a byte order, < or >."""
    height, width, _ = values.shape
    data = values.astype(f"{order}u2").tobytes()
    at = 8 + 2 + 12 * 9 + 4
    tags = {256: width, 257: height, 258: at, 259: 1, 262: 2, 273: at + 6, 277: 3, 278: height}
    tags[279] = len(data)
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    for tag, value in tags.items():
        if tag in (259, 262, 277):
            start += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
        else:
            start += struct.pack(
                f"{order}HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1, value
            )
    return start + struct.pack(f"{order}I3H", 0, 16, 16, 16) + data


@pytest.mark.parametrize("high", [255, 4095, 16383, 32767, 65535])
@pytest.mark.parametrize(
    "write", [deep_png, lambda v: deep_tiff(v, "<"), lambda v: deep_tiff(v, ">")]
)
def test_colors_of_16_bits_have_the_range_of_the_set(
    high: int, write: Callable[[np.ndarray], bytes], tmp_path: Path, default_params: Params
) -> None:
    bright = np.random.default_rng(6).integers(0, high + 1, (30, 40, 3), dtype=np.uint16)
    bright[0, 0] = high
    dark = bright // 8
    files = {"a": [write(bright), write(dark)]}
    found = inspect(tmp_path, default_params, files)
    assert found.conversion.integers == (0, high)
    for values, content in zip((bright, dark), files["a"], strict=True):
        pixels = pixels_of(content, conversion=found.conversion)
        assert np.abs(pixels - values * (255 / high)).max() <= 1


def test_colors_of_16_bits_keep_their_transparency() -> None:
    values = np.full((8, 8, 4), 65535, np.uint16)
    values[..., :3] = 3000
    values[:4, :, 3] = 0
    pixels = pixels_of(deep_png(values))
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[7, 7].tolist() == [round(3000 * 255 / 4095)] * 3


# color profiles -----------------------------------------------------------------------------------

D65_SRGB = {
    b"rXYZ": (0.4361, 0.2225, 0.0139),
    b"gXYZ": (0.3851, 0.7169, 0.0971),
    b"bXYZ": (0.1431, 0.0606, 0.7139),
}


def make_profile(gamma: float = 2.2, swap: bool = False, space: bytes = b"RGB ") -> bytes:
    """A matrix (or gray) profile after ICC.1:2001-04, sections 6.1 to 6.3 and 6.5."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"made for a test"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" * 79,
        b"cprt": b"text\0\0\0\0" + text + b"\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
    }
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        names = [b"bXYZ", b"gXYZ", b"rXYZ"] if swap else [b"rXYZ", b"gXYZ", b"bXYZ"]
        tags |= {name: xyz(*D65_SRGB[of]) for name, of in zip(D65_SRGB, names, strict=True)}
        tags |= dict.fromkeys([b"rTRC", b"gTRC", b"bTRC"], curve)
    body, table = b"", struct.pack(">I", len(tags))
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    header = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"test", 0x02100000, b"mntr", space, b"XYZ "
    )
    header += struct.pack(">6H", 2001, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    header += fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return header.ljust(128, b"\0") + table + body


def colors() -> Image.Image:
    values = np.random.default_rng(2).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_profile_that_swaps_channels_is_undone(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = colors()
    plain = pixels_of(encode(image, kind, icc_profile=make_profile(), **options)).astype(int)
    content = encode(image, kind, icc_profile=make_profile(swap=True), **options)
    swapped = pixels_of(
        encode(Image.merge("RGB", image.split()[::-1]), kind, icc_profile=make_profile(), **options)
    ).astype(int)
    assert np.abs(pixels_of(content).astype(int) - swapped).max() <= 2
    assert np.abs(pixels_of(content).astype(int) - plain).max() > 100
    assert decode(content).color.profiled


def test_gamma_of_a_profile_becomes_that_of_srgb() -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    light = np.arange(256) / 255.0  # gamma 1: values are light
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    for image, space in ((ramp, b"GRAY"), (ramp, b"RGB "), (ramp.convert("RGB"), b"RGB ")):
        content = encode(image, "PNG", icc_profile=make_profile(1.0, space=space))
        found = pixels_of(content).reshape(256, 3).astype(float)
        exact = 16 if space == b"GRAY" else 0  # littleCMS interpolates a gray curve between points
        assert np.abs(found - 255 * srgb[:, None])[exact:].max() <= 1.5


def test_a_profile_of_srgb_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    decoded = decode(encode(colors(), "PNG", icc_profile=profile))
    assert np.array_equal(decoded.image, colors())
    assert not decoded.color.profiled
    assert decoded.warnings == ()


@pytest.mark.parametrize("profile", [b"no profile at all" * 20, make_profile()[:200]])
def test_a_damaged_profile_is_ignored_with_a_remark(profile: bytes) -> None:
    decoded = decode(encode(colors(), "TIFF", icc_profile=profile))
    assert np.array_equal(decoded.image, colors())
    assert any(tells(warning, "color profile", "damaged") for warning in decoded.warnings)


def test_a_profile_for_other_channels_is_ignored_with_a_remark() -> None:
    decoded = decode(encode(colors(), "PNG", icc_profile=make_profile(1.0, space=b"GRAY")))
    assert np.array_equal(decoded.image, colors())
    assert any(tells(warning, "color profile", "ignored") for warning in decoded.warnings)


def test_colors_are_converted_before_transparency_is_filled() -> None:
    image = colors()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    white = settle_conversion([])
    decoded = decode(encode(image, "PNG", icc_profile=make_profile(1.0)), conversion=white)
    opaque = pixels_of(encode(image.convert("RGB"), "PNG", icc_profile=make_profile(1.0)))
    alpha = np.asarray(image.getchannel("A"), float)[..., None] / 255
    expected = opaque * alpha + 255 * (1 - alpha)
    assert np.abs(np.asarray(decoded.image) - expected).max() <= 1.5


def test_a_set_counts_its_profiles(tmp_path: Path, default_params: Params) -> None:
    profiled = encode(colors(), "PNG", icc_profile=make_profile(1.0))
    found = inspect(tmp_path, default_params, {"a": [profiled, encode(noise(), "PNG")]})
    assert found.conversion.profiled == 1
    assert [image.traits for image in found.images] == [("profiled",), ()]


def test_a_large_profiled_picture_is_averaged_before_it_is_looked_at() -> None:
    image = colors().resize((1000, 800), Image.Resampling.BICUBIC)
    content = encode(image, "PNG", icc_profile=make_profile(1.0))
    small, full = decode(content, glance_px=256), decode(content)
    assert small.image.size == (334, 267)
    assert (small.width, small.height) == (1000, 800)
    grays = [shrink_to_gray(found.image) for found in (small, full)]
    hashes = [int.from_bytes(hash_gray(gray) or b"") for gray in grays]
    assert (hashes[0] ^ hashes[1]).bit_count() <= 8
    assert full.image.size == (1000, 800)


def test_conversion_is_a_record_that_reads_back() -> None:
    conversion = settle_conversion([("a", ColorFacts(frozenset({"white"}), profiled=True))])
    assert Conversion.model_validate_json(conversion.model_dump_json()) == conversion
