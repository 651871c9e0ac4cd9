"""How far images lie from what the exported model has learned from, by their features.

Source: Sun et al. 2022, Out-of-distribution detection with deep nearest neighbors, 2204.06507.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from sklearn.neighbors import NearestNeighbors

from tasks.artifacts.arrays import Features, Floats, Ints, read_tensors
from tasks.artifacts.records import Calibration, read_record
from tasks.errors import ArtifactError

REFERENCE = "reference.safetensors"
NEIGHBOR = 5  # the distance to which one of the nearest training images counts


@dataclass(frozen=True)
class InDomain:
    """Features that the exported model knows.

    Attributes:
        train: float32 (n, D).
        held_out: float32 (m, D), of val images.
        held_out_predicted: int64 (m,).
        held_out_groups: int64 (m,).
        threshold: Score above which an image is out of the domain.
        false_alarm: Share of the held-out images above it.
    """

    train: Features
    held_out: Features
    held_out_predicted: Ints
    held_out_groups: Ints
    threshold: float
    false_alarm: float

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read them from an exported folder.

        Raises:
            ArtifactError: The folder has none.
        """
        threshold = read_record(folder / "calibration.json", Calibration).in_domain
        if threshold is None or not (folder / REFERENCE).is_file():
            raise ArtifactError(
                f"{folder}: has no {REFERENCE}, which tells what the model knows; export it again: "
                "dvc repro report"
            )
        arrays = read_tensors(folder / REFERENCE)
        train, held_out = (arrays[name].astype(np.float32) for name in ("train", "held_out"))
        beyond = neighbor_distances(held_out, train) > threshold
        return cls(
            train=train,
            held_out=held_out,
            held_out_predicted=arrays["held_out_predicted"],
            held_out_groups=arrays["held_out_group"],
            threshold=threshold,
            false_alarm=float(beyond.mean()),
        )

    def scores(self, features: Features) -> Floats:
        """Give how strange each image is by its features (N, D): float64 (N,), larger is more."""
        return neighbor_distances(features, self.train)


def neighbor_distances(features: Features, train: Features) -> Floats:
    """Cosine distance of each row to the training row that is its `NEIGHBOR`-th nearest, (N,)."""
    near = min(NEIGHBOR, len(train))
    index = NearestNeighbors(n_neighbors=near, metric="cosine").fit(train)
    distances: Floats = index.kneighbors(features)[0][:, -1].astype(np.float64)
    return distances
