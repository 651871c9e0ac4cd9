"""Whether one model is better than another on the same val images: one rule for every choice.

Among candidates of one kind (strengths, epochs, shares of weights, arms that stay in a race,
settings of a sweep) the one with the lowest loss is taken. Where a model would take the place of
another one (a later head, a phase, the winner of a race, the model that ships, and again a setting
of a sweep) accuracy speaks first.

Losses are compared after calibration: how sure a model is on the whole is one number, which the end
of the pipeline fits anyway, and a loss that holds it favors whoever happens to have it right. A
frozen head is calibrated as it is fitted, a fine-tuned network need not be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from sklearn.model_selection import GroupKFold
from sklearn.utils.class_weight import compute_sample_weight

from tasks.artifacts.arrays import Bools, Floats, Ints, Logits
from tasks.artifacts.records import Estimate
from tasks.judging.calibration import fit_temperature
from tasks.judging.metrics import label_losses, log_probabilities, right_images
from tasks.judging.statistics import paired_interval

RESAMPLES = 2000
FOLDS = 5  # of the groups, for temperatures
SAME = 1e-4  # nats: losses that differ by less are those of one model at two temperatures
FITTED_IMAGES = 2000  # most images that a temperature is fitted on: one number needs no more


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
    def weights(self) -> Floats | None:
        """What each image counts, float64 (N,); None: all the same."""
        return compute_sample_weight("balanced", self.labels) if self.balanced else None

    def right(self, logits: Logits) -> Bools:
        """Whether the largest logit of each image is its label's, (N,)."""
        return right_images(logits, self.labels)

    def accuracy(self, logits: Logits) -> float:
        """Share of images whose largest logit (N, C) is their label's."""
        return float(self.right(logits).mean())

    def losses(self, logits: Logits) -> Floats:
        """Calibrated cross-entropy of each image, nats, (N,), from logits (N, C).

        The temperature is fitted on the same images. That flatters every model by one number, so
        that it cancels where models are compared. Out of fold, few images tell a temperature so
        badly that a good model may lose more than it knows: of ten solar cells 0.81 against 0.73
        of one that had collapsed, where its own temperature gives 0.58 against 0.67.
        """
        temperature = self._fit(logits, self._fitted(np.arange(len(self.labels))))
        return label_losses(log_probabilities(logits, temperature), self.labels)

    def temperature(self, logits: Logits) -> float:
        """Temperature of a model for images to come, from its logits (N, C).

        The one fitted on all images, log T drawn towards 0 by how much the folds disagree about it:
        `log T` times `log T ** 2 / (log T ** 2 + v)` where v is the jackknife's variance over folds
        of groups. So it stays near 1 where few groups cannot tell. 1 where there is one group.

        Source: Guo et al. 2017, 1706.04599 (the temperature); Efron and Stein 1981, The jackknife
        estimate of variance; the factor is the best linear one for an estimate of that variance.
        """
        fitted = np.log([self._fit(logits, others) for others, _ in self._folds])
        folds = len(fitted)
        whole = np.log(self._fit(logits, np.arange(len(self.labels))))
        if folds < 2 or whole == 0:
            return 1.0
        variance = (folds - 1) * np.var(fitted)
        return float(np.exp(whole * whole**2 / (whole**2 + variance)))

    def _fit(self, logits: Logits, images: Ints) -> float:
        """Fit a temperature on some images; labels are smoothed by what so few can tell."""
        return fit_temperature(
            logits[images],
            self.labels[images],
            smoothing=1 / (len(images) + 2),
            weights=None if self.weights is None else self.weights[images],
        )

    def loss(self, logits: Logits) -> float:
        """Mean calibrated cross-entropy of logits (N, C), as images count, nats."""
        return float(np.average(self.losses(logits), weights=self.weights))

    @cached_property
    def _folds(self) -> list[tuple[Ints, Ints]]:
        """Images that a temperature is fitted on, and those it is for; all of one group."""
        everyone = np.arange(len(self.labels))
        _, groups = np.unique(np.array(self.groups, dtype=object), return_inverse=True)
        count = min(FOLDS, len(set(groups.tolist())))
        folds = (
            [(everyone, everyone)]
            if count < 2
            else GroupKFold(count).split(everyone, groups=groups)
        )
        return [(self._fitted(fitted), judged) for fitted, judged in folds]

    def _fitted(self, images: Ints) -> Ints:
        """Those of some images that a temperature is fitted on."""
        return images[:: -(-len(images) // FITTED_IMAGES)]


@dataclass(frozen=True)
class Verdict:
    """What val says about a change.

    Attributes:
        accuracy: Change in accuracy.
        loss: Change in calibrated loss.
        better: The accuracy rose beyond doubt; or it did not fall, and the loss fell beyond doubt.
        worse: The same of the way back.
        reason: One sentence.
    """

    accuracy: Estimate
    loss: Estimate
    better: bool
    worse: bool
    reason: str

    @property
    def preferred(self) -> bool:
        """Whether the changed model is the one to take; where nothing is sure, by the loss."""
        return self.better or (not self.worse and self.loss.value < -SAME)


def judge_change(
    before: Logits, after: Logits, val: ValSet, *, confidence: float, seed: int
) -> Verdict:
    """Compare the logits (N, C) of two models on val.

    Args:
        before: Logits of the model that is changed.
        after: Logits of the changed model.
        val: Labels and groups of the images.
        confidence: Of the two-sided intervals, in [0.5, 1).
        seed: The run's seed.
    """
    return judge_images(
        val.right(after).astype(np.float64) - val.right(before),
        val.losses(after) - val.losses(before),
        val.groups,
        val.weights,
        confidence=confidence,
        seed=seed,
    )


def judge_images(
    gains: Floats,
    losses: Floats,
    groups: Sequence[str],
    weights: Floats | None,
    *,
    confidence: float,
    seed: int,
) -> Verdict:
    """Judge a change by what it does to each image.

    Accuracy speaks first. A change that it leaves in doubt is judged by the calibrated loss, which
    sees more: how sure the model is of one image beside another. It does not speak against a change
    in accuracy.

    Args:
        gains: 1 where an image is right only after the change, -1 where only before it, float64
            (N,).
        losses: Change in the calibrated loss of each image, nats, float64 (N,).
        groups: Group of each image.
        weights: What each image counts, float64 (N,); None: all the same.
        confidence: Of the two-sided intervals, in [0.5, 1).
        seed: The run's seed.
    """
    measure = partial(
        paired_interval,
        groups=groups,
        confidence=confidence,
        resamples=RESAMPLES,
        seed=seed,
        weights=weights,
    )
    accuracy, loss = measure(gains, largest=1.0), measure(losses)
    return Verdict(
        accuracy=accuracy,
        loss=loss,
        better=_is_above(accuracy) or (_is_below(loss) and accuracy.value >= 0),
        worse=_is_below(accuracy) or (_is_above(loss) and accuracy.value <= 0),
        reason=_describe(accuracy, loss, confidence, balanced=weights is not None),
    )


def measure_room(logits: Logits, val: ValSet, *, confidence: float, seed: int) -> Estimate:
    """Estimate what a model without mistakes would add to the accuracy of logits (N, C).

    Where this is not above 0 beyond doubt, no model can be better in accuracy beyond doubt.
    """
    return paired_interval(
        (~val.right(logits)).astype(np.float64),
        val.groups,
        confidence=confidence,
        resamples=RESAMPLES,
        seed=seed,
        weights=val.weights,
        largest=1.0,
    )


def _is_above(change: Estimate) -> bool:
    return change.low is not None and change.low > 0


def _is_below(change: Estimate) -> bool:
    return change.high is not None and change.high < 0


def _describe(accuracy: Estimate, loss: Estimate, confidence: float, *, balanced: bool) -> str:
    kind = "class-balanced " if balanced else ""
    points = [100 * (number or 0.0) for number in (accuracy.value, accuracy.low, accuracy.high)]
    return (
        f"{kind}val accuracy changed by {points[0]:+.1f} points [{points[1]:+.1f}, "
        f"{points[2]:+.1f}], calibrated val loss by {loss.value:+.3f} [{loss.low:+.3f}, "
        f"{loss.high:+.3f}] ({confidence:.0%} intervals, {accuracy.n} images)"
    )


RISE = 1.02  # val loss over its lowest value that is worth telling
GAP = 0.1  # train minus val accuracy that is worth telling


@dataclass(frozen=True, slots=True)
class EpochLosses:
    """Losses of one epoch; the train loss is with dropout, while it trained."""

    train_loss: float
    val_loss: float


def describe_overfitting(
    what: str, epochs: Sequence[EpochLosses], best_epoch: int, outcome: str
) -> str | None:
    """Say that the last epoch had learned more and knew less than the best one; None if not.

    Args:
        what: What was trained, at the head of a sentence.
        epochs: Losses of all epochs.
        best_epoch: The one with the lowest val loss, from 1.
        outcome: What became of it, the end of the sentence.
    """
    best, last = epochs[best_epoch - 1], epochs[-1]
    if last.train_loss >= best.train_loss or last.val_loss <= RISE * best.val_loss:
        return None
    return (
        f"{what} overfits after epoch {best_epoch}: train loss fell from {best.train_loss:.3f} to "
        f"{last.train_loss:.3f} while val loss rose from {best.val_loss:.3f} to "
        f"{last.val_loss:.3f}; {outcome}."
    )


def describe_gap(train_accuracy: float, val_accuracy: float) -> str | None:
    """Say that a head is much better on train than on val; None if not."""
    if train_accuracy - val_accuracy < GAP:
        return None
    return (
        f"The head overfits: accuracy {train_accuracy:.3f} on train, {val_accuracy:.3f} on val. "
        "More images or views, or fine-tuning, may help more than another head."
    )
