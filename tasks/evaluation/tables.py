"""Tables of evaluate: its numbers image by image, class by class, and in a short summary."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tasks.evaluation.calibration import reliability_table
from tasks.evaluation.judged import Judged, confidence_of
from tasks.evaluation.metrics import f1, precision, recall
from tasks.records import Metrics, Summary
from tasks.statistics import wilson_interval

Cell = str | int | float
Row = tuple[Cell, ...]

# probability: calibrated, of the predicted class; label_probability: the same of the label;
# loss: its negative natural log. All of the shipped model.
PREDICTION_COLUMNS = [
    "path",
    "label",
    "predicted",
    "probability",
    "label_probability",
    "correct",
    "loss",
    "baseline_predicted",
]
CLASS_COLUMNS = [
    "class",
    "n",
    "predicted",
    "recall",
    "recall_low",
    "recall_high",
    "precision",
    "precision_low",
    "precision_high",
    "f1",
]
CONFUSION_COLUMNS = ["actual", "predicted"]
RELIABILITY_COLUMNS = ["model", "calibrated", "bin", "confidence", "accuracy", "n"]


def prediction_rows(
    paths: Sequence[str], shipped: Judged, baseline: Judged, class_names: Sequence[str]
) -> Iterator[Row]:
    """One row a test image: what the shipped model says, and what the baseline says."""
    probability = confidence_of(shipped.calibrated)
    for image, path in enumerate(paths):
        label = shipped.labels[image]
        yield (
            path,
            class_names[label],
            class_names[shipped.predicted[image]],
            float(probability[image]),
            float(np.exp(shipped.calibrated[image, label])),
            int(shipped.right[image]),
            float(shipped.losses[image]),
            class_names[baseline.predicted[image]],
        )


def class_rows(judged: Judged, class_names: Sequence[str], confidence: float) -> Iterator[Row]:
    """One row a class; a ratio without images is left empty, its Wilson interval is [0, 1]."""
    sums = judged.sums
    for name, right, actual, predicted, *ratios in zip(
        class_names,
        sums.right,
        sums.actual,
        sums.predicted,
        recall(sums),
        precision(sums),
        f1(sums),
        strict=True,
    ):
        of_class, of_predicted, harmonic = (_cell(ratio) for ratio in ratios)
        found = wilson_interval(right, actual, confidence=confidence)
        pure = wilson_interval(right, predicted, confidence=confidence)
        yield (
            *(name, int(actual), int(predicted)),
            *(of_class, found.low, found.high),
            *(of_predicted, pure.low, pure.high),
            harmonic,
        )


def confusion_rows(judged: Judged, class_names: Sequence[str]) -> Iterator[Row]:
    """One row a test image, as DVC's confusion template counts them."""
    for label, predicted in zip(judged.labels, judged.predicted, strict=True):
        yield class_names[label], class_names[predicted]


def reliability_rows(models: Mapping[str, Judged], bins: int) -> Iterator[Row]:
    """One row a model, calibration (0 or 1) and bin, least confident first."""
    for name, judged in models.items():
        for calibrated, log_p in enumerate((judged.log_p, judged.calibrated)):
            table = reliability_table(confidence_of(log_p), judged.right, bins)
            for number, row in enumerate(table):
                yield name, calibrated, number, row.confidence, row.accuracy, row.n


def summarize_metrics(metrics: Metrics) -> Summary:
    """Pick the numbers that runs are compared by."""
    tuned = metrics.finetuned if metrics.shipped == "finetuned" else None
    shipped = tuned or metrics.baseline
    gain = metrics.difference.accuracy if metrics.difference else None
    return Summary(
        val_accuracy_frozen=metrics.val_baseline,
        val_accuracy_tuned=metrics.val_finetuned,
        test_accuracy=shipped.accuracy.value,
        test_accuracy_low=shipped.accuracy.low,
        test_accuracy_high=shipped.accuracy.high,
        test_accuracy_frozen=metrics.baseline.accuracy.value,
        test_gain=gain.value if gain else None,
        test_gain_low=gain.low if gain else None,
        test_gain_high=gain.high if gain else None,
        test_balanced_accuracy=shipped.balanced_accuracy.value,
        test_macro_f1=shipped.macro_f1.value,
        test_nll=shipped.nll.value,
        test_ece=shipped.ece.value,
    )


def _cell(ratio: float) -> Cell:
    return "" if np.isnan(ratio) else float(ratio)
