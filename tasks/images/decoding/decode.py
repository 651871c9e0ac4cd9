"""The one decoder: bytes of an image file in, upright sRGB out, or a short reason why not.

The format is told by the content, and whether the file is whole, before anything is decoded. Only
the formats of `READERS` are ever tried; nothing starts another program.
"""

import io
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageFile

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.records import Conversion, Fit
from tasks.errors import ImageError
from tasks.images.decoding.color import to_srgb
from tasks.images.decoding.conversion import ColorFacts
from tasks.images.decoding.formats import READERS, SUFFIXES, identify
from tasks.images.decoding.whole import Sound, find_picture, prove_gray_end, prove_jpeg, truncated

# What Pillow finds odd about metadata decides nothing, and its warnings name no file.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_SEVERAL_FRAMES = frozenset({"GIF", "TIFF", "WEBP", "AVIF", "HEIC"})

_DEEP_COLOR = re.compile(r"(RGB[AX]?;16)([BLN])")  # how 16-bit colors are packed in the file
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

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


@dataclass(frozen=True, slots=True)
class Decoded:
    """One decoded image file.

    Attributes:
        image: Upright, mode RGB; smaller than width x height where `draft_px` or `glance_px`
            allowed it.
        width: Pixels of the upright image in full size.
        height: Pixels of the upright image in full size.
        mode: Pillow's mode of the file, such as L, RGBA or I;16.
        format: A key of `READERS`.
        warnings: Sentences about what was ignored or converted.
        color: What the image tells about how its set is to be converted.
    """

    image: Image.Image
    width: int
    height: int
    mode: str
    format: str
    warnings: tuple[str, ...]
    color: ColorFacts


def decode_image(
    content: bytes,
    *,
    max_pixels: int,
    min_side_px: int = 1,
    draft_px: int | None = None,
    glance_px: int | None = None,
    suffix: str | None = None,
    conversion: Conversion | None = None,
) -> Decoded:
    """Decode an image file to upright sRGB.

    EXIF orientation is applied and an embedded color profile converted (perceptual intent); CMYK
    and YCCK without a profile become RGB by Pillow's formula. Transparency and values of more than
    8 bits follow `conversion`.

    Args:
        content: The whole file.
        max_pixels: Largest allowed width x height, checked before pixels take memory.
        min_side_px: Smallest allowed side.
        draft_px: JPEG may be decoded at a half, quarter or eighth of its size as long as the
            shorter side does not fall below this; several times faster. None decodes every pixel.
        glance_px: Every pixel is decoded, but an image with a color profile may then be averaged,
            as long as its shorter side does not fall below this. None keeps every pixel.
        suffix: Suffix of the file's name; a warning says if it names another format.
        conversion: Of the image's set; None settles it from this image alone.

    Raises:
        ImageError: The file cannot be used. The message is a kind of reason, then details in
            parentheses.
    """
    kind = identify(content)
    sound = find_picture(kind, content)
    try:
        with READERS[kind](io.BytesIO(sound.content)) as file:
            _check_size(file.size, max_pixels, min_side_px)
            if sound.unproven:
                prove_jpeg(sound, content)
            mode, (width, height) = file.mode, file.size
            if draft_px is not None:
                file.draft(None, (draft_px, draft_px))
            read_low = partial(_read_low_bytes, kind, sound) if _has_high_bytes(file) else None
            file.load()
            prove_gray_end(file, sound, content)
            orientation = _orientation(file)
            colored = to_srgb(file, conversion, reduce_px=glance_px, read_low_bytes=read_low)
    except ImageError:
        raise
    except MemoryError as err:
        raise ImageError("too large (does not fit into memory; lower ingest.max_pixels)") from err
    except Exception as err:  # on damaged files Pillow raises a dozen kinds, SyntaxError among them
        raise ImageError(_describe(err, content)) from err
    image, turn = colored.image, orientation or 1
    if turn in _UPRIGHT:
        image = image.transpose(_UPRIGHT[turn])
        if turn > 4:
            width, height = height, width
    remarks = _remarks(kind, suffix, _count_frames(kind, sound), orientation)
    said = (*remarks, *sound.remarks, *colored.remarks)
    return Decoded(image, width, height, mode, kind, said, colored.facts)


def _has_high_bytes(file: ImageFile.ImageFile) -> bool:
    """Whether Pillow will keep the high bytes of 16-bit colors only; before it is loaded."""
    return any(_DEEP_COLOR.search(str(tile.args)) for tile in file.tile)


def _read_low_bytes(kind: str, sound: Sound) -> Image.Image:
    """Give the low bytes of 16-bit colors, as those of values in the other byte order."""
    with READERS[kind](io.BytesIO(sound.content)) as file:
        file.tile = [tile._replace(args=_in_other_order(tile.args)) for tile in file.tile]
        file.load()
        return file.copy()


def _in_other_order(arguments: str | tuple[object, ...] | None) -> str | tuple[object, ...] | None:
    if isinstance(arguments, str):
        return _DEEP_COLOR.sub(lambda found: found[1] + _OTHER_ORDER[found[2]], arguments)
    return arguments and (_in_other_order(str(arguments[0])), *arguments[1:])


def _remarks(
    kind: str, suffix: str | None, frames: int | None, orientation: int | None
) -> Iterator[str]:
    if SUFFIXES.get((suffix or "").lower(), kind) != kind:
        yield f"named {suffix} but its content is {kind}"
    if frames is None:
        yield "its later frames are damaged; the first one is used"
    elif frames > 1:
        yield f"holds {frames} frames; the first one is used"
    if orientation is None:
        yield "its EXIF data are damaged; taken as upright"


def _count_frames(kind: str, sound: Sound) -> int | None:
    """Count the pictures of a file; None where the later ones are damaged."""
    if sound.frames is not None:
        return sound.frames
    if kind not in _SEVERAL_FRAMES:
        return 1
    try:
        with READERS[kind](io.BytesIO(sound.content)) as file:
            return int(getattr(file, "n_frames", 1))
    except Exception:  # as above; the first picture is sound
        return None


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


def _orientation(file: ImageFile.ImageFile) -> int | None:
    """EXIF orientation; 1 where there is none (TIFF: already applied), None if it is damaged."""
    try:
        found = file.getexif().get(_ORIENTATION, 1)
    except Exception:  # as above; the pixels are sound
        return None
    return found if isinstance(found, int) else None


# Pixels kept for each one of the clean view: a crop of a quarter of the area is still not enlarged.
KEPT_SCALE = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """The region of an image that becomes the square view.

    Attributes:
        image: RGB; both sides at least twice the view's where the file has so many pixels, and less
            than four times it.
        aspect: Width / height of the region as the camera saw it; `image` may be reduced unevenly.
    """

    image: Image.Image
    aspect: float


def draft_side(image_px: int) -> int:
    """Give the shorter side in pixels below which `decode_image` must not reduce a JPEG."""
    return KEPT_SCALE * image_px


def frame_image(image: Image.Image, *, image_px: int, fit: Fit) -> Frame:
    """Take the square region of an RGB image.

    squash takes all of it, whatever its shape; crop the largest square in the middle; pad all of
    it, centered on a square of its border's mean color. Where the file has whole multiples of the
    pixels that are needed, they are averaged first, as JPEG does while decoding a draft.
    """
    width, height = image.size
    if fit == "squash":
        return Frame(_reduced(image, (0, 0, width, height), image_px), width / height)
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return Frame(_reduced(image, (left, top, left + side, top + side), image_px), 1.0)
    return Frame(_padded(image, image_px), 1.0)


def clean_view(frame: Frame, image_px: int) -> Pixels:
    """Resample the whole frame to uint8 (image_px, image_px, 3), bicubic and antialiased."""
    view = frame.image.resize((image_px, image_px), Image.Resampling.BICUBIC)
    return np.asarray(view)


def border_color(image: Image.Image) -> tuple[int, int, int]:
    """Give the mean color of the outermost pixels of an RGB image."""
    pixels = np.asarray(image)
    edges = (pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1])
    red, green, blue = np.rint(np.concatenate(edges).mean(axis=0)).astype(int).tolist()
    return red, green, blue


def _reduced(image: Image.Image, box: tuple[int, int, int, int], image_px: int) -> Image.Image:
    left, top, right, bottom = box
    needed = draft_side(image_px)
    factors = max(1, (right - left) // needed), max(1, (bottom - top) // needed)
    if factors == (1, 1) and (right - left, bottom - top) == image.size:
        return image
    return image.reduce(factors, box)


def _padded(image: Image.Image, image_px: int) -> Image.Image:
    factor = max(1, max(image.size) // draft_side(image_px))
    small = image.reduce(factor)
    side = max(small.size)
    canvas = Image.new("RGB", (side, side), border_color(image))
    canvas.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return canvas
