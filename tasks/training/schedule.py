"""Learning rates over time: linear warm-up, then half a cosine down to zero."""

import math


def warmup_cosine(step: int, *, steps: int, warmup_fraction: float) -> float:
    """Give the share of the peak rate at a step: (0, 1] in the warm-up, then down to almost 0.

    Args:
        step: From 0 to steps - 1.
        steps: Steps in all.
        warmup_fraction: Share of the steps over which the rate rises linearly, in [0, 1).

    Source: Goyal et al. 2017, 1706.02677 (warm-up); Loshchilov and Hutter 2017, 1608.03983
    (cosine).
    """
    warmup = round(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
