"""Rows in the coordinates of their principal axes: ridge regression and LogME start from them."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RANK_TOLERANCE = 1e-10  # eigenvalues below this share of the largest one count as zero


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Rows X rotated onto the axes along which they differ.

    `scores` = X V: float64 (n, k), columns orthogonal, k = rank of X at most min(n, D).
    `energies` = eigenvalues of X'X: float64 (k,), all above 0; the squared length of each column.
    """

    scores: Floats
    energies: Floats


def decompose(rows: Floats) -> Spectrum:
    """Rotate rows onto their principal axes, without centering them.

    Works on X'X or XX', whichever is smaller: time grows with n D min(n, D).

    Args:
        rows: float64 (n, D).
    """
    n, d = rows.shape
    tall = n > d
    energies, vectors = scipy.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    kept = energies > RANK_TOLERANCE * max(float(energies[-1]), np.finfo(np.float64).tiny)
    energies, vectors = energies[kept], vectors[:, kept]
    scores = rows @ vectors if tall else vectors * np.sqrt(energies)
    return Spectrum(scores=scores, energies=energies)
