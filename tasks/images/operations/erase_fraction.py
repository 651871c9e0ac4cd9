"""Erasing: a box is grayed out, as if something stood before the object.

Source: Zhong et al. 2017 (1708.04896), with gray instead of noise.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from tasks.images.operations.registry import Box, place_box

GRAY = (128, 128, 128)


@dataclass(frozen=True, slots=True)
class Erasing:
    """A box of the view that is grayed out."""

    box: Box

    def apply(self, image: Image.Image) -> Image.Image:
        """Gray the pixels of the box."""
        left, top, width, height = self.box
        columns, rows = image.size
        corner = round(left * columns), round(top * rows)
        image.paste(GRAY, (*corner, round((left + width) * columns), round((top + height) * rows)))
        return image


def draw(most: float, rng: np.random.Generator) -> Erasing:
    """Draw a box: its area uniform in [0, most), its stretch log-uniform in [1/2, 2]."""
    area, stretch = rng.random(2).tolist()
    return Erasing(place_box(most * area, 4.0 ** (stretch - 0.5), rng))
