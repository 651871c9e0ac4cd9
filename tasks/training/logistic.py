"""Multinomial logistic regression on centered and scaled features, for a path of L2 strengths.

Features stay on disk: rows are scaled block by block, and kept only where they are few. The
objective is our own: sklearn's copies all rows and drops classes without training images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from tasks.training.sampling import Indices

ROWS_AT_ONCE = 4096
KEPT_BYTES = 1 << 30  # scaled rows up to this size stay in memory
ITERATIONS = 500
LOSS_TOLERANCE = 1e-6  # relative gain an iteration below which a fit ends; float32 allows no less

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Labelled:
    """Features, float32 (N, V, D), may be memory-mapped; label and group of each image, (N,)."""

    features: Floats
    labels: Indices
    groups: Sequence[str]


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of every feature, float64 (D,); 0 where it is constant."""

    mean: Doubles
    deviation: Doubles

    @property
    def spread(self) -> float:
        """Root mean square of the deviations; 1 where every feature is constant."""
        return float(np.sqrt(np.square(self.deviation).mean())) or 1.0


@dataclass(frozen=True)
class LinearFit:
    """Weights (C, D) and bias (C,) on raw features, and the L2 strength they were fitted with."""

    strength: float
    weight: Floats
    bias: Floats

    def logits(self, features: Floats) -> Floats:
        """Give logits, float32 (N, C), of raw features, float32 (N, D)."""
        return np.asarray(features @ self.weight.T + self.bias, dtype=np.float32)


class ScaledRows:
    """Rows of chosen images in all of their views, centered and divided by one number for all.

    A scale of its own would give a feature that hardly varies a huge weight: it costs accuracy, and
    where fine-tuning then moves the backbone a little, the logits jump. With one scale for all, the
    penalty does not depend on a rotation of the features either.

    Args:
        data: Raw features and labels.
        images: Which images count, int64 (n,).
    """

    def __init__(self, data: Labelled, images: Indices) -> None:
        self._data, self._chosen = data, images
        self.images = len(images)
        self.views, self.dim = data.features.shape[1:]
        self.moments = measure_moments(data, images)
        kept = self.images * self.views * self.dim * 4 <= KEPT_BYTES
        self._blocks = list(self._read()) if kept else None

    def blocks(self) -> Iterator[tuple[Floats, Indices]]:
        """Yield scaled rows (r, D) and their labels (r,)."""
        return self._read() if self._blocks is None else iter(self._blocks)

    def _read(self) -> Iterator[tuple[Floats, Indices]]:
        mean = self.moments.mean.astype(np.float32)
        inverse = np.float32(1 / self.moments.spread)
        for rows, images in _read_rows(self._data, self._chosen):
            yield (rows - mean) * inverse, np.repeat(self._data.labels[images], self.views)


def measure_moments(data: Labelled, images: Indices) -> Moments:
    """Measure the moments of the rows of some images, int64 (n,), in all of their views.

    Two passes, so that a large mean does not swallow a small deviation.
    """
    count = len(images) * data.features.shape[1]
    total = sum(rows.sum(axis=0, dtype=np.float64) for rows, _ in _read_rows(data, images))
    mean = total / count
    squares = sum(np.square(rows - mean).sum(axis=0) for rows, _ in _read_rows(data, images))
    scale = np.sqrt(squares / count)
    return Moments(mean, np.where(scale > 1e-6 * np.abs(mean), scale, 0.0))


def _read_rows(data: Labelled, images: Indices) -> Iterator[tuple[Floats, Indices]]:
    """Yield raw rows (r, D) of some images in all of their views, and those images."""
    views, dim = data.features.shape[1:]
    step = max(1, ROWS_AT_ONCE // views)
    for start in range(0, len(images), step):
        some = images[start : start + step]
        yield np.asarray(data.features[some], dtype=np.float32).reshape(-1, dim), some


def fit_path(rows: ScaledRows, classes: int, strengths: Sequence[float]) -> Iterator[LinearFit]:
    """Yield one fit for each L2 strength, strongest first, each started from the one before.

    Minimizes mean over images of the cross-entropy (views of an image share its weight) plus
    strength / 2 * |W|^2, where W acts on the scaled features and the bias is free.
    """
    start = np.zeros(classes * (rows.dim + 1))
    for strength in sorted(strengths, reverse=True):
        start = _minimize(rows, classes, strength, start)
        parts = start.reshape(classes, rows.dim + 1)
        weight = parts[:, :-1] / rows.moments.spread
        bias = parts[:, -1] - weight @ rows.moments.mean
        yield LinearFit(strength, weight.astype(np.float32), bias.astype(np.float32))


def _minimize(rows: ScaledRows, classes: int, strength: float, start: Doubles) -> Doubles:
    found = minimize(
        _objective,
        start,
        args=(rows, classes, strength),
        method="L-BFGS-B",
        jac=True,
        options={"maxiter": ITERATIONS, "ftol": LOSS_TOLERANCE, "gtol": 1e-6},
    )
    solution: Doubles = found.x
    return solution


def _objective(
    flat: Doubles, rows: ScaledRows, classes: int, strength: float
) -> tuple[float, Doubles]:
    """Loss and its gradient; products in float32, sums over blocks in float64."""
    parts = flat.reshape(classes, rows.dim + 1)
    weight, bias = parts[:, :-1].astype(np.float32), parts[:, -1].astype(np.float32)
    gradient = np.zeros_like(parts)
    loss = 0.0
    for block, labels in rows.blocks():
        logits = block @ weight.T + bias
        log_shares = logits - logsumexp(logits, axis=1, keepdims=True)
        here = np.arange(len(labels)), labels
        loss -= float(log_shares[here].sum(dtype=np.float64))
        error = np.exp(log_shares)
        error[here] -= 1
        gradient[:, :-1] += error.T @ block
        gradient[:, -1] += error.sum(axis=0, dtype=np.float64)
    count = rows.images * rows.views
    gradient /= count
    gradient[:, :-1] += strength * parts[:, :-1]
    penalty = 0.5 * strength * float(np.square(parts[:, :-1]).sum())
    return loss / count + penalty, gradient.ravel()
