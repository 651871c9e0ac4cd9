"""What a model scores on the test images and how two models differ, each with its interval."""

import numpy as np

from tasks.evaluation.calibration import expected_calibration_error
from tasks.evaluation.intervals import (
    groups_by_class,
    macro_worth,
    mcnemar_exact,
    resample_differences,
    resample_scores,
)
from tasks.evaluation.judged import Judged, confidence_of
from tasks.evaluation.metrics import (
    Floats,
    accuracy,
    balanced_accuracy,
    brier_scores,
    label_losses,
    macro_f1,
)
from tasks.evaluation.words import say_difference
from tasks.params import EvaluateParams
from tasks.records import Arm, Difference, Estimate, Scores
from tasks.statistics import (
    GroupBootstrap,
    Interval,
    difference_interval,
    independent_images,
    percentile_interval,
    share_interval,
)


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
        mcnemar_p=mcnemar_exact(only_baseline, only_finetuned),
        only_baseline_right=only_baseline,
        only_finetuned_right=only_finetuned,
        sentence=say_difference(gain, params.confidence, arm),
    )
