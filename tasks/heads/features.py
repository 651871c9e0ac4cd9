"""Frozen features with their labels, as every head reads them, and their moments.

They may lie on disk: rows are read block by block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from sklearn.utils.class_weight import compute_sample_weight

from tasks.artifacts.arrays import Features, Floats, Ints, read_array
from tasks.artifacts.records import Split
from tasks.artifacts.tables import Manifest
from tasks.errors import ArtifactError
from tasks.judging.rule import ValSet

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Labeled:
    """Features, float32 (N, V, D), may be memory-mapped; label and group of each image, (N,).

    `balanced`: all classes count the same in what is learned and in what judges.
    """

    features: Features
    labels: Ints
    groups: Sequence[str]
    balanced: bool = False

    @cached_property
    def judge(self) -> ValSet:
        """Labels and groups, as what judges a model on these images."""
        return ValSet(self.labels, self.groups, balanced=self.balanced)

    def weights(self, images: Ints) -> Floats | None:
        """What each of some images, int64 (n,), counts among them, (n,); None: all the same."""
        return compute_sample_weight("balanced", self.labels[images]) if self.balanced else None


def read_features(folder: Path, manifest: Manifest, split: Split) -> Labeled:
    """Map the features of a split and put labels and groups beside them.

    Raises:
        ArtifactError: The split has no image, or the features are not those of the manifest.
    """
    features = read_array(folder / "features.npy")
    labels = manifest.labels(split)
    if features.ndim != 3 or len(features) != len(labels) or not len(labels):
        raise ArtifactError(
            f"{folder}: features of shape {features.shape} for {len(labels)} {split} images, "
            "expected (images, views, features); rerun extract"
        )
    if not all(
        np.isfinite(features[at : at + ROWS_AT_ONCE]).all()
        for at in range(0, len(labels), ROWS_AT_ONCE)
    ):
        raise ArtifactError(f"{folder}: a feature is NaN or infinite; rerun extract")
    return Labeled(features, labels, manifest.groups(split))


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of every feature, float64 (D,); 0 where it is constant."""

    mean: Floats
    deviation: Floats

    @property
    def spread(self) -> float:
        """Root mean square of the deviations; 1 where every feature is constant."""
        return float(np.sqrt(np.square(self.deviation).mean())) or 1.0


def measure_moments(data: Labeled, images: Ints) -> Moments:
    """Measure the moments of the rows of some images, int64 (n,), in all of their views.

    Two passes, so that a large mean does not swallow a small deviation.
    """
    count = len(images) * data.features.shape[1]
    total = sum(rows.sum(axis=0, dtype=np.float64) for rows, _ in raw_rows(data, images))
    mean = total / count
    squares = sum(np.square(rows - mean).sum(axis=0) for rows, _ in raw_rows(data, images))
    scale = np.sqrt(squares / count)
    return Moments(mean, np.where(scale > 1e-6 * np.abs(mean), scale, 0.0))


def raw_rows(data: Labeled, images: Ints) -> Iterator[tuple[Features, Ints]]:
    """Yield raw rows (r, D) of some images in all of their views, and those images."""
    views, dim = data.features.shape[1:]
    step = max(1, ROWS_AT_ONCE // views)
    for start in range(0, len(images), step):
        some = images[start : start + step]
        yield np.asarray(data.features[some], dtype=np.float32).reshape(-1, dim), some
