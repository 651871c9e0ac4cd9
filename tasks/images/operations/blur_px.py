"""Gaussian blur, as of a camera out of focus."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter


@dataclass(frozen=True, slots=True)
class Blur:
    """A blur of a radius, pixels of the view."""

    radius: float

    def apply(self, image: Image.Image) -> Image.Image:
        """Blur the image."""
        return image.filter(ImageFilter.GaussianBlur(self.radius))


def draw(most: float, rng: np.random.Generator) -> Blur:
    """Draw a radius uniformly from [0, most)."""
    return Blur(most * rng.random())
