"""Makes decoded images square: the region that is shown, and its clean view for the network.

Training, evaluation and prediction all come through `frame_image`, so that they cannot drift apart.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.records import Fit
from tasks.images.decoding.decode import decode_image

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


def read_clean_view(content: bytes, *, image_px: int, fit: Fit, max_pixels: int) -> Pixels:
    """Decode an image file and give its clean view: uint8 (image_px, image_px, 3).

    Raises:
        ImageError: The file cannot be used.
    """
    decoded = decode_image(content, max_pixels=max_pixels, draft_px=draft_side(image_px))
    return clean_view(frame_image(decoded.image, image_px=image_px, fit=fit), image_px)


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
