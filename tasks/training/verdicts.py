"""What becomes of a phase when it ends, and which weights are the final ones. Val decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from tasks.artifacts.arrays import Logits
from tasks.artifacts.records import Phase
from tasks.errors import TrainingError
from tasks.judging.rule import EpochLosses, ValSet, describe_overfitting, judge_change
from tasks.training.phases import PhasePlan
from tasks.training.resume.checkpoints import Snapshot, Tally, Tensors, TrainState, load_tensors


def average_in(
    average: Tensors, before: Tensors, after: Tensors, *, count: int
) -> dict[str, Tensor]:
    """Give the uniform average of what `count` phases ended with; whole numbers are the newest's.

    One running mean is kept however many phases there are. Layers that only the newest phase
    trained were in all earlier ones what they were before it.

    Args:
        average: Uniform average over the phases before the newest; empty where there are none.
        before: Tensors of the newest phase's layers as it began.
        after: The same as it ended.
        count: How many phases there are, the newest included.

    Source: Wortsman et al. 2022, 2203.05482 (uniform soup; here of phases instead of runs).
    """
    return {
        name: average.get(name, before[name]).lerp(tensor, 1 / count)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in after.items()
    }


@dataclass(frozen=True, slots=True)
class Candidate:
    """Weights that val judges.

    Attributes:
        alpha: Share of the fine-tuned weights, in [0, 1]; 1 for the average.
        averaged: Whether they are the average of the kept phases.
    """

    alpha: float
    averaged: bool = False

    @property
    def name(self) -> str:
        """The share, or what the average is called."""
        return "the average of the phases" if self.averaged else f"{self.alpha:g}"


@dataclass(frozen=True)
class Chosen:
    """The candidate with the lowest val loss, its logits, and the val loss of every one."""

    best: Candidate
    val_logits: Logits
    val_losses: dict[Candidate, float]


def explain_choice(chosen: Chosen | None) -> list[str]:
    """Say in words what was chosen; None where no phase was kept."""
    if chosen is None:
        return ["Fine-tuning was rejected: every phase was rolled back."]
    if len(chosen.val_losses) == 1:
        return []
    tried = ", ".join(f"{one.name}: {loss:.4f}" for one, loss in chosen.val_losses.items())
    best = chosen.best.name if chosen.best.averaged else f"the share {chosen.best.name}"
    return [f"Of the fine-tuned weights tried on val, {best} has the lowest loss ({tried})."]


def interpolate(theta_0: Tensors, theta_1: Tensors, alpha: float) -> dict[str, Tensor]:
    """Give (1 - alpha) * theta_0 + alpha * theta_1; whole-number buffers are those of theta_1.

    Source: Wortsman et al. 2022, 2109.01903, equation 1 (WiSE-FT).
    """
    return {
        name: tensor if not tensor.is_floating_point() else theta_0[name].lerp(tensor, alpha)
        for name, tensor in theta_1.items()
    }


def choose_weights(
    classifier: nn.Module,
    theta_0: Tensors,
    theta_1: Tensors,
    *,
    shares: Sequence[float],
    average: Tensors | None,
    predict_val: Callable[[], Logits],
    val: ValSet,
) -> Chosen:
    """Try shares of the fine-tuned weights, then the average; the lowest val loss wins.

    Args:
        classifier: Is changed in place; ends with the chosen weights.
        theta_0: Its tensors before fine-tuning.
        theta_1: The same after it.
        shares: Values of alpha, in [0, 1]; of equally good candidates the first counts.
        average: The average of what kept phases ended with, of some of the same tensors; the
            others are as in theta_1. None where there is nothing to average.
        predict_val: Gives the logits of the classifier as it is.
        val: Labels and groups of the val images.
    """

    def load(candidate: Candidate) -> None:
        ends = interpolate(theta_0, theta_1, candidate.alpha)
        load_tensors(classifier, {**ends, **(average or {})} if candidate.averaged else ends)

    candidates = [Candidate(alpha) for alpha in shares]
    if average is not None:
        candidates.append(Candidate(1.0, averaged=True))
    tried: dict[Candidate, Logits] = {}
    for candidate in candidates:
        load(candidate)
        tried[candidate] = predict_val()
    losses = {candidate: val.loss(logits) for candidate, logits in tried.items()}
    best = min(losses, key=lambda candidate: losses[candidate])
    load(best)
    return Chosen(best, tried[best], losses)


@dataclass(frozen=True)
class PhaseEnd:
    """What the phase was judged by, the state to go on from, and what to tell about it."""

    judged: Snapshot
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
        val_loss=val.loss(shown.val_logits),
        val_accuracy=val.accuracy(shown.val_logits),
        change_in_val_accuracy=verdict.accuracy,
        rate_share=plan.share,
        kept=kept,
        reason=f"{'kept' if kept else 'rolled back'}: {diverged or verdict.reason}",
    )
    return PhaseEnd(shown, shown if kept else state.start, record)


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
        judged=(*state.judged, end.judged.val_logits),
        phase_average=average,
        tally=Tally(),
    )


def note_overfitting(state: TrainState) -> list[str]:
    """Say which phases went on to learn the training images by heart after their best epoch."""
    notes = []
    for number, phase in enumerate(state.finished, start=1):
        if phase.stopped != "diverged":
            epochs = [
                EpochLosses(row.train_loss, row.val_loss)
                for row in state.history
                if row.phase == number
            ]
            outcome = f"epoch {phase.best_epoch} was kept" if phase.kept else "it was rolled back"
            notes.append(describe_overfitting(f"Phase {number}", epochs, phase.best_epoch, outcome))
    return [note for note in notes if note]
