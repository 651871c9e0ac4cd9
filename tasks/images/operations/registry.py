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
