"""Metrics of a classifier; those of classes are functions of sums, which can be resampled."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, logsumexp

from tasks.artifacts.arrays import Floats, Ints


@dataclass(frozen=True, slots=True)
class ClassSums:
    """Images of each class: float64 (C,), or (C, B) for B resamples.

    right: correctly classified; actual: with this label; predicted: given this label.
    """

    right: Floats
    actual: Floats
    predicted: Floats


def sum_classes(labels: Ints, predicted: Ints, classes: int) -> ClassSums:
    """Count images by class; `labels` and `predicted` are class indices (N,)."""

    def count(members: Ints) -> Floats:
        return np.bincount(members, minlength=classes).astype(np.float64)

    return ClassSums(count(labels[labels == predicted]), count(labels), count(predicted))


def accuracy(sums: ClassSums) -> Floats:
    """Share of images that are classified correctly."""
    return np.asarray(sums.right.sum(axis=0) / sums.actual.sum(axis=0))


def recall(sums: ClassSums) -> Floats:
    """Share of each class's images that are found; NaN for a class without images."""
    return _ratio(sums.right, sums.actual)


def precision(sums: ClassSums) -> Floats:
    """Share of correct ones among the images given a class; NaN for a class never predicted."""
    return _ratio(sums.right, sums.predicted)


def f1(sums: ClassSums) -> Floats:
    """Harmonic mean of precision and recall; NaN for a class neither present nor predicted."""
    return _ratio(2 * sums.right, sums.actual + sums.predicted)


def balanced_accuracy(sums: ClassSums) -> Floats:
    """Mean recall of the classes that have images."""
    return np.asarray(np.nanmean(recall(sums), axis=0))


def macro_f1(sums: ClassSums) -> Floats:
    """Mean F1 of the classes that have images.

    One that was only predicted would count as 0 here and not at all in another model's figure; the
    images that were given it are missed in their own classes.
    """
    return np.asarray(np.nanmean(np.where(sums.actual > 0, f1(sums), np.nan), axis=0))


def _ratio(part: Floats, whole: Floats) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio


def log_probabilities(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Natural log of softmax(logits / temperature), float64 (N, C), without overflow."""
    return np.asarray(log_softmax(np.asarray(logits, np.float64) / temperature, axis=1))


def label_losses(log_p: Floats, labels: Ints) -> Floats:
    """Negative log likelihood of each image's label, nats, (N,)."""
    return -log_p[np.arange(len(labels)), labels]


def brier_scores(log_p: Floats, labels: Ints) -> Floats:
    """Half the squared distance of each image's probabilities from its label, (N,), in [0, 1].

    The half makes it the squared error of one probability where there are two classes.

    Source: Brier 1950, Verification of forecasts expressed in terms of probability.
    """
    errors = np.exp(log_p)
    errors[np.arange(len(labels)), labels] -= 1
    return np.asarray((errors**2).sum(axis=1) / 2)


def image_losses(logits: NDArray[np.float32], labels: Ints) -> NDArray[np.float64]:
    """Cross-entropy of every image, float64 (N,), in nats, from logits (N, C) and labels (N,)."""
    wide = logits.astype(np.float64)
    losses: NDArray[np.float64] = logsumexp(wide, axis=1) - wide[np.arange(len(labels)), labels]
    return losses


def right_images(logits: NDArray[np.float32], labels: Ints) -> NDArray[np.bool_]:
    """Whether the largest logit of every image is its label's, bool (N,)."""
    right: NDArray[np.bool_] = logits.argmax(axis=1) == labels
    return right
