"""What fine-tuning ends with: the model, its summary (finetune.json), its history (history.csv)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tasks.artifacts.arrays import Logits
from tasks.artifacts.records import Finetuned, Phase
from tasks.artifacts.tables import HistoryRow, write_rows
from tasks.heads.classifier import Classifier
from tasks.judging.metrics import right_images
from tasks.judging.rule import RESAMPLES, val_loss
from tasks.judging.statistics import accuracy_interval
from tasks.training.inputs import FinetuneInputs
from tasks.training.phases import HEAD_GROUP, TrainingGroup
from tasks.training.verdicts import Candidate


def write_history(
    path: Path, history: Sequence[HistoryRow], groups: Sequence[TrainingGroup]
) -> None:
    """Write history.csv: one row an epoch, with the rate of every group, the head first."""
    names = [HEAD_GROUP, *(group.name for group in groups if group.name != HEAD_GROUP)]
    rows = [
        replace(row, rates={name: row.rates.get(name, 0.0) for name in names}) for row in history
    ]
    write_rows(path, HistoryRow, rows, names)


CONFIDENCE = 0.95  # of the interval of the val accuracy
START = Candidate(0.0)  # the weights that training began with


@dataclass(frozen=True)
class FinetunedModel:
    """The final classifier, how it came about, and its logits on val, float32 (N_val, C)."""

    classifier: Classifier
    groups: Sequence[TrainingGroup]
    history: Sequence[HistoryRow]
    phases: Sequence[Phase]
    weights: Candidate
    val_logits: Logits
    notes: Sequence[str]
    class_balanced: bool = False


def summarize(model: FinetunedModel, inputs: FinetuneInputs, *, seed: int) -> Finetuned:
    """Describe a fine-tuned model."""
    baseline, val = inputs.baseline, inputs.examples().val
    return Finetuned(
        arm=inputs.decision.arm,
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
            right_images(model.val_logits, val.labels),
            val.groups,
            confidence=CONFIDENCE,
            resamples=RESAMPLES,
            seed=seed,
        ),
        val_loss=val_loss(model.val_logits, val),
        notes=list(model.notes),
    )
