"""What extract wrote of the training images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts.arrays import read_array, read_tensors, read_tensors_note
from tasks.artifacts.tables import Manifest, read_manifest
from tasks.backbones.source_cards import LayerMoments
from tasks.backbones.source_head import SourceHead, read_source_head
from tasks.errors import ArtifactError
from tasks.transferability.shift import (
    LayerShift,
    layers_without_statistics,
    measure_layer_shifts,
    measure_moment_shifts,
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Clean images with features float32 (n, D), class indices int64 (n,) and groups (n,)."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: Sequence[str]


@dataclass(frozen=True, slots=True)
class Target:
    """Features of the training images and shifts of the normalization layers.

    Attributes:
        manifest: Labels and groups.
        features: float32 (N, V, D); view 0 is the clean one.
        probe_rows: int64 (n,), the images that also have random features.
        random_features: float32 (n, D), of the same architecture with random weights.
        layers: Shift of every batch-norm layer in forward order; where there are none, of all other
            normalization layers, if the source card tells their moments.
        head: The classifier of the pretraining; None where its classes have no known names.
        unlearned: Number of normalization layers that keep no statistics of the pretraining.
    """

    manifest: Manifest
    features: NDArray[np.float32]
    probe_rows: NDArray[np.int64]
    random_features: NDArray[np.float32]
    layers: Sequence[LayerShift]
    head: SourceHead | None = None
    unlearned: int = 0

    def sample(self, rows: NDArray[np.int64]) -> Sample:
        """Clean features, labels and groups of some images."""
        groups = self.manifest.groups("train")
        return Sample(
            features=np.ascontiguousarray(self.features[rows, 0]),
            labels=self.manifest.labels("train")[rows],
            groups=[groups[row] for row in rows],
        )


def read_target(
    manifest: Path, features: Path, probe: Path, source: Mapping[str, LayerMoments]
) -> Target:
    """Read manifest.csv, the folder of training features and the probe.

    `source` holds moments of normalization layers in the source images, by name; empty: unknown.

    Raises:
        ArtifactError: A file is missing or damaged, or they do not fit each other.
    """
    listed = read_manifest(manifest)
    array, images = read_array(features / "features.npy"), len(listed.of("train"))
    if array.ndim != 3 or len(array) != images:
        raise ArtifactError(
            f"{features}: features of shape {array.shape}, expected one row for each of the "
            f"{images} training images; rerun extract"
        )
    tensors = read_tensors(probe)
    rows, random_features = tensors["rows"], tensors["random_features"]
    if len(rows) != len(random_features) or np.any(rows >= images):
        raise ArtifactError(
            f"{probe}: {len(rows)} images but random features of {len(random_features)} rows, or "
            f"images beyond the {images} training images; rerun extract"
        )
    note = read_tensors_note(probe)
    layers = measure_layer_shifts(tensors, note) or measure_moment_shifts(tensors, note, source)
    head, unlearned = read_source_head(tensors, note), len(layers_without_statistics(note))
    return Target(listed, array, rows, random_features, layers, head, unlearned)
