"""Tells an image file's format by its content, and whether the file is whole, without decoding."""

import re
import zlib
from collections.abc import Mapping
from types import MappingProxyType

from tasks.errors import ImageError

_SUFFIXES_OF = {
    "JPEG": ".jpg .jpeg .jpe .jfif",
    "PNG": ".png .apng",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
}

SUFFIXES: Mapping[str, str] = MappingProxyType(
    {suffix: kind for kind, suffixes in _SUFFIXES_OF.items() for suffix in suffixes.split()}
)

_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"BM"), "BMP"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"P[1-6f][\s#]"), "PPM"),
)

_REFUSED = (
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.DOTALL | re.IGNORECASE), "SVG"),
    (re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE), "HTML"),
    (re.compile(rb"version https://git-lfs"), "Git LFS pointer; run `git lfs pull`"),
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "HEIC; save it as JPEG or PNG"),
    (re.compile(rb"....ftypavi", re.DOTALL), "AVIF; save it as JPEG or PNG"),
    (re.compile(rb"....ftyp", re.DOTALL), "video"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000; save it as JPEG or PNG"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"PK\x03\x04"), "zip"),
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"\0{16}"), "a file of zero bytes"),
)


def identify(content: bytes) -> str:
    """Give the format, a key of `tasks.images.decode.READERS`, by the first bytes.

    Raises:
        ImageError: The file is empty or of no allowed format; the message guesses what it is.
    """
    if not content:
        raise ImageError("empty file")
    for signature, kind in _SIGNATURES:
        if signature.match(content):
            return kind
    raise ImageError(f"not an allowed image format (looks like {_guess(content[:512])})")


def _guess(start: bytes) -> str:
    for signature, name in _REFUSED:
        if signature.match(start):
            return name
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as err:
        text = start[: err.start].decode("utf-8") if err.start > len(start) - 4 else "\0"
    return "text" if text.isprintable() or not re.search(r"[\0-\x08\x0e-\x1f]", text) else "unknown"


def check_whole(kind: str, content: bytes) -> None:
    """Refuse files whose damage the decoders would hide.

    Pillow skips the checksums of PNG pixel data; libjpeg paints gray what is missing of a JPEG.

    Raises:
        ImageError: The file ends too early, or a PNG chunk fails its CRC.
    """
    if kind == "PNG":
        _check_png(content)
    elif kind == "JPEG":
        _check_jpeg(content)
    elif kind == "WEBP" and len(content) < 8 + int.from_bytes(content[4:8], "little"):
        raise truncated(content)


def _check_png(content: bytes) -> None:
    view, at = memoryview(content), 8
    while at + 12 <= len(content):
        name, end = bytes(view[at + 4 : at + 8]), at + 12 + int.from_bytes(view[at : at + 4], "big")
        if end > len(content):
            break
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            chunk = name.decode("ascii", "backslashreplace")
            raise ImageError(f"damaged (PNG chunk {chunk} fails its CRC)")
        if name == b"IEND":
            return
        at = end
    raise truncated(content)


def _check_jpeg(content: bytes) -> None:
    """Refuse a JPEG without end marker after its first scan, also if zeros pad it to length."""
    at = 2
    while at + 4 <= len(content):
        marker = content[at + 1]
        if content[at] != 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD9:
            return  # no segment where one should be: the decoder judges
        if marker == 0xDA:  # start of scan; thumbnails lie before, trailers after
            if content.find(b"\xff\xd9", at) < 0:
                break
            return
        if marker == 0xFF:  # fill byte
            at += 1
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    raise truncated(content)


def truncated(content: bytes) -> ImageError:
    """Make the error of a file that ends too early."""
    return ImageError(f"truncated (ends at byte {len(content)})")
