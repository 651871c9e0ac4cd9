"""Twins across splits: two pictures of one thing, which copies and perceptual hashes do not find.

Features are whitened, so that what all images of a set share counts nothing and unrelated images
are about orthogonal, however narrow the set. A twin then stands far above the pairs of its class,
measured in their own robust deviations: an absolute criterion, which also holds where train itself
is full of twins, so that a comparison of test with train would see nothing. The figures are in
docs/benchmarks/twins.md.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.artifacts.arrays import Bools, Features, Floats, Ints

SURE = 14.0  # deviations above the median pair of a class: from here on two images are twins
DOUBTFUL = 8.0  # below this they are none, if not ALIKE
ALIKE = 0.6  # cosine of whitened features from which on they always are
CROWD, ABOVE_CROWD = 3, 2.0  # neighbors of an image that may be twins; see `choose_threshold`
QUANTILE, FEW_IMAGES = 0.99, 200
RIDGE = 0.1  # added to every variance, in mean variances: few images do not whiten noise
SPREAD_ROWS = 10_000  # images at most whose covariance whitens
CLASS_PAIRS = 1_000  # images of a class at most whose pairs are the yardstick
FEW_PAIRS = 500  # classes with fewer pairs of different groups use the yardstick of all classes
BLOCK_ROWS = 1_000
NORMAL = 1.4826  # median absolute deviation of a normal distribution -> standard deviation


@dataclass(frozen=True, slots=True)
class Whitened:
    """Images with what says which of them belong together.

    Attributes:
        features: Whitened, of length 1, float32 (N, D).
        labels: int64 (N,).
        groups: Numbers of groups, int64 (N,).
    """

    features: Features
    labels: Ints
    groups: Ints

    def take(self, rows: Ints | Bools) -> "Whitened":
        """Give some of the images."""
        return Whitened(self.features[rows], self.labels[rows], self.groups[rows])


@dataclass(frozen=True, slots=True)
class Nearest:
    """The most similar other image of the same label, and how unusual that similarity is.

    Attributes:
        rows: Of that image, int64 (N,); -1 where there is none.
        likeness: Cosine of whitened features, float64 (N,); NaN where there is none.
        deviations: `likeness` above the median pair of the class, in robust standard deviations.
    """

    rows: Ints
    likeness: Floats
    deviations: Floats

    def twins(self, least: float) -> Bools:
        """Which images have a twin, from so many deviations on."""
        found: Bools = (self.deviations >= least) | (self.likeness >= ALIKE)
        return found


def whiten(features: Features, *, seed: int) -> Features:
    """Rotate and scale features to a covariance near the identity, then to length 1.

    The covariance is that of all images, val and test among them: only then does a treatment that a
    whole split shares count as little as one that all images share.

    Args:
        features: float32 (N, D).
        seed: Of the rows whose covariance is taken, where there are more than SPREAD_ROWS.

    Returns:
        float32 (N, D).
    """
    rows = np.random.default_rng(seed).permutation(len(features))[:SPREAD_ROWS]
    sample = features[np.sort(rows)].astype(np.float64)
    mean = sample.mean(0)
    spread = (sample - mean).T @ (sample - mean) / max(len(sample) - 1, 1)
    values, vectors = np.linalg.eigh(spread)
    values = np.maximum(values, 0)
    scale = np.sqrt(values + RIDGE * max(float(values.mean()), 1e-12))
    white = ((features - mean.astype(np.float32)) @ (vectors / scale).astype(np.float32)).astype(
        np.float32
    )
    length = np.linalg.norm(white, axis=1, keepdims=True)
    result: Features = white / np.maximum(length, 1e-12)
    return result


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Likeness of two images of one class and different groups."""

    median: float
    deviation: float


def measure_pairs(sample: Whitened, *, seed: int) -> Mapping[int, Yardstick]:
    """Measure the likeness of pairs of different groups, class by class.

    Median and median absolute deviation do not see the few pairs of each image that are twins.
    Classes with few such pairs, and key -1, have the yardstick of all.
    """
    by_class, every = {}, []
    for label in np.unique(sample.labels):
        rows = np.flatnonzero(sample.labels == label)
        rng = np.random.default_rng([seed, int(label)])
        some = sample.take(np.sort(rng.permutation(rows)[:CLASS_PAIRS]))
        apart = np.triu(some.groups[:, None] != some.groups[None, :], 1)
        pairs = (some.features @ some.features.T)[apart]
        every.append(pairs[: CLASS_PAIRS * FEW_PAIRS])
        if len(pairs) >= FEW_PAIRS:
            by_class[int(label)] = _yardstick(pairs)
    together = np.concatenate(every) if every else np.zeros(0)
    if len(together):
        by_class[-1] = _yardstick(together)
    return by_class


def _yardstick(pairs: Floats | Features) -> Yardstick:
    median = float(np.median(pairs))
    return Yardstick(median, NORMAL * float(np.median(np.abs(pairs - median))))


def find_nearest(
    images: Whitened,
    others: Whitened,
    pairs: Mapping[int, Yardstick],
    *,
    apart: bool,
    rank: int = 0,
) -> Nearest:
    """Find the most similar other image of the same label for every image.

    Args:
        images: Whose neighbors are looked for.
        others: Where they are looked for.
        pairs: From `measure_pairs`.
        apart: Whether images of one group are no neighbors.
        rank: So many more similar ones are passed over.
    """
    rows = np.full(len(images.labels), -1, np.int64)
    likeness = np.full(len(rows), np.nan)
    deviations = np.full(len(rows), np.nan)
    for label in np.unique(images.labels):
        yardstick = pairs.get(int(label), pairs.get(-1))
        mine = np.flatnonzero(images.labels == label)
        theirs = np.flatnonzero(others.labels == label)
        if yardstick is None or not yardstick.deviation or len(theirs) <= rank:
            continue
        for block, cosines in _cosines(images, others, mine, theirs, apart=apart):
            best = np.argpartition(-cosines, rank, axis=1)[:, rank] if rank else cosines.argmax(1)
            found = cosines[np.arange(len(block)), best].astype(np.float64)
            known = np.isfinite(found)
            rows[block[known]] = theirs[best[known]]
            likeness[block[known]] = found[known]
            deviations[block[known]] = (found[known] - yardstick.median) / yardstick.deviation
    return Nearest(rows, likeness, deviations)


def choose_threshold(crowd: Nearest) -> float:
    """Choose the deviations from which on two images are twins.

    In sets without twins hardly a nearest neighbor is twice as far above the pairs of its class as
    99 % of the fourth ones are, so that a narrow set has a lower threshold. The fourth, because up
    to three twins an image may stand in train itself, where nobody knows that they are twins.

    Args:
        crowd: The neighbors of rank CROWD in other groups, of training images.
    """
    known = crowd.deviations[np.isfinite(crowd.deviations)]
    if len(known) < FEW_IMAGES:
        return SURE
    return float(np.clip(ABOVE_CROWD * np.quantile(known, QUANTILE), DOUBTFUL, SURE))


def _cosines(
    images: Whitened, others: Whitened, mine: Ints, theirs: Ints, *, apart: bool
) -> Iterator[tuple[Ints, Features]]:
    """Rows of images, some at a time, with their likeness to all others; -inf: not compared."""
    features = others.features[theirs]
    for start in range(0, len(mine), BLOCK_ROWS):
        block = mine[start : start + BLOCK_ROWS]
        cosines = images.features[block] @ features.T
        if apart:
            cosines[images.groups[block][:, None] == others.groups[theirs][None, :]] = -np.inf
        yield block, cosines


def find_pairs(
    sample: Whitened, pairs: Mapping[int, Yardstick], least: float
) -> tuple[Ints, Floats]:
    """Find all pairs of one label whose likeness is at least so many deviations above the median.

    Returns:
        Their rows, int64 (M, 2), the smaller first, and the deviations, float64 (M,).
    """
    found, values = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for label in np.unique(sample.labels):
        yardstick = pairs.get(int(label), pairs.get(-1))
        mine = np.flatnonzero(sample.labels == label)
        if yardstick is None or not yardstick.deviation:
            continue
        for block, cosines in _cosines(sample, sample, mine, mine, apart=False):
            deviations = (cosines - yardstick.median) / yardstick.deviation
            first, second = np.nonzero(deviations >= least)
            couples = np.stack([block[first], mine[second]], axis=1)
            once = couples[:, 0] < couples[:, 1]
            found.append(couples[once])
            values.append(deviations[first, second][once].astype(np.float64))
    return np.concatenate(found), np.concatenate(values)


def index_groups(groups: Sequence[str]) -> Ints:
    """Give every name of a group a number: int64 (N,)."""
    numbers: Ints = np.unique(np.array(groups, dtype=object), return_inverse=True)[1]
    return numbers.astype(np.int64)
