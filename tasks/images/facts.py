"""Facts of a file beside what it shows: size, mode, compression, camera, light, wrong looks.

Where the label can be told from them, a network may learn them in place of what the images show;
`tasks.auditing.shortcuts` measures that.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.tables import FactRow
from tasks.artifacts.words import listed, shortened
from tasks.images.decoding.decode import Decoded

SAMPLED_PX = 16  # side of the grid of pixels that colors are measured on
LONGEST_CAMERA = 80  # characters
_NAMING, _TEXT = (0x010F, 0x0110), 2  # EXIF tags of maker and model, and their type


def measure_facts(path: str, content: bytes, decoded: Decoded) -> FactRow:
    """Measure what a decoded file tells beside its content; costs little beside decoding.

    Args:
        path: Relative to the source's root.
        content: The whole file.
        decoded: The same, upright.
    """
    tables, exif = _read_jpeg(content) if decoded.format == "JPEG" else (b"", b"")
    border, brightness = _sample_colors(decoded.image)
    return FactRow(
        path=path,
        width=decoded.width,
        height=decoded.height,
        mode=decoded.mode,
        format=decoded.format,
        quantization=round(sum(tables) / max(len(tables), 1), 2),
        file_bytes=len(content),
        camera=_camera(exif),
        border_red=border[0],
        border_green=border[1],
        border_blue=border[2],
        brightness=brightness,
    )


def _read_jpeg(content: bytes) -> tuple[bytes, bytes]:
    """Give the quantization tables and the EXIF block of a JPEG; empty where it has none."""
    tables, exif = b"", b""
    for marker, segment in _segments(content):
        if marker == 0xDB:
            tables += _quantization(segment)
        elif marker == 0xE1 and segment[:6] == b"Exif\0\0" and not exif:
            exif = segment
    return tables, exif


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Walk the segments of a JPEG up to its first scan."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return
        yield marker, content[at + 4 : end]
        at = end


def _quantization(segment: bytes) -> bytes:
    """Values of the 8-bit tables of a DQT segment; the rare 16-bit ones are left out."""
    values, at = b"", 0
    while at < len(segment):
        wide = segment[at] >> 4
        if not wide:
            values += segment[at + 1 : at + 65]
        at += 129 if wide else 65
    return values


def _camera(exif: bytes) -> str:
    """Maker and model of the camera; empty where the file does not say, or not readably.

    The first directory is read here: Pillow's reader costs a tenth of decoding a small photograph.
    """
    tiff = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    words = []
    try:
        if order:
            (start,) = struct.unpack_from(order + "I", tiff, 4)
            (entries,) = struct.unpack_from(order + "H", tiff, start)
            for at in range(start + 2, start + 2 + 12 * entries, 12):
                tag, kind, length, place = struct.unpack_from(order + "HHII", tiff, at)
                if tag in _NAMING and kind == _TEXT:
                    first = at + 8 if length <= 4 else place
                    words.append(tiff[first : first + length].decode("latin-1"))
    except struct.error:  # it ends too early
        return ""
    return shortened(" ".join(" ".join(words).replace("\0", " ").split()), LONGEST_CAMERA)


def _sample_colors(image: Image.Image) -> tuple[tuple[float, float, float], float]:
    """Mean color at the border and mean gray value, in [0, 255], over a grid of pixels.

    The border is the outer ring of the grid, within the first or last 16th of a side.
    """
    grid = image.resize((SAMPLED_PX, SAMPLED_PX), Image.Resampling.NEAREST)
    whole, row = grid.tobytes(), 3 * SAMPLED_PX
    sides = b"".join(whole[end - 3 : end + 3] for end in range(row, len(whole), row))
    ring = whole[: row - 3] + sides + whole[3 - row :]
    red, green, blue = _mean_color(whole)
    return _mean_color(ring), 0.299 * red + 0.587 * green + 0.114 * blue


def _mean_color(pixels: bytes) -> tuple[float, float, float]:
    colors = np.frombuffer(pixels, np.uint8).reshape(-1, 3)
    red, green, blue = colors.sum(0).tolist()
    return red / len(colors), green / len(colors), blue / len(colors)


Trait = Literal["flat", "dark", "profiled", "hashless"]
TRAITS: tuple[Trait, ...] = ("flat", "dark", "profiled", "hashless")

FLAT_RANGE = 2  # of 255, in every channel: what compression leaves of one color
DARK, DARK_SHARE = 48, 0.99  # nearly dark: 99 % of the picture, shrunk to 64 x 64, is below 48
MANY, MANY_SHARE = 5, 0.1  # pictures of a class, at least, that are told

_ADVICE: Mapping[Trait, str] = {
    "flat": "are of one color, nothing can be learned from them; look at some, and remove them or "
    "repair what made them",
    "dark": "are nearly dark; look at some: scale their brightness before, or remove them",
    "profiled": "were converted to sRGB from a color profile; if other classes have none, colors "
    "may tell where a picture comes from instead of what it shows",
    "hashless": "are too flat for a perceptual hash, so that near copies are not found among them;"
    " name those that belong together in ingest.groups",
}


def find_traits(
    image: Image.Image, gray: Pixels, *, profiled: bool, hashless: bool
) -> tuple[Trait, ...]:
    """Say what is remarkable about a picture.

    Args:
        image: RGB.
        gray: The same, shrunk: uint8 (64, 64).
        profiled: Whether its colors were converted from a profile.
        hashless: Whether it has no perceptual hash.
    """
    flat = hashless and bool((np.ptp(np.asarray(image), axis=(0, 1)) <= FLAT_RANGE).all())
    dark = int(np.count_nonzero(gray >= DARK)) < (1 - DARK_SHARE) * gray.size
    found = {"flat": flat, "dark": dark, "profiled": profiled, "hashless": hashless}
    return tuple(trait for trait in TRAITS if found[trait])


def count_traits(
    pictures: Iterable[tuple[str, Sequence[Trait]]],
) -> dict[str, dict[str, int]]:
    """Count traits over (class, traits) of pictures; what has none is left out."""
    counts = Counter((label, trait) for label, traits in pictures for trait in traits)
    labels = sorted({label for label, _ in counts})
    return {
        label: {trait: counts[label, trait] for trait in TRAITS if counts[label, trait]}
        for label in labels
    }


def tell_traits(looks: Mapping[str, Mapping[str, int]], totals: Mapping[str, int]) -> Iterator[str]:
    """Give a sentence for each trait that many pictures of some class have."""
    for trait in TRAITS:
        many = [
            f"{label} ({counts.get(trait, 0):,} of {totals[label]:,})"
            for label, counts in looks.items()
            if counts.get(trait, 0) >= max(MANY, MANY_SHARE * totals[label])
        ]
        if many:
            names = listed(many, where="health.json")
            yield f"Many pictures {_ADVICE[trait]}: {names}."
