"""Test images that have a relative in train: what accuracy is with and without them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import sparse

from tasks.artifacts.arrays import Bools, Ints
from tasks.artifacts.records import CleanScores, Estimate, Metrics
from tasks.artifacts.tables import Manifest, TwinRow
from tasks.judging.statistics import GroupBootstrap, share_interval
from tasks.params import EvaluateParams


@dataclass(frozen=True, slots=True)
class Related:
    """Which test images have a relative in train.

    Attributes:
        labels: Of the test images, int64 (N,).
        groups: Of them, (N,).
        twins: A twin by features, bool (N,).
        compared: Whether stage audit looked for a twin, bool (N,); it looks at some thousands.
        leaked: A copy, a near copy or an image of the same group, bool (N,); only where the source
            gives its splits.
    """

    labels: Ints
    groups: Sequence[str]
    twins: Bools
    compared: Bools
    leaked: Bools


def find_related(manifest: Manifest, rows: Sequence[TwinRow]) -> Related:
    """Find the test images that have a relative in train.

    Args:
        manifest: Splits and groups of all images.
        rows: What stage audit found.
    """
    twins, compared = {row.path for row in rows if row.twin}, {row.path for row in rows}
    trained = set(manifest.groups("train"))
    tested = manifest.of("test")
    return Related(
        labels=manifest.labels("test"),
        groups=[row.group for row in tested],
        twins=np.array([row.path in twins for row in tested], dtype=np.bool_),
        compared=np.array([row.path in compared for row in tested], dtype=np.bool_),
        leaked=np.array([row.group in trained for row in tested], dtype=np.bool_),
    )


def judge_relatives(
    metrics: Metrics, right: Bools, related: Related, params: EvaluateParams, *, seed: int
) -> Metrics:
    """Add the accuracy on images with and without a relative, and what leaks make of the result.

    Twins are more frequent in some classes than in others, and classes differ in how hard they are:
    both kinds of images are weighed so that every class has its share of all of them, classes that
    only one kind has left out. A leak is told with the plain accuracy of the clean images.

    Args:
        metrics: Of all test images.
        right: Which of them the model that ships has right, bool (N,).
        related: Which of them have a relative in train.
        params: Resamples and confidence.
        seed: The run's seed.
    """
    measure = partial(_estimate, right, related, params=params, seed=seed)
    leaks = twins = None
    if related.leaked.any():
        leaks = CleanScores(
            with_relative=measure(related.leaked), without_relative=measure(~related.leaked)
        )
    if related.twins.any():
        alone, labels = related.compared & ~related.twins, related.labels
        both = np.intersect1d(labels[related.twins], labels[alone])
        common = np.isin(labels, both) if len(both) else np.ones(len(labels), np.bool_)
        shares = np.bincount(labels[(related.twins | alone) & common]) if len(both) else None
        of_twins, of_others = (
            measure(kind & common, shares=shares) for kind in (related.twins, alone)
        )
        twins = CleanScores(
            with_relative=of_twins, without_relative=of_others, classes=len(both) or None
        )
    return metrics.model_copy(
        update={
            "twins": twins,
            "leaks": leaks,
            "warnings": [*metrics.warnings, *say_leaks(leaks)],
        }
    )


def _estimate(
    right: Bools,
    related: Related,
    some: Bools,
    *,
    params: EvaluateParams,
    seed: int,
    shares: Ints | None = None,
) -> Estimate | None:
    """Estimate accuracy on some images; `shares`: what each class counts in all, (C,)."""
    images = np.flatnonzero(some)
    if not len(images):
        return None
    hits, labels = right[images].astype(np.float64), related.labels[images]
    weights = np.ones(len(images))
    if shares is not None:
        weights = (shares / np.maximum(np.bincount(labels, minlength=len(shares)), 1))[labels]
    groups = [related.groups[image] for image in images.tolist()]
    bootstrap = GroupBootstrap(groups, resamples=params.bootstrap, seed=seed)
    rows = sparse.csr_array(np.stack([weights * hits, weights]))
    variance = float(np.var(bootstrap.replicates(rows, lambda sums: sums[:1] / sums[1:])))
    evenness = float(np.mean(weights) ** 2 / np.mean(np.square(weights)))
    value = float(np.average(hits, weights=weights))
    interval = share_interval(
        value,
        variance,
        bootstrap,
        images=evenness * bootstrap.images,
        groups=evenness * bootstrap.groups,
        confidence=params.confidence,
    )
    return Estimate(value=value, low=interval.low, high=interval.high, n=len(images))


def say_leaks(leaks: CleanScores | None) -> Iterator[str]:
    """Say what the test figure is worth where the given splits leak."""
    if leaks is None or leaks.with_relative is None:
        return
    clean, leaked = leaks.without_relative, leaks.with_relative.n
    images = leaked + (clean.n if clean else 0)
    found = (
        f"{leaked:,} of {images:,} test images stand in train too, as copies, near copies or in "
        "one group"
    )
    if clean is None:
        yield f"{found}: the test figure is worth nothing."
    else:
        low, high = 100 * (clean.low or 0.0), 100 * (clean.high or 0.0)
        yield (
            f"{found}. On the {clean.n:,} clean ones accuracy is {100 * clean.value:.1f} % "
            f"[{low:.1f}, {high:.1f}]: read that figure."
        )
