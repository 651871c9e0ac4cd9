"""A look at the images beside those of the source: color, texture, what the source's head sees.

For a person, as every guide of transfer learning asks for one: nothing chooses by it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.artifacts.arrays import Floats, Ints
from tasks.artifacts.records import ClassSeen, Look, SeenAs, Semantics, TextureRange
from tasks.artifacts.words import listed, plural, shortened
from tasks.backbones.source_cards import SourceCard
from tasks.backbones.source_head import SourceHead
from tasks.images.texture import LEAST_PX, STATISTICS, gray_share, mostly_even_share
from tasks.transferability.sampling import Sample

LOW, MEDIAN, HIGH = 1, 10, 19  # of a card's 21 quantiles: 5, 50 and 95 %
MOST_CLASSES, MOST_SEEN = 30, 3  # that are told
MOST, FEW = 0.5, 0.1  # of the images
SHOWN_CLASSES, LONGEST_NAME = 4, 30
FAR_LESS_SURE, LESS_SURE = 0.6, 0.85  # of the sureness on the card's images, below which it is so
POOR = 0.6  # of the card's images rightly named, below which the head's words mean little
# statistic -> what it is called; what is said where the data lies below, and above the source
TEXTURES = {
    "slope": ("slope of the spectrum", "are coarser", "are finer or noisier"),
    "entropy": ("local entropy", "show less local detail", "show more local detail"),
    "sharpness": ("sharpness", "are softer", "are sharper"),
}


@dataclass(frozen=True, slots=True)
class Pictured:
    """What is known of the pixels of the training images.

    Attributes:
        textures: Of the images that were looked at, float64 (N, 5), see `measure_texture`.
        left_out: Further images, of whose padded pictures too little is left.
        classes: Of both, counted.
        classes_total: Of all training images.
        deep: Images of all splits with more than 8 bits.
    """

    textures: Floats
    left_out: int
    classes: int
    classes_total: int
    deep: int


def look_at(
    pictured: Pictured,
    sample: Sample,
    class_names: Sequence[str],
    *,
    card: SourceCard | None,
    head: SourceHead | None,
) -> Look:
    """Describe the images, and the source's where its card tells of them.

    Args:
        pictured: What their pixels show.
        sample: Features and labels, of these or more images.
        class_names: The data's, in the order of the labels.
        card: None without a source card.
        head: None where the backbone has no head with known classes.
    """
    told = card.provenance.textures if card else {}
    source = card if card and set(STATISTICS) <= told.keys() else None
    look = Look(
        images=len(pictured.textures),
        left_out=pictured.left_out,
        classes=pictured.classes,
        classes_total=pictured.classes_total,
        source=source.name if source else None,
        gray=gray_share(pictured.textures),
        source_gray=source.provenance.gray if source else None,
        even=mostly_even_share(pictured.textures),
        source_even=source.provenance.even if source else None,
        deep=pictured.deep,
        texture=compare_textures(pictured.textures, told if source else {}),
        semantics=name_seen(sample, class_names, head, card) if head else None,
        words="",
    )
    return look.model_copy(update={"words": say_look(look)})


def compare_textures(textures: Floats, source: Mapping[str, Sequence[float]]) -> list[TextureRange]:
    """Set the statistics of pictures float64 (N, 5) beside the quantiles of the source's.

    One that no picture has (all are of one gray) is left out.
    """
    found = []
    for name, column in zip(STATISTICS, textures.T, strict=True):
        values, steps = column[np.isfinite(column)], source.get(name)
        if not len(values):
            continue
        low, median, high = (float(value) for value in np.quantile(values, [0.05, 0.5, 0.95]))
        span = (steps[LOW], steps[MEDIAN], steps[HIGH]) if steps else (None, None, None)
        inside = np.mean((values >= span[0]) & (values <= span[2])) if steps else None
        found.append(
            TextureRange(
                name=name, low=low, median=median, high=high,
                source_low=span[0], source_median=span[1], source_high=span[2],
                inside=None if inside is None else float(inside),
            )
        )  # fmt: skip
    return found


def name_seen(
    sample: Sample, class_names: Sequence[str], head: SourceHead, card: SourceCard | None
) -> Semantics:
    """Say which classes of the source its head sees in each class of the data, and how surely.

    Of more than `MOST_CLASSES` classes the largest ones are told.
    """
    seen, sure = head.answers(sample.features)
    sizes = Counter(sample.labels.tolist())
    largest = sorted(sizes, key=lambda label: (-sizes[label], label))[:MOST_CLASSES]
    return Semantics(
        head=head.source,
        images=len(seen),
        classes=[
            _name_class(class_names[label], seen[sample.labels == label],
                        sure[sample.labels == label], head)
            for label in sorted(largest)
        ],
        classes_total=len(sizes),
        sure=float(np.median(sure)),
        source=card.name if card else None,
        source_px=card.image_px if card else None,
        source_sure=float(np.median(head.answers(card.features)[1])) if card else None,
        source_right=card.provenance.head_accuracy if card else None,
    )  # fmt: skip


def _name_class(name: str, seen: Ints, sure: Floats, head: SourceHead) -> ClassSeen:
    counts = Counter(seen.tolist())
    first = sorted(counts, key=lambda one: (-counts[one], one))[:MOST_SEEN]
    return ClassSeen(
        name=name,
        images=len(seen),
        seen=[SeenAs(name=head.names[one], share=counts[one] / len(seen)) for one in first],
        sure=float(np.median(sure)),
    )


# in words ----------------------------------------------------------------------------------------


def say_look(look: Look) -> str:
    """Say how the images look, and how those of the source do where that is known."""
    pixels = [*_say_color(look), *_say_texture(look)] if look.images else []
    return " ".join([*_say_looked(look), *pixels, *_say_seen(look.semantics)])


def _say_looked(look: Look) -> Iterator[str]:
    some = look.classes < look.classes_total
    classes = f" of {look.classes:,} of the {look.classes_total:,} classes" if some else ""
    left_out = (
        f"; left out: {plural(look.left_out, 'image')}, of which padding leaves less than "
        f"{LEAST_PX} px"
        if look.left_out
        else ""
    )
    depth = f"; in all splits, with more than 8 bits: {look.deep:,}" if look.deep else ""
    yield f"Looked at: {plural(look.images, 'training image')}{classes}{left_out}{depth}."


def _say_color(look: Look) -> Iterator[str]:
    known = look.source_gray is not None
    beside = f" (of {_named(look.source)}: {_share(look.source_gray)})" if known else ""
    yield f"Gray: {_share(look.gray)}{beside}."
    known = look.source_even is not None
    beside = f" (of {_named(look.source)}: {_share(look.source_even)})" if known else ""
    if look.even >= MOST:
        what = "They look drawn, flatly rendered or cut out"
    elif look.even <= FEW:
        what = "They look photographic, not drawn or cut out"
    else:
        what = "Some look drawn, flatly rendered or cut out"
    yield f"{what}; of mostly even areas: {_share(look.even)}{beside}."


def _say_texture(look: Look) -> Iterator[str]:
    compared = [one for one in look.texture if one.inside is not None and one.name in TEXTURES]
    if not compared:
        yield "Their texture was not compared: no source card tells that of its images."
        return
    outside = [one for one in compared if (one.inside or 0.0) < MOST]
    within = [TEXTURES[one.name][0] for one in compared if one not in outside]
    source = _named(look.source)
    for one in outside:
        yield (
            f"They {_compare(one)} than {source}: {TEXTURES[one.name][0]} "
            f"{one.median:z.2f}, there {one.source_median:z.2f} (90%: {one.source_low:z.2f} to "
            f"{one.source_high:z.2f}, where {_share(one.inside)} of these lie)."
        )
    if within:
        verb = "lies" if len(within) == 1 else "lie"
        what = listed(within)
        yield f"{what[0].upper()}{what[1:]} {verb} in the range of {source}."


def _compare(one: TextureRange) -> str:
    _, below, above = TEXTURES[one.name]
    if one.source_low is not None and one.median < one.source_low:
        return below
    if one.source_high is not None and one.median > one.source_high:
        return above
    return "vary more"


def _say_seen(semantics: Semantics | None) -> Iterator[str]:
    if semantics is None:
        yield (
            "What the source's head sees was not measured: the backbone has no head with known "
            "classes."
        )
        return
    largest = sorted(semantics.classes, key=lambda one: -one.images)[:SHOWN_CLASSES]
    more = semantics.classes_total - len(largest)
    rest = f"; and so on for {plural(more, 'more class', 'more classes')}" if more > 0 else ""
    shown = "; ".join(_say_class(one) for one in largest)
    yield f"The head of {semantics.head} sees {shown}{rest}."
    yield f"{_say_sureness(semantics)}."


def _say_sureness(semantics: Semantics) -> str:
    own, sure, right = semantics.source_sure, semantics.sure, semantics.source_right
    if own is None:
        return f"The median of its top probability is {sure:.2f}"
    there = f"the images of {_named(semantics.source)} at {semantics.source_px} px"
    if right is not None and right < POOR:
        return f"Its words mean little: of {there} it names {_share(right)} rightly"
    how = "about as sure as" if sure >= LESS_SURE * own else "less sure than"
    how = "far less sure than" if sure < FAR_LESS_SURE * own else how
    of_right = "" if right is None else f", where it names {_share(right)} rightly"
    return f"It is {how} on {there}: median top probability {sure:.2f}, there {own:.2f}{of_right}"


def _say_class(one: ClassSeen) -> str:
    seen = ", ".join(f"{found.name} {_share(found.share)}" for found in one.seen)
    return f"in `{_named(one.name)}` {seen}"


def _named(name: str | None) -> str:
    """Write any name so that neither marks nor length of it break a paragraph."""
    return shortened(name or "", LONGEST_NAME).replace("`", "") or "?"


def _share(value: float | None) -> str:
    """Write a share so that all and none are only what they are."""
    share = value or 0.0
    text = f"{share:.0%}"
    if text == "100%" and share < 1:
        return "more than 99%"
    return "less than 1%" if text == "0%" and share > 0 else text
