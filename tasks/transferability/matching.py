"""Kernel mean matching: weights under which source images come as near to a target as they can."""

import numpy as np

from tasks.artifacts.arrays import Floats

TOLERANCE = 1e-4  # of the squared distance; the weights found are at most so far from the best
MOST_STEPS = 5_000
STEPS_A_CHECK = 10


def match_weights(kernel: Floats, likeness: Floats) -> Floats:
    """Weigh source images so that their mean embedding comes nearest to that of the target.

    Minimizes w' K w - 2 w' k over weights that are not negative and sum to 1, by accelerated
    projected gradient steps, until the duality gap says that it is done.

    Args:
        kernel: Of the source rows, K, float64 (m, m), no entry negative.
        likeness: Mean kernel of each source row with the target, k, float64 (m,).

    Returns:
        w, float64 (m,).

    Source: Huang et al. 2006, Correcting sample selection bias by unlabeled data; O'Donoghue and
    Candes 2015 (1204.3982), the restart.
    """
    step = 1 / float(kernel.sum(axis=1).max())  # at most 1 / the largest eigenvalue
    weights = ahead = np.full(len(kernel), 1 / len(kernel))
    momentum = 1.0
    for number in range(1, MOST_STEPS + 1):
        moved = _onto_simplex(ahead - step * (kernel @ ahead - likeness))
        if (ahead - moved) @ (moved - weights) > 0:
            momentum = 1.0
        grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + (momentum - 1) / grown * (moved - weights)
        weights, momentum = moved, grown
        if number % STEPS_A_CHECK == 0 and _gap(kernel, likeness, weights) < TOLERANCE:
            break
    return weights


def _gap(kernel: Floats, likeness: Floats, weights: Floats) -> float:
    """By how much the minimum may lie below the value at some weights, at most."""
    slope = 2 * (kernel @ weights - likeness)
    return float(slope @ weights - slope.min())


def _onto_simplex(point: Floats) -> Floats:
    """Find the nearest point whose entries are not negative and sum to 1.

    Source: Held, Wolfe and Crowder 1974; Duchi et al. 2008, algorithm of figure 1.
    """
    ordered = np.sort(point)[::-1]
    offsets = (np.cumsum(ordered) - 1) / np.arange(1, len(point) + 1)
    last = np.flatnonzero(ordered > offsets)[-1]
    result: Floats = np.maximum(point - offsets[last], 0)
    return result
