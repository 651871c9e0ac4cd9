"""How images look before any network sees them: what changes when a lamp, lens or camera does."""

from typing import Literal, get_args

import numpy as np

from tasks.artifacts.arrays import Floats, Pixels
from tasks.images.texture import LUMA, STATISTICS, measure_texture

Fact = Literal["brightness", "sharpness", "megapixels"]
FACTS: tuple[Fact, ...] = get_args(Fact)


def measure_appearance(pixels: Pixels, *, width: int, height: int) -> Floats:
    """Measure one image; float64 (3,), in the order of FACTS.

    Args:
        pixels: The square view that the network sees, uint8 (R, R, 3), R >= 16.
        width: Of the whole image, pixels.
        height: The same.

    Returns:
        The mean gray value, in [0, 255]; the standard deviation of the Laplacian over that of the
        gray values, NaN of one gray (`tasks.images.texture`); width x height in millions.
    """
    brightness = (pixels @ np.array(LUMA)).mean() / 1000
    sharpness = measure_texture(pixels)[STATISTICS.index("sharpness")]
    return np.array([brightness, sharpness, width * height / 1e6])
