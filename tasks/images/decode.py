"""The one decoder: bytes of an image file in, upright RGB out, or a short reason why not.

The format is told by the content, and whether the file is whole, before anything is decoded. Only
the formats of `READERS` are ever tried; nothing starts another program.
"""

import io
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

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
    }
)

BACKGROUND = (255, 255, 255)  # what shows through transparent pixels

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)

_EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})


@dataclass(frozen=True, slots=True)
class Decoded:
    """One decoded image file.

    Attributes:
        image: Upright, mode RGB; smaller than width x height where `draft_px` allowed it.
        width: Pixels of the upright image in full size.
        height: Pixels of the upright image in full size.
        mode: Pillow's mode of the file, such as L, RGBA or I;16.
        format: A key of `READERS`.
        frames: Pictures in the file; the first one is decoded.
        warnings: Sentences about what was ignored or converted.
    """

    image: Image.Image
    width: int
    height: int
    mode: str
    format: str
    frames: int
    warnings: tuple[str, ...]


def decode_image(
    content: bytes,
    *,
    max_pixels: int,
    min_side_px: int = 1,
    draft_px: int | None = None,
    suffix: str | None = None,
) -> Decoded:
    """Decode an image file to upright RGB.

    EXIF orientation is applied; transparency is composited on white; CMYK and YCCK become RGB by
    Pillow's formula, without a color profile; 16-bit values are scaled by 1 / 257, floating-point
    values in [0, 1] by 255, and any other range is stretched to its own extremes.

    Args:
        content: The whole file.
        max_pixels: Largest allowed width x height, checked before pixels take memory.
        min_side_px: Smallest allowed side.
        draft_px: JPEG may be decoded at a half, quarter or eighth of its size as long as the
            shorter side does not fall below this; several times faster. None decodes every pixel.
        suffix: Suffix of the file's name; a warning says if it names another format.

    Raises:
        ImageError: The file cannot be used. The message is a kind of reason, then details in
            parentheses.
    """
    kind = identify(content)
    check_whole(kind, content)
    try:
        with READERS[kind](io.BytesIO(content)) as file:
            _check_size(file.size, max_pixels, min_side_px)
            return _decode(file, kind, draft_px, suffix)
    except ImageError:
        raise
    except MemoryError as err:
        raise ImageError("too large (does not fit into memory; lower ingest.max_pixels)") from err
    except Exception as err:  # on damaged files Pillow raises a dozen kinds, SyntaxError among them
        raise ImageError(_describe(err, content)) from err


def _describe(err: Exception, content: bytes) -> str:
    if isinstance(err, Image.DecompressionBombError):
        return "too many pixels (a frame is larger than Pillow allows)"
    if re.search("truncated|no more images", str(err), re.IGNORECASE):  # the latter of GIF
        return str(truncated(content))
    return f"damaged ({str(err) or type(err).__name__})"


def _check_size(size: tuple[int, int], max_pixels: int, min_side_px: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"too many pixels ({width} x {height} = {width * height:,}; "
            f"allowed: at most {max_pixels:,}, ingest.max_pixels)"
        )
    if min(size) < min_side_px:
        raise ImageError(
            f"too small ({width} x {height} pixels; allowed: at least {min_side_px} a side, "
            "ingest.min_side_px)"
        )


def _decode(
    file: ImageFile.ImageFile, kind: str, draft_px: int | None, suffix: str | None
) -> Decoded:
    warnings = []
    named = SUFFIXES.get((suffix or "").lower(), kind)
    if named != kind:
        warnings.append(f"named {suffix} but its content is {kind}")
    mode, frames, (width, height) = file.mode, getattr(file, "n_frames", 1), file.size
    if frames > 1:
        warnings.append(f"holds {frames} frames; the first one is used")
    if draft_px is not None:
        file.draft(None, (draft_px, draft_px))
    file.load()
    orientation = _orientation(file)
    if orientation is None:
        orientation = 1
        warnings.append("its EXIF data are damaged; taken as upright")
    image, remarks = _to_rgb(file)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if orientation > 4:
        width, height = height, width
    return Decoded(image, width, height, mode, kind, frames, (*warnings, *remarks))


def _orientation(file: ImageFile.ImageFile) -> int | None:
    """EXIF orientation; 1 where there is none (TIFF: already applied), None if it is damaged."""
    try:
        found = file.getexif().get(_ORIENTATION, 1)
    except Exception:  # as above; the pixels are sound
        return None
    return found if isinstance(found, int) else None


def _to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _scale_deep(image)
    if image.mode not in _EIGHT_BIT_MODES:
        raise ImageError(f"unsupported color mode ({image.mode}; save it as RGB)")
    if not image.has_transparency_data:
        return image.convert("RGB"), []
    layer = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(layer, mask=layer)
    return canvas, []


def _scale_deep(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Bring gray values of more than 8 bits to 8 bits without clipping."""
    values, remarks = np.asarray(image), []
    low, high = values.min().item(), values.max().item()
    if not np.isfinite([low, high]).all():
        raise ImageError("damaged (holds NaN or infinite values)")
    if image.mode != "F" and low >= 0 and high <= 65535:
        gray = (values.astype(np.uint32) + 128) // 257
        if 0 < high < 4096:
            remarks.append(
                f"16-bit values reach only {high}, so that {high // 257 + 1} gray levels are left"
            )
    elif image.mode == "F" and low >= 0 and high <= 1:
        gray = np.rint(values * 255)
    else:
        gray = np.rint((values.astype(np.float64) - low) * (255 / ((high - low) or 1)))
        remarks.append(f"values from {low:g} to {high:g} were stretched to 0..255")
    return Image.fromarray(gray.astype(np.uint8)).convert("RGB"), remarks
