"""One rule by which all images of a set become 8-bit sRGB, settled from what each tells.

Deciding for every image alone would make a dark picture as bright as the others of its set.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from tasks.artifacts.records import Conversion

GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "magenta": (255, 0, 255),  # far from every gray
}
HIDDEN_TOLERATED = 0.01  # largest share of a class whose drawing may be hidden on the ground
Number = TypeVar("Number", int, float)

NARROW = 16  # times the range that half of the images use: then some odd values set it
SIXTEEN_BITS = (0, 65535)
UNIT = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class ColorFacts:
    """What one image tells about how its set is to be converted.

    Attributes:
        hidden_on: Names in `GROUNDS` on which its drawing cannot be seen; None where no pixel is
            transparent.
        integers: Smallest and largest value, of an image of integers of more than 8 bits.
        floats: The same of floating-point values.
        profiled: Whether its color profile is another than sRGB's.
    """

    hidden_on: frozenset[str] | None = None
    integers: tuple[int, int] | None = None
    floats: tuple[float, float] | None = None
    profiled: bool = False


NO_FACTS = ColorFacts()


def settle_conversion(images: Sequence[tuple[str, ColorFacts]]) -> Conversion:
    """Find the conversion of a set from (class, facts) of all its images, in any order.

    Transparent pixels become the first of white, black, gray and magenta on which at most 1 % of
    any class are hidden; where there is none, that on which the fewest are, by its share.
    Integers of more than 8 bits have the range 0..2^k-1 with the smallest k >= 8 that holds all of
    them, floating-point values [0, 1]; where the set goes beyond that, its own extremes.
    """
    facts = [fact for _, fact in images]
    integers = _extent(fact.integers for fact in facts)
    floats = _extent(fact.floats for fact in facts)
    transparent = sum(fact.hidden_on is not None for fact in facts)
    ground = _choose_ground(images)
    conversion = Conversion(
        background=GROUNDS[ground],
        integers=_range_of_integers(integers),
        floats=_range_of_floats(floats),
        transparent=transparent,
        deep=sum(fact.integers is not None or fact.floats is not None for fact in facts),
        profiled=sum(fact.profiled for fact in facts),
        notes=[],
    )
    notes = _describe(conversion, ground, facts)
    return conversion.model_copy(update={"notes": notes})


def relevant(conversion: Conversion, facts: ColorFacts) -> tuple[object, ...]:
    """Give what of a conversion an image depends on."""
    return (
        conversion.background if facts.hidden_on is not None else None,
        conversion.integers if facts.integers is not None else None,
        conversion.floats if facts.floats is not None else None,
    )


def _choose_ground(images: Sequence[tuple[str, ColorFacts]]) -> str:
    totals = Counter(label for label, _ in images)
    hidden = Counter(
        (label, ground) for label, fact in images for ground in fact.hidden_on or frozenset()
    )

    def worst(ground: str) -> float:
        return max((hidden[label, ground] / totals[label] for label in totals), default=0.0)

    fit = (ground for ground in GROUNDS if worst(ground) <= HIDDEN_TOLERATED)
    return next(fit, min(GROUNDS, key=worst))


def _extent(
    ranges: Iterable[tuple[Number, Number] | None],
) -> tuple[Number, Number] | None:
    found = [values for values in ranges if values is not None]
    if not found:
        return None
    return min(low for low, _ in found), max(high for _, high in found)


def _range_of_integers(extent: tuple[int, int] | None) -> tuple[int, int]:
    if extent is None:
        return SIXTEEN_BITS
    low, high = extent
    return extent if low < 0 else (0, (1 << max(8, high.bit_length())) - 1)


def _range_of_floats(extent: tuple[float, float] | None) -> tuple[float, float]:
    if extent is None or (extent[0] >= 0 and extent[1] <= 1):
        return UNIT
    return extent


def _about_odd_values(extents: Sequence[tuple[float, float]], whole: float) -> str:
    """Say that most images use little of a range; empty where they do not."""
    used = median(high - low for low, high in extents)
    if used * NARROW >= whole:
        return ""
    return (
        f" Half of them use at most {used:g} of that range, so that little is seen of them: look "
        "for a value that stands for missing data, or pictures in another unit."
    )


def _describe(
    conversion: Conversion,
    ground: str,
    facts: Sequence[ColorFacts],
) -> list[str]:
    notes = []
    if conversion.transparent:
        lost = Counter(name for fact in facts for name in fact.hidden_on or frozenset())
        why = ", ".join(f"{lost[name]:,} on {name}" for name in GROUNDS)
        notes.append(
            f"{conversion.transparent:,} images have transparent pixels, which become {ground} in "
            f"the whole set; their drawings could not be seen: {why}."
        )
    for extents, (black, white), kind in (
        ([fact.integers for fact in facts], conversion.integers, "integers of more than 8 bits"),
        ([fact.floats for fact in facts], conversion.floats, "floating-point values"),
    ):
        known = [extent for extent in extents if extent is not None]
        if known:
            notes.append(
                f"Images of {kind} hold {min(known)[0]:g} to {max(high for _, high in known):g}; "
                f"in the whole set {black:g} becomes black and {white:g} white."
                + _about_odd_values(known, white - black)
            )
    if conversion.profiled:
        notes.append(
            f"{conversion.profiled:,} images were converted from their color profile to sRGB."
        )
    return notes
