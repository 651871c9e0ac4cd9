"""Intervals that respect groups: images of one patient, device or person are resampled together.

Apart from evaluation because training asks the same of val: how sure is an accuracy, and does a
model differ from another one on the same images?
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, special

from tasks.artifacts.arrays import Bools, Floats, Ints
from tasks.artifacts.records import Estimate

RESAMPLING = 0x5354  # purpose of the random numbers drawn here
BLOCK_CELLS = 4_000_000  # resamples x groups held at once
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Interval:
    """Two bounds of one number."""

    low: float
    high: float


class GroupBootstrap:
    """Draws groups with replacement, as many as there are; a drawn group brings all of its images.

    Statistics are functions of sums over images, so that a resample is a vector of group counts
    and no image is copied: time grows with resamples x images, memory is bounded.

    Args:
        groups: The group of every image, (N,), N > 0. Names matter, their order does not.
        resamples: How many resamples are drawn, B.
        seed: The run's seed; equal seeds and groups give equal resamples.

    Source: Field and Welsh 2007, Bootstrapping clustered data (the randomized cluster bootstrap).
    """

    def __init__(self, groups: Sequence[str], *, resamples: int, seed: int) -> None:
        names, self._group_of = np.unique(np.array(groups, dtype=object), return_inverse=True)
        self.images, self.groups, self.resamples = len(groups), len(names), resamples
        self._seed = seed

    def replicates(self, contributions: "sparse.csr_array", statistic: Statistic) -> Floats:
        """Compute a statistic on every resample.

        Args:
            contributions: What each image adds to each of K sums, sparse (K, N).
            statistic: Maps the sums of b resamples (K, b) to S numbers each (S, b).

        Returns:
            float64 (S, B).
        """
        membership = sparse.csr_array(
            (np.ones(self.images), (np.arange(self.images), self._group_of)),
            shape=(self.images, self.groups),
        )
        sums = sparse.csr_array(contributions @ membership)
        return np.concatenate([statistic(sums @ counts) for counts in self._counts()], axis=1)

    def sums(self, values: Floats) -> Floats:
        """Sum the values of the images (N,) of each group, (groups,)."""
        return np.bincount(self._group_of, values).astype(np.float64)

    def groups_with(self, members: Bools) -> int:
        """Count the groups that hold at least one of the marked images, bool (N,)."""
        return len(np.unique(self._group_of[members]))

    def _counts(self) -> Iterator[Floats]:
        """Yield how often each group was drawn, float64 (groups, b), for all resamples in turn."""
        rng = np.random.default_rng([self._seed, RESAMPLING])
        block = max(1, BLOCK_CELLS // self.groups)
        for start in range(0, self.resamples, block):
            size = min(block, self.resamples - start)
            drawn = rng.integers(0, self.groups, (size, self.groups))
            drawn += np.arange(size)[:, None] * self.groups
            counts = np.bincount(drawn.ravel(), minlength=size * self.groups)
            yield np.ascontiguousarray(counts.reshape(size, self.groups).T, dtype=np.float64)


# intervals of one number -------------------------------------------------------------------------


def wilson_interval(successes: float, n: float, *, confidence: float) -> Interval:
    """Bound a share of `successes` out of `n` trials; [0, 1] where there was no trial.

    Neither need be whole, as scipy's `proportion_ci` asks: they may be what images are worth.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    if n <= 0:
        return Interval(0.0, 1.0)
    z = -float(special.ndtri((1 - confidence) / 2))
    share, spread = successes / n, z * z / n
    center = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * float(np.sqrt(share * (1 - share) / n + spread / (4 * n)))
    return Interval(min(share, max(0.0, center - half)), max(share, min(1.0, center + half)))


def share_interval(
    value: float,
    variance: float,
    bootstrap: GroupBootstrap,
    *,
    images: float,
    groups: float,
    confidence: float,
) -> Interval:
    """Bound a number in [0, 1] by Wilson's interval for its number of independent images.

    Percentiles of resamples are too narrow near 0 and 1; where all images are right they have no
    width at all. The bootstrap gives the variance instead, and the variance says how many
    independent images the number is worth.

    Args:
        value: The measured number, in [0, 1].
        variance: Its variance over the resamples.
        bootstrap: Where the variance comes from.
        images: Most independent images that the number can be worth.
        groups: The same where no resample differs: nothing tells how much the images of a group
            have in common, so that a group counts once.
        confidence: In (0, 1).

    Source: Korn and Graubard 1998, Confidence intervals for proportions with small expected number
    of positive counts estimated from survey data; the limits are Wilson's.
    """
    factor = _few_groups_factor(bootstrap.images, bootstrap.groups, confidence)
    worth = _worth(value, variance, images, groups) / factor**2
    return wilson_interval(value * worth, worth, confidence=confidence)


def share_intervals(
    hits: Bools, parts: Ints, groups: Sequence[str], *, count: int, confidence: float
) -> list[Interval]:
    """Bound the share of hits among the images of each part by `share_interval`'s rule.

    The variance is what resampled groups tend to as resamples grow more; in closed form it costs
    one pass over the images for any number of parts, and where every image of a part is a group of
    its own the interval is exactly Wilson's.

    Args:
        hits: Whether each image counts as a success, bool (N,).
        parts: The number of each image's part, a class or a bin, (N,).
        groups: The group of each image, (N,).
        count: How many parts there are; one without images has [0, 1].
        confidence: In (0, 1).

    Source: Cochran 1977, Sampling techniques, section 6.3 (the variance of a ratio).
    """
    names, group_of = np.unique(np.array(groups, dtype=object), return_inverse=True)
    cells, cell_of = np.unique(parts * len(names) + group_of, return_inverse=True)
    part_of = cells // max(len(names), 1)
    images = np.bincount(part_of, np.bincount(cell_of), count)
    cell_hits = np.bincount(cell_of, hits)
    shares = np.bincount(part_of, cell_hits, count) / np.maximum(images, 1)
    excess = cell_hits - shares[part_of] * np.bincount(cell_of)
    variances = np.bincount(part_of, excess**2, count) / np.maximum(images, 1) ** 2
    held = np.bincount(part_of, minlength=count)
    return [
        _share_interval(share, variance, n, own, confidence)
        for share, variance, n, own in zip(
            shares.tolist(), variances.tolist(), images.tolist(), held.tolist(), strict=True
        )
    ]


def _share_interval(
    share: float, variance: float, images: float, groups: int, confidence: float
) -> Interval:
    factor = _few_groups_factor(images, groups, confidence)
    worth = _worth(share, variance, images, groups) / factor**2
    return wilson_interval(share * worth, worth, confidence=confidence)


def _worth(value: float, variance: float, images: float, groups: float) -> float:
    """Number of independent images whose share varies as much; see `share_interval`."""
    return min(images, value * (1 - value) / variance) if variance > 0 else groups


def percentile_interval(
    value: float, replicates: Floats, bootstrap: GroupBootstrap, *, confidence: float
) -> Interval | None:
    """Bound a mean by the percentiles of its resamples (B,); None where there is only one group."""
    if bootstrap.groups < 2:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    widen = _few_groups_factor(bootstrap.images, bootstrap.groups, confidence)
    return Interval(
        min(value, float(value - widen * (value - low))),
        max(value, float(value + widen * (high - value))),
    )


def accuracy_interval(
    right: Bools, groups: Sequence[str], *, confidence: float, resamples: int, seed: int
) -> Estimate:
    """Estimate an accuracy.

    Args:
        right: Whether each image was classified correctly, bool (N,).
        groups: The group of each image, (N,).
        confidence: Of the interval, in (0, 1).
        resamples: Bootstrap resamples.
        seed: The run's seed.
    """
    bootstrap = GroupBootstrap(groups, resamples=resamples, seed=seed)
    value = float(np.mean(right))
    interval = share_interval(
        value,
        _variance_of_mean(bootstrap, right.astype(np.float64)),
        bootstrap,
        images=bootstrap.images,
        groups=bootstrap.groups,
        confidence=confidence,
    )
    return Estimate(value=value, low=interval.low, high=interval.high, n=len(right))


# differences of two models on the same images ----------------------------------------------------


def paired_accuracy_interval(
    right_a: Bools,
    right_b: Bools,
    groups: Sequence[str],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    weights: Floats | None = None,
) -> Estimate:
    """Estimate accuracy of b minus accuracy of a on the same images, in [-1, 1].

    Args:
        right_a: Whether a classified each image correctly, bool (N,).
        right_b: The same for b.
        groups: The group of each image, (N,).
        confidence: Of the interval, in (0, 1).
        resamples: Bootstrap resamples.
        seed: The run's seed.
        weights: What each image counts, float64 (N,); None: all the same.
    """
    return paired_interval(
        right_b.astype(np.float64) - right_a,
        groups,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        weights=weights,
        largest=1.0,
    )


def paired_interval(
    gains: Floats,
    groups: Sequence[str],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    weights: Floats | None = None,
    largest: float = np.inf,
) -> Estimate:
    """Estimate the mean of what each image gains by another model, float64 (N,).

    Two imaginary images, of which one gains 1 and one loses 1, keep it from being sure of little.
    No gain is above `largest` or below its negative; the other arguments are those of
    `paired_accuracy_interval`.
    """
    bootstrap = GroupBootstrap(groups, resamples=resamples, seed=seed)
    value = float(np.average(gains, weights=weights))
    variance = _variance_of_mean(bootstrap, gains, weights)
    interval = difference_interval(
        value,
        variance,
        bootstrap,
        worth=independent_images(gains, variance, bootstrap, weights),
        confidence=confidence,
        largest=largest,
    )
    return Estimate(value=value, low=interval.low, high=interval.high, n=len(gains))


def independent_images(
    values: Floats, variance: float, bootstrap: GroupBootstrap, weights: Floats | None = None
) -> float:
    """Number of independent images whose mean of `values` (N,) would vary as much; at most N.

    Where no resample differs, a group counts as one image. Unequal weights (N,) make both limits
    smaller.

    Source: Kish 1965, Survey sampling (effective sample size of unequal weights).
    """
    if weights is None:
        weights = np.ones(len(values))
    evenness = float(np.mean(weights) ** 2 / np.mean(np.square(weights)))
    if variance == 0:
        return evenness * bootstrap.groups
    spread = np.average(np.square(values - np.average(values, weights=weights)), weights=weights)
    return min(evenness * bootstrap.images, float(spread) / variance)


def difference_interval(
    value: float,
    variance: float,
    bootstrap: GroupBootstrap,
    *,
    worth: float,
    confidence: float,
    largest: float = 1.0,
) -> Interval:
    """Bound the mean difference of two models on the same images.

    Two imaginary images, one won by each model, keep the interval honest where models rarely
    differ. Percentiles call four images won and none lost a sure gain, while McNemar's exact test
    gives p = 0.125; and models that never differed on twenty images are not known to be equal.

    Args:
        value: The measured difference.
        variance: Its variance over the resamples.
        bootstrap: Where the variance comes from.
        worth: How many independent images the difference is worth.
        confidence: In (0, 1).
        largest: No difference can be larger, either way.

    Source: Bonett and Price 2012, Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data; its variance replaced by that of the resamples.
    """
    center = value * worth / (worth + 2)
    z = -float(special.ndtri((1 - confidence) / 2))
    z *= _few_groups_factor(bootstrap.images, bootstrap.groups, confidence)
    half = z * float(np.sqrt(variance + 2 / (worth + 2) ** 2))
    low, high = min(value, center - half), max(value, center + half)
    return Interval(max(-largest, low), min(largest, high))


def _few_groups_factor(images: float, groups: int, confidence: float) -> float:
    """How much wider an interval is because groups vary, not images; 1 where they are the same."""
    tail = (1 - confidence) / 2
    by_group = special.stdtrit(max(groups - 1, 1), tail)
    by_image = special.stdtrit(max(images - 1, 1), tail)
    return float(by_group / by_image)


def _variance_of_mean(
    bootstrap: GroupBootstrap, values: Floats, weights: Floats | None = None
) -> float:
    """Variance of the mean of `values` (N,), weighted by `weights` (N,), over the resamples."""
    if weights is None:
        weights = np.ones(len(values))
    rows = sparse.csr_array(np.stack([weights * values, weights]))
    return float(np.var(bootstrap.replicates(rows, lambda sums: sums[:1] / sums[1:])))
