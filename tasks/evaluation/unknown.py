"""What the shipped model says where it does not know: sets of classes, and whether it can know."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from sklearn.covariance import ledoit_wolf

from tasks.artifacts.arrays import Bools, Features, Floats, Ints
from tasks.artifacts.records import DomainCheck, Estimate, PredictionSets, SetScores
from tasks.delivery.appearance import Appearance
from tasks.delivery.in_domain import InDomain, scale_rows
from tasks.judging.conformal import (
    SetMethod,
    build_sets,
    conformal_quantile,
    fit_thresholds,
    score_classes,
)
from tasks.judging.statistics import accuracy_interval
from tasks.params import EvaluateParams

SMALLEST = 1e-6  # of the largest variance; directions with less count as having so much


@dataclass(frozen=True)
class Answered:
    """Images with what a model says of them.

    Attributes:
        probabilities: Calibrated, (N, C).
        labels: Class indices, (N,).
        groups: Of each image, (N,).
    """

    probabilities: Floats
    labels: Ints
    groups: Sequence[str]


def judge_sets(
    val: Answered, test: Answered, params: EvaluateParams, *, seed: int
) -> PredictionSets:
    """Fit both kinds of conformal sets on val and see on test what they hold.

    Args:
        val: Where the thresholds come from.
        test: Where they are judged.
        params: The `evaluate` block.
        seed: The run's seed.
    """
    return PredictionSets(
        asked=params.set_coverage,
        kinds=[_judge_kind(method, val, test, params, seed=seed) for method in get_args(SetMethod)],
    )


def _judge_kind(
    method: SetMethod, val: Answered, test: Answered, params: EvaluateParams, *, seed: int
) -> SetScores:
    thresholds = fit_thresholds(
        score_classes(val.probabilities, method),
        val.labels,
        val.groups,
        coverage=params.set_coverage,
    )
    sets = build_sets(test.probabilities, thresholds, method)
    covered, sizes = sets[np.arange(len(sets)), test.labels], sets.sum(axis=1)
    labels, counts = np.unique(test.labels, return_counts=True)
    by_class = [covered[test.labels == label].mean() for label in labels]
    lowest = int(np.argmin(by_class))
    return SetScores(
        method=method,
        thresholds=thresholds,
        coverage=share_of(covered, test.groups, params, seed=seed),
        lowest_of_a_class=float(by_class[lowest]),
        lowest_images=int(counts[lowest]),
        mean_size=float(sizes.mean()),
        single=float(np.mean(sizes == 1)),
    )


def share_of(
    hits: Bools,
    groups: Sequence[str],
    params: EvaluateParams,
    *,
    seed: int,
) -> Estimate:
    """Give a share of images with its interval."""
    return accuracy_interval(
        hits, groups, confidence=params.confidence, resamples=params.bootstrap, seed=seed
    )


# is an image in the domain ------------------------------------------------------------------------


@dataclass(frozen=True)
class Embedded:
    """Images by the features that the shipped model has of them.

    Attributes:
        features: (N, D).
        classes: Their labels, or what is predicted of them, (N,).
        groups: Of each image, (N,).
        appearance: How they look; None where nobody asks.
    """

    features: Features
    classes: Ints
    groups: Sequence[str]
    appearance: Appearance | None = None


def fit_in_domain(train: Embedded, val: Embedded, *, false_alarm: float) -> InDomain:
    """Learn what features are usual.

    Args:
        train: Training images with their labels.
        val: Val images with what is predicted of them.
        false_alarm: Share of images in the domain that may be called out of it, in (0, 1).

    Source: Ledoit and Wolf 2004, A well-conditioned estimator for large-dimensional covariance
    matrices (the covariance); `InDomain.scores` has the others.
    """
    features, classes = scale_rows(train.features), np.unique(train.classes, return_inverse=True)[1]
    means = np.stack([features[classes == c].mean(axis=0) for c in range(classes.max() + 1)])
    covariance, _ = ledoit_wolf(features - means[classes], assume_centered=True)
    fitted = InDomain(
        means=means.astype(np.float32),
        whitening=_whiten(covariance),
        held_out=val.features,
        held_out_predicted=val.classes,
        held_out_groups=np.unique(np.array(val.groups, dtype=object), return_inverse=True)[1],
        held_out_appearance=val.appearance or Appearance.unknown(len(val.features)),
        threshold=np.inf,
        false_alarm=false_alarm,
    )
    limit = conformal_quantile(fitted.scores(val.features), len(set(val.groups)), 1 - false_alarm)
    return fitted if limit is None else replace(fitted, threshold=limit)


def _whiten(covariance: Floats) -> Features:
    variances, axes = np.linalg.eigh(covariance)
    floor = SMALLEST * variances.max()
    scale = 1 / np.sqrt(np.maximum(variances, floor if floor > 0 else 1.0))
    return np.asarray(axes * scale, dtype=np.float32)


def check_domain(
    known: InDomain, test: Embedded, params: EvaluateParams, *, seed: int
) -> DomainCheck:
    """See how many test images would be called out of the domain."""
    strange = known.scores(test.features) > known.threshold
    finite = np.isfinite(known.threshold)
    return DomainCheck(
        threshold=known.threshold if finite else None,
        asked=known.false_alarm,
        false_alarms=share_of(strange, test.groups, params, seed=seed),
    )
