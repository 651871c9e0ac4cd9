"""Which formats are read, and how a file's content tells its format."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from PIL import ImageFile, features
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from tasks.errors import ImageError

try:
    from pillow_heif import HeifImageFile
except ImportError:  # the extra `heic` is not installed
    HeifImageFile = None

# Classes instead of Image.open: its decompression bomb check has a limit of its own and warns
# through the process-wide filter, which threads share. The check of `max_pixels` takes its place.
READERS: Mapping[str, type[ImageFile.ImageFile]] = MappingProxyType(
    {
        "JPEG": JpegImageFile,
        "PNG": PngImageFile,
        "BMP": BmpImageFile,
        "GIF": GifImageFile,
        "TIFF": TiffImageFile,
        "WEBP": WebPImageFile,
        "PPM": PpmImageFile,
        **({"AVIF": AvifImageFile} if features.check("avif") else {}),
        **({"HEIC": HeifImageFile} if HeifImageFile else {}),
    }
)

_SUFFIXES_OF = {
    "JPEG": ".jpg .jpeg .jpe .jfif",
    "PNG": ".png .apng",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "TIFF": ".tif .tiff",
    "WEBP": ".webp",
    "PPM": ".ppm .pgm .pbm .pnm .pfm",
    "AVIF": ".avif .avifs",
    "HEIC": ".heic .heif .hif",
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
# Of ISO base media files the brands tell; the first is the major one.
_BRANDS = MappingProxyType(
    {
        b"avif": "AVIF",
        b"avis": "AVIF",
        b"heic": "HEIC",
        b"heix": "HEIC",
        b"heim": "HEIC",
        b"heis": "HEIC",
        b"hevc": "HEIC",
        b"hevx": "HEIC",
    }
)
_ANY_PICTURE = frozenset({b"mif1", b"msf1"})
_MISSING = MappingProxyType(
    {
        "AVIF": "AVIF; to convert it: magick mogrify -format png *.avif",
        "HEIC": "HEIC; to read it: pip install pillow-heif && dvc repro -f ingest",
    }
)

_REFUSED = (
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "PostScript"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.DOTALL | re.IGNORECASE), "SVG"),
    (re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE), "HTML"),
    (re.compile(rb"version https://git-lfs"), "Git LFS pointer; run `git lfs pull`"),
    (re.compile(rb"....ftyp", re.DOTALL), "video"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000; save it as JPEG or PNG"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"PK\x03\x04"), "zip"),
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb".{128}DICM", re.DOTALL), "DICOM; save its pixels as PNG or TIFF of 16 bits"),
    (re.compile(rb"\0{16}"), "a file of zero bytes"),
)


def identify(content: bytes) -> str:
    """Give the format, a key of `READERS`, by the first bytes.

    Raises:
        ImageError: The file is empty or of no allowed format; the message guesses what it is.
    """
    if not content:
        raise ImageError("empty file")
    for signature, kind in _SIGNATURES:
        if signature.match(content):
            return kind
    kind = _by_brand(content[:512])
    if kind in READERS:
        return kind
    if kind:
        raise ImageError(f"not an allowed image format (looks like {_MISSING[kind]})")
    raise ImageError(f"not an allowed image format (looks like {_guess(content[:512])})")


def _by_brand(start: bytes) -> str:
    if start[4:8] != b"ftyp":
        return ""
    box = start[: int.from_bytes(start[:4], "big")]
    brands = [box[8:12], *(box[at : at + 4] for at in range(16, len(box) - 3, 4))]
    kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
    return kinds[0] if kinds else "HEIC" if _ANY_PICTURE & set(brands) else ""


def _guess(start: bytes) -> str:
    for signature, name in _REFUSED:
        if signature.match(start):
            return name
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as err:
        text = start[: err.start].decode("utf-8") if err.start > len(start) - 4 else "\0"
    return "text" if text.isprintable() or not re.search(r"[\0-\x08\x0e-\x1f]", text) else "unknown"
