"""Permutation test of equal distributions: one kernel matrix, relabelings as matrix products."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.transferability.kernels import gaussian_kernel

PERMUTING = 0x4D50  # purpose of the random numbers drawn here
PERMUTATIONS_AT_ONCE = 250
ROUNDING = 1e-12  # a relabeling that ties with the data counts as reaching it

Floats = NDArray[np.float64]
Features = NDArray[np.float32] | Floats


def permutation_p_value(
    x: Floats, y: Features, bandwidths: Sequence[float], *, permutations: int, seed: int
) -> float:
    """Test that two samples of independent rows come from one distribution.

    Args:
        x: float64 (m, D).
        y: (n, D).
        bandwidths: Of the Gaussian kernels.
        permutations: Random relabelings, B.
        seed: The run's seed.

    Returns:
        (1 + relabelings whose MMD^2 reaches that of the data) / (1 + B), at least 1 / (1 + B).

    Source: Phipson and Smyth 2010, Permutation p-values should never be zero.
    """
    pooled = np.concatenate([x, np.asarray(y, dtype=np.float64)])
    kernel = gaussian_kernel(pooled, pooled, bandwidths)
    np.fill_diagonal(kernel, 0)
    observed = _mmd_of_labelings(kernel, (np.arange(len(pooled)) < len(x))[None])[0]
    rng = np.random.default_rng([seed, PERMUTING])
    reached = sum(
        int(np.sum(_mmd_of_labelings(kernel, first) >= observed - ROUNDING))
        for first in _labelings(rng, len(x), len(pooled), permutations)
    )
    return (1 + reached) / (1 + permutations)


def _labelings(
    rng: np.random.Generator, first: int, rows: int, permutations: int
) -> Iterator[NDArray[np.bool_]]:
    """Yield random choices of `first` rows, some at a time, bool (b, rows)."""
    labels = np.arange(rows) < first
    for start in range(0, permutations, PERMUTATIONS_AT_ONCE):
        size = min(PERMUTATIONS_AT_ONCE, permutations - start)
        yield rng.permuted(np.broadcast_to(labels, (size, rows)), axis=1)


def _mmd_of_labelings(kernel: Floats, first: NDArray[np.bool_]) -> Floats:
    """Unbiased MMD^2 between marked rows (b, N) and the others; kernel (N, N), zero diagonal."""
    marks = first.astype(np.float64)
    m = marks.sum(axis=1)
    n = len(kernel) - m
    xx = np.einsum("bi,bi->b", marks @ kernel, marks)
    xy = marks @ kernel.sum(axis=1) - xx
    yy = kernel.sum() - xx - 2 * xy
    result: Floats = xx / (m * (m - 1)) + yy / (n * (n - 1)) - 2 * xy / (m * n)
    return result
