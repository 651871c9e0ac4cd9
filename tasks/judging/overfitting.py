"""Whether what was trained knows its training images better than any others, in words."""

from collections.abc import Sequence
from dataclasses import dataclass

RISE = 1.02  # val loss over its lowest value that is worth telling
GAP = 0.1  # train minus val accuracy that is worth telling


@dataclass(frozen=True, slots=True)
class EpochLosses:
    """Losses of one epoch; the train loss is with dropout, while it trained."""

    train_loss: float
    val_loss: float


def describe_overfitting(
    what: str, epochs: Sequence[EpochLosses], best_epoch: int, outcome: str
) -> str | None:
    """Say that the last epoch had learned more and knew less than the best one; None if not.

    Args:
        what: What was trained, at the head of a sentence.
        epochs: Losses of all epochs.
        best_epoch: The one with the lowest val loss, from 1.
        outcome: What became of it, the end of the sentence.
    """
    best, last = epochs[best_epoch - 1], epochs[-1]
    if last.train_loss >= best.train_loss or last.val_loss <= RISE * best.val_loss:
        return None
    return (
        f"{what} overfits after epoch {best_epoch}: train loss fell from {best.train_loss:.3f} to "
        f"{last.train_loss:.3f} while val loss rose from {best.val_loss:.3f} to "
        f"{last.val_loss:.3f}; {outcome}."
    )


def describe_gap(train_accuracy: float, val_accuracy: float) -> str | None:
    """Say that a head is much better on train than on val; None if not."""
    if train_accuracy - val_accuracy < GAP:
        return None
    return (
        f"The head overfits: accuracy {train_accuracy:.3f} on train, {val_accuracy:.3f} on val. "
        "More images or views, or fine-tuning, may help more than another head."
    )
