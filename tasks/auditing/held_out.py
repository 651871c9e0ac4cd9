"""Linear heads on frozen features that judge images of groups they were not fitted on.

Every image gets the answer of the one head that knows nothing of its group. What is fitted is
bounded, what is judged is not: features stay on disk and answers come block by block. Their
accuracy over all images, beside the figure on test, tells whether the split was lucky.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tasks.artifacts.arrays import Bools, Features, Floats, Ints
from tasks.artifacts.records import Estimate, Folds
from tasks.heads.features import ROWS_AT_ONCE, Labeled
from tasks.heads.linear import LinearFit, ScaledRows, fit_path
from tasks.judging.metrics import log_probabilities
from tasks.judging.statistics import (
    GroupBootstrap,
    accuracy_interval,
    difference_interval,
    independent_images,
)
from tasks.params import EvaluateParams
from tasks.runtime.progress import progress

FOLDS = 5
MOST_IMAGES = 20_000  # that one head is fitted on: more would cost time and change little
CHOOSING = 0x464F  # purpose of the random numbers drawn here


@dataclass(frozen=True)
class Pool:
    """Clean views of the images of one or more splits, numbered one split after the other."""

    parts: Sequence[Labeled]

    @cached_property
    def labels(self) -> Ints:
        """Class of every image, int64 (N,)."""
        return np.concatenate([part.labels for part in self.parts])

    @cached_property
    def groups(self) -> list[str]:
        """Group of every image."""
        return [group for part in self.parts for group in part.groups]

    @property
    def balanced(self) -> bool:
        """Whether all classes count the same in what is learned."""
        return any(part.balanced for part in self.parts)

    def features(self, images: Ints) -> Features:
        """Read the features, float32 (n, D), of some images in the order asked for."""
        out = np.empty((len(images), self.parts[0].features.shape[2]), dtype=np.float32)
        start = 0
        for part in self.parts:
            here = (images >= start) & (images < start + len(part.labels))
            out[here] = part.features[images[here] - start, 0]
            start += len(part.labels)
        return out


@dataclass(frozen=True)
class HeldOut:
    """One head a fold.

    Attributes:
        pool: The images.
        heads: Each was fitted on all folds but its own.
        judge: Number of the head that judges each image, int64 (N,); -1 where none may, because no
            other group has the image's class.
    """

    pool: Pool
    heads: Sequence[LinearFit]
    judge: Ints

    def answers(self) -> Iterator[tuple[Ints, Floats]]:
        """Yield numbers of images (n,) and their log probabilities, float64 (n, C), in blocks."""
        for number, head in enumerate(self.heads):
            judged = np.flatnonzero(self.judge == number)
            for start in range(0, len(judged), ROWS_AT_ONCE):
                images = judged[start : start + ROWS_AT_ONCE]
                yield images, log_probabilities(head.logits(self.pool.features(images)))


def hold_out(pool: Pool, strength: float, *, classes: int, seed: int) -> HeldOut:
    """Fit a head for each fold.

    Args:
        pool: The images, and whether their classes count the same.
        strength: L2 strength of every head, as `tasks.heads.linear` means it.
        classes: Number of classes.
        seed: The run's seed.
    """
    folds = assign_folds(pool.labels, pool.groups, seed=seed)
    judge = np.full(len(folds), -1, dtype=np.int64)
    heads: list[LinearFit] = []
    numbers = np.unique(folds) if len(np.unique(folds)) > 1 else np.empty(0, np.int64)
    with progress("folds", len(numbers), "fits") as meter:
        for number in numbers:
            others = np.flatnonzero(folds != number)
            known = np.isin(pool.labels, pool.labels[others])
            judge[(folds == number) & known] = len(heads)
            heads.append(_fit(pool, others, strength, classes, seed=seed))
            meter.advance()
    return HeldOut(pool, heads, judge)


def _fit(pool: Pool, images: Ints, strength: float, classes: int, *, seed: int) -> LinearFit:
    images = images[choose_images(pool.labels[images], MOST_IMAGES, seed=seed)]
    groups = [pool.groups[image] for image in images]
    data = Labeled(pool.features(images)[:, None], pool.labels[images], groups, pool.balanced)
    rows = ScaledRows(data, np.arange(len(images)))
    return next(fit_path(rows, classes, [strength]))


def assign_folds(labels: Ints, groups: Sequence[str], *, seed: int) -> Ints:
    """Deal the groups to folds, class after class and the largest first.

    Args:
        labels: Class of each image, int64 (N,).
        groups: Group of each image; all images of one go to one fold.
        seed: Other seeds deal in another order.

    Returns:
        Fold of each image, int64 (N,), in [0, 5).
    """
    names, group_of = np.unique(np.array(groups, dtype=object), return_inverse=True)
    classes = np.zeros(len(names), dtype=np.int64)
    classes[group_of[::-1]] = labels[::-1]  # that of the first image
    sizes = np.bincount(group_of, minlength=len(names))
    turn = sorted(
        range(len(names)),
        key=lambda group: (classes[group], -sizes[group], _hash(str(names[group]), seed)),
    )
    fold_of_group = np.empty(len(names), dtype=np.int64)
    fold_of_group[turn] = np.arange(len(names)) % FOLDS
    return np.asarray(fold_of_group[group_of])


def _hash(group: str, seed: int) -> bytes:
    text = f"{seed}:fold:{group}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def choose_images(labels: Ints, most: int, *, seed: int) -> Ints:
    """Choose at most `most` images by chance so that every class keeps its share, ascending.

    Every class comes once before any comes twice.
    """
    shuffled = np.random.default_rng([seed, CHOOSING]).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    own = labels[by_class]
    turn = (np.arange(len(labels)) - first[own]) / counts[own]
    chosen = by_class[np.argsort(turn, kind="stable")[:most]]
    return np.sort(chosen)


def right_in_folds(held_out: HeldOut) -> Bools:
    """Whether each image is classified correctly by the head that may judge it, bool (N,)."""
    right = np.zeros(len(held_out.judge), dtype=np.bool_)
    for images, log_p in held_out.answers():
        right[images] = log_p.argmax(axis=1) == held_out.pool.labels[images]
    return right


def accuracy_in_folds(
    held_out: HeldOut, right: Bools, *, confidence: float, resamples: int, seed: int
) -> Estimate | None:
    """Estimate the accuracy over folds, of `right_in_folds`; None where no head may judge."""
    judged = np.flatnonzero(held_out.judge >= 0)
    if not len(judged):
        return None
    return accuracy_interval(
        right[judged],
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
    judged, right = np.flatnonzero(held_out.judge >= 0), right_in_folds(held_out)
    accuracy = accuracy_in_folds(
        held_out, right, confidence=params.confidence, resamples=params.bootstrap, seed=seed
    )
    if accuracy is None:
        return None
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
