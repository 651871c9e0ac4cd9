"""What was measured, in words: where new data lies on the ruler, among sets that readers know."""

from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.records import ImageSource, KnownSet, Record, Similarity, read_record


class Ruler(Record):
    """Known data sets measured with one backbone (data/cards/ruler*.json)."""

    backbone: str
    weights_sha256: str
    image_px: int
    source: str  # name of the source card
    provenance: str  # the command that measured it
    sets: list[KnownSet]

    def without(self, origin: ImageSource) -> "Ruler":
        """Give the ruler without the packaged data set that is being measured, if it is on it."""
        sets = [
            known
            for known in self.sets
            if origin.kind != "package" or f"({origin.name})" not in known.name
        ]
        return self.model_copy(update={"sets": sets})


def find_ruler(folder: Path, weights_sha256: str) -> Ruler | None:
    """Find the ruler of these weights among `ruler*.json`, None where there is none.

    Raises:
        ArtifactError: A ruler is damaged.
    """
    rulers = (read_record(path, Ruler) for path in sorted(folder.glob("ruler*.json")))
    return next((ruler for ruler in rulers if ruler.weights_sha256 == weights_sha256), None)


def say_similarity(similarity: Similarity) -> str:
    """Say where the data lies and what pretraining is worth for it."""
    return f"{_distance_in_words(similarity)}; {_gain_in_words(similarity)}."


def _distance_in_words(similarity: Similarity) -> str:
    mmd, shift = similarity.mmd, similarity.shift
    if mmd is not None:
        place = f", {place_on_ruler(mmd.value, similarity.known)}" if similarity.known else ""
        return (
            f"Seen by the backbone, the data is at MMD^2 {mmd.value:.3f} "
            f"({mmd.low:.3f} to {mmd.high:.3f}) from {mmd.source}{place}"
        )
    if shift is not None:
        return f"Without a source card, the batch-norm layers see a mean shift of {shift.value:.2f}"
    return "There is neither a source card nor a batch-norm layer to tell how far the data is"


def _gain_in_words(similarity: Similarity) -> str:
    gain = similarity.transfer_gain
    direction = "better" if gain.value >= 0 else "worse"
    points = f"{abs(100 * gain.value):.1f} points {direction}"
    if gain.low is not None and gain.high is not None:
        points += f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    return f"pretrained features classify it {points} than those of random weights"


def place_on_ruler(value: float, sets: Sequence[KnownSet]) -> str:
    """Say in words between which known sets an MMD^2 lies, such as `between a (0.05) and b (0.12)`.

    Args:
        value: MMD^2 of the data.
        sets: At least one.
    """
    ordered = sorted(sets, key=lambda known: (known.mmd, known.name))
    nearer = [known for known in ordered if known.mmd <= value]
    farther = [known for known in ordered if known.mmd > value]
    if not nearer:
        return f"nearer than {_mark(farther[0])}, the nearest known set"
    if not farther:
        return f"farther than {_mark(nearer[-1])}, the farthest known set"
    return f"between {_mark(nearer[-1])} and {_mark(farther[0])}"


def _mark(known: KnownSet) -> str:
    return f"{known.name} ({known.mmd:.3f})"
