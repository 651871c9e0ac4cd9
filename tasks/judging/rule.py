"""Whether one model is better than another on the same val images, with an interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils.class_weight import compute_sample_weight

from tasks.artifacts.arrays import Ints, Logits
from tasks.artifacts.records import Estimate
from tasks.judging.metrics import image_losses, right_images
from tasks.judging.statistics import (
    GroupBootstrap,
    Interval,
    paired_accuracy_interval,
    percentile_interval,
)

RESAMPLES = 2000


@dataclass(frozen=True)
class ValSet:
    """What judges.

    Attributes:
        labels: Class of each image, int64 (N,).
        groups: Group of each image.
        balanced: Whether all classes count the same in what judges, as they do in a class-balanced
            loss; otherwise all images do.
    """

    labels: Ints
    groups: Sequence[str]
    balanced: bool = False

    @cached_property
    def weights(self) -> NDArray[np.float64] | None:
        """What each image counts, float64 (N,); None: all the same."""
        return compute_sample_weight("balanced", self.labels) if self.balanced else None


@dataclass(frozen=True)
class Verdict:
    """What val says about a change.

    Attributes:
        accuracy: Change in accuracy.
        better: The whole interval of the accuracy's change is above 0.
        worse: The accuracy fell beyond doubt; or it is in doubt, and the loss rose beyond doubt.
        reason: One sentence.
    """

    accuracy: Estimate
    better: bool
    worse: bool
    reason: str


def judge_change(
    before: Logits, after: Logits, val: ValSet, *, confidence: float, seed: int
) -> Verdict:
    """Compare the logits (N, C) of two models on val.

    Accuracy speaks first. A change that it leaves in doubt is judged by the loss, which sees more:
    how sure the model is of every image.

    Args:
        before: Logits of the model that is changed.
        after: Logits of the changed model.
        val: Labels and groups of the images.
        confidence: Of the two-sided intervals, in [0.5, 1).
        seed: The run's seed.
    """
    accuracy = paired_accuracy_interval(
        right_images(before, val.labels),
        right_images(after, val.labels),
        val.groups,
        confidence=confidence,
        resamples=RESAMPLES,
        seed=seed,
        weights=val.weights,
    )
    rises = image_losses(after, val.labels) - image_losses(before, val.labels)
    rise = float(np.average(rises, weights=val.weights))
    loss = _mean_interval(rises, rise, val, confidence=confidence, seed=seed)
    assert accuracy.low is not None
    assert accuracy.high is not None
    fell, rose = accuracy.high < 0, accuracy.low > 0
    loss_rose = loss is not None and loss.low > 0
    return Verdict(
        accuracy=accuracy,
        better=rose,
        worse=fell or (loss_rose and not rose),
        reason=_describe(accuracy, rise, loss, confidence, balanced=val.balanced),
    )


def _mean_interval(
    values: NDArray[np.float64], mean: float, val: ValSet, *, confidence: float, seed: int
) -> Interval | None:
    """Bound the mean of values (N,) over the images of val, as they count."""
    bootstrap = GroupBootstrap(val.groups, resamples=RESAMPLES, seed=seed)
    weights = np.ones(len(values)) if val.weights is None else val.weights
    sums = sparse.csr_array(np.stack([weights * values, weights]))
    means = bootstrap.replicates(sums, lambda drawn: drawn[:1] / drawn[1:])[0]
    return percentile_interval(mean, means, bootstrap, confidence=confidence)


def _describe(
    accuracy: Estimate, rise: float, loss: Interval | None, confidence: float, *, balanced: bool
) -> str:
    kind = "class-balanced " if balanced else ""
    spread = "" if loss is None else f" [{loss.low:+.3f}, {loss.high:+.3f}]"
    return (
        f"{kind}val accuracy changed by {100 * accuracy.value:+.1f} points "
        f"[{100 * (accuracy.low or 0):+.1f}, {100 * (accuracy.high or 0):+.1f}], val loss by "
        f"{rise:+.3f}{spread} ({confidence:.0%} intervals, {accuracy.n} images)"
    )


def val_loss(logits: Logits, val: ValSet) -> float:
    """Mean cross-entropy of logits (N, C) over val, as its images count, nats."""
    return float(np.average(image_losses(logits, val.labels), weights=val.weights))


def val_accuracy(logits: Logits, val: ValSet) -> float:
    """Share of val images whose largest logit (N, C) is their label's."""
    return float(right_images(logits, val.labels).mean())
