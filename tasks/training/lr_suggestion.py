"""What a learning-rate range test tries, and what its losses suggest."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.errors import TrainingError
from tasks.params import FinetuneParams
from tasks.records import RangeTest

FIRST, LAST, STEPS = 1e-6, 0.1, 100  # a head that was fitted stands no higher rates
SMOOTHING = (
    0.8  # share of the old average that stays; little, as losses are corrected (RangeTester)
)
FALL = 0.01  # of the first loss: a smaller fall does not tell one rate from another
RISE = 1.1  # smoothed loss, as a multiple of its lowest value, that no rate may cause
MARGIN = 10  # below the rate that a hundred steps stand: training holds its rate for longer
SMALLEST = 1e-6  # nats; corrected losses may end below 0

BROKEN = (
    f"finetune.head_lr is auto, but training breaks down at once, even at a rate of {FIRST:g}: the "
    "weights or the images are damaged"
)

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
    """Suggest a tenth of the rate at which the loss is lowest.

    Where it does not fall by a hundredth, no rate is better than the others in so few steps: then
    a tenth is suggested of the highest rate up to which it does not rise by a tenth.

    Args:
        rates: Tried, at constant ratios, (n,).
        curve: Smoothed loss at each, (n,).

    Raises:
        TrainingError: There are not two rates to compare.

    Source: a tenth of the rate of the lowest loss is `minimum` of fastai's lr_find.
    """
    if len(curve) < 2:
        raise TrainingError(BROKEN)
    lowest = int(curve.argmin())
    falls = bool(curve[lowest] <= (1 - FALL) * curve[0])
    above = np.flatnonzero(curve[lowest:] > RISE * curve[lowest])
    risen = lowest + int(above[0]) if len(above) else None
    limit = lowest if falls else len(curve) - 1 if risen is None else risen - 1
    return RangeTest(
        suggested=float(rates[limit]) / MARGIN,
        falls=falls,
        rises=risen is not None,
        steps=len(curve),
        first_loss=float(curve[0]),
        lowest_loss=float(curve[lowest]),
        lowest_at=float(rates[lowest]),
    )


def describe_range_test(test: RangeTest | None, params: FinetuneParams) -> list[str]:
    """Say in words what was found, if there was a test."""
    if test is None:
        return []
    limit = MARGIN * test.suggested
    if test.falls:
        saw = f"the loss is lowest, falling from {test.first_loss:.3f} to {test.lowest_loss:.3f}"
    elif test.rises:
        saw = f"the loss of {test.first_loss:.3f} rises by a tenth, and no rate lowers it"
    else:
        saw = f"the test ends; no rate changed the loss of {test.first_loss:.3f} much"
    lowered = params.backbone_lr > test.suggested
    return [
        f"The learning-rate range test suggests {test.suggested:.2g} for the head, a tenth of "
        f"{limit:.2g}, where {saw} ({test.steps} steps)."
        + (f" The backbone's rate of {params.backbone_lr:.2g} is lowered to it." * lowered)
    ]
