"""What fine-tuning ends with: the model, its summary (finetune.json), its history (history.csv)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tasks.artifacts.arrays import Logits, write_array
from tasks.artifacts.records import Finetuned, Phase, ValSummary, write_record
from tasks.artifacts.tables import HistoryRow, write_rows
from tasks.heads.classifier import Classifier, write_classifier
from tasks.heads.curve import CONFIDENCE as CURVE_CONFIDENCE
from tasks.judging.rule import RESAMPLES
from tasks.judging.statistics import accuracy_interval, paired_accuracy_interval
from tasks.runtime.entry import Write
from tasks.training.costs import Workload, measure_costs, share_lost
from tasks.training.inputs import FinetuneInputs, InputPaths
from tasks.training.phases import HEAD_GROUP, TrainingGroup
from tasks.training.resume.checkpoints import TrainState
from tasks.training.verdicts import Candidate, Chosen, explain_choice, note_overfitting

CONFIDENCE = 0.95  # of the interval of the val accuracy
BALANCED = "All classes count the same in training and where val judges it (class_balanced)."
ONLY_HEAD = "The decision was to train nothing but the head: the model is the frozen baseline."
START = Candidate(0.0)  # the weights that training began with


@dataclass(frozen=True)
class OutcomePaths(InputPaths):
    """What fine-tuning reads and writes."""

    model: Write
    summary: Write
    history: Write
    val_logits: Write
    phase_logits: Write
    val_summary: Write


@dataclass(frozen=True)
class FinetunedModel:
    """The final classifier, how it came about, and its logits on val, float32 (N_val, C).

    `phase_logits` are those by which each phase was kept or rolled back.
    """

    classifier: Classifier
    groups: Sequence[TrainingGroup]
    history: Sequence[HistoryRow]
    phases: Sequence[Phase]
    weights: Candidate
    val_logits: Logits
    phase_logits: Sequence[Logits]
    notes: Sequence[str]
    class_balanced: bool = False


def describe(
    classifier: Classifier,
    groups: Sequence[TrainingGroup],
    inputs: FinetuneInputs,
    state: TrainState | None,
    chosen: Chosen | None,
    *,
    balanced: bool,
) -> FinetunedModel:
    """Put together what training ended with; no state: nothing but the head was to be trained."""
    if chosen is None:  # the frozen baseline, at its own temperature
        classifier.head.load_state_dict(inputs.head.state_dict())
    if state is None:
        logits = inputs.baseline_logits
        return FinetunedModel(classifier, groups, (), (), START, logits, (), [ONLY_HEAD])
    return FinetunedModel(
        classifier,
        groups,
        state.history,
        state.finished,
        chosen.best if chosen else START,
        chosen.val_logits if chosen else inputs.baseline_logits,
        state.judged,
        [*([BALANCED] if balanced else []), *note_overfitting(state), *explain_choice(chosen)],
        balanced,
    )


def describe_finetuned(model: FinetunedModel, inputs: FinetuneInputs, *, seed: int) -> Finetuned:
    """Describe a fine-tuned model."""
    baseline, val = inputs.baseline, inputs.examples(balanced=model.class_balanced).val
    return Finetuned(
        arm=inputs.transfer.arm,
        backbone=inputs.backbone.name,
        input=inputs.backbone.input,
        head=baseline.head,
        hidden=baseline.hidden,
        dropout=baseline.dropout,
        feature_dim=baseline.feature_dim,
        classes=baseline.classes,
        phases=list(model.phases),
        interpolation=model.weights.alpha,
        averaged=model.weights.averaged,
        class_balanced=model.class_balanced,
        val_accuracy=accuracy_interval(
            val.right(model.val_logits),
            val.groups,
            confidence=CONFIDENCE,
            resamples=RESAMPLES,
            seed=seed,
        ),
        val_loss=val.loss(model.val_logits),
        baseline_val_loss=val.loss(inputs.baseline_logits),
        notes=list(model.notes),
        lost_share=_measure_lost(model, inputs),
        val_gain=paired_accuracy_interval(
            val.right(inputs.baseline_logits),
            val.right(model.val_logits),
            val.groups,
            confidence=CURVE_CONFIDENCE,  # what more images would bring stands beside it
            resamples=RESAMPLES,
            seed=seed,
        ),
    )


def _measure_lost(model: FinetunedModel, inputs: FinetuneInputs) -> float:
    train, val = inputs.stores.train.info, inputs.stores.val.info
    work = Workload(train.count, train.views, val.count, 0, 0)
    return share_lost(model.phases, measure_costs(model.classifier.backbone), work)


def summarize_val(summary: Finetuned, inputs: FinetuneInputs) -> ValSummary:
    """Pick the numbers that runs are chosen by."""
    return ValSummary(
        val_accuracy=summary.val_accuracy.value,
        val_loss=summary.val_loss,
        val_accuracy_frozen=inputs.baseline.val_accuracy.value,
        val_loss_frozen=summary.baseline_val_loss,
    )


def write_outcome(
    paths: OutcomePaths, model: FinetunedModel, summary: Finetuned, val: ValSummary
) -> None:
    """Write the model and all about it."""
    write_classifier(paths.model, model.classifier)
    write_history(paths.history, model.history, model.groups)
    write_array(paths.val_logits, model.val_logits)
    phases = np.array(model.phase_logits, np.float32).reshape(-1, *model.val_logits.shape)
    write_array(paths.phase_logits, phases)
    write_record(paths.summary, summary)
    write_record(paths.val_summary, val)


def write_history(
    path: Path, history: Sequence[HistoryRow], groups: Sequence[TrainingGroup]
) -> None:
    """Write history.csv: one row an epoch, with the rate of every group, the head first."""
    names = [HEAD_GROUP, *(group.name for group in groups if group.name != HEAD_GROUP)]
    rows = [
        replace(row, rates={name: row.rates.get(name, 0.0) for name in names}) for row in history
    ]
    write_rows(path, HistoryRow, rows, names)
