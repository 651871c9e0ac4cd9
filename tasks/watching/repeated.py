"""Tests that are repeated look after look: one rate of false alarms for all looks of five years.

A look gets a share of the rate, and its tests share that. Only the union bound is used, because
the looks are not independent: all are compared with the same held-out images, so that an odd
sample of those shows in every look. What multiplies evidence over looks, as e-processes do, would
need looks that are independent given those before.

Source: Lan and DeMets 1983, Discrete sequential boundaries for clinical trials (spending a rate
over looks); Holm 1979, A simple sequentially rejective multiple test procedure.
"""

from collections.abc import Sequence

import numpy as np

from tasks.artifacts.arrays import Floats

ALARM_RATE = 0.05  # probability of any false alarm in `LIFETIME` looks of a model, at most
HALF_SPENT = 104  # looks that may spend half of it: weekly ones of two years
LIFETIME = 260  # looks after which the rate begins anew: later levels take hours of relabelings


def level_of(look: int) -> float:
    """Give the rate of false alarms that a look may have; `look` counts from 1.

    alpha_k = alpha c / ((c + k - 1) (c + k)), of which k looks spend alpha k / (c + k), less than
    alpha in all. It falls slowly: the 104th look has a quarter of what the first has, where the
    common 6 alpha / (pi^2 k^2) would leave a tenth of that to it. After `LIFETIME` looks k begins
    at 1 again.
    """
    k = 1 + (look - 1) % LIFETIME
    return ALARM_RATE * HALF_SPENT / ((HALF_SPENT + k - 1) * (HALF_SPENT + k))


def correct(p_values: Sequence[float], look: int) -> Floats:
    """Correct the p-values of a look for each other and for all looks, float64 (T,).

    The world has changed where one is at most `ALARM_RATE`.

    Args:
        p_values: Of T tests, whatever they have in common.
        look: From 1.
    """
    raw = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    stepped = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    corrected = np.empty_like(raw)
    corrected[order] = np.minimum(1.0, stepped * ALARM_RATE / level_of(look))
    return corrected


def smallest_needed(tests: int, look: int) -> float:
    """Give the p-value that the smallest of `tests` must not exceed for an alarm."""
    return level_of(look) / tests
