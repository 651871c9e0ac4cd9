"""Brings decoded pixels of any mode to 8-bit sRGB by the conversion of their set."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.records import Conversion
from tasks.errors import ImageError
from tasks.images.decoding.conversion import GROUNDS, SIXTEEN_BITS, ColorFacts, settle_conversion

EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
VISIBLE_DIFFERENCE = 64  # of 255, in some channel, by which a pixel stands out from the ground
VISIBLE_SHARE = 0.1  # of what is not transparent must stand out, or the drawing is hidden
LOOKED_AT = 256  # pixels a side, at most, that are looked at for that
SAME_COLORS = 3  # of 255: a profile whose colors all lie within this of sRGB's is sRGB
PROFILES_KEPT = 32


@dataclass(frozen=True, slots=True)
class Colored:
    """An image in RGB, what it tells about the conversion of its set, and what was ignored."""

    image: Image.Image
    facts: ColorFacts
    remarks: tuple[str, ...] = ()


def to_srgb(
    image: Image.Image,
    conversion: Conversion | None,
    *,
    reduce_px: int | None = None,
    read_low_bytes: Callable[[], Image.Image] | None = None,
) -> Colored:
    """Convert a decoded image.

    Args:
        image: Of any mode; its color profile stands in `info`.
        conversion: Of its set; None settles one from this image alone.
        reduce_px: An image with a color profile of its own may be averaged first, as long as its
            shorter side does not fall below this. None keeps every pixel.
        read_low_bytes: Where the image holds the high bytes of 16-bit colors, gives the low ones.

    Raises:
        ImageError: The mode is not supported, or values are not finite.
    """
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _deep_to_srgb(image, conversion)
    if image.mode not in EIGHT_BIT_MODES:
        raise ImageError(f"unsupported color mode ({image.mode}; save it as RGB)")
    integers = None
    if read_low_bytes is not None:
        image, integers = _scale_deep_color(image, read_low_bytes, conversion)
    alpha = _alpha(image)
    base = _without_alpha(image)
    if alpha is None:
        colored, profiled, remarks = _apply_profile(base, image, reduce_px)
        return Colored(colored, ColorFacts(integers=integers, profiled=profiled), remarks)
    colored, profiled, remarks = _apply_profile(base, image, None)
    facts = ColorFacts(_hidden_on(colored, alpha), integers, None, profiled)
    conversion = conversion or settle_conversion([("", facts)])
    canvas = Image.new("RGB", image.size, conversion.background)
    canvas.paste(colored, mask=alpha)
    return Colored(canvas, facts, remarks)


# transparency -------------------------------------------------------------------------------------


def _alpha(image: Image.Image) -> Image.Image | None:
    """Opacity of every pixel, mode L; None where all are opaque."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else alpha


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "LA":
        return image.getchannel("L")
    if image.mode in {"P", "PA", "RGBA"} and image.has_transparency_data:
        return image.convert("RGBA").convert("RGB")
    return image


def _hidden_on(image: Image.Image, alpha: Image.Image) -> frozenset[str] | None:
    """Names of the grounds on which less than a tenth of a drawing, by opacity, stands out."""
    step = tuple(max(1, side // LOOKED_AT) for side in image.size)
    colors = np.asarray(image)[:: step[1], :: step[0]].astype(np.int16)
    weights = np.asarray(alpha)[:: step[1], :: step[0]].astype(np.float64)
    if not weights.any():
        return frozenset()
    hidden = set()
    for name, ground in GROUNDS.items():
        stands_out = np.abs(colors - np.array(ground, np.int16)).max(axis=2) >= VISIBLE_DIFFERENCE
        if (weights * stands_out).sum() < VISIBLE_SHARE * weights.sum():
            hidden.add(name)
    return frozenset(hidden)


# depth --------------------------------------------------------------------------------------------


def _deep_to_srgb(image: Image.Image, conversion: Conversion | None) -> Colored:
    """Bring gray values of more than 8 bits into the range of the set."""
    values = np.asarray(image)
    low, high = values.min().item(), values.max().item()
    if not np.isfinite([low, high]).all():
        raise ImageError("damaged (holds NaN or infinite values)")
    floating = image.mode == "F"
    facts = ColorFacts(floats=(low, high)) if floating else ColorFacts(integers=(low, high))
    conversion = conversion or settle_conversion([("", facts)])
    black, white = conversion.floats if floating else conversion.integers
    gray = Image.fromarray(scale_to_bytes(values, black, white))
    colored, profiled, remarks = _apply_profile(gray, image, None)
    return Colored(
        colored,
        ColorFacts(integers=facts.integers, floats=facts.floats, profiled=profiled),
        remarks,
    )


def _scale_deep_color(
    image: Image.Image, read_low_bytes: Callable[[], Image.Image], conversion: Conversion | None
) -> tuple[Image.Image, tuple[int, int]]:
    """Bring 16-bit colors, of which `image` holds the high bytes, into the range of the set.

    The low bytes matter only where the image, or its set, does not use the upper half of the range.
    """
    high = np.asarray(image)[..., :3]
    largest = int(high.max())
    if largest >= 128 and (conversion is None or conversion.integers == SIXTEEN_BITS):
        return image, (0, 256 * largest + 255)
    values = high.astype(np.uint16) << 8 | np.asarray(read_low_bytes())[..., :3]
    extent = int(values.min()), int(values.max())
    conversion = conversion or settle_conversion([("", ColorFacts(integers=extent))])
    scaled = Image.fromarray(scale_to_bytes(values, *conversion.integers))
    if image.mode == "RGBA":
        scaled.putalpha(image.getchannel("A"))
    scaled.info = image.info
    return scaled, extent


def scale_to_bytes(
    values: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]", black: float, white: float
) -> Pixels:
    """Bring values linearly to 0..255, clipped: `black` and below become 0, `white` 255."""
    scaled = (values.astype(np.float64) - black) * (255 / ((white - black) or 1))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


# color profiles -----------------------------------------------------------------------------------


def _apply_profile(
    image: Image.Image, source: Image.Image, reduce_px: int | None
) -> tuple[Image.Image, bool, tuple[str, ...]]:
    """Convert an opaque image from the color profile of `source` to sRGB, as RGB.

    Returns:
        The image, whether its profile is another than sRGB's, and remarks.
    """
    profile = source.info.get("icc_profile")
    if not profile:
        return image.convert("RGB"), False, ()
    found = _read_profile(profile)
    if found is None:
        return image.convert("RGB"), False, ("its color profile is damaged and was ignored",)
    space, transform = found
    natural = "L" if image.mode == "1" else image.mode
    if natural not in {"L", "CMYK"} or (natural == "L" and space == "RGB"):
        natural = "RGB"
    if natural != space:
        remark = f"its color profile is for {space}, not for {natural}, and was ignored"
        return image.convert("RGB"), False, (remark,)
    if transform is None:
        return image.convert("RGB"), False, ()
    if reduce_px is not None:
        image = image.convert(natural).reduce(max(1, min(image.size) // reduce_px))
    converted = ImageCms.applyTransform(image.convert(natural), transform)
    assert converted is not None  # None only where it is changed in place
    return converted, True, ()


_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


@lru_cache(maxsize=PROFILES_KEPT)
def _read_profile(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None] | None:
    """Give the mode that a profile is for and how to come from it to sRGB.

    No transform means that its colors are those of sRGB; None that it cannot be used.
    """
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = _SPACES.get(opened.profile.xcolor_space, opened.profile.xcolor_space.strip())
        if space not in _SPACES.values():
            return space, None
        transform = ImageCms.buildTransform(
            opened,
            ImageCms.createProfile("sRGB"),
            space,
            "RGB",
            ImageCms.Intent.PERCEPTUAL,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        sample = _sample_colors(space)
        found = ImageCms.applyTransform(sample, transform)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    plain = np.asarray(sample.convert("RGB"), np.int16)
    same = np.abs(plain - np.asarray(found, np.int16)).max() <= SAME_COLORS
    return space, None if same and space != "CMYK" else transform


def _sample_colors(mode: str) -> Image.Image:
    """All combinations of some values of each channel."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    channels = len(mode)
    values = np.linspace(0, 255, 9 if channels == 3 else 3).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[values] * channels), axis=-1).reshape(1, -1, channels)
    return Image.fromarray(grid, mode) if mode == "CMYK" else Image.fromarray(grid)
