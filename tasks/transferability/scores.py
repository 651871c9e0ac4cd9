"""What frozen features are worth for the labels: scores with intervals over images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.params import SimilarityParams
from tasks.records import Estimate
from tasks.statistics import accuracy_interval, paired_accuracy_interval
from tasks.transferability.hscore import estimate_h_score
from tasks.transferability.logme import estimate_logme
from tasks.transferability.neighbors import classify_by_neighbors
from tasks.transferability.ridge import classify_by_ridge

Features = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Sample:
    """Clean images with features float32 (n, D), class indices int64 (n,) and groups (n,)."""

    features: Features
    labels: NDArray[np.int64]
    groups: Sequence[str]


@dataclass(frozen=True, slots=True)
class Scores:
    """Label-aware transferability of one set of features."""

    logme: Estimate
    h_score: Estimate
    knn_accuracy: Estimate
    ridge_accuracy: Estimate


@dataclass(frozen=True, slots=True)
class Gain:
    """Leave-one-out accuracies of two sets of features of the same images, and their difference."""

    random_accuracy: Estimate
    gain: Estimate


def estimate_scores(sample: Sample, *, params: SimilarityParams, seed: int) -> Scores:
    """Measure every label-aware score; images of one group are left out together.

    Intervals speak of the images: as many others would have given another share. That leave-one-out
    predictions lean on each other is not in them; where features tell little about the labels, the
    spread over new data sets is up to 1.4 times as wide (measured on noise).

    Source: Bengio and Grandvalet 2004, No unbiased estimator of the variance of cross-validation.
    """
    near = classify_by_neighbors(
        sample.features, sample.labels, sample.groups, neighbors=params.neighbors
    )
    ridge = classify_by_ridge(sample.features, sample.labels, sample.groups)
    labels, groups, confidence = sample.labels, sample.groups, params.confidence
    return Scores(
        logme=estimate_logme(sample.features, labels, groups, confidence=confidence),
        h_score=estimate_h_score(sample.features, labels, groups, confidence=confidence),
        knn_accuracy=_accuracy(near == labels, groups, params=params, seed=seed),
        ridge_accuracy=_accuracy(ridge == labels, groups, params=params, seed=seed),
    )


def estimate_transfer_gain(
    sample: Sample, random_features: Features, *, params: SimilarityParams, seed: int
) -> Gain:
    """Measure what pretraining adds: ridge accuracy of its features minus that of random weights.

    Args:
        sample: Images with pretrained features.
        random_features: Of the same images and architecture with random weights, float32 (n, D).
        params: Resamples and confidence of the intervals.
        seed: The run's seed.
    """
    right = classify_by_ridge(sample.features, sample.labels, sample.groups) == sample.labels
    random = classify_by_ridge(random_features, sample.labels, sample.groups) == sample.labels
    return Gain(
        random_accuracy=_accuracy(random, sample.groups, params=params, seed=seed),
        gain=paired_accuracy_interval(
            random,
            right,
            sample.groups,
            confidence=params.confidence,
            resamples=params.bootstrap,
            seed=seed,
        ),
    )


def _accuracy(
    right: Bools, groups: Sequence[str], *, params: SimilarityParams, seed: int
) -> Estimate:
    return accuracy_interval(
        right,
        groups,
        confidence=params.confidence,
        resamples=params.bootstrap,
        seed=seed,
    )
