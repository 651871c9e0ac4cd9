"""Augmentation: named policies, a view's operations drawn from their ranges, the view rendered.

Random numbers come from (seed, content of the image, view) alone: a view stays what it is when
other images are added, removed or renamed, whatever the number of workers. Geometry is one
resampling, colors are one matrix; then come the operations of `tasks.images.operations`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.artifacts.arrays import Pixels
from tasks.images.decoding.decode import Frame, border_color
from tasks.images.operations.registry import Box, Operation, draw_operations, place_box
from tasks.params import AugmentationRanges, AugmentParams

VIEW_PURPOSE = 11  # tells these random numbers from those of other parts with the same seed

# The named policies are for photographs. What gravity tells must stay, so no up-down flips and no
# quarter turns, and a left-right flip half of the time. Crops keep at least 0.3 of the area, unlike
# the 0.08 with which ImageNet is trained over hundreds of epochs: there are few views of an image,
# and each must still show its label.

NONE = AugmentationRanges.model_validate(
    dict.fromkeys(AugmentationRanges.model_fields, 0.0)
    | {"crop_scale_min": 1.0, "crop_ratio_max": 1.0}
)

# Hardly visible changes of framing and exposure, as between two shots of one scene.
LIGHT = NONE.model_copy(
    update={
        "flip_horizontal": 0.5,
        "crop_scale_min": 0.8,
        "crop_ratio_max": 1.1,
        "brightness": 0.1,
        "contrast": 0.1,
        "saturation": 0.1,
    }
)

# Another photographer: nearer, slightly tilted, other light. For hundreds of images a class.
MEDIUM = NONE.model_copy(
    update={
        "flip_horizontal": 0.5,
        "crop_scale_min": 0.5,
        "crop_ratio_max": 1.33,
        "rotate_degrees": 5.0,
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "hue": 0.02,
    }
)

# Another camera, partly hidden. For tens of images a class, where overfitting is the larger danger.
HEAVY = NONE.model_copy(
    update={
        "flip_horizontal": 0.5,
        "crop_scale_min": 0.3,
        "crop_ratio_max": 1.33,
        "rotate_degrees": 15.0,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.05,
        "blur_px": 1.0,
        "erase_fraction": 0.2,
    }
)


@dataclass(frozen=True, slots=True)
class View:
    """Operations of one view, in the order in which they are applied; the defaults change nothing.

    Attributes:
        rotate_degrees: Turn of the picture about the center of the crop, counterclockwise.
        crop: Box in the frame.
        flip_horizontal: Whether left and right are exchanged.
        flip_vertical: Whether top and bottom are exchanged.
        quarter_turns: Turns by 90 degrees counterclockwise, 0 to 3.
        brightness: Factor of all values.
        contrast: Factor of the distance to the view's mean gray.
        saturation: Factor of the distance to each pixel's gray.
        hue: Turn of the color circle, share of a full one.
        operations: What follows geometry and color.
    """

    rotate_degrees: float = 0.0
    crop: Box = (0.0, 0.0, 1.0, 1.0)
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: int = 0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    operations: tuple[Operation, ...] = ()


def ranges_of(params: AugmentParams) -> AugmentationRanges:
    """Give the ranges that the policy names."""
    named = {"none": NONE, "light": LIGHT, "medium": MEDIUM, "heavy": HEAVY}
    return params.custom if params.policy == "custom" else named[params.policy]


def draw_view(ranges: AugmentationRanges, *, seed: int, sha256: str, view: int) -> View:
    """Draw the operations of one view of one image.

    Flips, crops and colors have their own random numbers, drawn whether they are used or not, as
    have the operations that follow: changing one range leaves the draws of the others as they were.

    Args:
        ranges: What may be drawn.
        seed: The project's seed.
        sha256: Of the image's file, hexadecimal.
        view: Number of the view, from 1; 0 is the clean one, which is not drawn.
    """
    stream = [seed, VIEW_PURPOSE, view, int(sha256, 16)]
    rng = np.random.default_rng(stream)
    chance = rng.random(3).tolist()
    signed = rng.uniform(-1.0, 1.0, 5).tolist()
    rng.random(3)  # unused; without them every crop would be another one
    turns = int(rng.integers(1, 4))
    crop = _draw_crop(ranges.crop_scale_min, ranges.crop_ratio_max, rng)
    return View(
        rotate_degrees=ranges.rotate_degrees * signed[0],
        crop=crop,
        flip_horizontal=chance[0] < ranges.flip_horizontal,
        flip_vertical=chance[1] < ranges.flip_vertical,
        quarter_turns=turns if chance[2] < ranges.quarter_turn else 0,
        brightness=1.0 + ranges.brightness * signed[1],
        contrast=1.0 + ranges.contrast * signed[2],
        saturation=1.0 + ranges.saturation * signed[3],
        hue=ranges.hue * signed[4],
        operations=tuple(draw_operations(ranges, stream)),
    )


def _draw_crop(scale_min: float, ratio_max: float, rng: np.random.Generator) -> Box:
    """Draw a box whose area is uniform in [scale_min, 1], its stretch log-uniform where it fits."""
    area = 1.0 - (1.0 - scale_min) * rng.random()
    limit = min(ratio_max, 1.0 / area)  # a longer box would not fit into the frame
    return place_box(area, limit ** rng.uniform(-1.0, 1.0), rng)


# Luma, as in Pillow's mode L, and the two color axes of YIQ (SMPTE 170M).
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


def render_view(frame: Frame, view: View, image_px: int) -> Pixels:
    """Render one view: uint8 (image_px, image_px, 3). `View()` gives exactly the clean one."""
    image = _turn(_sample(frame, view, image_px), view)
    image = _recolor(image, view)
    for operation in view.operations:
        image = operation.apply(image)
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
