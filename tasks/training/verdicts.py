"""What becomes of a phase when it ends: its best epoch is kept, or all of it is rolled back."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tasks.errors import TrainingError
from tasks.records import Phase
from tasks.training.averaging import average_in
from tasks.training.gate import ValSet, judge_change
from tasks.training.losses import image_losses, right_images
from tasks.training.overfitting import EpochLosses, describe_overfitting
from tasks.training.phases import PhasePlan
from tasks.training.state import Logits, Snapshot, Tally, TrainState


@dataclass(frozen=True)
class PhaseEnd:
    """The state to go on from, and what to tell about the phase."""

    kept: Snapshot
    record: Phase


def end_phase(
    plan: PhasePlan,
    state: TrainState,
    val: ValSet,
    *,
    confidence: float,
    seed: int,
    diverged: str | None,
) -> PhaseEnd:
    """Keep the epoch with the lowest val loss unless val says that the phase made things worse.

    Training from scratch starts from random weights: what it learned is always kept.

    Args:
        plan: The phase.
        state: After its last good epoch.
        val: Labels and groups of the val images.
        confidence: With which a change must be worse to be rolled back.
        seed: The run's seed.
        diverged: Why training broke down, or None.

    Raises:
        TrainingError: Training from scratch broke down before its first epoch was over.
    """
    scratch = plan.adapt_norm
    if state.best is None and scratch:
        raise TrainingError(f"nothing was learned: {diverged}")
    shown = state.best or state.start
    verdict = judge_change(
        state.start.val_logits, shown.val_logits, val, confidence=confidence, seed=seed
    )
    kept = state.best is not None and (scratch or not verdict.worse)
    stopped: Literal["finished", "patience"] = (
        "finished" if state.epoch >= plan.epochs else "patience"
    )
    record = Phase(
        name=plan.name,
        unfrozen_from=plan.unfrozen_from,
        epochs=state.epoch,
        best_epoch=shown.epoch,
        stopped="diverged" if diverged else stopped,
        val_loss=val_loss(shown.val_logits, val),
        val_accuracy=val_accuracy(shown.val_logits, val),
        change_in_val_accuracy=verdict.accuracy,
        kept=kept,
        reason=f"{'kept' if kept else 'rolled back'}: {diverged or verdict.reason}",
    )
    return PhaseEnd(shown if kept else state.start, record)


def state_after(state: TrainState, end: PhaseEnd) -> TrainState:
    """Give the state when a phase has ended: its weights count in the average where they stay."""
    weights, average = end.kept.weights, state.phase_average
    if end.record.kept:
        count = 1 + sum(phase.kept for phase in state.finished)
        average = average_in(average, state.start.weights, weights, count=count)
    return replace(
        state,
        weights=weights,
        finished=(*state.finished, end.record),
        phase_average=average,
        tally=Tally(),
    )


def note_overfitting(state: TrainState) -> list[str]:
    """Say of which phases patience ended because they learned the training images by heart."""
    notes = []
    for number, phase in enumerate(state.finished, start=1):
        if phase.stopped == "patience":
            epochs = [
                EpochLosses(row.train_loss, row.val_loss)
                for row in state.history
                if row.phase == number
            ]
            outcome = f"epoch {phase.best_epoch} was kept" if phase.kept else "it was rolled back"
            notes.append(describe_overfitting(f"Phase {number}", epochs, phase.best_epoch, outcome))
    return [note for note in notes if note]


def val_loss(logits: Logits, val: ValSet) -> float:
    """Mean cross-entropy of logits (N, C) over val, as its images count, nats."""
    return float(np.average(image_losses(logits, val.labels), weights=val.weights))


def val_accuracy(logits: Logits, val: ValSet) -> float:
    """Share of val images whose largest logit (N, C) is their label's."""
    return float(right_images(logits, val.labels).mean())
