"""What a learning-rate range test tries, and what its losses suggest."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.errors import TrainingError
from tasks.params import FinetuneParams
from tasks.records import RangeTest

FIRST, LAST, STEPS = 1e-7, 10.0, 100
SMOOTHING = 0.98  # share of the old average that stays
FALL = 0.01  # of the first loss: a smaller fall does not tell one rate from another
RISE = 1.1  # smoothed loss, as a multiple of its lowest value, that no rate may cause
SMALLEST = 1e-6  # nats; corrected losses may end below 0

Doubles = NDArray[np.float64]


def rates_tried() -> Doubles:
    """Rate of the head at every step, rising by a constant factor, float64 (STEPS,)."""
    rates: Doubles = FIRST * (LAST / FIRST) ** (np.arange(STEPS) / STEPS)
    return rates


def smooth_losses(losses: Sequence[float]) -> Doubles:
    """Moving average of losses, corrected for its start at 0; the same length, at least 1e-6."""
    average, smoothed = 0.0, []
    for number, loss in enumerate(losses, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smoothed.append(average / (1 - SMOOTHING**number))
    return np.maximum(smoothed, SMALLEST)


def suggest_rate(rates: Doubles, curve: Doubles) -> RangeTest:
    """Suggest the rate at which the loss falls steepest before its minimum.

    Where it does not fall by a hundredth, no rate is better than the others in so few steps: then
    the highest rate is suggested that does not make it rise by a tenth.

    Args:
        rates: Tried, at constant ratios, (n,).
        curve: Smoothed loss at each, (n,).

    Raises:
        TrainingError: There are not two rates to compare.

    Source: steepest descent over the logarithm of the rate is fastai's `steep`.
    """
    if len(curve) < 2:
        raise TrainingError(
            "finetune.head_lr is auto, but training breaks down at once, even at a rate of "
            f"{FIRST:g}: the weights or the images are damaged"
        )
    lowest = int(curve.argmin())
    falls = curve[lowest] <= (1 - FALL) * curve[0]
    if falls:
        suggested = int(np.diff(curve[: lowest + 1]).argmin())
    else:
        suggested = int(np.argmax([*(curve > RISE * curve[lowest]), True])) - 1
    return RangeTest(
        suggested=float(rates[suggested]),
        falls=bool(falls),
        steps=len(curve),
        first_loss=float(curve[0]),
        lowest_loss=float(curve[lowest]),
        lowest_at=float(rates[lowest]),
    )


def describe_range_test(test: RangeTest | None, params: FinetuneParams) -> list[str]:
    """Say in words what was found, if there was a test."""
    if test is None:
        return []
    saw = (
        f"the loss falls steepest there, from {test.first_loss:.3f} to {test.lowest_loss:.3f} at "
        f"{test.lowest_at:.2g}"
        if test.falls
        else f"no rate lowers the loss of {test.first_loss:.3f} by a hundredth, and above this one "
        "it rises by a tenth"
    )
    lowered = params.backbone_lr > test.suggested
    return [
        f"The learning-rate range test suggests {test.suggested:.2g} for the head: {saw} "
        f"({test.steps} steps)."
        + (f" The backbone's rate of {params.backbone_lr:.2g} is lowered to it." * lowered)
    ]
