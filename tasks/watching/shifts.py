"""Do incoming images come from the distribution of the held-out ones? Tests of that.

Features of training images are no reference: a fine-tuned network has learned those by heart, and
new images of the same world differ from them. Images that were held out do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.stats import betabinom, binomtest, ks_2samp

from tasks.artifacts.arrays import Features, Floats, Ints
from tasks.artifacts.records import Estimate
from tasks.delivery.appearance import FACTS, Appearance, Fact
from tasks.delivery.in_domain import InDomain
from tasks.transferability.mmd import median_bandwidths, permutation_p_value

DRAWING, DEALING = 0x5744, 0x5745  # purposes of the random numbers drawn here
MOST_ROWS = 1_000  # of either side that MMD compares
ENOUGH = 10  # relabelings that reach the data, after which a p-value is known well enough
TABLES_AT_ONCE = 1_000
CONFIDENCE = 0.95
ROUNDING = 1e-9


@dataclass(frozen=True)
class Seen:
    """What the model makes of some images.

    Attributes:
        features: float32 (n, D), of all of them or, where those are many, of some.
        scores: float64 (N,), how strange each is.
        predicted: int64 (N,).
        appearance: How the N images look.
    """

    features: Features
    scores: Floats
    predicted: Ints
    appearance: Appearance

    @classmethod
    def join(cls, parts: Sequence["Seen"]) -> Self:
        """Put together what is known of several."""
        return cls(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.predicted for part in parts]),
            Appearance.join([part.appearance for part in parts]),
        )

    def newest(self, most: int) -> "Seen":
        """Give at most so many of them, the last ones."""
        rows = np.arange(len(self.scores))[-most:]
        return Seen(
            self.features[-most:],
            self.scores[rows],
            self.predicted[rows],
            self.appearance.of(rows),
        )


def draw_known(domain: InDomain) -> Seen:
    """Take one held-out image of each group, drawn by chance: these are independent."""
    order = np.random.default_rng(DRAWING).permutation(len(domain.held_out))
    rows = order[np.unique(domain.held_out_groups[order], return_index=True)[1]]
    rows = np.sort(rows if len(rows) > 1 else order)
    features = domain.held_out[rows]
    return Seen(
        features,
        domain.scores(features),
        domain.held_out_predicted[rows],
        domain.held_out_appearance.of(rows),
    )


def features_p_value(known: Seen, incoming: Seen, *, needed: float, seed: int) -> float:
    """Test all features by MMD; see `tasks.transferability.mmd`.

    Args:
        known: The held-out images.
        incoming: The others.
        needed: The p-value that decides; twice as many relabelings are drawn as it takes.
        seed: Of relabelings, and of the images that stand for more than `MOST_ROWS`.
    """
    if min(len(known.features), len(incoming.features)) < 2:
        return 1.0
    rng = np.random.default_rng([seed, DEALING])
    x, y = (
        rows[np.sort(rng.permutation(len(rows))[:MOST_ROWS])].astype(np.float64)
        for rows in (known.features, incoming.features)
    )
    center = x.mean(axis=0)
    return permutation_p_value(
        x - center,
        y - center,
        median_bandwidths(x - center),
        permutations=enough_for(needed),
        seed=seed,
        enough=ENOUGH,
    )


def enough_for(needed: float) -> int:
    """Give how many random draws can show a p-value of `needed`."""
    return int(np.ceil(2 / needed))


def strangers_p_value(known: Seen, incoming: Seen, threshold: float) -> float:
    """Test whether more images are out of the domain than of those that were held out; exact.

    The threshold comes from the held-out images, so that the share beyond it is not known, but
    distributed as Beta(j + 1, m - j) where j of m of them lie beyond it, whatever the scores are.

    Source: Gumbel and von Schelling 1950, The distribution of the number of exceedances.
    """
    beyond = int(np.sum(known.scores > threshold))
    if beyond == len(known.scores):
        return 1.0
    count = betabinom(len(incoming.scores), beyond + 1, len(known.scores) - beyond)
    return min(1.0, float(count.sf(int(np.sum(incoming.scores > threshold)) - 1)))


def strangers_share(incoming: Seen, threshold: float) -> Estimate:
    """Estimate the share of images out of the domain, by Clopper and Pearson's interval of 95 %."""
    n, beyond = len(incoming.scores), int(np.sum(incoming.scores > threshold))
    bounds = binomtest(beyond, n).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(value=beyond / n, low=float(bounds.low), high=float(bounds.high), n=n)


def shares_p_value(known: Ints, incoming: Ints, *, needed: float, seed: int) -> float:
    """Test whether each class has the same share in both samples, by a G-test on random tables.

    Given how often each class is in both together, the table is multivariate hypergeometric, so
    that the test is exact also for rare classes.

    Args:
        known: Class of each held-out image.
        incoming: Of the others.
        needed: As of `features_p_value`.
        seed: Of the tables.

    Source: Agresti 1992, A survey of exact inference for contingency tables, section 4; Besag and
    Clifford 1991, Sequential Monte Carlo p-values.
    """
    of_known, of_incoming = count_classes(known, incoming)
    total, n, rng = of_known + of_incoming, len(incoming), np.random.default_rng(seed)
    observed = float(_g_of_tables(of_incoming[None], total)[0])
    reached, drawn, most = 0, 0, enough_for(needed)
    while drawn < most:
        size = min(max(2 * ENOUGH, drawn), TABLES_AT_ONCE, most - drawn)
        tables = rng.multivariate_hypergeometric(total, n, size, method="marginals")
        hits = reached + np.cumsum(_g_of_tables(tables, total) >= observed - ROUNDING)
        if hits[-1] >= ENOUGH:
            return ENOUGH / (drawn + 1 + int(np.searchsorted(hits, ENOUGH)))
        reached, drawn = int(hits[-1]), drawn + size
    return (1 + reached) / (1 + drawn)


def kinds_p_value(known: Seen, incoming: Seen, *, needed: float, seed: int) -> float:
    """Test whether files are of the same kinds, as `shares_p_value`; unknown ones are left out."""
    numbers: dict[str, int] = {}
    one, other = (
        np.array(
            [numbers.setdefault(kind, len(numbers)) for kind in seen.appearance.kinds if kind],
            dtype=np.int64,
        )
        for seen in (known, incoming)
    )
    if min(len(one), len(other)) < 2:
        return 1.0
    return shares_p_value(one, other, needed=needed, seed=seed)


def appearance_p_values(known: Seen, incoming: Seen) -> dict[Fact, float]:
    """Test whether each fact of appearance has one distribution in both, by Kolmogorov and Smirnov.

    Exact up to 10,000 images of a side; where many values are the same, p is too large, not small.
    """
    pairs = zip(FACTS, known.appearance.numbers.T, incoming.appearance.numbers.T, strict=True)
    return {fact: _same_distribution(_known(x), _known(y)) for fact, x, y in pairs}


def _known(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _same_distribution(x: Floats, y: Floats) -> float:
    return float(ks_2samp(x, y).pvalue) if min(len(x), len(y)) > 1 else 1.0


def count_classes(one: Ints, other: Ints) -> tuple[Ints, Ints]:
    """Count class indices of two samples, int64 (C,) each."""
    classes = 1 + int(max(one.max(), other.max()))
    first, second = (np.bincount(some, minlength=classes) for some in (one, other))
    return first, second


def _g_of_tables(tables: Ints, total: Ints) -> Floats:
    """Sum x log x over 2 x C tables given by one row (B, C): G but for what all tables share."""
    found: Floats = (_x_log_x(tables) + _x_log_x(total - tables)).sum(axis=1)
    return found


def _x_log_x(counts: Ints) -> Floats:
    return np.asarray(counts * np.log(np.maximum(counts, 1)), dtype=np.float64)
