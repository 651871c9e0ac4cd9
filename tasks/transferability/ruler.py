"""What was measured, in words: where new data lies on the ruler, among sets that readers know."""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from pathlib import Path

from tasks.artifacts.records import (
    DOMAINS,
    Estimate,
    GroupShift,
    ImageSource,
    KnownSet,
    Marks,
    Record,
    Similarity,
    read_record,
)
from tasks.backbones.source_cards import nearest_size

LEAST_DISTANCE = 1e-4  # that a set is taken to have; unbiased, it may be found below 0


class Ruler(Record):
    """Known data sets measured with one backbone (data/cards/ruler*.json)."""

    backbone: str
    weights_sha256: str
    image_px: int
    source: str  # name of the source card
    provenance: str  # the command that measured it
    sets: list[KnownSet]
    marks: Marks | None  # None: no sets that people call similar, intermediate or far

    def without(self, origin: ImageSource) -> "Ruler":
        """Give the ruler without the packaged data set that is being measured, if it is on it."""
        sets = [
            known
            for known in self.sets
            if origin.kind != "package" or f"({origin.name})" not in known.name
        ]
        return self.model_copy(update={"sets": sets})


def find_ruler(folder: Path, weights_sha256: str, image_px: int) -> Ruler | None:
    """Find the ruler of these weights and the nearest size among `ruler*.json`, or None.

    Raises:
        ArtifactError: A ruler is damaged.
    """
    rulers = [read_record(path, Ruler) for path in sorted(folder.glob("ruler*.json"))]
    fitting = [ruler for ruler in rulers if ruler.weights_sha256 == weights_sha256]
    return nearest_size(fitting, image_px)


def find_marks(sets: Sequence[KnownSet]) -> Marks | None:
    """Set the ends of the domains between the sets that people put into them.

    Each end is the geometric mean of the farthest set on its near side and the nearest one on its
    far side. None where a domain has no set, or where they overlap.
    """
    spans = [
        [max(known.distance, LEAST_DISTANCE) for known in sets if known.domain == domain]
        for domain in DOMAINS
    ]
    if not all(spans) or any(max(near) >= min(beyond) for near, beyond in pairwise(spans)):
        return None
    similar, far = (sqrt(max(near) * min(beyond)) for near, beyond in pairwise(spans))
    return Marks(similar=similar, far=far)


def say_similarity(similarity: Similarity) -> str:
    """Say where the data lies and what pretraining is worth for it."""
    return f"{_distance_in_words(similarity)}; {_gain_in_words(similarity)}."


def _distance_in_words(similarity: Similarity) -> str:
    mmd, shift = similarity.mmd, similarity.shift
    if mmd is not None:
        best = mmd.matched
        place = f", {place_on_ruler(best.value, similarity.known)}" if similarity.known else ""
        return (
            f"Seen by the backbone, the data is at MMD^2 {best.value:.3f} "
            f"({best.low:.3f} to {best.high:.3f}) from the images of {mmd.source} that fit best"
            f"{place}; that it pictures less than {mmd.source} adds {mmd.narrowness:.3f}"
        )
    if shift is not None:
        return f"Without a source card, the batch-norm layers see a mean shift of {shift.value:.2f}"
    return "There is neither a source card nor a batch-norm layer to tell how far the data is"


def say_moments(source: str, shift: Estimate, groups: Sequence[GroupShift]) -> str:
    """Say at which depth layers see what the source images do not show, and that it has no vote."""
    most = max(groups, key=lambda group: group.value)
    interval = "" if shift.low is None else f" ({shift.low:.3f} to {shift.high:.3f})"
    return (
        f"The inputs of the normalization layers depart most from those in the images of {source} "
        f"in {most.group}: a moment shift of {most.value:.3f}, over all layers "
        f"{shift.value:.3f}{interval}. No thresholds are known for it, so it describes and has no "
        "vote."
    )


def _gain_in_words(similarity: Similarity) -> str:
    gain = similarity.transfer_gain
    direction = "better" if gain.value >= 0 else "worse"
    points = f"{abs(100 * gain.value):.1f} points {direction}"
    if gain.low is not None and gain.high is not None:
        points += f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    return f"pretrained features classify it {points} than those of random weights"


def place_on_ruler(value: float, sets: Sequence[KnownSet]) -> str:
    """Say between which known sets a matched MMD^2 lies: `between a (0.05) and b (0.12)`.

    Args:
        value: Matched MMD^2 of the data.
        sets: At least one.
    """
    ordered = sorted(sets, key=lambda known: (known.distance, known.name))
    nearer = [known for known in ordered if known.distance <= value]
    farther = [known for known in ordered if known.distance > value]
    if not nearer:
        return f"nearer than {_mark(farther[0])}, the nearest known set"
    if not farther:
        return f"farther than {_mark(nearer[-1])}, the farthest known set"
    return f"between {_mark(nearer[-1])} and {_mark(farther[0])}"


def _mark(known: KnownSet) -> str:
    return f"{known.name} ({known.distance:.3f})"
