"""Reads the tables and pictures of the earlier stages that have no record of their own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts import read_table
from tasks.errors import ArtifactError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch of phase `phase`, from 1; `rates` are mean learning rates of head and groups."""

    phase: int
    rates: dict[str, float]
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True, slots=True)
class LayerShift:
    """Batch-norm shift of one layer."""

    layer: str
    group: str
    shift: float


@dataclass(frozen=True, slots=True)
class Place:
    """One image in the plane that the features were projected to; `kind` is source or target."""

    x: float
    y: float
    kind: str
    label: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """Recall or precision of a class; no value where it has no images."""

    value: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassResult:
    """What the shipped model does with the test images of one class."""

    name: str
    images: int
    predicted: int
    recall: Ratio
    precision: Ratio
    f1: float | None


@dataclass(frozen=True, slots=True)
class Bin:
    """Test images of similar confidence; `calibrated` is after temperature scaling."""

    model: str
    calibrated: bool
    confidence: float
    accuracy: float
    images: int


@dataclass(frozen=True, slots=True)
class HardImage:
    """A test image that the shipped model finds hard; `picture` is its JPEG file."""

    picture: Path
    path: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the shipped model and the baseline say about one test image."""

    label: str
    predicted: str
    label_probability: float
    baseline_predicted: str


def read_history(path: Path) -> list[Epoch]:
    """Read history.csv, one row an epoch, in order."""

    def epoch(row: Mapping[str, str]) -> Epoch:
        return Epoch(
            phase=int(row["phase"]),
            rates={
                name.removeprefix("lr_"): float(value)
                for name, value in row.items()
                if name.startswith("lr_") and value
            },
            train_loss=float(row["train_loss"]),
            train_accuracy=float(row["train_accuracy"]),
            val_loss=float(row["val_loss"]),
            val_accuracy=float(row["val_accuracy"]),
        )

    return _rows(path, epoch)


def read_profile(path: Path) -> list[LayerShift]:
    """Read shift_profile.csv, one row a batch-norm layer, in forward order."""
    return _rows(path, lambda row: LayerShift(row["layer"], row["group"], float(row["shift"])))


def read_projection(path: Path) -> list[Place]:
    """Read projection.csv, one row an image."""
    return _rows(
        path, lambda row: Place(float(row["x"]), float(row["y"]), row["set"], row["label"])
    )


def read_predictions(path: Path) -> list[Prediction]:
    """Read predictions.csv, one row a test image."""
    return _rows(
        path,
        lambda row: Prediction(
            row["label"],
            row["predicted"],
            float(row["label_probability"]),
            row["baseline_predicted"],
        ),
    )


def read_classes(path: Path) -> list[ClassResult]:
    """Read per_class.csv, one row a class."""

    def ratio(row: Mapping[str, str], name: str) -> Ratio:
        return Ratio(_maybe(row[name]), float(row[f"{name}_low"]), float(row[f"{name}_high"]))

    return _rows(
        path,
        lambda row: ClassResult(
            row["class"],
            int(row["n"]),
            int(row["predicted"]),
            ratio(row, "recall"),
            ratio(row, "precision"),
            _maybe(row["f1"]),
        ),
    )


def read_bins(path: Path) -> list[Bin]:
    """Read reliability.csv, one row a model, calibration and bin."""
    return _rows(
        path,
        lambda row: Bin(
            row["model"],
            row["calibrated"] == "1",
            float(row["confidence"]),
            float(row["accuracy"]),
            int(row["n"]),
        ),
    )


def read_hardest(folder: Path) -> list[HardImage]:
    """Read index.csv of the hardest images, hardest first."""
    return _rows(
        folder / "index.csv",
        lambda row: HardImage(
            folder / Path(row["file"]).name,
            row["path"],
            row["label"],
            row["predicted"],
            float(row["probability"]),
        ),
    )


def count_confusion(predictions: Sequence[Prediction], classes: Sequence[str]) -> NDArray[np.int64]:
    """Count the shipped model's answers: int64 (C, C), label by prediction."""
    index = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for prediction in predictions:
        counts[index[prediction.label], index[prediction.predicted]] += 1
    return counts


def read_confusion(path: Path, classes: Sequence[str]) -> NDArray[np.int64]:
    """Count confusion.csv, one row a test image: int64 (C, C), label by prediction."""
    index = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for pair in _rows(path, lambda row: (index[row["actual"]], index[row["predicted"]])):
        counts[pair] += 1
    return counts


def _maybe(cell: str) -> float | None:
    return float(cell) if cell else None


def _rows(path: Path, build: Callable[[Mapping[str, str]], T]) -> list[T]:
    """Build one object a row.

    Raises:
        ArtifactError: A column is missing, a cell is no number or names an unknown class.
    """
    built = []
    for number, row in enumerate(read_table(path), start=2):
        try:
            built.append(build(row))
        except (KeyError, ValueError) as err:
            raise ArtifactError(
                f"{path}:{number}: {err.args[0]!r} is not what the report expects; run the stage "
                "that writes it again"
            ) from err
    return built
