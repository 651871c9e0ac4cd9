"""Maximum mean discrepancy between a source card and target features: value, interval, p-value.

A part of it is due to what is pictured how often: any set of few kinds of things is at a distance
from a source of a thousand kinds. That part vanishes where source images may be weighed freely;
what is left is the distance that no choice of source images explains.

Images of one group (patient, device, near copies) are no independent draws: pairs within a group
are left out everywhere, resamples draw whole groups, and the test sees one image of each group.

Source: Gretton et al. 2012, A kernel two-sample test (JMLR 13), Lemma 6 for the unbiased estimate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics.pairwise import euclidean_distances

from tasks.artifacts.arrays import Floats, Ints
from tasks.artifacts.records import Distance, MmdResult
from tasks.artifacts.sampling import number_groups
from tasks.errors import ArtifactError
from tasks.params import SimilarityParams
from tasks.transferability.matching import match_weights

# purposes of the random numbers drawn here
RESAMPLING, BLOCKING, DRAWING, PERMUTING = 0x4D52, 0x4D42, 0x4D44, 0x4D50
BANDWIDTH_FACTORS = (0.5, 1.0, 2.0)
SOURCE_ROWS = 2_500  # most rows of a card that are used
FULL_ROWS = 5_000  # rows of source and target together that one kernel matrix holds
BLOCK_ROWS = 1_000  # of the target in each block where there are more
PERMUTATIONS_AT_ONCE = 250
ROUNDING = 1e-12  # a relabeling that ties with the data counts as reaching it
AnyFeatures = NDArray[np.float32] | Floats


@dataclass(frozen=True, slots=True)
class _Replicates:
    """MMD^2 of the data (first) and of every resample, float64 (1 + B,).

    `plain`: every source image counts the same. `matched`: source images count as they come nearest
    to the target; the weights stay those of the data, which to first order changes nothing.
    """

    plain: Floats
    matched: Floats


def measure_mmd(
    source: AnyFeatures,
    target: AnyFeatures,
    groups: Sequence[str],
    *,
    name: str,
    params: SimilarityParams,
    seed: int,
) -> MmdResult:
    """Measure the unbiased MMD^2 between two samples under a mean of Gaussian kernels.

    Beyond 5,000 rows of both together the target is dealt into blocks, and only pairs of target
    rows from one block are used: still unbiased, bounded memory, time linear in the target. Of a
    source with more than 2,500 rows, 2,500 spread evenly over it are used.

    The interval comes from a bootstrap of source rows and target groups. A resample holds copies,
    and a copy is at distance 0 from its twin: such pairs are left out, or every resample would look
    closer to itself than the data does.

    `matched` is the same of a source whose images are weighed to come as near to the target as they
    can (kernel mean matching). Its interval resamples the target alone: the card is the reference.

    Args:
        source: (m, D), m >= 2.
        target: (n, D), n >= 2.
        groups: The group of each target row, (n,).
        name: Of the source, in reports.
        params: Permutations, resamples and confidence.
        seed: The run's seed.

    Raises:
        ArtifactError: A sample has fewer than two rows, or the source rows are all alike.

    Source: Gretton et al. 2012 (value, median heuristic); Zaremba et al. 2013, B-test (blocks; here
    the source, a card of some thousand rows, stays whole).
    """
    if min(len(source), len(target)) < 2:
        raise ArtifactError(
            f"MMD needs two rows of source and target; found {len(source)} and {len(target)}"
        )
    units = number_groups(groups)
    x = np.asarray(source[:: -(-len(source) // SOURCE_ROWS)], dtype=np.float64)
    center = x.mean(axis=0)
    x = x - center
    bandwidths = median_bandwidths(x)
    blocks = _deal(units, len(x), seed=seed)
    replicates = _replicates(x, target - center, units, blocks, bandwidths, params, seed)
    plain, matched = (
        _estimate(found, len(target), params.confidence)
        for found in (replicates.plain, replicates.matched)
    )
    one_each = _draw_one_each(units, FULL_ROWS - len(x), seed=seed)
    return MmdResult(
        **plain.model_dump(),
        matched=matched,
        narrowness=plain.value - matched.value,
        p_value=permutation_p_value(
            x, target[one_each] - center, bandwidths, permutations=params.permutations, seed=seed
        ),
        bandwidths=bandwidths,
        estimator="full" if len(blocks) == 1 else "block",
        source=name,
        source_rows=len(x),
    )


def _estimate(replicates: Floats, n: int, confidence: float) -> Distance:
    value, tail = float(replicates[0]), (1 - confidence) / 2
    low, high = np.nanquantile(replicates[1:], [tail, 1 - tail])
    return Distance(value=value, low=min(value, float(low)), high=max(value, float(high)), n=n)


# kernels ------------------------------------------------------------------------------------------


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


# blocks and resamples -----------------------------------------------------------------------------


def _deal(units: Ints, source_rows: int, *, seed: int) -> list[Ints]:
    """Deal the target rows into random blocks; the rows of one unit are spread over all of them."""
    if len(units) + source_rows <= FULL_ROWS:
        return [np.arange(len(units))]
    turn = np.random.default_rng([seed, BLOCKING]).permutation(units.max() + 1)
    order = np.argsort(turn[units], kind="stable")
    count = -(-len(units) // BLOCK_ROWS)
    return [np.sort(order[first::count]) for first in range(count)]


def _draw_one_each(units: Ints, most: int, *, seed: int) -> Ints:
    """Give the first row of every unit, or of so many units drawn at random, in their order."""
    first = np.unique(units, return_index=True)[1]
    drawn = np.random.default_rng([seed, DRAWING]).permutation(first)[:most]
    return np.sort(drawn)


def _replicates(
    x: Floats,
    target: AnyFeatures,
    units: Ints,
    blocks: Sequence[Ints],
    bandwidths: Sequence[float],
    params: SimilarityParams,
    seed: int,
) -> _Replicates:
    """Measure the data and every resample of it."""
    rng = np.random.default_rng([seed, RESAMPLING])
    source_copies = _copies(rng, len(x), params.bootstrap)
    target_copies = _copies(rng, int(units.max()) + 1, params.bootstrap)
    kernel = gaussian_kernel(x, x, bandwidths)
    matched = match_weights(kernel, _likeness(x, target, blocks, bandwidths))
    matched_source = float(matched @ kernel @ matched)
    source_weights = source_copies.astype(np.float64)
    source_sums = _sum_between(kernel, np.ones(len(x)), source_weights)
    within, across, matched_across = np.zeros((3, 2, 1 + params.bootstrap))
    for rows in blocks:
        y = np.asarray(target[rows], dtype=np.float64)
        present, members = _membership(units[rows])
        sizes = members.sum(axis=1)
        weights = target_copies[:, present].astype(np.float64)
        summed = members @ (members @ gaussian_kernel(y, y, bandwidths)).T
        within += _sum_between(summed, sizes, weights)
        by_unit = members @ gaussian_kernel(y, x, bandwidths)
        images = weights @ sizes
        across[0] += np.einsum("bg,bg->b", source_weights @ by_unit.T, weights)
        across[1] += source_weights.sum(axis=1) * images
        matched_across += np.stack([weights @ (by_unit @ matched), images])
    target_mean = _ratio(within)
    return _Replicates(
        plain=_ratio(source_sums) + target_mean - 2 * _ratio(across),
        matched=matched_source + target_mean - 2 * _ratio(matched_across),
    )


def _likeness(
    x: Floats, target: AnyFeatures, blocks: Sequence[Ints], bandwidths: Sequence[float]
) -> Floats:
    """Mean kernel of each source row with all target rows, (m,)."""
    parts = (np.asarray(target[rows], dtype=np.float64) for rows in blocks)
    total = sum((gaussian_kernel(y, x, bandwidths).sum(axis=0) for y in parts), np.zeros(len(x)))
    result: Floats = total / len(target)
    return result


def _copies(rng: np.random.Generator, units: int, resamples: int) -> NDArray[np.uint16]:
    """How often each unit counts, (1 + B, units): once in the data (first row), else as drawn."""
    copies = np.ones((1 + resamples, units), dtype=np.uint16)
    for resample in copies[1:]:
        resample[:] = np.bincount(rng.integers(0, units, units), minlength=units)
    return copies


def _membership(units: Ints) -> tuple[Ints, "sparse.csr_array"]:
    """The units of some rows, (G,), and the matrix that sums rows over units, (G, n)."""
    present, position = np.unique(units, return_inverse=True)
    cells = (np.ones(len(units)), (position, np.arange(len(units))))
    return present, sparse.csr_array(cells, shape=(len(present), len(units)))


def _sum_between(sums: Floats, sizes: Floats, weights: Floats) -> Floats:
    """Sum a kernel over the pairs of rows from two different units, and count the pairs.

    Args:
        sums: Kernel summed over the rows of two units, (G, G); its diagonal is overwritten.
        sizes: Rows of each unit, (G,).
        weights: Copies of each unit, (B, G); copies of one unit make no pair.

    Returns:
        float64 (2, B).
    """
    np.fill_diagonal(sums, 0)
    total = np.einsum("bg,bg->b", weights @ sums, weights)
    pairs = (weights @ sizes) ** 2 - weights**2 @ sizes**2
    return np.stack([total, pairs])


def _ratio(sums: Floats) -> Floats:
    """Totals by counts (2, B); NaN where a resample holds no pair."""
    empty = np.full(sums.shape[1], np.nan)
    result: Floats = np.divide(sums[0], sums[1], out=empty, where=sums[1] > 0)
    return result


# the test -----------------------------------------------------------------------------------------


def permutation_p_value(
    x: Floats,
    y: AnyFeatures,
    bandwidths: Sequence[float],
    *,
    permutations: int,
    seed: int,
    enough: int | None = None,
) -> float:
    """Test that two samples of independent rows come from one distribution.

    Args:
        x: float64 (m, D).
        y: (n, D).
        bandwidths: Of the Gaussian kernels.
        permutations: Random relabelings, B, at most.
        seed: The run's seed.
        enough: Relabelings whose MMD^2 reaches that of the data after which no more are drawn;
            None: all are.

    Returns:
        (1 + relabelings whose MMD^2 reaches that of the data) / (1 + B), at least 1 / (1 + B);
        where l relabelings were enough, enough / l.

    Source: Phipson and Smyth 2010, Permutation p-values should never be zero; Besag and Clifford
    1991, Sequential Monte Carlo p-values.
    """
    pooled = np.concatenate([x, np.asarray(y, dtype=np.float64)])
    kernel = gaussian_kernel(pooled, pooled, bandwidths)
    np.fill_diagonal(kernel, 0)
    observed = _mmd_of_labelings(kernel, (np.arange(len(pooled)) < len(x))[None])[0]
    rng = np.random.default_rng([seed, PERMUTING])
    reached, drawn = 0, 0
    at_once = PERMUTATIONS_AT_ONCE if enough is None else 2 * enough
    for labels in _labelings(rng, len(x), len(pooled), permutations, at_once):
        hits = reached + np.cumsum(_mmd_of_labelings(kernel, labels) >= observed - ROUNDING)
        if enough is not None and hits[-1] >= enough:
            return enough / (drawn + 1 + int(np.searchsorted(hits, enough)))
        reached, drawn = int(hits[-1]), drawn + len(labels)
    return (1 + reached) / (1 + permutations)


def _labelings(
    rng: np.random.Generator, first: int, rows: int, permutations: int, at_once: int
) -> Iterator[NDArray[np.bool_]]:
    """Yield random choices of `first` rows, `at_once` of them and then more, bool (b, rows)."""
    labels, start = np.arange(rows) < first, 0
    while start < permutations:
        size = min(at_once, permutations - start)
        yield rng.permuted(np.broadcast_to(labels, (size, rows)), axis=1)
        start, at_once = start + size, PERMUTATIONS_AT_ONCE


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
