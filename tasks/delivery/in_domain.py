"""Whether an image is like those that the model was trained on, by its features."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts.arrays import Features, Floats, Ints, read_tensors, write_tensors
from tasks.delivery.appearance import Appearance
from tasks.errors import ArtifactError

REFERENCE = "reference.safetensors"


@dataclass(frozen=True)
class InDomain:
    """Distances to what the model was trained on, and held-out images to compare others with.

    The features of training images lie nearer to their class than those of any new image, since
    the network was trained on them; so val, not train, tells what distances are usual.

    Attributes:
        means: Of the normalized training features of each class, float32 (C, D).
        whitening: Turns normalized features into ones whose covariance within the classes is the
            identity, float32 (D, D).
        held_out: Features of val images, float32 (M, D).
        held_out_predicted: Their predicted classes, int64 (M,).
        held_out_groups: Numbers of their groups, int64 (M,).
        held_out_appearance: How they look.
        threshold: Largest score of an image in the domain; infinite where val has too few images.
        false_alarm: Share of the images in the domain that may score more.
    """

    means: Features
    whitening: Features
    held_out: Features
    held_out_predicted: Ints
    held_out_groups: Ints
    held_out_appearance: Appearance
    threshold: float
    false_alarm: float

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            ArtifactError: The file is missing, damaged or another one.
        """
        arrays = read_tensors(path)
        try:
            threshold, false_alarm = arrays.pop("limits").tolist()
            return cls(
                held_out=arrays.pop("held_out").astype(np.float32),
                held_out_appearance=Appearance.unpack(arrays),
                threshold=threshold,
                false_alarm=false_alarm,
                **arrays,
            )
        except (KeyError, TypeError, ValueError) as err:
            raise ArtifactError(
                f"{path}: holds other tensors than expected; dvc repro evaluate makes it anew"
            ) from err

    def write(self, path: Path) -> None:
        """Write it as safetensors."""
        arrays: dict[str, NDArray[Any]] = {
            "means": self.means,
            "whitening": self.whitening,
            "held_out": self.held_out.astype(np.float16),
            "held_out_predicted": self.held_out_predicted,
            "held_out_groups": self.held_out_groups,
            **self.held_out_appearance.pack(),
            "limits": np.array([self.threshold, self.false_alarm]),
        }
        write_tensors(path, arrays)

    def scores(self, features: NDArray[np.floating]) -> Floats:
        """Mahalanobis distance to the nearest class, of features scaled to length 1.

        Args:
            features: (N, D).

        Returns:
            float64 (N,); the larger, the stranger.

        Source: Lee et al. 2018, A simple unified framework for detecting out-of-distribution
        samples, 1807.03888; Mueller and Hein 2025, Mahalanobis++, 2505.18032 (the length).
        """
        placed = scale_rows(features).astype(np.float32) @ self.whitening  # most of the time
        placed, classes = placed.astype(np.float64), self._placed_means
        squares = np.square(placed).sum(axis=1)[:, None] + np.square(classes).sum(axis=1)
        nearest = (squares - 2 * placed @ classes.T).min(axis=1)
        return np.asarray(np.sqrt(np.maximum(nearest, 0.0)), dtype=np.float64)

    @cached_property
    def _placed_means(self) -> Floats:
        """The whitened means, float64."""
        return self.means.astype(np.float64) @ self.whitening


def scale_rows(features: NDArray[np.floating]) -> Floats:
    """Scale rows to length 1, float64; a row of zeros stays."""
    values = features.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1.0)
