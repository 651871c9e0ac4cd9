"""Which model ships: the one that val prefers. The test images have no say, but may warn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.artifacts.arrays import Bools, Logits
from tasks.artifacts.records import Arm, ModelName
from tasks.artifacts.tables import Manifest
from tasks.artifacts.words import name_trained
from tasks.judging.rule import ValSet, judge_change
from tasks.judging.statistics import paired_accuracy_interval
from tasks.params import EvaluateParams


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that ships, and why in one sentence."""

    shipped: ModelName
    reason: str


ONLY_BASELINE = Choice("baseline", "Nothing was fine-tuned; the baseline is the only model.")


def choose_model(
    baseline: Logits, finetuned: Logits, val: ValSet, *, confidence: float, seed: int, arm: Arm
) -> Choice:
    """Choose on val: by accuracy, and where it leaves doubt by calibrated loss.

    Args:
        baseline: Its logits on the val images, (N, C).
        finetuned: The same of the model of stage finetune.
        val: Labels and groups of the images.
        confidence: Of the intervals, in [0.5, 1).
        seed: The run's seed.
        arm: How stage finetune trained its model.
    """
    verdict = judge_change(baseline, finetuned, val, confidence=confidence, seed=seed)
    names: dict[ModelName, str] = {"baseline": "baseline", "finetuned": name_trained(arm)}
    shipped: ModelName = "finetuned" if verdict.preferred else "baseline"
    sure = "is better" if verdict.better or verdict.worse else "has no higher loss"
    return Choice(
        shipped,
        f"The {names[shipped]} {sure} on val: from the baseline to the {names['finetuned']}, "
        f"{verdict.reason}.",
    )


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
