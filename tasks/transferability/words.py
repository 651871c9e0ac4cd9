"""The measurements of similarity in one plain sentence."""

from tasks.records import Similarity
from tasks.transferability.ruler import place_on_ruler


def summarize(similarity: Similarity) -> str:
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
