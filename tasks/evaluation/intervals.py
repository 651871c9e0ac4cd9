"""Resamples of every score: what each image adds to the sums from which a score is computed."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

from tasks.evaluation.calibration import equal_mass_bins
from tasks.evaluation.judged import Judged, confidence_of
from tasks.evaluation.metrics import (
    ClassSums,
    Floats,
    Ints,
    accuracy,
    balanced_accuracy,
    brier_scores,
    label_losses,
    macro_f1,
)
from tasks.statistics import GroupBootstrap


@dataclass(frozen=True, slots=True)
class Replicates:
    """The scores of one model on every resample, (B,) each.

    A calibration error's noise is what the resamples would show if every bin were calibrated.
    """

    accuracy: Floats
    balanced_accuracy: Floats
    macro_f1: Floats
    nll: Floats
    brier: Floats
    ece: Floats
    ece_noise: Floats
    ece_calibrated: Floats
    ece_calibrated_noise: Floats


@dataclass(frozen=True, slots=True)
class DifferenceReplicates:
    """Differences of two models' scores on every resample, (B,) each."""

    accuracy: Floats
    balanced_accuracy: Floats
    macro_f1: Floats


def resample_scores(judged: Judged, bootstrap: GroupBootstrap, bins: int) -> Replicates:
    """Score one model on every resample; bins of the calibration errors are those of all images."""
    classes = judged.log_p.shape[1]
    means = np.stack(
        [label_losses(judged.log_p, judged.labels), brier_scores(judged.log_p, judged.labels)]
    )
    gaps = [_gaps(judged, log_p, bins) for log_p in (judged.log_p, judged.calibrated)]
    measured = [gap.sum(axis=1)[:, None] for gap in gaps]
    parts = [_class_rows(judged), sparse.csr_array(means), *gaps]
    ends = np.cumsum([part.shape[0] for part in parts])[:-1]

    def statistic(sums: Floats) -> Floats:
        by_class, by_mean, *by_bin = np.split(sums, ends)
        images = by_class[classes : 2 * classes].sum(axis=0)
        errors = [
            np.abs(resampled - center).sum(axis=0)
            for resampled, own in zip(by_bin, measured, strict=True)
            for center in (0.0, own)
        ]
        return np.concatenate([_shares(by_class), np.stack([*by_mean, *errors]) / images])

    return Replicates(*bootstrap.replicates(sparse.vstack(parts, format="csr"), statistic))


def resample_differences(
    baseline: Judged, finetuned: Judged, bootstrap: GroupBootstrap
) -> DifferenceReplicates:
    """Score fine-tuned minus baseline on every resample, both on the same images."""
    parts = [_class_rows(baseline), _class_rows(finetuned)]

    def statistic(sums: Floats) -> Floats:
        before, after = np.split(sums, 2)
        return _shares(after) - _shares(before)

    return DifferenceReplicates(
        *bootstrap.replicates(sparse.vstack(parts, format="csr"), statistic)
    )


def macro_worth(counts: Floats) -> float:
    """Number of images, equally many a class, that a mean over classes is worth.

    The variance of a mean of C recalls is 1 / C^2 times the sum of theirs, each 1 / n_c of one
    image's: C^2 / sum(1 / n_c) images, so that one small class leaves the mean uncertain.

    Args:
        counts: Images, or groups, of each class (C,); classes without any do not count.
    """
    present = counts[counts > 0]
    return float(len(present) ** 2 / np.sum(1 / present))


def groups_by_class(labels: Ints, classes: int, bootstrap: GroupBootstrap) -> Floats:
    """Count the groups with at least one image of each class, (C,)."""
    return np.array([bootstrap.groups_with(labels == c) for c in range(classes)], np.float64)


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided p-value that a and b are right equally often, from images only one got right.

    Exact for independent images; too small where images share groups.

    Source: McNemar 1947, Note on the sampling error of the difference between correlated
    proportions or percentages; the binomial instead of its normal limit.
    """
    differing = only_a + only_b
    return float(stats.binomtest(only_a, differing).pvalue) if differing else 1.0


def _shares(by_class: Floats) -> Floats:
    """Accuracy, balanced accuracy and macro-F1 from sums of right, actual, predicted: (3, b)."""
    sums = ClassSums(*np.split(by_class, 3))
    return np.stack([accuracy(sums), balanced_accuracy(sums), macro_f1(sums)])


def _class_rows(judged: Judged) -> "sparse.csr_array":
    """What each image adds to the right, actual and predicted images of its classes: (3 C, N)."""
    count, classes = judged.log_p.shape
    images = np.arange(count)
    rows = [judged.labels[judged.right], classes + judged.labels, 2 * classes + judged.predicted]
    columns = np.concatenate([images[judged.right], images, images])
    cells = (np.ones(len(columns)), (np.concatenate(rows), columns))
    return sparse.csr_array(cells, shape=(3 * classes, count))


def _gaps(judged: Judged, log_p: Floats, bins: int) -> "sparse.csr_array":
    """What each image adds to confidence minus accuracy of its bin: (bins, N)."""
    confidence = confidence_of(log_p)
    cells = (
        confidence - judged.right,
        (equal_mass_bins(confidence, bins), np.arange(len(confidence))),
    )
    return sparse.csr_array(cells, shape=(bins, len(confidence)))
