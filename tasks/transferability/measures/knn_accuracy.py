"""Accuracy of nearest neighbors when the images of each group are left out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts.records import Estimate
from tasks.artifacts.sampling import number_groups
from tasks.params import SimilarityParams
from tasks.transferability.leave_one_out import estimate_accuracy
from tasks.transferability.sampling import Sample

ROWS_AT_ONCE = 1_000  # compared with all images


def estimate(sample: Sample, *, params: SimilarityParams, seed: int) -> Estimate:
    """Measure the leave-one-out accuracy of the nearest neighbors."""
    predicted = classify_by_neighbors(
        sample.features, sample.labels, sample.groups, neighbors=params.neighbors
    )
    return estimate_accuracy(predicted, sample, params=params, seed=seed)


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
