"""Renders views: geometry in one resampling, colors in one matrix, then blur and erasing."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from tasks.images.augmentation import Box, View
from tasks.images.frames import Frame, Pixels, border_color

GRAY = 128  # of erased boxes

# Luma, as in Pillow's mode L, and the two color axes of YIQ (SMPTE 170M).
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


def render_view(frame: Frame, view: View, image_px: int) -> Pixels:
    """Render one view: uint8 (image_px, image_px, 3). `View()` gives exactly the clean one."""
    image = _turn(_sample(frame, view, image_px), view)
    image = _recolor(image, view)
    if view.blur_px > 0:
        image = image.filter(ImageFilter.GaussianBlur(view.blur_px))
    if view.erase is not None:
        left, top, right, bottom = _pixel_box(view.erase, image_px)
        image.paste((GRAY, GRAY, GRAY), (left, top, right, bottom))
    return np.asarray(image)


# geometry -----------------------------------------------------------------------------------------


def _sample(frame: Frame, view: View, image_px: int) -> Image.Image:
    """Resample the crop of a frame to the view's size, bicubic."""
    left, top, width, height = view.crop
    columns, rows = frame.image.size
    box = (left * columns, top * rows, (left + width) * columns, (top + height) * rows)
    if view.rotate_degrees == 0:
        inside = (box[0], box[1], min(box[2], columns), min(box[3], rows))  # rounding may exceed
        return frame.image.resize((image_px, image_px), Image.Resampling.BICUBIC, box=inside)
    return _sample_turned(frame, box, view.rotate_degrees, image_px)


def _sample_turned(
    frame: Frame, box: tuple[float, float, float, float], degrees: float, image_px: int
) -> Image.Image:
    """Resample a box that is turned about its center; outside of the frame lies its border color.

    Bicubic interpolation looks at four neighbors and would skip pixels when it shrinks, so whole
    multiples are averaged first, which leaves a shrinking below two. Against eightfold
    oversampling this is as sharp as resizing first, and needs one interpolation instead of two.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    factors = max(1, int(width / image_px)), max(1, int(height / image_px))
    image = frame.image.reduce(factors) if factors != (1, 1) else frame.image
    # Pixels of the frame are not square where it was squashed: turn in the camera's geometry.
    stretch = frame.aspect * frame.image.height / frame.image.width
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, down = width / image_px, height / image_px
    a, b = cos * across, -sin * down / stretch
    d, e = sin * across * stretch, cos * down
    half = image_px / 2
    c = (box[0] + box[2]) / 2 - (a + b) * half
    f = (box[1] + box[3]) / 2 - (d + e) * half
    x, y = 1 / factors[0], 1 / factors[1]
    return image.transform(
        (image_px, image_px),
        Image.Transform.AFFINE,
        (a * x, b * x, c * x, d * y, e * y, f * y),
        resample=Image.Resampling.BICUBIC,
        fillcolor=border_color(frame.image),
    )


def _turn(image: Image.Image, view: View) -> Image.Image:
    """Flip and turn by quarters, which moves pixels and changes none."""
    if view.flip_horizontal:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.flip_vertical:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if view.quarter_turns:
        turns = (
            Image.Transpose.ROTATE_90,
            Image.Transpose.ROTATE_180,
            Image.Transpose.ROTATE_270,
        )
        image = image.transpose(turns[view.quarter_turns - 1])
    return image


def _pixel_box(box: Box, image_px: int) -> tuple[int, int, int, int]:
    left, top, width, height = (share * image_px for share in box)
    return round(left), round(top), round(left + width), round(top + height)


# color --------------------------------------------------------------------------------------------


def _recolor(image: Image.Image, view: View) -> Image.Image:
    """Apply brightness, contrast, saturation and hue as one linear map, rounded once."""
    chroma = _chroma_matrix(view.saturation, view.hue)
    matrix = view.brightness * view.contrast * chroma
    offset = 0.0
    if view.contrast != 1:
        mean = view.brightness * float(np.asarray(image.convert("L")).mean())
        offset = (1 - view.contrast) * mean
    if offset == 0 and np.array_equal(matrix, np.eye(3)):
        return image
    return image.convert("RGB", tuple(np.column_stack([matrix, [offset] * 3]).ravel().tolist()))


def _chroma_matrix(saturation: float, hue: float) -> NDArray[np.float64]:
    """Scale and turn colors about the gray axis: (3, 3) on RGB columns; luma and grays stay."""
    if saturation == 1 and hue == 0:
        return np.eye(3)
    angle = 2 * math.pi * hue
    turn = np.eye(3)
    turn[1:, 1:] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    turn[1:, 1:] *= saturation
    return np.asarray(_RGB @ turn @ _YIQ)
