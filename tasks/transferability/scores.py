"""What frozen features are worth for the labels: scores with intervals over images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts.arrays import Bools, Features
from tasks.artifacts.records import Estimate
from tasks.judging.statistics import accuracy_interval, paired_accuracy_interval
from tasks.params import SimilarityParams
from tasks.transferability.hscore import estimate_h_score
from tasks.transferability.logme import estimate_logme
from tasks.transferability.ridge import classify_by_ridge
from tasks.transferability.sampling import Sample, number_groups

ROWS_AT_ONCE = 1_000  # compared with all images by nearest neighbors


@dataclass(frozen=True, slots=True)
class TransferScores:
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


def estimate_scores(sample: Sample, *, params: SimilarityParams, seed: int) -> TransferScores:
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
    return TransferScores(
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


# nearest neighbors --------------------------------------------------------------------------------


def classify_by_neighbors(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: Sequence[str],
    *,
    neighbors: int,
) -> NDArray[np.int64]:
    """Classify each image by the images nearest to it that are not of its own group.

    Nearest means the largest cosine. A tie of votes goes to the class of the nearest neighbor among
    the tied ones, so that the result does not depend on how classes are numbered.

    Args:
        features: float32 (n, D).
        labels: Class indices, int64 (n,).
        groups: The group of each image, (n,).
        neighbors: How many vote; fewer where not so many images are of other groups.

    Returns:
        Predicted class indices, int64 (n,).
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.maximum(lengths, np.finfo(np.float32).tiny)
    units = number_groups(groups)
    neighbors = min(neighbors, len(labels) - 1)
    predicted = np.empty(len(labels), dtype=np.int64)
    for start in range(0, len(labels), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        cosines = directions[rows] @ directions.T
        cosines[units[rows, None] == units] = -np.inf
        predicted[rows] = _vote(cosines, labels, neighbors)
    return predicted


def _vote(
    cosines: NDArray[np.float32], labels: NDArray[np.int64], neighbors: int
) -> NDArray[np.int64]:
    """Most frequent label among the nearest, (b,); cosines (b, n), -inf where one may not vote."""
    nearest = np.argpartition(-cosines, neighbors - 1, axis=1)[:, :neighbors]
    closeness = np.take_along_axis(cosines, nearest, axis=1)
    order = np.argsort(-closeness, axis=1, kind="stable")
    nearest = np.take_along_axis(nearest, order, axis=1)
    may_vote = np.isfinite(np.take_along_axis(closeness, order, axis=1))
    voted = labels[nearest]
    votes = np.sum((voted[:, :, None] == voted[:, None, :]) & may_vote[:, None, :], axis=2)
    first_of_most = np.argmax(np.where(may_vote, votes, -1), axis=1)
    result: NDArray[np.int64] = voted[np.arange(len(voted)), first_of_most]
    return result
