"""Tables of evaluate: its numbers image by image, class by class, and in a short summary."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tasks.evaluation.calibration import reliability_table
from tasks.evaluation.judged import Judged, confidence_of
from tasks.evaluation.metrics import f1, precision, recall
from tasks.records import (
    ClassRow,
    ConfusionRow,
    Metrics,
    ModelName,
    PredictionRow,
    ReliabilityRow,
    Summary,
)
from tasks.statistics import wilson_interval


def prediction_rows(
    paths: Sequence[str], shipped: Judged, baseline: Judged, class_names: Sequence[str]
) -> Iterator[PredictionRow]:
    """One row a test image: what the shipped model says, and what the baseline says."""
    probability = confidence_of(shipped.calibrated)
    for image, path in enumerate(paths):
        label = shipped.labels[image]
        yield PredictionRow(
            path=path,
            label=class_names[label],
            predicted=class_names[shipped.predicted[image]],
            probability=float(probability[image]),
            label_probability=float(np.exp(shipped.calibrated[image, label])),
            correct=bool(shipped.right[image]),
            loss=float(shipped.losses[image]),
            baseline_predicted=class_names[baseline.predicted[image]],
        )


def class_rows(judged: Judged, class_names: Sequence[str], confidence: float) -> Iterator[ClassRow]:
    """One row a class, with Wilson intervals."""
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
        of_class, of_predicted, harmonic = (_known(ratio) for ratio in ratios)
        found = wilson_interval(right, actual, confidence=confidence)
        pure = wilson_interval(right, predicted, confidence=confidence)
        yield ClassRow(
            class_=name,
            n=int(actual),
            predicted=int(predicted),
            recall=of_class,
            recall_low=found.low,
            recall_high=found.high,
            precision=of_predicted,
            precision_low=pure.low,
            precision_high=pure.high,
            f1=harmonic,
        )


def confusion_rows(judged: Judged, class_names: Sequence[str]) -> Iterator[ConfusionRow]:
    """One row a test image."""
    for label, predicted in zip(judged.labels, judged.predicted, strict=True):
        yield ConfusionRow(class_names[label], class_names[predicted])


def reliability_rows(models: Mapping[ModelName, Judged], bins: int) -> Iterator[ReliabilityRow]:
    """One row a model, before and after calibration, and bin, least confident first."""
    for name, judged in models.items():
        for calibrated, log_p in ((False, judged.log_p), (True, judged.calibrated)):
            table = reliability_table(confidence_of(log_p), judged.right, bins)
            for number, row in enumerate(table):
                yield ReliabilityRow(name, calibrated, number, row.confidence, row.accuracy, row.n)


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


def _known(ratio: float) -> float | None:
    return None if np.isnan(ratio) else float(ratio)
