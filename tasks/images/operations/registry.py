"""The operations that follow geometry and color, and how those of a view are drawn.

A new one is a module of this package with a function `draw`, a range of the same name in
`tasks.params.AugmentationRanges`, and that name in `OPERATIONS`.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Protocol, cast

import numpy as np
from PIL import Image

from tasks.params import AugmentationRanges

OPERATIONS = ("blur_px", "erase_fraction")  # in the order in which they are applied


class Operation(Protocol):
    """What was drawn for one view; equal operations change equal images equally."""

    def apply(self, image: Image.Image) -> Image.Image:
        """Give the changed image, of the same size; the one given may be changed in place."""
        ...


class Drawer(Protocol):
    """What a module of this package offers."""

    def draw(self, most: float, rng: np.random.Generator) -> Operation:
        """Draw an operation; `most` is its range, above 0."""
        ...


def drawer_of(name: str) -> Drawer:
    """Find the module of an operation."""
    return cast(Drawer, import_module(f"tasks.images.operations.{name}"))


def draw_operations(ranges: AugmentationRanges, stream: list[int]) -> Iterator[Operation]:
    """Draw the operations whose range is not 0, in their order.

    Each has random numbers of its own, from `stream` and its name: another operation, added or
    turned off, changes none of them.
    """
    for name in OPERATIONS:
        if most := getattr(ranges, name):
            rng = np.random.default_rng([*stream, int.from_bytes(name.encode())])
            yield drawer_of(name).draw(most, rng)


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
