"""LogME: the largest evidence of the labels under a Bayesian linear model on the features."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tasks.artifacts.arrays import Floats
from tasks.artifacts.records import Estimate
from tasks.artifacts.sampling import number_groups
from tasks.params import SimilarityParams
from tasks.transferability.leave_one_out import Spectrum, decompose
from tasks.transferability.sampling import Sample

RATIO_GRID = np.logspace(-8, 8, 65)  # prior precision / noise precision, times the mean energy
GOLDEN = (5**0.5 - 1) / 2
GOLDEN_STEPS = 40  # each shrinks the bracket of log10(ratio), 0.5 wide, by the golden ratio


@dataclass(frozen=True, slots=True)
class LogMe:
    """LogME, and by how much one more copy of each image would change it, float64 (n,)."""

    value: float
    influences: Floats


def estimate_logme(sample: Sample, *, params: SimilarityParams) -> Estimate:
    """Measure LogME with an interval over groups of images.

    The interval comes from the influence of each image (infinitesimal jackknife): a bootstrap would
    repeat images, which a model with as many features as images explains too well.
    """
    result = measure_logme(sample.features, sample.labels)
    units = number_groups(sample.groups)
    by_unit = np.bincount(units, result.influences - result.influences.mean())
    count = len(by_unit)
    error = float(np.sqrt(np.sum(by_unit**2) * count / max(count - 1, 1)))
    half = -error * float(special.stdtrit(max(count - 1, 1), (1 - params.confidence) / 2))
    return Estimate(
        value=result.value, low=result.value - half, high=result.value + half, n=len(sample.labels)
    )


def measure_logme(features: NDArray[np.float32] | Floats, labels: NDArray[np.int64]) -> LogMe:
    """Measure LogME: log evidence a row at the best prior and noise, mean over classes.

    For given t = alpha / beta the best beta has a closed form, so the evidence is maximized over t
    alone, on a grid and then by golden section. The paper's fixed-point iteration seeks the same
    maximum but can stop before it where there are as many features as rows.

    Args:
        features: (n, D), as the backbone gives them.
        labels: Class indices, int64 (n,); classes without a row are left out.

    Source: You et al. 2021 (2102.11005), evidence of equation 2, mean over classes and rows.
    """
    spectrum = decompose(np.asarray(features, dtype=np.float64))
    classes, position = np.unique(labels, return_inverse=True)
    one_hot = np.zeros((len(labels), len(classes)))
    one_hot[np.arange(len(labels)), position] = 1
    projected = spectrum.scores.T @ one_hot
    explained = projected**2 / spectrum.energies[:, None]
    outside = np.maximum(one_hot.sum(axis=0) - explained.sum(axis=0), 0)
    ratios = _best_ratios(spectrum.energies, explained, outside, len(labels))
    evidence = _log_evidence(ratios, spectrum.energies, explained, outside, len(labels))
    value = float(evidence.mean()) / len(labels)
    by_image = _influences(
        spectrum, one_hot, projected, ratios, _misfit(ratios, spectrum.energies, explained, outside)
    )
    return LogMe(value=value, influences=(by_image - value) / len(labels))


def _misfit(ratios: Floats, energies: Floats, explained: Floats, outside: Floats) -> Floats:
    """Square of the labels that the features leave over, y' (I + XX' / t)^-1 y; (C,)."""
    shrunk = ratios / (ratios + energies[:, None])
    result: Floats = outside + np.sum(explained * shrunk, axis=0)
    return np.maximum(result, np.finfo(np.float64).tiny)


def _log_evidence(
    ratios: Floats, energies: Floats, explained: Floats, outside: Floats, n: int
) -> Floats:
    """Log evidence of each class at t = alpha / beta and the best beta = n / misfit, (C,)."""
    misfit = _misfit(ratios, energies, explained, outside)
    volume = np.log1p(energies[:, None] / ratios).sum(axis=0)
    result: Floats = -0.5 * (n * np.log(2 * np.pi * misfit / n) + n + volume)
    return result


def _best_ratios(energies: Floats, explained: Floats, outside: Floats, n: int) -> Floats:
    """The t = alpha / beta of the largest evidence of each class, (C,)."""
    scale = float(energies.mean()) if len(energies) else 1.0

    def evidence(exponents: Floats) -> Floats:
        return _log_evidence(scale * 10**exponents, energies, explained, outside, n)

    grid = np.log10(RATIO_GRID)
    classes = explained.shape[1]
    best = np.argmax([evidence(np.full(classes, exponent)) for exponent in grid], axis=0)
    low = grid[np.maximum(best - 1, 0)]
    high = grid[np.minimum(best + 1, len(grid) - 1)]
    for _ in range(GOLDEN_STEPS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        rising = evidence(left) < evidence(right)
        low, high = np.where(rising, left, low), np.where(rising, high, right)
    result: Floats = scale * 10 ** ((low + high) / 2)
    return result


def _influences(
    spectrum: Spectrum, one_hot: Floats, projected: Floats, ratios: Floats, misfit: Floats
) -> Floats:
    """Change of the log evidence when an image counts more: mean over classes, (n,).

    At the maximum alpha, beta and the posterior mean do not move to first order, so only the own
    terms of the image are left: log likelihood of its label and change of the posterior's volume.
    """
    n = len(one_hot)
    damped = 1 / (ratios + spectrum.energies[:, None])
    residuals = one_hot - spectrum.scores @ (projected * damped)
    leverages = spectrum.scores**2 @ damped
    beta = n / misfit
    result: Floats = 0.5 * np.mean(
        np.log(beta / (2 * np.pi)) - leverages - beta * residuals**2, axis=1
    )
    return result
