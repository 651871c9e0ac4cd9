"""Was the split lucky: the test figure beside the accuracy over folds of all images."""

from collections.abc import Sequence

import numpy as np

from tasks.artifacts.arrays import Bools, Floats, Ints
from tasks.artifacts.records import Estimate, Folds
from tasks.auditing.held_out import HeldOut
from tasks.judging.statistics import (
    GroupBootstrap,
    accuracy_interval,
    difference_interval,
    independent_images,
)
from tasks.params import EvaluateParams


def right_in_folds(held_out: HeldOut) -> Bools:
    """Whether each image is classified correctly by the head that may judge it, bool (N,)."""
    right = np.zeros(len(held_out.judge), dtype=np.bool_)
    for images, log_p in held_out.answers():
        right[images] = log_p.argmax(axis=1) == held_out.pool.labels[images]
    return right


def accuracy_in_folds(
    held_out: HeldOut, *, confidence: float, resamples: int, seed: int
) -> Estimate | None:
    """Estimate the accuracy over folds; None where no head may judge an image."""
    judged = np.flatnonzero(held_out.judge >= 0)
    if not len(judged):
        return None
    return accuracy_interval(
        right_in_folds(held_out)[judged],
        [held_out.pool.groups[image] for image in judged],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def compare_with_folds(
    held_out: HeldOut, test: Ints, test_right: Bools, params: EvaluateParams, *, seed: int
) -> Folds | None:
    """Set a model's accuracy on the test images beside that of folds over all images.

    Both figures vary together, group by group: the test images count in both. They differ by more
    than chance where the interval of their difference excludes 0.

    Args:
        held_out: A head for each fold of all images.
        test: Numbers of the test images among them, int64 (n,).
        test_right: Whether the model classified each of these correctly, bool (n,).
        params: Resamples and confidence.
        seed: The run's seed.

    Returns:
        None where no head may judge an image.
    """
    accuracy = accuracy_in_folds(
        held_out, confidence=params.confidence, resamples=params.bootstrap, seed=seed
    )
    if accuracy is None:
        return None
    judged, right = np.flatnonzero(held_out.judge >= 0), right_in_folds(held_out)
    groups = held_out.pool.groups
    difference = _difference(right, judged, test, test_right, groups, params.confidence)
    return Folds(
        accuracy=accuracy,
        by_fold=[
            float(right[held_out.judge == number].mean())
            for number in range(len(held_out.heads))
            if np.any(held_out.judge == number)
        ],
        difference=difference,
        outside=not (difference.low or 0.0) <= 0 <= (difference.high or 0.0),
    )


def _difference(
    right: Bools,
    judged: Ints,
    test: Ints,
    test_right: Bools,
    groups: Sequence[str],
    confidence: float,
) -> Estimate:
    """Estimate accuracy on test minus accuracy over folds; see `compare_with_folds`.

    Its variance is what resamples of all groups tend to as they grow more, in closed form: where
    test holds few groups, resamples without any of them would have no figure.

    Source: Cochran 1977, Sampling techniques, section 6.3 (the variance of a ratio).
    """
    on_test, over_folds = float(test_right.mean()), float(right[judged].mean())
    shares = np.zeros(len(right))
    shares[test] += (test_right - on_test) / len(test)
    shares[judged] -= (right[judged] - over_folds) / len(judged)
    group_of = np.unique(np.array(groups, dtype=object), return_inverse=True)[1]
    own = np.bincount(group_of[test], test_right - on_test) / len(test)
    bootstrap = GroupBootstrap([groups[image] for image in test], resamples=0, seed=0)
    worth = independent_images(test_right.astype(np.float64), _total(own), bootstrap)
    interval = difference_interval(
        on_test - over_folds,
        _total(np.bincount(group_of, shares)),
        bootstrap,
        worth=worth,
        confidence=confidence,
    )
    return Estimate(value=on_test - over_folds, low=interval.low, high=interval.high, n=len(test))


def _total(by_group: Floats | Ints) -> float:
    return float(np.square(by_group).sum())
