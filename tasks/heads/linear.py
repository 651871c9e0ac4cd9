"""The linear head: multinomial logistic regression for a path of L2 strengths, one of them chosen.

Features are centered and scaled, and stay on disk: rows are scaled block by block, and kept only
where they are few. The objective is our own: sklearn's copies all rows and drops classes without
training images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn

from tasks.artifacts.arrays import Features, Floats, Ints
from tasks.artifacts.words import name_head
from tasks.heads.features import Labeled, measure_moments, raw_rows
from tasks.heads.registry import HeadPath, TrainedHead
from tasks.judging.rule import ValSet
from tasks.params import BaselineParams
from tasks.runtime.progress import Meter, progress

KEPT_BYTES = 1 << 30  # scaled rows up to this size stay in memory
ITERATIONS = 500
LOSS_TOLERANCE = 1e-6  # relative gain an iteration below which a fit ends; float32 allows no less


def build(feature_dim: int, classes: int, *, hidden: int, dropout: float) -> nn.Module:
    """Build one layer; standardization of the features is folded into its weights."""
    return nn.Linear(feature_dim, classes)


def train(
    train: Labeled, val: Labeled, params: BaselineParams, *, classes: int, seed: int
) -> HeadPath:
    """Fit the path of L2 strengths and say which one was chosen, and by what."""
    path = choose_linear(train, val, params.l2_strengths, classes=classes, seed=seed)
    tried = [
        TrainedHead(to_module(fit), f"L2 {fit.strength:g}", strength=fit.strength)
        for fit in path.fits
    ]
    strength = path.chosen.strength
    notes = [f"The L2 strength {strength:g} was chosen by {path.chosen_by}."]
    ends = {min(params.l2_strengths): "smallest", max(params.l2_strengths): "largest"}
    if strength in ends and len(params.l2_strengths) > 1:
        notes.append(
            f"It is the {ends[strength]} of baseline.l2_strengths; a wider range may be better."
        )
    index = next(number for number, fit in enumerate(path.fits) if fit is path.chosen)
    tried[index] = replace(tried[index], notes=notes)
    return HeadPath(tried, tried[index])


@dataclass(frozen=True)
class LinearFit:
    """Weights (C, D) and bias (C,) on raw features, and the L2 strength they were fitted with."""

    strength: float
    weight: Features
    bias: Features

    def logits(self, features: Features) -> Features:
        """Give logits, float32 (N, C), of raw features, float32 (N, D)."""
        return np.asarray(features @ self.weight.T + self.bias, dtype=np.float32)


def to_module(fit: LinearFit) -> nn.Module:
    """Make a head of a fit, in eval mode."""
    classes, dim = fit.weight.shape
    head = build(dim, classes, hidden=0, dropout=0.0)
    head.load_state_dict(
        {"weight": torch.from_numpy(fit.weight), "bias": torch.from_numpy(fit.bias)}
    )
    return head.eval()


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
        self._data, self._chosen, self._weights = data, images, data.weights(images)
        self.images = len(images)
        self.views, self.dim = data.features.shape[1:]
        self.moments = measure_moments(data, images)
        kept = self.images * self.views * self.dim * 4 <= KEPT_BYTES
        self._blocks = list(self._read()) if kept else None

    def blocks(self) -> Iterator[tuple[Features, Ints, Features | None]]:
        """Yield scaled rows (r, D), their labels (r,) and, if they differ, weights (r,)."""
        return self._read() if self._blocks is None else iter(self._blocks)

    def _read(self) -> Iterator[tuple[Features, Ints, Features | None]]:
        mean = self.moments.mean.astype(np.float32)
        inverse = np.float32(1 / self.moments.spread)
        done = 0
        for rows, images in raw_rows(self._data, self._chosen):
            weights = None
            if self._weights is not None:
                own = self._weights[done : done + len(images)].astype(np.float32)
                weights = np.repeat(own, self.views)
            done += len(images)
            labels = np.repeat(self._data.labels[images], self.views)
            yield (rows - mean) * inverse, labels, weights


def fit_path(rows: ScaledRows, classes: int, strengths: Sequence[float]) -> Iterator[LinearFit]:
    """Yield one fit for each L2 strength, strongest first, each started from the one before.

    Minimizes mean over images of the cross-entropy (views of an image share its weight; images of
    all classes together weigh the same where the data are balanced) plus
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
    for block, labels, weights in rows.blocks():
        logits = block @ weight.T + bias
        log_shares = logits - logsumexp(logits, axis=1, keepdims=True)
        here = np.arange(len(labels)), labels
        losses = -log_shares[here]
        error = np.exp(log_shares)
        error[here] -= 1
        if weights is not None:
            losses *= weights
            error *= weights[:, None]
        loss += float(losses.sum(dtype=np.float64))
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
    train: Labeled,
    val: Labeled,
    strengths: Sequence[float],
    *,
    classes: int,
    seed: int,
    images: Ints | None = None,
) -> LinearPath:
    """Fit a path of strengths on training images, all or those given, and choose one.

    With fewer than 50 training images a class, val holds only a few of each: then the loss over
    held-out folds of the training images decides, no group in two folds.
    """
    images = np.arange(len(train.labels)) if images is None else images
    rows = ScaledRows(train, images)
    folds = _folds(train, images, seed) if len(images) < FEW_IMAGES * classes else []
    with progress(name_head("linear"), len(strengths) * (len(folds) + 1), "fits") as meter:
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


def _folds(train: Labeled, images: Ints, seed: int) -> list[tuple[Ints, Ints]]:
    """Split into (fitted, held out) images; no folds where a class has fewer than two groups."""
    groups = np.unique(np.array(train.groups, dtype=object), return_inverse=True)[1][images]
    labels = train.labels[images]
    smallest = min(len(set(groups[labels == label])) for label in np.unique(labels))
    count = min(FOLDS, smallest)
    if count < 2:
        return []
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    folds = splitter.split(labels, labels, groups)
    return [(images[fitted], images[held_out]) for fitted, held_out in folds]


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
        groups = [train.groups[image] for image in held_out]
        val = ValSet(train.labels[held_out], groups, balanced=train.balanced)
        for fit in _counted(fit_path(ScaledRows(train, fitted), classes, strengths), meter):
            totals[fit.strength] += val.loss(fit.logits(clean)) * len(held_out)
    return totals
