"""How strongly the linear head is regularized: by val, or by cross-validation where it is small."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from tasks.training.logistic import Labelled, LinearFit, ScaledRows, fit_path
from tasks.training.losses import image_losses
from tasks.training.sampling import Indices

FEW_IMAGES = 50  # training images a class below which cross-validation chooses
FOLDS = 5
HOPELESS = 1.1  # a path of falling strengths ends when the val loss is so many times the lowest one


@dataclass(frozen=True)
class LinearPath:
    """The fits that were tried, strongest first, and the one that was chosen."""

    fits: Sequence[LinearFit]
    chosen: LinearFit
    chosen_by: str


def choose_linear(
    train: Labelled, val: Labelled, strengths: Sequence[float], *, classes: int, seed: int
) -> LinearPath:
    """Fit a path of strengths on all training images and choose one.

    With fewer than 50 training images a class, val holds only a few of each: then the loss over
    held-out folds of the training images decides, no group in two folds.
    """
    rows = ScaledRows(train, np.arange(len(train.labels)))
    folds = _folds(train, seed) if len(train.labels) < FEW_IMAGES * classes else []
    if not folds:
        fits = list(_until_hopeless(fit_path(rows, classes, strengths), val))
        chosen = min(fits, key=lambda fit: _mean_loss(fit, val))
        return LinearPath(fits, chosen, "val loss")
    losses = _held_out_losses(train, folds, strengths, classes)
    best = min(losses, key=lambda strength: losses[strength])
    fits = list(fit_path(rows, classes, [one for one in strengths if one >= best]))
    return LinearPath(fits, fits[-1], f"{len(folds)}-fold cross-validation over train")


def _until_hopeless(path: Iterator[LinearFit], val: Labelled) -> Iterator[LinearFit]:
    lowest = np.inf
    for fit in path:
        yield fit
        loss = _mean_loss(fit, val)
        lowest = min(lowest, loss)
        if loss > HOPELESS * lowest:
            return


def _mean_loss(fit: LinearFit, data: Labelled) -> float:
    return float(image_losses(fit.logits(data.features[:, 0]), data.labels).mean())


def _folds(train: Labelled, seed: int) -> list[tuple[Indices, Indices]]:
    """Split into (fitted, held out) images; no folds where a class has fewer than two groups."""
    groups = np.unique(np.array(train.groups, dtype=object), return_inverse=True)[1]
    smallest = min(len(set(groups[train.labels == label])) for label in np.unique(train.labels))
    count = min(FOLDS, smallest)
    if count < 2:
        return []
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    return list(splitter.split(train.labels, train.labels, groups))


def _held_out_losses(
    train: Labelled,
    folds: Sequence[tuple[Indices, Indices]],
    strengths: Sequence[float],
    classes: int,
) -> dict[float, float]:
    """Total loss over the clean views of held-out images, for each strength."""
    totals = dict.fromkeys(strengths, 0.0)
    for fitted, held_out in folds:
        clean, labels = train.features[held_out, 0], train.labels[held_out]
        for fit in fit_path(ScaledRows(train, fitted), classes, strengths):
            totals[fit.strength] += float(image_losses(fit.logits(clean), labels).sum())
    return totals
