"""Boxes within an image, in shares of its sides."""

import numpy as np

# left, top, width, height as shares of the whole, in [0, 1]
Box = tuple[float, float, float, float]


def place_box(area: float, ratio: float, rng: np.random.Generator) -> Box:
    """Place a box at random so that it lies inside.

    Args:
        area: Its share of the whole, in [0, 1].
        ratio: Width divided by height, in shares; cut to the whole where it is longer.
        rng: Where it is placed.
    """
    width, height = min(1.0, (area * ratio) ** 0.5), min(1.0, (area / ratio) ** 0.5)
    left, top = rng.random(2).tolist()
    return left * (1.0 - width), top * (1.0 - height), width, height
