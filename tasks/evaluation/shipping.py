"""Which model ships: the one that val prefers. The test images have no say, but may warn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.utils.class_weight import compute_sample_weight

from tasks.artifacts.arrays import Bools, Floats
from tasks.artifacts.records import Arm, Estimate
from tasks.artifacts.tables import Manifest
from tasks.evaluation.words import name_trained
from tasks.judging.answers import Judged
from tasks.judging.statistics import paired_accuracy_interval
from tasks.params import EvaluateParams

Shipped = Literal["baseline", "finetuned"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that ships, and why in one sentence."""

    shipped: Shipped
    reason: str


ONLY_BASELINE = Choice("baseline", "Nothing was fine-tuned; the baseline is the only model.")


def choose_model(
    baseline: Judged,
    finetuned: Judged,
    groups: Sequence[str],
    params: EvaluateParams,
    *,
    seed: int,
    arm: Arm,
    balanced: bool = False,
) -> Choice:
    """Choose by accuracy on val; where its interval includes no difference, by calibrated loss.

    Args:
        baseline: Its answers to the val images.
        finetuned: The same of the model of stage finetune.
        groups: The groups of the val images, (N,).
        params: Resamples and confidence.
        seed: The run's seed.
        arm: How stage finetune trained its model.
        balanced: Whether all classes count the same, as they did in its training.
    """
    weights = compute_sample_weight("balanced", baseline.labels) if balanced else None
    kind = "class-balanced " if balanced else ""
    names: dict[Shipped, str] = {"baseline": "baseline", "finetuned": name_trained(arm)}
    gain = paired_accuracy_interval(
        baseline.right,
        finetuned.right,
        groups,
        confidence=params.confidence,
        resamples=params.bootstrap,
        seed=seed,
        weights=weights,
    )
    before, after = (_mean(model.right, weights) for model in (baseline, finetuned))
    if not _within_noise(gain):
        shipped: Shipped = "finetuned" if gain.value > 0 else "baseline"
        return Choice(
            shipped,
            f"The {names[shipped]} is better on val: {kind}accuracy "
            f"{max(before, after):.3f} against {min(before, after):.3f} ({gain.n:,} images).",
        )
    losses = {
        "baseline": _mean(baseline.losses, weights),
        "finetuned": _mean(finetuned.losses, weights),
    }
    shipped = "finetuned" if losses["finetuned"] < losses["baseline"] else "baseline"
    return Choice(
        shipped,
        f"On val the {kind}accuracies of baseline ({before:.3f}) and {names['finetuned']} "
        f"({after:.3f}) differ within noise ({gain.n:,} images); the {names[shipped]} has the "
        f"{'lower' if losses['finetuned'] != losses['baseline'] else 'same'} calibrated loss, "
        f"{min(losses.values()):.3f} against {max(losses.values()):.3f}.",
    )


def _mean(values: Bools | Floats, weights: Floats | None) -> float:
    return float(np.average(values, weights=weights))


def _within_noise(gain: Estimate) -> bool:
    return gain.low is None or gain.high is None or gain.low <= 0 <= gain.high


# the least a model must beat ---------------------------------------------------------------------


def majority_right(manifest: Manifest) -> Bools:
    """Whether always naming the largest training class is right on each test image, (N,)."""
    largest = np.argmax(np.bincount(manifest.labels("train")))
    return np.equal(manifest.labels("test"), largest)


def warn_of_majority(
    shipped: Bools, majority: Bools, groups: Sequence[str], params: EvaluateParams, *, seed: int
) -> list[str]:
    """Say so if the shipped model is not surely better than always naming the largest class."""
    gain = paired_accuracy_interval(
        majority,
        shipped,
        groups,
        confidence=params.confidence,
        resamples=params.bootstrap,
        seed=seed,
    )
    if gain.low is not None and gain.low > 0:
        return []
    return [
        f"The shipped model (test accuracy {np.mean(shipped):.3f}) is not shown to be better than "
        f"always naming the largest training class ({np.mean(majority):.3f}): the difference is "
        f"within noise or negative on {gain.n:,} images. Check labels and images before using it."
    ]
