"""The linear head: multinomial logistic regression for a path of L2 strengths, one of them chosen.

Features are centered and scaled, and stay on disk: rows are scaled block by block, and kept only
where they are few. The objective is our own: sklearn's copies all rows and drops classes without
training images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.model_selection import StratifiedGroupKFold

from tasks.artifacts.arrays import Features, Floats, Ints
from tasks.artifacts.words import HEADS
from tasks.judging.rule import ValSet
from tasks.runtime.progress import Meter, progress

ROWS_AT_ONCE = 4096
KEPT_BYTES = 1 << 30  # scaled rows up to this size stay in memory
ITERATIONS = 500
LOSS_TOLERANCE = 1e-6  # relative gain an iteration below which a fit ends; float32 allows no less


@dataclass(frozen=True)
class Labeled:
    """Features, float32 (N, V, D), may be memory-mapped; label and group of each image, (N,)."""

    features: Features
    labels: Ints
    groups: Sequence[str]

    @cached_property
    def judge(self) -> ValSet:
        """Labels and groups, as what judges a model on these images."""
        return ValSet(self.labels, self.groups)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of every feature, float64 (D,); 0 where it is constant."""

    mean: Floats
    deviation: Floats

    @property
    def spread(self) -> float:
        """Root mean square of the deviations; 1 where every feature is constant."""
        return float(np.sqrt(np.square(self.deviation).mean())) or 1.0


@dataclass(frozen=True)
class LinearFit:
    """Weights (C, D) and bias (C,) on raw features, and the L2 strength they were fitted with."""

    strength: float
    weight: Features
    bias: Features

    def logits(self, features: Features) -> Features:
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

    def __init__(self, data: Labeled, images: Ints) -> None:
        self._data, self._chosen = data, images
        self.images = len(images)
        self.views, self.dim = data.features.shape[1:]
        self.moments = measure_moments(data, images)
        kept = self.images * self.views * self.dim * 4 <= KEPT_BYTES
        self._blocks = list(self._read()) if kept else None

    def blocks(self) -> Iterator[tuple[Features, Ints]]:
        """Yield scaled rows (r, D) and their labels (r,)."""
        return self._read() if self._blocks is None else iter(self._blocks)

    def _read(self) -> Iterator[tuple[Features, Ints]]:
        mean = self.moments.mean.astype(np.float32)
        inverse = np.float32(1 / self.moments.spread)
        for rows, images in _read_rows(self._data, self._chosen):
            yield (rows - mean) * inverse, np.repeat(self._data.labels[images], self.views)


def measure_moments(data: Labeled, images: Ints) -> Moments:
    """Measure the moments of the rows of some images, int64 (n,), in all of their views.

    Two passes, so that a large mean does not swallow a small deviation.
    """
    count = len(images) * data.features.shape[1]
    total = sum(rows.sum(axis=0, dtype=np.float64) for rows, _ in _read_rows(data, images))
    mean = total / count
    squares = sum(np.square(rows - mean).sum(axis=0) for rows, _ in _read_rows(data, images))
    scale = np.sqrt(squares / count)
    return Moments(mean, np.where(scale > 1e-6 * np.abs(mean), scale, 0.0))


def _read_rows(data: Labeled, images: Ints) -> Iterator[tuple[Features, Ints]]:
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


def _minimize(rows: ScaledRows, classes: int, strength: float, start: Floats) -> Floats:
    found = minimize(
        _objective,
        start,
        args=(rows, classes, strength),
        method="L-BFGS-B",
        jac=True,
        options={"maxiter": ITERATIONS, "ftol": LOSS_TOLERANCE, "gtol": 1e-6},
    )
    solution: Floats = found.x
    return solution


def _objective(
    flat: Floats, rows: ScaledRows, classes: int, strength: float
) -> tuple[float, Floats]:
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


FEW_IMAGES = 50  # training images a class below which cross-validation chooses
FOLDS = 5
HOPELESS = (
    1.02  # a path of falling strengths ends when the val loss is so many times the lowest one
)


@dataclass(frozen=True)
class LinearPath:
    """The fits that were tried, strongest first, and the one that was chosen."""

    fits: Sequence[LinearFit]
    chosen: LinearFit
    chosen_by: str


def choose_linear(
    train: Labeled, val: Labeled, strengths: Sequence[float], *, classes: int, seed: int
) -> LinearPath:
    """Fit a path of strengths on all training images and choose one.

    With fewer than 50 training images a class, val holds only a few of each: then the loss over
    held-out folds of the training images decides, no group in two folds.
    """
    rows = ScaledRows(train, np.arange(len(train.labels)))
    folds = _folds(train, seed) if len(train.labels) < FEW_IMAGES * classes else []
    with progress(HEADS["linear"], len(strengths) * (len(folds) + 1), "fits") as meter:
        if not folds:
            path = _counted(fit_path(rows, classes, strengths), meter)
            fits = list(_until_hopeless(path, val))
            chosen = min(fits, key=lambda fit: _mean_loss(fit, val))
            return LinearPath(fits, chosen, "val loss")
        losses = _held_out_losses(train, folds, strengths, classes, meter)
        best = min(losses, key=lambda strength: losses[strength])
        kept = [one for one in strengths if one >= best]
        fits = list(_counted(fit_path(rows, classes, kept), meter))
        return LinearPath(fits, fits[-1], f"{len(folds)}-fold cross-validation over train")


def _counted(path: Iterator[LinearFit], meter: Meter) -> Iterator[LinearFit]:
    for fit in path:
        meter.advance()
        yield fit


def _until_hopeless(path: Iterator[LinearFit], val: Labeled) -> Iterator[LinearFit]:
    lowest = np.inf
    for fit in path:
        yield fit
        loss = _mean_loss(fit, val)
        lowest = min(lowest, loss)
        if loss > HOPELESS * lowest:
            return


def _mean_loss(fit: LinearFit, data: Labeled) -> float:
    return data.judge.loss(fit.logits(data.features[:, 0]))


def _folds(train: Labeled, seed: int) -> list[tuple[Ints, Ints]]:
    """Split into (fitted, held out) images; no folds where a class has fewer than two groups."""
    groups = np.unique(np.array(train.groups, dtype=object), return_inverse=True)[1]
    smallest = min(len(set(groups[train.labels == label])) for label in np.unique(train.labels))
    count = min(FOLDS, smallest)
    if count < 2:
        return []
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    return list(splitter.split(train.labels, train.labels, groups))


def _held_out_losses(
    train: Labeled,
    folds: Sequence[tuple[Ints, Ints]],
    strengths: Sequence[float],
    classes: int,
    meter: Meter,
) -> dict[float, float]:
    """Total loss over the clean views of held-out images, for each strength."""
    totals = dict.fromkeys(strengths, 0.0)
    for fitted, held_out in folds:
        clean = train.features[held_out, 0]
        val = ValSet(train.labels[held_out], [train.groups[image] for image in held_out])
        for fit in _counted(fit_path(ScaledRows(train, fitted), classes, strengths), meter):
            totals[fit.strength] += float(val.losses(fit.logits(clean)).sum())
    return totals
