"""A look at the images beside those of the source: color, texture, what the source's head sees.

For a person, as every guide of transfer learning asks for one: nothing chooses by it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.artifacts.arrays import Features, Floats, Ints
from tasks.artifacts.records import ClassSeen, Look, SeenAs, Semantics, TextureRange
from tasks.backbones.source_cards import SourceCard
from tasks.backbones.source_head import SourceHead
from tasks.images.texture import GRAY, MOSTLY_EVEN, STATISTICS, share_above
from tasks.transferability.look_words import say_look
from tasks.transferability.sampling import Sample

LOW, MEDIAN, HIGH = 1, 10, 19  # of a card's 21 quantiles: 5, 50 and 95 %
MOST_CLASSES, MOST_SEEN = 30, 3  # that are told
ROWS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Pictured:
    """What is known of the pixels of the training images.

    Attributes:
        textures: Of the images that were looked at, float64 (N, 5), see `measure_texture`.
        deep: Images of all splits with more than 8 bits.
    """

    textures: Floats
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
    source = told if set(STATISTICS) <= told.keys() else {}
    _, _, _, chroma, even = pictured.textures.T
    look = Look(
        images=len(chroma),
        source=card.name if card and source else None,
        gray=float(np.mean(chroma < GRAY)),
        source_gray=1 - share_above(source, "chroma", GRAY) if source else None,
        even=float(np.mean(even >= MOSTLY_EVEN)),
        source_even=share_above(source, "even", MOSTLY_EVEN) if source else None,
        deep=pictured.deep,
        texture=compare_textures(pictured.textures, source),
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
    seen, sure = _answers(sample.features, head)
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
        sure=float(np.median(sure)),
        source_sure=float(np.median(_answers(card.features, head)[1])) if card else None,
        source_right=card.provenance.head_accuracy if card else None,
    )  # fmt: skip


def _answers(features: Features, head: SourceHead) -> tuple[Ints, Floats]:
    """The class that the head sees in each image, and its probability: (N,) both."""
    said = [
        head.probabilities(features[start : start + ROWS_AT_ONCE])
        for start in range(0, len(features), ROWS_AT_ONCE)
    ]
    seen = np.concatenate([part.argmax(axis=1) for part in said]).astype(np.int64)
    sure = np.concatenate([part.max(axis=1) for part in said]).astype(np.float64)
    return seen, sure


def _name_class(name: str, seen: Ints, sure: Floats, head: SourceHead) -> ClassSeen:
    counts = Counter(seen.tolist())
    first = sorted(counts, key=lambda one: (-counts[one], one))[:MOST_SEEN]
    return ClassSeen(
        name=name,
        images=len(seen),
        seen=[SeenAs(name=head.names[one], share=counts[one] / len(seen)) for one in first],
        sure=float(np.median(sure)),
    )
