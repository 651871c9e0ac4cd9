"""The clean view of an image file, with what the file tells beside it; decoded once."""

from dataclasses import dataclass

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.records import Conversion, Fit
from tasks.artifacts.tables import FactRow
from tasks.images.decoding.decode import clean_view, decode_image, draft_side, frame_image
from tasks.images.facts import measure_facts


@dataclass(frozen=True)
class ImageView:
    """The clean view of an image, uint8 (R, R, 3), and facts of its file, without a path."""

    pixels: Pixels
    facts: FactRow


def read_view(
    content: bytes,
    *,
    image_px: int,
    fit: Fit,
    max_pixels: int,
    min_side_px: int = 1,
    conversion: Conversion | None = None,
) -> ImageView:
    """Decode an image file and give its clean view.

    Raises:
        ImageError: The file cannot be used.
    """
    decoded = decode_image(
        content,
        max_pixels=max_pixels,
        min_side_px=min_side_px,
        draft_px=draft_side(image_px),
        conversion=conversion,
    )
    pixels = clean_view(frame_image(decoded.image, image_px=image_px, fit=fit), image_px)
    return ImageView(pixels, measure_facts("", content, decoded))
