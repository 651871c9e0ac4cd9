"""What a model scores on the test images and how two models differ, each with its interval.

Scores are functions of sums over images, so that resamples of groups need no copy of an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import signal, sparse, stats

from tasks.artifacts.arrays import Floats, Ints
from tasks.artifacts.records import Arm, Difference, Estimate, ModelName, Scores
from tasks.artifacts.tables import Manifest
from tasks.evaluation.words import say_difference
from tasks.judging.calibration import (
    Judged,
    ModelLogits,
    confidence_of,
    equal_mass_bins,
    expected_calibration_error,
    judge,
)
from tasks.judging.metrics import (
    ClassSums,
    accuracy,
    balanced_accuracy,
    brier_scores,
    label_losses,
    macro_f1,
)
from tasks.judging.rule import ValSet
from tasks.judging.statistics import (
    GroupBootstrap,
    Interval,
    difference_interval,
    independent_images,
    percentile_interval,
    share_interval,
)
from tasks.params import EvaluateParams


def judge_models(
    manifest: Manifest, models: Mapping[ModelName, ModelLogits]
) -> dict[ModelName, Judged]:
    """Give the answers of every model to the test images, calibrated on val."""
    val = ValSet(manifest.labels("val"), manifest.groups("val"))
    labels = manifest.labels("test")
    return {
        name: judge(logits.test, labels, val.temperature(logits.val))
        for name, logits in models.items()
    }


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


def sign_flip_p(sums: Ints) -> float:
    """Two-sided p-value that two models are right equally often on groups of images.

    If neither is better, either could have won what a group shows: the sign of each group's sum is
    flipped. All flips are counted, none is drawn. Where every image is a group of its own this is
    McNemar's exact test.

    Args:
        sums: Images that only the second model has right minus those that only the first has, of
            each group, (G,).

    Source: McNemar 1947, Note on the sampling error of the difference between correlated
    proportions or percentages; Fisher 1935, The design of experiments, section 21 (the flips).
    """
    chances = np.ones(1)  # of the sums -k, -k + 1, ..., k of the groups so far
    for size, count in zip(*np.unique(np.abs(sums[sums != 0]), return_counts=True), strict=True):
        flips = np.zeros(2 * size * count + 1)
        flips[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = signal.convolve(chances, flips)
    reached = np.abs(np.arange(len(chances)) - len(chances) // 2) >= abs(sums.sum())
    return float(min(1.0, chances[reached].sum()))


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


def score(judged: Judged, bootstrap: GroupBootstrap, params: EvaluateParams) -> Scores:
    """Score one model on the images it was asked about."""
    resampled = resample_scores(judged, bootstrap, params.ece_bins)
    bounds = _Bounds(judged, bootstrap, params.confidence)
    sums = judged.sums
    ece, ece_calibrated = (
        expected_calibration_error(confidence_of(log_p), judged.right, params.ece_bins)
        for log_p in (judged.log_p, judged.calibrated)
    )
    return Scores(
        accuracy=bounds.share(accuracy(sums), resampled.accuracy),
        balanced_accuracy=bounds.macro(balanced_accuracy(sums), resampled.balanced_accuracy),
        macro_f1=bounds.macro(macro_f1(sums), resampled.macro_f1),
        nll=bounds.mean(label_losses(judged.log_p, judged.labels), resampled.nll),
        brier=bounds.mean(brier_scores(judged.log_p, judged.labels), resampled.brier),
        ece=bounds.calibration_error(ece, resampled.ece, resampled.ece_noise),
        ece_calibrated=bounds.calibration_error(
            ece_calibrated, resampled.ece_calibrated, resampled.ece_calibrated_noise
        ),
        nll_calibrated=float(np.mean(judged.losses)),
        temperature=judged.temperature,
    )


class _Bounds:
    """Puts an interval around each kind of score."""

    def __init__(self, judged: Judged, bootstrap: GroupBootstrap, confidence: float) -> None:
        self._bootstrap, self._confidence = bootstrap, confidence
        self._macro_images = macro_worth(judged.sums.actual)
        self._macro_groups = macro_worth(
            groups_by_class(judged.labels, judged.log_p.shape[1], bootstrap)
        )

    def share(self, value: Floats, replicates: Floats) -> Estimate:
        """Bound a share of images."""
        return self._share(float(value), replicates, self._bootstrap.images, self._bootstrap.groups)

    def macro(self, value: Floats, replicates: Floats) -> Estimate:
        """Bound a mean over classes of numbers in [0, 1]."""
        return self._share(float(value), replicates, self._macro_images, self._macro_groups)

    def mean(self, values: Floats, replicates: Floats) -> Estimate:
        """Bound a mean of numbers that are not negative, (N,)."""
        return self._percentile(float(np.mean(values)), replicates)

    def calibration_error(self, value: float, replicates: Floats, noise: Floats) -> Estimate:
        """Bound a calibration error; 0 is inside where noise alone explains the error.

        Noise makes a measured error too large, and resampling adds as much again: percentiles lie
        above the true error. Mirrored at the measured error they correct it (basic bootstrap).

        Source: Broecker and Smith 2007, Increasing the reliability of reliability diagrams (what
        calibrated forecasts would show by chance).
        """
        mirrored = self._percentile(value, 2 * value - replicates)
        plain = self._percentile(value, replicates)
        if mirrored.low is None or mirrored.high is None or plain.high is None:
            return mirrored
        chance = float(np.quantile(noise, (1 + self._confidence) / 2))
        return Estimate(
            value=value,
            low=mirrored.low if value > chance else 0.0,
            high=min(1.0, max(mirrored.high, plain.high)),
            n=mirrored.n,
        )

    def _share(self, value: float, replicates: Floats, images: float, groups: float) -> Estimate:
        interval = share_interval(
            value,
            float(np.var(replicates)),
            self._bootstrap,
            images=images,
            groups=groups,
            confidence=self._confidence,
        )
        return self._estimate(value, interval)

    def _percentile(self, value: float, replicates: Floats) -> Estimate:
        interval = percentile_interval(
            value, replicates, self._bootstrap, confidence=self._confidence
        )
        return self._estimate(value, interval and Interval(max(0.0, interval.low), interval.high))

    def _estimate(self, value: float, interval: Interval | None) -> Estimate:
        return Estimate(
            value=value,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            n=self._bootstrap.images,
        )


def compare(
    baseline: Judged,
    finetuned: Judged,
    bootstrap: GroupBootstrap,
    params: EvaluateParams,
    *,
    arm: Arm,
) -> Difference:
    """Compare two models on the same images: that of stage finetune minus the baseline.

    Args:
        baseline: Its answers to the test images.
        finetuned: The same of the model of stage finetune.
        bootstrap: Resampled groups of the same images.
        params: Confidence.
        arm: How stage finetune trained its model.
    """
    resampled = resample_differences(baseline, finetuned, bootstrap)
    gains = finetuned.right.astype(np.float64) - baseline.right
    worth = independent_images(gains, float(np.var(resampled.accuracy)), bootstrap)
    macro = macro_worth(baseline.sums.actual) * worth / bootstrap.images

    def bound(after: Floats, before: Floats, replicates: Floats, worth: float) -> Estimate:
        value = float(after - before)
        interval = difference_interval(
            value,
            float(np.var(replicates)),
            bootstrap,
            worth=worth,
            confidence=params.confidence,
        )
        return Estimate(value=value, low=interval.low, high=interval.high, n=bootstrap.images)

    old, new = baseline.sums, finetuned.sums
    gain = bound(accuracy(new), accuracy(old), resampled.accuracy, worth)
    only_baseline, only_finetuned = int((gains < 0).sum()), int((gains > 0).sum())
    return Difference(
        accuracy=gain,
        balanced_accuracy=bound(
            balanced_accuracy(new), balanced_accuracy(old), resampled.balanced_accuracy, macro
        ),
        macro_f1=bound(macro_f1(new), macro_f1(old), resampled.macro_f1, macro),
        mcnemar_p=sign_flip_p(bootstrap.sums(gains).astype(np.int64)),
        only_baseline_right=only_baseline,
        only_finetuned_right=only_finetuned,
        sentence=say_difference(gain, params.confidence, arm),
    )
