"""Are probabilities true? Reliability in bins of equal mass, and one temperature from val."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from tasks.artifacts.arrays import Floats, Ints
from tasks.judging.metrics import label_losses, log_probabilities

LARGEST_TEMPERATURE = 20.0  # and 1 / 20 is the smallest


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images of similar confidence: their mean confidence, accuracy and number."""

    confidence: float
    accuracy: float
    n: int


def fit_temperature(logits: ArrayLike, labels: Ints) -> float:
    """Find the temperature T whose softmax(logits / T) makes val labels most likely.

    Where every image is classified correctly, certainty would be best and T has no minimum; it
    stays 1, because images seen so far cannot say how sure the next ones are.

    Args:
        logits: Of val images, (N, C).
        labels: Class indices, (N,).

    Returns:
        A number in [1/20, 20]; above 1 the logits were overconfident.

    Source: Guo et al. 2017, On calibration of modern neural networks, 1706.04599.
    """
    values = np.asarray(logits, np.float64)
    others = values.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    if np.all(values[np.arange(len(labels)), labels] > others.max(axis=1, initial=-np.inf)):
        return 1.0

    def loss(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        return float(np.mean(label_losses(log_probabilities(values, temperature), labels)))

    edge = float(np.log(LARGEST_TEMPERATURE))
    best = minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-7})
    return float(np.exp(best.x)) if best.fun < loss(0.0) else 1.0


def equal_mass_bins(confidence: Floats, bins: int) -> NDArray[np.int64]:
    """Number the bin of each image (N,), so that each of `bins` bins holds as many as another.

    Equal confidences share a bin, whatever their order; bins may then be fewer.
    """
    ranked = np.sort(confidence)
    starts = -(-np.arange(1, bins) * len(ranked) // bins)
    edges = ranked[starts[starts < len(ranked)]]
    _, numbers = np.unique(np.searchsorted(edges, confidence, side="right"), return_inverse=True)
    return np.asarray(numbers, dtype=np.int64)


def expected_calibration_error(confidence: Floats, right: NDArray[np.bool_], bins: int) -> float:
    """Mean over images of |accuracy - mean confidence| of their bin, in [0, 1].

    Args:
        confidence: Probability of the predicted class, (N,).
        right: Whether it was the label, (N,).
        bins: Of equal mass.

    Source: Guo et al. 2017, 1706.04599 (the error); Nixon et al. 2019, 1904.01685 (equal mass).
    """
    table = reliability_table(confidence, right, bins)
    return sum(row.n * abs(row.accuracy - row.confidence) for row in table) / len(confidence)


def reliability_table(
    confidence: Floats, right: NDArray[np.bool_], bins: int
) -> list[ReliabilityBin]:
    """Compare confidence and accuracy in bins of equal mass, least confident first."""
    numbers = equal_mass_bins(confidence, bins)
    return [
        ReliabilityBin(float(confidence[of].mean()), float(right[of].mean()), int(of.sum()))
        for of in (numbers == number for number in range(numbers.max() + 1))
    ]
