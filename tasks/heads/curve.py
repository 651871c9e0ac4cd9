"""The learning curve of the frozen head: what more images bring, measured on nested parts of train.

The last doubling is measured, the next one foretold by a power law through the points.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from tasks.artifacts.arrays import Bools, Floats, Logits
from tasks.artifacts.records import CurvePoint, Estimate, LearningCurve
from tasks.artifacts.sampling import nested_turns
from tasks.heads.features import Labeled
from tasks.heads.linear import choose_linear
from tasks.judging.rule import RESAMPLES, ValSet, judge_change
from tasks.judging.statistics import GroupBootstrap, accuracy_interval, percentile_interval

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training images
CONFIDENCE = 0.9
LEAST_IMAGES = 2  # a class, on average, of a part that is worth a point
HALF_AN_ERROR = 0.5  # is added, so that no resample without errors has a logarithm of 0


def measure_curve(
    train: Labeled,
    val: Labeled,
    strengths: Sequence[float],
    *,
    classes: int,
    seed: int,
    whole: Logits | None = None,
) -> LearningCurve:
    """Fit linear heads on nested parts of the training images and judge them on val.

    Each head gets the L2 strength that is best for its part, as the baseline's does.

    Args:
        train: Features, float32 (N, V, D), of the training images in all of their views.
        val: Features, float32 (N_val, 1, D), of the val images.
        strengths: That are chosen from.
        classes: Number of classes.
        seed: The run's seed.
        whole: Logits on val, float32 (N_val, C), of the head that learned from all images so, where
            it has been fitted already.
    """
    turns = nested_turns(train.labels, train.groups, seed=seed)
    parts = [np.flatnonzero(turns < share) for share in SHARES]
    parts = [part for part in parts if len(part) >= LEAST_IMAGES * classes] or parts[-1:]
    clean = val.features[:, 0]
    fitted = parts if whole is None else parts[:-1]
    logits = [
        choose_linear(train, val, strengths, classes=classes, seed=seed, images=part).chosen.logits(
            clean
        )
        for part in fitted
    ] + ([] if whole is None else [whole])
    return describe_curve([len(part) for part in parts], logits, val.judge, seed=seed)


def describe_curve(
    images: Sequence[int], logits: Sequence[Logits], val: ValSet, *, seed: int
) -> LearningCurve:
    """Judge heads that learned from more and more images.

    Args:
        images: Training images of each, ascending.
        logits: Of each on val, float32 (N_val, C).
        val: Labels and groups of the val images.
        seed: The run's seed.
    """
    points = [
        CurvePoint(
            images=count,
            val_accuracy=accuracy_interval(
                val.right(some), val.groups, confidence=CONFIDENCE, resamples=RESAMPLES, seed=seed
            ),
            val_loss=val.loss(some),
        )
        for count, some in zip(images, logits, strict=True)
    ]
    if len(points) < 2:
        return LearningCurve(points=points, last_step=None, pays=False, doubling=None)
    verdict = judge_change(logits[-2], logits[-1], val, confidence=CONFIDENCE, seed=seed)
    wrong = np.array([~val.right(some) for some in logits])
    return LearningCurve(
        points=points,
        last_step=verdict.accuracy,
        pays=verdict.better,
        doubling=foretell_doubling(images, wrong, verdict.accuracy, val, seed=seed),
    )


def foretell_doubling(
    images: Sequence[int], wrong: Bools, last_step: Estimate, val: ValSet, *, seed: int
) -> Estimate:
    """Foretell what twice the images would add to the val accuracy.

    The value is that of a power law of the error through all points. Its interval holds how far the
    law is uncertain, and the luck of two steps, of the one to the last point and of the one beyond.

    Args:
        images: Training images of each head, ascending, at least two.
        wrong: Whether each head has each val image wrong, bool (K, N).
        last_step: Change in accuracy to the last head from the one before.
        val: Labels and groups of the val images.
        seed: The run's seed.

    Source: Hestness et al. 2017, 1712.00409 (the power law of the error).
    """
    x = np.log(images) - np.mean(np.log(images))

    def gain(sums: Floats) -> Floats:
        errors = (sums[:-1] + HALF_AN_ERROR) / (sums[-1] + 2 * HALF_AN_ERROR)
        slope = np.minimum(0.0, x @ np.log(errors) / (x @ x))
        return np.asarray(errors[-1:] * (1 - 2.0**slope))

    rows = sparse.csr_array(np.vstack([wrong, np.ones(wrong.shape[1])]).astype(np.float64))
    bootstrap = GroupBootstrap(val.groups, resamples=RESAMPLES, seed=seed)
    value = float(gain(np.asarray(rows.sum(axis=1))[:, None])[0, 0])
    law = percentile_interval(
        value, bootstrap.replicates(rows, gain)[0], bootstrap, confidence=CONFIDENCE
    )
    half = None
    if law is not None and last_step.low is not None and last_step.high is not None:
        luck = np.sqrt(2) * (last_step.high - last_step.low)
        half = float(np.hypot(law.high - law.low, luck)) / 2
    return Estimate(
        value=value,
        low=None if half is None else max(-1.0, value - half),
        high=None if half is None else min(1.0, value + half),
        n=wrong.shape[1],
    )
