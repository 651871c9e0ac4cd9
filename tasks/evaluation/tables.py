"""Tables of evaluate: image by image, class by class, in short, and the hardest images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.artifacts.arrays import Floats, Ints
from tasks.artifacts.files import replacing_folder
from tasks.artifacts.records import Metrics, ModelName, Summary
from tasks.artifacts.tables import (
    ClassRow,
    ConfusionRow,
    HardestRow,
    PredictionRow,
    ReliabilityRow,
    write_rows,
)
from tasks.judging.calibration import Judged, confidence_of, equal_mass_bins, reliability_table
from tasks.judging.metrics import f1, precision, recall
from tasks.judging.statistics import share_intervals


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


def class_rows(
    judged: Judged, groups: Sequence[str], class_names: Sequence[str], confidence: float
) -> Iterator[ClassRow]:
    """One row a class, with intervals over the groups of the images, (N,)."""
    sums = judged.sums
    recalls, precisions = (
        share_intervals(judged.right, parts, groups, count=len(class_names), confidence=confidence)
        for parts in (judged.labels, judged.predicted)
    )
    for name, actual, predicted, found, pure, *ratios in zip(
        class_names,
        sums.actual,
        sums.predicted,
        recalls,
        precisions,
        recall(sums),
        precision(sums),
        f1(sums),
        strict=True,
    ):
        of_class, of_predicted, harmonic = (_known(ratio) for ratio in ratios)
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


def reliability_rows(
    models: Mapping[ModelName, Judged], groups: Sequence[str], bins: int, confidence: float
) -> Iterator[ReliabilityRow]:
    """One row a model, before and after calibration, and bin, least confident first."""
    for name, judged in models.items():
        for calibrated, log_p in ((False, judged.log_p), (True, judged.calibrated)):
            sure = confidence_of(log_p)
            table = reliability_table(sure, judged.right, bins)
            numbers = equal_mass_bins(sure, bins)
            bounds = share_intervals(
                judged.right, numbers, groups, count=len(table), confidence=confidence
            )
            for number, (row, bound) in enumerate(zip(table, bounds, strict=True)):
                yield ReliabilityRow(
                    model=name,
                    calibrated=calibrated,
                    bin=number,
                    confidence=row.confidence,
                    accuracy=row.accuracy,
                    accuracy_low=bound.low,
                    accuracy_high=bound.high,
                    n=row.n,
                )


def summarize_metrics(metrics: Metrics) -> Summary:
    """Pick the numbers that `dvc metrics` shows of test; calibrated, as the model ships."""
    tuned = metrics.finetuned if metrics.shipped == "finetuned" else None
    shipped = tuned or metrics.baseline
    gain = metrics.difference.accuracy if metrics.difference else None
    return Summary(
        test_accuracy=shipped.accuracy.value,
        test_accuracy_low=shipped.accuracy.low,
        test_accuracy_high=shipped.accuracy.high,
        test_accuracy_frozen=metrics.baseline.accuracy.value,
        test_gain=gain.value if gain else None,
        test_gain_low=gain.low if gain else None,
        test_gain_high=gain.high if gain else None,
        test_balanced_accuracy=shipped.balanced_accuracy.value,
        test_macro_f1=shipped.macro_f1.value,
        test_nll=shipped.nll_calibrated,
        test_ece=shipped.ece_calibrated.value,
    )


def _known(ratio: float) -> float | None:
    return None if np.isnan(ratio) else float(ratio)


JPEG_QUALITY = 90


def hardest_images(losses: Floats, count: int) -> Ints:
    """Give the numbers of the `count` images with the largest loss, hardest first."""
    return np.argsort(-losses, kind="stable")[:count].astype(np.int64)


def write_hardest(
    folder: Path,
    images: Ints,
    pixels: NDArray[np.uint8],
    *,
    judged: Judged,
    paths: Sequence[str],
    class_names: Sequence[str],
) -> None:
    """Write one jpg an image and index.csv, which says what each of them is.

    Args:
        folder: Replaced whole.
        images: Numbers of the images, hardest first (n,).
        pixels: Their pixels, RGB (n, R, R, 3).
        judged: The model's answers to all images.
        paths: Of all images.
        class_names: By class index.
    """
    probability, losses = confidence_of(judged.calibrated), judged.losses
    files = [f"{rank:03d}_image_{image:06d}.jpg" for rank, image in enumerate(images)]
    with replacing_folder(folder) as temporary:
        for file, picture in zip(files, pixels, strict=True):
            Image.fromarray(picture).save(temporary / file, quality=JPEG_QUALITY, subsampling=0)
        rows = [
            HardestRow(
                file=file,
                path=paths[image],
                label=class_names[judged.labels[image]],
                predicted=class_names[judged.predicted[image]],
                probability=float(probability[image]),
                loss=float(losses[image]),
            )
            for file, image in zip(files, images, strict=True)
        ]
        write_rows(temporary / "index.csv", HardestRow, rows)
