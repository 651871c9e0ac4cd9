"""Test images that have a relative in train: what accuracy is with and without them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.artifacts.arrays import Bools
from tasks.artifacts.records import CleanScores, Estimate, Metrics
from tasks.artifacts.tables import Manifest, TwinRow
from tasks.judging.statistics import accuracy_interval
from tasks.params import EvaluateParams


@dataclass(frozen=True, slots=True)
class Related:
    """Which test images have a relative in train.

    Attributes:
        groups: Of the test images, (N,).
        twins: A twin by features, bool (N,).
        compared: Whether stage audit looked for a twin, bool (N,); it looks at some thousands.
        leaked: A copy, a near copy or an image of the same group, bool (N,); only where the source
            gives its splits.
    """

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
        groups=[row.group for row in tested],
        twins=np.array([row.path in twins for row in tested], dtype=np.bool_),
        compared=np.array([row.path in compared for row in tested], dtype=np.bool_),
        leaked=np.array([row.group in trained for row in tested], dtype=np.bool_),
    )


def judge_relatives(
    metrics: Metrics, right: Bools, related: Related, params: EvaluateParams, *, seed: int
) -> Metrics:
    """Add the accuracy on images with and without a relative, and what leaks make of the result.

    Args:
        metrics: Of all test images.
        right: Which of them the model that ships has right, bool (N,).
        related: Which of them have a relative in train.
        params: Resamples and confidence.
        seed: The run's seed.
    """

    def estimate(some: Bools) -> Estimate | None:
        if not some.any():
            return None
        return accuracy_interval(
            right[some],
            [related.groups[int(row)] for row in np.flatnonzero(some)],
            confidence=params.confidence,
            resamples=params.bootstrap,
            seed=seed,
        )

    def scores(some: Bools, others: Bools) -> CleanScores | None:
        if not some.any():
            return None
        return CleanScores(with_relative=estimate(some), without_relative=estimate(others))

    leaks = scores(related.leaked, ~related.leaked)
    return metrics.model_copy(
        update={
            "twins": scores(related.twins, related.compared & ~related.twins),
            "leaks": leaks,
            "warnings": [*metrics.warnings, *say_leaks(leaks)],
        }
    )


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
