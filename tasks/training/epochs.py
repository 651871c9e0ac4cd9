"""What an epoch of training amounts to: its sums, its row of history, whether it broke down."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.errors import TrainingError
from tasks.records import HistoryRow
from tasks.training.freezing import HEAD_GROUP
from tasks.training.gate import ValSet
from tasks.training.phases import PhasePlan
from tasks.training.sampling import Indices
from tasks.training.state import Logits, Tally, TrainState
from tasks.training.trained_part import StepResult
from tasks.training.verdicts import val_accuracy, val_loss

log = logging.getLogger(__name__)

DIVERGED = 3.0  # mean train loss, as a multiple of the start's or guessing's, that is divergence


@dataclass(frozen=True)
class Examples:
    """What is learned, and what judges.

    Attributes:
        labels: Class of each training image, int64 (N,).
        names: Path of each training image, for messages.
        val: Labels and groups of the val images.
        classes: Number of classes.
    """

    labels: Indices
    names: Sequence[str]
    val: ValSet
    classes: int


class DivergedError(TrainingError):
    """A loss or gradient is not a number any more, or the loss is far beyond that of guessing."""


def count_step(tally: Tally, result: StepResult, share: float) -> Tally:
    """Add a step, taken at a share of the peak rates, to the sums over those before it."""
    return Tally(
        steps=tally.steps + 1,
        shares=tally.shares + share,
        loss=tally.loss + result.loss * result.images,
        right=tally.right + result.right,
        images=tally.images + result.images,
    )


def check_step(plan: PhasePlan, place: str, result: StepResult, names: list[str]) -> None:
    """Refuse a step whose loss or gradient is not finite.

    Args:
        plan: The phase.
        place: Where in the phase, for the message.
        result: What the step saw.
        names: Paths of its images.

    Raises:
        DivergedError: It is not finite; the weights are still those before the step.
    """
    if not result.is_finite:
        raise DivergedError(
            f"phase {plan.number}, {place}: loss {result.loss:g}, gradient norm {result.norm:g} "
            f"on {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}; {_advise(plan)}"
        )


def close_epoch(
    plan: PhasePlan, taken: TrainState, val_logits: Logits, examples: Examples
) -> HistoryRow:
    """Make the row of the history of an epoch.

    Args:
        plan: The phase.
        taken: The state after the last step of it.
        val_logits: Logits on val then.
        examples: What is learned, and what judges.

    Raises:
        DivergedError: The train loss is far beyond that of guessing and what the phase started
            with, or the val loss is not finite.
    """
    tally = taken.tally
    share = tally.shares / tally.steps
    row = HistoryRow(
        phase=plan.number,
        epoch=len(taken.history) + 1,
        rates={name: rate * share for name, rate in plan.rates.items()},
        train_loss=tally.loss / tally.images,
        train_accuracy=tally.right / tally.images,
        val_loss=val_loss(val_logits, examples.val),
        val_accuracy=val_accuracy(val_logits, examples.val),
    )
    guessing = math.log(max(examples.classes, 2))
    # A class-balanced loss may start far above guessing: no head was fitted to the rare classes.
    start = val_loss(taken.start.val_logits, examples.val)
    if row.train_loss > DIVERGED * max(guessing, start) or not math.isfinite(row.val_loss):
        raise DivergedError(
            f"phase {plan.number}, epoch {taken.epoch + 1}: train loss {row.train_loss:.3g}, "
            f"val loss {row.val_loss:.3g}, where guessing gives {guessing:.3g} and the phase "
            f"started at {start:.3g}; {_advise(plan)}"
        )
    return row


def log_start(plan: PhasePlan, val_logits: Logits, val: ValSet) -> None:
    """Log one line about a phase before its first step."""
    log.info(
        "phase %d of %d, %s: starts at val loss %.3f, val accuracy %.3f",
        plan.number,
        plan.of,
        plan.name,
        val_loss(val_logits, val),
        val_accuracy(val_logits, val),
    )


def log_epoch(plan: PhasePlan, epoch: int, row: HistoryRow) -> None:
    """Log one line about an epoch, counted within its phase."""
    log.info(
        "phase %d of %d, epoch %d of %d: train loss %.3f, val loss %.3f, val accuracy %.3f "
        "(head %.1e, deepest %.1e)",
        plan.number,
        plan.of,
        epoch,
        plan.epochs,
        row.train_loss,
        row.val_loss,
        row.val_accuracy,
        row.rates[HEAD_GROUP],
        min(row.rates.values()),
    )


def _advise(plan: PhasePlan) -> str:
    scratch = "lower finetune.scratch_lr"
    return scratch if plan.adapt_norm else "lower finetune.backbone_lr and finetune.head_lr"
