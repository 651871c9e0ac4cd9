"""The look at the images as a paragraph for a person."""

from collections.abc import Iterator

from tasks.artifacts.records import ClassSeen, Look, Semantics, TextureRange
from tasks.artifacts.words import listed, shortened

MOST, FEW = 0.5, 0.1  # of the images
SHOWN_CLASSES, LONGEST_NAME = 4, 30
UNSURE, LESS_SURE = 0.6, 0.85  # of the sureness on the source's own images, below which it is so
POOR = 0.6  # of the source's images rightly named, below which the head's words mean little
# statistic -> what it is called; what is said where most images lie below, and above the source's
TEXTURES = {
    "slope": ("slope of the spectrum", "are coarser", "are finer or noisier"),
    "entropy": ("local entropy", "show less local detail", "show more local detail"),
    "sharpness": ("sharpness", "are softer", "are sharper"),
}


def say_look(look: Look) -> str:
    """Say how the images look, and how those of the source do where that is known."""
    return " ".join([*_say_color(look), *_say_texture(look), *_say_seen(look.semantics)])


def _say_color(look: Look) -> Iterator[str]:
    beside = f" (of {look.source}: {look.source_gray:.0%})" if look.source else ""
    depth = f"; {look.deep:,} of the set have more than 8 bits" if look.deep else ""
    yield (
        f"Of {look.images:,} training images that were looked at, {look.gray:.0%} are gray{beside}"
        f"{depth}."
    )
    beside = f", of {look.source} {look.source_even:.0%}" if look.source else ""
    if look.even >= MOST:
        what = "They look drawn, flatly rendered or cut out"
    elif look.even <= max(FEW, look.source_even or 0.0):
        what = "They look photographic, not drawn or cut out"
    else:
        what = "Some look drawn, flatly rendered or cut out"
    yield f"{what}: {look.even:.0%} are mostly even areas{beside}."


def _say_texture(look: Look) -> Iterator[str]:
    compared = [one for one in look.texture if one.inside is not None and one.name in TEXTURES]
    if not compared:
        yield "Their texture was not compared: no source card tells that of its images."
        return
    outside = [one for one in compared if (one.inside or 0.0) < MOST]
    within = [TEXTURES[one.name][0] for one in compared if one not in outside]
    for one in outside:
        name, below, above = TEXTURES[one.name]
        yield (
            f"They {below if _is_below(one) else above} than {look.source}: {name} "
            f"{one.median:.2f}, there {one.source_median:.2f} (90%: {one.source_low:.2f} to "
            f"{one.source_high:.2f}, where {one.inside:.0%} of these lie)."
        )
    if within:
        verb = "lies" if len(within) == 1 else "lie"
        what = listed(within)
        yield f"{what[0].upper()}{what[1:]} {verb} in the range of {look.source}."


def _is_below(one: TextureRange) -> bool:
    return one.source_median is not None and one.median < one.source_median


def _say_seen(semantics: Semantics | None) -> Iterator[str]:
    if semantics is None:
        yield (
            "What the source's head sees was not measured: the backbone has no head with known "
            "classes."
        )
        return
    shown = [_say_class(one) for one in semantics.classes[:SHOWN_CLASSES]]
    more = len(semantics.classes) - len(shown)
    rest = f"; and so on for {more} more" if more > 0 else ""
    yield f"The head of {semantics.head} sees {'; '.join(shown)}{rest}."
    yield f"{_say_sureness(semantics)}."


def _say_sureness(semantics: Semantics) -> str:
    own, sure, right = semantics.source_sure, semantics.sure, semantics.source_right
    if own is None:
        return f"The median of its top probability is {sure:.2f}"
    of_right = "" if right is None else f", of which it names {right:.0%} rightly at this size"
    if right is not None and right < POOR:
        return (
            f"Its words mean little: of the images of its own source card it names {right:.0%} "
            "rightly at this size"
        )
    how = "about as sure as" if sure >= LESS_SURE * own else "less sure than"
    how = "unsure" if sure < UNSURE * own else f"{how} at home"
    return f"It is {how}: median top probability {sure:.2f}, {own:.2f} on its own images{of_right}"


def _say_class(one: ClassSeen) -> str:
    seen = ", ".join(f"{found.name} {found.share:.0%}" for found in one.seen)
    return f"in `{shortened(one.name, LONGEST_NAME).replace('`', '')}` {seen}"
