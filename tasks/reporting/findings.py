"""What the earlier stages found out, in one place."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.files import read_bytes
from tasks.records import (
    AugmentPolicy,
    BackboneInfo,
    Baseline,
    ClassRow,
    Decision,
    Finetuned,
    HardestRow,
    Health,
    HistoryRow,
    ImageSource,
    Metrics,
    PlaneRow,
    ReliabilityRow,
    Scores,
    ShiftRow,
    Similarity,
)
from tasks.reporting.text import percent


@dataclass(frozen=True)
class Picture:
    """The bytes of a JPEG file, and where it lies."""

    path: Path
    content: bytes = field(repr=False)


def read_picture(path: Path) -> Picture:
    """Read a picture.

    Raises:
        ArtifactError: The file is missing.
    """
    return Picture(path, read_bytes(path))


@dataclass(frozen=True)
class Findings:
    """Everything that report and model card tell about data, training and results.

    Attributes:
        title: Of the report.
        confidence: Of the intervals of the test results, in (0, 1).
        confusion: Of the shipped model on test, int64 (C, C), rows are labels.
        hardest: The test images that the shipped model finds hardest.
        sheet: The augmented views.
    """

    title: str
    confidence: float
    health: Health
    origin: ImageSource
    policy: AugmentPolicy
    backbone: BackboneInfo
    similarity: Similarity
    decision: Decision
    baseline: Baseline
    finetuned: Finetuned
    metrics: Metrics
    layers: list[ShiftRow]
    places: list[PlaneRow]
    history: list[HistoryRow]
    classes: list[ClassRow]
    confusion: NDArray[np.int64]
    bins: list[ReliabilityRow]
    hardest: list[tuple[HardestRow, Picture]]
    sheet: Picture

    @property
    def shipped(self) -> Scores:
        """Test results of the shipped model."""
        if self.metrics.shipped == "finetuned" and self.metrics.finetuned:
            return self.metrics.finetuned
        return self.metrics.baseline

    @property
    def tuned_name(self) -> str:
        """What the model of stage finetune is called."""
        return "trained from scratch" if self.finetuned.arm == "scratch" else "fine-tuned"

    @property
    def shipped_head(self) -> str:
        """Whether the head of the shipped model is linear or an mlp."""
        return (self.baseline if self.metrics.shipped == "baseline" else self.finetuned).head

    @property
    def final_weights(self) -> str:
        """What the weights of the fine-tuned model are, in a sentence; empty: those of its end."""
        share = self.finetuned.interpolation
        if self.finetuned.averaged:
            return (
                "The final weights are the average of what the kept phases ended with, chosen on "
                "val."
            )
        if share == 0 and any(phase.kept for phase in self.finetuned.phases):
            return (
                "Val chose none of the fine-tuned weights: the final ones are those of the start."
            )
        if 0 < share < 1:
            return (
                f"The final weights are {percent(share, 0)} fine-tuned and {percent(1 - share, 0)} "
                "start weights, a share chosen on val."
            )
        return ""
