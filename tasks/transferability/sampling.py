"""What extract wrote of the training images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts.arrays import read_array, read_tensors, read_tensors_note
from tasks.artifacts.tables import Manifest, read_manifest
from tasks.backbones.source_head import SourceHead, read_source_head
from tasks.errors import ArtifactError
from tasks.transferability.shift import LayerShift, measure_layer_shifts


@dataclass(frozen=True, slots=True)
class Sample:
    """Clean images with features float32 (n, D), class indices int64 (n,) and groups (n,)."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: Sequence[str]


@dataclass(frozen=True, slots=True)
class Target:
    """Features and batch-norm shifts of the training images.

    Attributes:
        manifest: Labels and groups.
        features: float32 (N, V, D); view 0 is the clean one.
        probe_rows: int64 (n,), the images that also have random features.
        random_features: float32 (n, D), of the same architecture with random weights.
        layers: Shift of every batch-norm layer in forward order; empty where there is none.
        head: The classifier of the pretraining; None where its classes have no known names.
    """

    manifest: Manifest
    features: NDArray[np.float32]
    probe_rows: NDArray[np.int64]
    random_features: NDArray[np.float32]
    layers: Sequence[LayerShift]
    head: SourceHead | None = None

    def sample(self, rows: NDArray[np.int64]) -> Sample:
        """Clean features, labels and groups of some images."""
        groups = self.manifest.groups("train")
        return Sample(
            features=np.ascontiguousarray(self.features[rows, 0]),
            labels=self.manifest.labels("train")[rows],
            groups=[groups[row] for row in rows],
        )


def read_target(manifest: Path, features: Path, probe: Path) -> Target:
    """Read manifest.csv, the folder of training features and the probe.

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
    layers, head = measure_layer_shifts(tensors, note), read_source_head(tensors, note)
    return Target(listed, array, rows, random_features, layers, head)
