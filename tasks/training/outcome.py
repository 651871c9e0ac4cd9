"""What fine-tuning ends with, and its summary (finetune.json)."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.records import Finetuned, HistoryRow, Phase
from tasks.statistics import accuracy_interval
from tasks.training.classifier import Classifier
from tasks.training.freezing import TrainingGroup
from tasks.training.gate import RESAMPLES
from tasks.training.inputs import FinetuneInputs
from tasks.training.interpolation import Candidate
from tasks.training.losses import right_images
from tasks.training.state import Logits
from tasks.training.verdicts import val_loss

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
