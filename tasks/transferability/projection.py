"""Source and target features on the plane where they differ most, for the eye."""

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Features = NDArray[np.float32] | Floats


def project_to_plane(rows: Features) -> Floats:
    """Project rows onto their two leading principal components.

    Args:
        rows: (n, D); more rows of one set weigh more.

    Returns:
        float64 (n, 2), centered. The sign of an axis is such that its largest loading is positive.
        Zeros on the second axis where D is 1.
    """
    centered = np.asarray(rows, dtype=np.float64)
    centered = centered - centered.mean(axis=0)
    d = centered.shape[1]
    _, axes = scipy.linalg.eigh(centered.T @ centered, subset_by_index=(max(d - 2, 0), d - 1))
    axes = axes[:, ::-1]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1, 1)
    plane = np.zeros((len(centered), 2))
    plane[:, : axes.shape[1]] = centered @ axes
    return plane
