"""Leave-one-out accuracy of frozen features, and what pretraining adds to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from tasks.artifacts.arrays import Features, Floats, Ints
from tasks.artifacts.records import Estimate
from tasks.artifacts.sampling import number_groups
from tasks.judging.statistics import accuracy_interval, paired_accuracy_interval
from tasks.params import SimilarityParams
from tasks.transferability.sampling import Sample

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # penalties tried, in mean energies of the features
RANK_TOLERANCE = 1e-10  # eigenvalues below this share of the largest one count as zero


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Rows X rotated onto the axes along which they differ.

    `scores` = X V: float64 (n, k), columns orthogonal, k = rank of X at most min(n, D).
    `energies` = eigenvalues of X'X: float64 (k,), all above 0; the squared length of each column.
    """

    scores: Floats
    energies: Floats


def classify_by_ridge(
    features: NDArray[np.float32] | Floats, labels: NDArray[np.int64], groups: Sequence[str]
) -> NDArray[np.int64]:
    """Classify each image by a ridge regression on all images that are not of its own group.

    Features are standardized, targets are one-hot, the intercept is free. The penalty with the
    least squared leave-one-out error is used.

    Args:
        features: (n, D).
        labels: Class indices, int64 (n,).
        groups: The group of each image, (n,).

    Returns:
        Predicted class indices, int64 (n,).

    Source: Golub, Heath and Wahba 1979, for one row; a block for a group.
    """
    classes, position = np.unique(labels, return_inverse=True)
    targets = (position[:, None] == np.arange(len(classes))).astype(np.float64)
    spectrum = decompose(StandardScaler().fit_transform(np.asarray(features, dtype=np.float64)))
    units = number_groups(groups)
    best_error, best = np.inf, targets
    for strength in STRENGTHS:
        outputs = _leave_out(spectrum, targets, units, strength * _mean(spectrum.energies))
        error = float(np.sum((outputs - targets) ** 2))
        if error < best_error:
            best_error, best = error, outputs
    result: NDArray[np.int64] = classes[np.argmax(best, axis=1)]
    return result


def decompose(rows: Floats) -> Spectrum:
    """Rotate rows onto their principal axes, without centering them.

    Works on X'X or XX', whichever is smaller: time grows with n D min(n, D). An SVD of X takes
    two to three times as long.

    Args:
        rows: float64 (n, D).
    """
    n, d = rows.shape
    tall = n > d
    energies, vectors = scipy.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    kept = energies > RANK_TOLERANCE * max(float(energies[-1]), np.finfo(np.float64).tiny)
    energies, vectors = energies[kept], vectors[:, kept]
    scores = rows @ vectors if tall else vectors * np.sqrt(energies)
    return Spectrum(scores=scores, energies=energies)


def _mean(energies: Floats) -> float:
    return float(energies.mean()) if len(energies) else 1.0


def _leave_out(
    spectrum: Spectrum, targets: Floats, units: NDArray[np.int64], penalty: float
) -> Floats:
    """Outputs for each unit's rows of the regression on all other units, (n, C).

    With H the matrix that maps targets to fitted values, leaving out the rows g turns their
    residuals r into (I - H_gg)^-1 r: no regression is computed again.
    """
    n = len(targets)
    damped = spectrum.scores / (spectrum.energies + penalty)
    fitted = damped @ (spectrum.scores.T @ targets) + targets.mean(axis=0)
    residuals = targets - fitted
    kept = 1 - 1 / n - np.einsum("ij,ij->i", damped, spectrum.scores)
    outside = residuals / kept[:, None]
    for rows in _rows_of_shared(units):
        hat = damped[rows] @ spectrum.scores[rows].T + 1 / n
        outside[rows] = np.linalg.solve(np.eye(len(rows)) - hat, residuals[rows])
    result: Floats = targets - outside + _tilt(targets, units)
    return result


def _tilt(targets: Floats, units: NDArray[np.int64]) -> Floats:
    """By how much leaving out each unit lowers the mean of its own targets, (n, C).

    The intercept without an image leans against its class. Features that tell nothing would then be
    wrong about every image instead of about as many as chance is.
    """
    sizes = np.bincount(units)[units]
    sums = np.zeros((units.max() + 1, targets.shape[1]))
    np.add.at(sums, units, targets)
    n, mean = len(targets), targets.mean(axis=0)
    result: Floats = mean - (n * mean - sums[units]) / (n - sizes)[:, None]
    return result


def _rows_of_shared(units: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows of every unit that holds more than one."""
    order = np.argsort(units, kind="stable")
    sizes = np.bincount(units)
    return [rows for rows in np.split(order, np.cumsum(sizes)[:-1]) if len(rows) > 1]


def estimate_accuracy(
    predicted: Ints, sample: Sample, *, params: SimilarityParams, seed: int
) -> Estimate:
    """Measure the accuracy of predictions, int64 (n,), that were made without the image's group.

    The interval speaks of the images: as many others would have given another share. That
    leave-one-out predictions lean on each other is not in it; where features tell little about the
    labels, the spread over new data sets is up to 1.4 times as wide (measured on noise).

    Source: Bengio and Grandvalet 2004, No unbiased estimator of the variance of cross-validation.
    """
    return accuracy_interval(
        predicted == sample.labels,
        sample.groups,
        confidence=params.confidence,
        resamples=params.bootstrap,
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class Gain:
    """Leave-one-out accuracies of two sets of features of the same images, and their difference."""

    random_accuracy: Estimate
    gain: Estimate


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
    pretrained = classify_by_ridge(sample.features, sample.labels, sample.groups)
    random = classify_by_ridge(random_features, sample.labels, sample.groups)
    return Gain(
        random_accuracy=estimate_accuracy(random, sample, params=params, seed=seed),
        gain=paired_accuracy_interval(
            random == sample.labels,
            pretrained == sample.labels,
            sample.groups,
            confidence=params.confidence,
            resamples=params.bootstrap,
            seed=seed,
        ),
    )
