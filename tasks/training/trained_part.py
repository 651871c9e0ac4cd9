"""What a step trains and what it sees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from tasks.training.rows import Rows


@dataclass(frozen=True)
class TrainedPart:
    """The layers above a cut: activations to logits.

    Attributes:
        module: Shares its layers with the classifier.
        names: Names, in the classifier, of all parameters and buffers of these layers.
        rows: What the module reads.
    """

    module: nn.Module
    names: Sequence[str]
    rows: Rows


class Parts(Protocol):
    """Cuts the classifier; one cut is open at a time."""

    def open(self, unfrozen_from: int) -> TrainedPart:
        """Give the part from a layer group on."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step saw: mean loss over its images, how many were right, and the gradient's norm."""

    loss: float
    right: int
    images: int
    norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the step made sense; if not, the weights were left alone."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)
