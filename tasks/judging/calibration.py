"""Answers of a model to images whose label is known, and whether its probabilities are true.

Reliability in bins of equal mass, and one temperature from val.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from tasks.artifacts.arrays import Floats, Ints, Logits
from tasks.judging.metrics import ClassSums, label_losses, log_probabilities, sum_classes

LARGEST_TEMPERATURE = 20.0  # and 1 / 20 is the smallest


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images of similar confidence: their mean confidence, accuracy and number."""

    confidence: float
    accuracy: float
    n: int


def fit_temperature(
    logits: ArrayLike, labels: Ints, *, smoothing: float = 0.0, weights: Floats | None = None
) -> float:
    """Find the temperature T whose softmax(logits / T) makes val labels most likely.

    Where every image is classified correctly, certainty would be best and T has no minimum. It
    stays 1 then, because images seen so far cannot say how sure the next ones are; smoothed labels
    give it one.

    Args:
        logits: Of val images, (N, C).
        labels: Class indices, (N,).
        smoothing: Share of a label that is spread over all classes, in [0, 1).
        weights: What each image counts, float64 (N,); None: all the same.

    Returns:
        A number in [1/20, 20]; above 1 the logits were overconfident.

    Source: Guo et al. 2017, On calibration of modern neural networks, 1706.04599.
    """
    values = np.asarray(logits, np.float64)
    named = values[np.arange(len(labels)), labels]
    if not smoothing and _all_right(values, labels):
        return 1.0
    target = (1 - smoothing) * named + smoothing * values.mean(axis=1)

    def loss(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        losses = logsumexp(values / temperature, axis=1) - target / temperature
        return float(np.average(losses, weights=weights))

    edge = float(np.log(LARGEST_TEMPERATURE))
    best = minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-7})
    return float(np.exp(best.x)) if best.fun < loss(0.0) else 1.0


def _all_right(values: Floats, labels: Ints) -> bool:
    """Whether the value of every label is above all others of its row, none being as large."""
    here = np.arange(len(labels)), labels
    others = values.copy()
    others[here] = -np.inf
    return bool(np.all(values[here] > others.max(axis=1, initial=-np.inf)))


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


@dataclass(frozen=True, slots=True)
class ModelLogits:
    """Logits of one model: float32 (N, C) of the val images and of the test images."""

    val: Logits
    test: Logits


@dataclass(frozen=True, slots=True)
class Judged:
    """Answers to N images. Calibration never changes what is predicted.

    labels, predicted: class indices (N,); log_p: log probabilities (N, C) as trained; calibrated:
    the same after temperature scaling.
    """

    labels: Ints
    predicted: Ints
    log_p: Floats
    calibrated: Floats
    temperature: float

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each image was classified correctly, (N,)."""
        return np.equal(self.predicted, self.labels)

    @property
    def losses(self) -> Floats:
        """Calibrated negative log likelihood of each image's label, nats, (N,)."""
        return label_losses(self.calibrated, self.labels)

    @property
    def sums(self) -> ClassSums:
        """Images of each class."""
        return sum_classes(self.labels, self.predicted, self.log_p.shape[1])


def judge(logits: ArrayLike, labels: Ints, temperature: float = 1.0) -> Judged:
    """Turn logits (N, C) into answers; of equal logits the first class is predicted."""
    values = np.asarray(logits, np.float64)
    return Judged(
        labels=labels,
        predicted=np.argmax(values, axis=1),
        log_p=log_probabilities(values),
        calibrated=log_probabilities(values, temperature),
        temperature=temperature,
    )


def confidence_of(log_p: Floats) -> Floats:
    """Probability of the predicted class, (N,)."""
    return np.asarray(np.exp(log_p.max(axis=1)))
