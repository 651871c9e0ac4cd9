"""One model's answers to images whose label is known: where every score and table starts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tasks.artifacts.arrays import Floats, Ints, Logits
from tasks.artifacts.records import ModelName
from tasks.artifacts.tables import Manifest
from tasks.judging.calibration import fit_temperature
from tasks.judging.metrics import ClassSums, label_losses, log_probabilities, sum_classes


@dataclass(frozen=True, slots=True)
class ModelLogits:
    """Logits of one model: float32 (N, C) of the val images and of the test images."""

    val: Logits
    test: Logits


@dataclass(frozen=True, slots=True)
class Judged:
    """Answers to N images. Calibration never changes what is predicted.

    labels, predicted: class indices (N,); log_p: log probabilities (N, C) as trained; calibrated:
    the same after temperature scaling.
    """

    labels: Ints
    predicted: Ints
    log_p: Floats
    calibrated: Floats
    temperature: float

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each image was classified correctly, (N,)."""
        return np.equal(self.predicted, self.labels)

    @property
    def losses(self) -> Floats:
        """Calibrated negative log likelihood of each image's label, nats, (N,)."""
        return label_losses(self.calibrated, self.labels)

    @property
    def sums(self) -> ClassSums:
        """Images of each class."""
        return sum_classes(self.labels, self.predicted, self.log_p.shape[1])


def judge(logits: ArrayLike, labels: Ints, temperature: float = 1.0) -> Judged:
    """Turn logits (N, C) into answers; of equal logits the first class is predicted."""
    values = np.asarray(logits, np.float64)
    return Judged(
        labels=labels,
        predicted=np.argmax(values, axis=1),
        log_p=log_probabilities(values),
        calibrated=log_probabilities(values, temperature),
        temperature=temperature,
    )


def confidence_of(log_p: Floats) -> Floats:
    """Probability of the predicted class, (N,)."""
    return np.asarray(np.exp(log_p.max(axis=1)))


def judge_models(
    manifest: Manifest, models: Mapping[ModelName, ModelLogits]
) -> tuple[dict[ModelName, Judged], dict[ModelName, Judged]]:
    """Give the answers of every model to val and to test, calibrated on val."""
    labels, test_labels = manifest.labels("val"), manifest.labels("test")
    fitted = {name: fit_temperature(logits.val, labels) for name, logits in models.items()}
    return (
        {name: judge(logits.val, labels, fitted[name]) for name, logits in models.items()},
        {name: judge(logits.test, test_labels, fitted[name]) for name, logits in models.items()},
    )
