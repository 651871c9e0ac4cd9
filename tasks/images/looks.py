"""What is wrong with how pictures look: counted by class, and told where a class has many."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.words import listed

Trait = Literal["flat", "dark", "profiled", "hashless"]
TRAITS: tuple[Trait, ...] = ("flat", "dark", "profiled", "hashless")

FLAT_RANGE = 2  # of 255, in every channel: what compression leaves of one color
DARK, DARK_SHARE = 48, 0.99  # nearly dark: 99 % of the picture, shrunk to 64 x 64, is below 48
MANY, MANY_SHARE = 5, 0.1  # pictures of a class, at least, that are told

_ADVICE: Mapping[Trait, str] = {
    "flat": "are of one color, nothing can be learned from them; look at some, and remove them or "
    "repair what made them",
    "dark": "are nearly dark; look at some: scale their brightness before, or remove them",
    "profiled": "were converted to sRGB from a color profile; if other classes have none, colors "
    "may tell where a picture comes from instead of what it shows",
    "hashless": "are too flat for a perceptual hash, so that near copies are not found among them;"
    " name those that belong together in ingest.groups",
}


def find_traits(
    image: Image.Image, gray: Pixels, *, profiled: bool, hashless: bool
) -> tuple[Trait, ...]:
    """Say what is remarkable about a picture.

    Args:
        image: RGB.
        gray: The same, shrunk: uint8 (64, 64).
        profiled: Whether its colors were converted from a profile.
        hashless: Whether it has no perceptual hash.
    """
    flat = hashless and bool((np.ptp(np.asarray(image), axis=(0, 1)) <= FLAT_RANGE).all())
    dark = int(np.count_nonzero(gray >= DARK)) < (1 - DARK_SHARE) * gray.size
    found = {"flat": flat, "dark": dark, "profiled": profiled, "hashless": hashless}
    return tuple(trait for trait in TRAITS if found[trait])


def count_traits(
    pictures: Iterable[tuple[str, Sequence[Trait]]],
) -> dict[str, dict[str, int]]:
    """Count traits over (class, traits) of pictures; what has none is left out."""
    counts = Counter((label, trait) for label, traits in pictures for trait in traits)
    labels = sorted({label for label, _ in counts})
    return {
        label: {trait: counts[label, trait] for trait in TRAITS if counts[label, trait]}
        for label in labels
    }


def tell_traits(looks: Mapping[str, Mapping[str, int]], totals: Mapping[str, int]) -> Iterator[str]:
    """Give a sentence for each trait that many pictures of some class have."""
    for trait in TRAITS:
        many = [
            f"{label} ({counts.get(trait, 0):,} of {totals[label]:,})"
            for label, counts in looks.items()
            if counts.get(trait, 0) >= max(MANY, MANY_SHARE * totals[label])
        ]
        if many:
            names = listed(many, where="health.json")
            yield f"Many pictures {_ADVICE[trait]}: {names}."
