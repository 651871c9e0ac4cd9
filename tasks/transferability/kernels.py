"""Gaussian kernels over all pairs of rows, and the bandwidths that a source sets."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances

from tasks.errors import ArtifactError

BANDWIDTH_FACTORS = (0.5, 1.0, 2.0)

Floats = NDArray[np.float64]


def median_bandwidths(source: Floats) -> list[float]:
    """Bandwidths of the kernels: 0.5, 1 and 2 times the median distance between two source rows.

    They depend on the source alone, so that all targets are measured with the same kernels.

    Args:
        source: float64 (m, D).

    Raises:
        ArtifactError: The median distance is 0.
    """
    distances = euclidean_distances(source)[np.triu_indices(len(source), k=1)]
    median = float(np.median(distances))
    if median <= 0:
        raise ArtifactError("the source card's features are all alike; make the card again")
    return [factor * median for factor in BANDWIDTH_FACTORS]


def gaussian_kernel(x: Floats, y: Floats, bandwidths: Sequence[float]) -> Floats:
    """Mean over bandwidths b of exp(-|x - y|^2 / (2 b^2)) for all pairs, float64 (n, m)."""
    distances: Floats = euclidean_distances(x, y, squared=True)
    kernel = np.zeros_like(distances)
    for bandwidth in bandwidths:
        kernel += np.exp(distances / (-2 * bandwidth**2))
    kernel /= len(bandwidths)
    return kernel
