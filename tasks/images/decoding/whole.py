"""Is an image file whole? What holds no pixels of the first picture decides nothing.

Pillow skips the checksums of PNG pixel data and libjpeg paints gray what is missing of a JPEG, so
damage is looked for here. Metadata, later frames and end markers may be damaged or missing: they
are left out, with a remark.
"""

import io
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tasks.errors import ImageError

LARGEST_METADATA = 1 << 20  # bytes of a text or a color profile of a PNG, unpacked

END_MISSING = "its end marker is missing, but no pixel"

_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_PNG_NAMES = {b"iCCP": "color profile", b"eXIf": "EXIF data"} | dict.fromkeys(_PNG_TEXTS, "text")
_PNG_PIXELS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"tRNS"})
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"

_JPEG_END = b"\xff\xd9"
_GRAY = frozenset({127, 128})  # of every channel, what the decoder paints where nothing is
_JUNK = random.Random(0).randbytes(2000).replace(b"\xff", b"\x5a")  # no marker in it


@lru_cache(maxsize=1)
def _jpeg_endings() -> tuple[bytes, ...]:
    """Make bytes that take the place of missing pixels where there are any.

    The first bits differ, so that they do not all end a block at once; each goes on behind another
    of the eight restart markers, so that one is that which is due.
    """
    restarts = [b"\xff" + bytes([marker]) + _JUNK for marker in range(0xD0, 0xD8)]
    return tuple(
        bytes([0x10 + 0x20 * first]) + _JUNK + b"".join(restarts[first:] + restarts) + _JPEG_END
        for first in range(8)
    )


@dataclass(frozen=True, slots=True)
class Sound:
    """The part of a file that holds its first picture.

    Attributes:
        content: What a decoder is to read.
        remarks: What was left out or is missing.
        frames: Pictures in the file where `content` no longer tells.
        unproven: A JPEG without end marker; `prove_jpeg` tells whether pixels are missing.
        end: Of a JPEG with end marker, where that stands; else None.
    """

    content: bytes
    remarks: tuple[str, ...] = ()
    frames: int | None = None
    unproven: bool = False
    end: int | None = None


def find_picture(kind: str, content: bytes) -> Sound:
    """Take what holds the first picture of a file.

    Raises:
        ImageError: The file ends too early, or bytes that hold pixels fail their checksum.
    """
    if kind == "PNG":
        return _take_png(content)
    if kind == "JPEG":
        return _take_jpeg(content)
    if kind == "WEBP":
        return _take_webp(content)
    if kind in {"AVIF", "HEIC"}:
        _check_boxes(content)
    return Sound(content)


def truncated(content: bytes) -> ImageError:
    """Make the error of a file that ends before its last pixel."""
    return ImageError(f"truncated (ends at byte {len(content)}, before its last pixel)")


# PNG ----------------------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    name: bytes
    whole: bytes | memoryview  # with length and checksum
    is_sound: bool

    @property
    def data(self) -> bytes:
        return bytes(self.whole[8:-4])


def _take_png(content: bytes) -> Sound:
    chunks = list(_png_chunks(content))
    names = [chunk.name for chunk in chunks]
    if b"IDAT" not in names:
        raise truncated(content)
    left_out = {at: _why_left_out(chunk) for at, chunk in enumerate(chunks)}
    kept = [
        chunk.whole
        for at, chunk in enumerate(chunks)
        if left_out[at] is None and chunk.name in (*_PNG_PIXELS, *_PNG_NAMES, b"IEND")
    ]
    remarks = [remark for remark in left_out.values() if remark]
    if b"IEND" not in names:
        kept.append(_PNG_END)
        remarks.append(END_MISSING)
    return Sound(b"".join([content[:8], *kept]), tuple(dict.fromkeys(remarks)), _png_frames(chunks))


def _png_frames(chunks: Sequence[_Chunk]) -> int:
    """Count the frames of an animation, and its picture where that is none of them."""
    names = [chunk.name for chunk in chunks]
    if b"acTL" not in names or not chunks[names.index(b"acTL")].is_sound:
        return 1
    frames = int.from_bytes(chunks[names.index(b"acTL")].data[:4], "big")
    return frames + (b"fcTL" not in names[: names.index(b"IDAT")])


def _png_chunks(content: bytes) -> Iterator[_Chunk]:
    """Walk the whole chunks up to the end marker."""
    view, at, name = memoryview(content), 8, b""
    while at + 8 < len(content) and name != b"IEND":
        name, end = bytes(view[at + 4 : at + 8]), at + 12 + int.from_bytes(view[at : at + 4], "big")
        if end > len(content):
            if name == b"IDAT":
                raise truncated(content)
            return
        checksum = zlib.crc32(view[at + 4 : end - 4]).to_bytes(4, "big")
        if name != b"IEND" or checksum == view[end - 4 : end]:
            yield _Chunk(name, view[at:end], checksum == view[end - 4 : end])
        at = end


def _why_left_out(chunk: _Chunk) -> str | None:
    """Give the remark about metadata that are damaged or too large; None for what is kept."""
    name = chunk.name.decode("ascii", "backslashreplace")
    what = _PNG_NAMES.get(chunk.name, f"chunk {name}")
    if not chunk.is_sound:
        if chunk.name in _PNG_PIXELS:
            raise ImageError(f"damaged (PNG chunk {name} fails its CRC)")
        return f"its {what} is damaged (CRC) and was ignored"
    if not _names_its_packing(chunk):
        return f"its {what} is damaged (compression) and was ignored"
    if chunk.name in _PNG_NAMES and _unpacked_size(chunk) > LARGEST_METADATA:
        return f"its {what} is larger than 1 MiB and was ignored"
    return None


def _names_its_packing(chunk: _Chunk) -> bool:
    """Whether a chunk that holds a name and packed bytes names the one way of packing, 0."""
    _, _, packed = chunk.data.partition(b"\0")
    if chunk.name == b"iCCP":
        return packed[:1] == b"\0"
    return chunk.name != b"zTXt" or packed[:1] in (b"", b"\0")


def _unpacked_size(chunk: _Chunk) -> int:
    """Bytes of metadata, at most a few more than the largest that is read."""
    if chunk.name not in (b"iCCP", b"zTXt", b"iTXt"):
        return len(chunk.data)
    packed = chunk.data.partition(b"\0")[2][1:]
    if chunk.name == b"iTXt":
        if chunk.data.partition(b"\0")[2][:1] != b"\x01":
            return len(chunk.data)
        packed = packed[1:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        return len(zlib.decompressobj().decompress(packed, LARGEST_METADATA + 1))
    except zlib.error:
        return len(chunk.data)


# JPEG ---------------------------------------------------------------------------------------------


def _take_jpeg(content: bytes) -> Sound:
    """Look for the end marker after the first scan; thumbnails lie before it, trailers behind."""
    at = 2
    while at + 4 <= len(content):
        marker = content[at + 1]
        if content[at] != 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD9:
            return Sound(content)  # no segment where one should be: the decoder judges
        if marker == 0xDA:  # start of scan
            end = content.find(_JPEG_END, at)
            if end >= 0:
                return Sound(content, end=end)
            left = content.rstrip(b"\0")  # a file that was allocated and not filled
            if not _has_all_scans(left):
                raise truncated(content)
            return Sound(left + _JPEG_END, (END_MISSING,), unproven=True)
        at += 1 if marker == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    raise truncated(content)


def prove_jpeg(sound: Sound, content: bytes) -> None:
    """Make sure that a JPEG without end marker has all its pixels.

    Where pixels are missing, the decoder takes what follows for them. So the picture is whole if it
    is the same whatever follows.

    Raises:
        ImageError: It is another, or cannot be decoded.
    """
    body = sound.content.removesuffix(_JPEG_END)
    body += b"\0" if body.endswith(b"\xff") else b""  # so that no marker arises
    try:
        picture = _jpeg_pixels(body + _JPEG_END)
        differs = any(_jpeg_pixels(body + ending) != picture for ending in _jpeg_endings())
    except (OSError, SyntaxError, ValueError) as err:
        raise truncated(content) from err
    if differs:
        raise truncated(content)


def prove_gray_end(picture: Image.Image, sound: Sound, content: bytes) -> None:
    """Make sure that a JPEG whose last pixels are gray did not run out of bytes there.

    The decoder paints gray what it lacks before an end marker. Then other bytes before the marker
    change the last pixels; it costs two decodings, of such pictures alone.

    Raises:
        ImageError: They do.
    """
    if sound.end is None:
        return
    last = picture.crop((max(0, picture.width - 8), picture.height - 1, *picture.size))
    if not set(last.tobytes()) <= _GRAY:
        return
    body = content[: sound.end]
    try:
        differs = _jpeg_pixels(body + _jpeg_endings()[0]) != _jpeg_pixels(body + _JPEG_END)
    except (OSError, SyntaxError, ValueError):
        return  # the decoder read the file itself
    if differs:
        raise ImageError(f"truncated (its pixels end at byte {sound.end}, where an end is marked)")


def _jpeg_pixels(content: bytes) -> bytes:
    with JpegImageFile(io.BytesIO(content)) as file:
        return file.tobytes()


def _has_all_scans(content: bytes) -> bool:
    """Whether the scans of a JPEG hold every coefficient of every component to its last bit."""
    components, finished = set[int](), set[tuple[int, int]]()
    for marker, segment in _jpeg_segments(content):
        if marker in (0xC0, 0xC1, 0xC2) and len(segment) >= 6:
            components = {segment[at] for at in range(6, len(segment) - 2, 3)}
        elif marker == 0xDA and len(segment) >= 4:
            names, (first, last, bits) = segment[1 : 1 + 2 * segment[0] : 2], segment[-3:]
            if not bits & 15:
                finished |= {(name, k) for name in names for k in range(first, last + 1)}
    return {(name, k) for name in components for k in range(64)} <= finished


def _jpeg_segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Give marker and bytes of every segment, without length; pixels between them are skipped."""
    at = content.find(b"\xff", 2)
    while 0 <= at < len(content) - 3:
        marker = content[at + 1]
        if marker in (0x00, 0xFF, *range(0xD0, 0xDA)):
            at += 1 if marker == 0xFF else 2
        else:
            length = int.from_bytes(content[at + 2 : at + 4], "big")
            yield marker, content[at + 4 : at + 2 + length]
            at += 2 + length
        at = content.find(b"\xff", at)


# WebP ---------------------------------------------------------------------------------------------


def _take_webp(content: bytes) -> Sound:
    """Of a file that is cut off keep what lies before the cut, if it holds a whole picture."""
    if len(content) >= 8 + int.from_bytes(content[4:8], "little"):
        return Sound(content)
    kept, frames, at = list[bytes](), 0, 12
    while at + 8 <= len(content):
        end = at + 8 + int.from_bytes(content[at + 4 : at + 8], "little")
        if end > len(content):
            break
        if content[at : at + 4] != b"ANMF" or not frames:  # the first frame is enough
            kept.append(content[at:end].ljust(end - at + (end - at) % 2, b"\0"))
        frames += content[at : at + 4] == b"ANMF"
        at = end + (end - at) % 2
    if not any(chunk[:4] in (b"VP8 ", b"VP8L", b"ANMF") for chunk in kept):
        raise truncated(content)
    body = b"WEBP" + b"".join(kept)
    remark = "its end is missing, but no pixel of its first picture"
    return Sound(b"RIFF" + len(body).to_bytes(4, "little") + body, (remark,), frames or None)


# AVIF, HEIC ---------------------------------------------------------------------------------------


def _check_boxes(content: bytes) -> None:
    """Refuse an ISO base media file whose description or pixels go beyond its end."""
    at = 0
    while at + 8 <= len(content):
        size, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if size == 1:  # the size stands behind, in 8 bytes
            size = int.from_bytes(content[at + 8 : at + 16], "big")
        if name in (b"meta", b"mdat") and at + size > len(content):
            raise truncated(content)
        at += size or len(content)  # 0: up to the end
