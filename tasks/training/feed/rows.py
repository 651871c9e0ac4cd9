"""What the trained layers read (activations, stored or computed, or pixels), and these layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tasks.artifacts.arrays import Ints
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import InputSpec
from tasks.runtime.device import normalize
from tasks.training.feed.activations import Frozen


class RowSource(Protocol):
    """Gives what the trained part reads for rows `image * (views + 1) + view`."""

    views: int

    def read(self, rows: Ints) -> Tensor:
        """Read rows, in the order asked for, as float32 on the CPU."""

    def remove(self) -> None:
        """Delete what was stored on disk to read from."""


@dataclass(frozen=True)
class Stores:
    """The pixels of the training and of the val images."""

    train: PixelStore
    val: PixelStore


@dataclass(frozen=True)
class Rows:
    """The training rows and the val rows, which have no augmented views."""

    train: RowSource
    val: RowSource

    def remove(self) -> None:
        """Delete what was stored on disk to read from."""
        self.train.remove()
        self.val.remove()


class PixelRows:
    """Normalized images (n, 3, R, R), where no layer is frozen."""

    def __init__(self, store: PixelStore, spec: InputSpec) -> None:
        self._store, self._spec = store, spec
        self.views = store.info.views

    def read(self, rows: Ints) -> Tensor:
        """Read rows of the pixel store and normalize them."""
        return normalize(torch.from_numpy(self._store.rows(rows)), self._spec)

    def remove(self) -> None:
        """Nothing was stored."""


class ComputedRows:
    """Activations that the frozen part computes anew each time.

    Args:
        store: The pixels.
        frozen: The frozen part.
        views: Augmented views of each image that are used, its first ones; None: all.
    """

    def __init__(self, store: PixelStore, frozen: Frozen, *, views: int | None = None) -> None:
        self._store, self._frozen = store, frozen
        self.views = store.info.views if views is None else views

    def read(self, rows: Ints) -> Tensor:
        """Run the frozen part over the pixels of rows."""
        stored = self._store.row_of(*np.divmod(rows, self.views + 1))
        return torch.from_numpy(self._frozen(self._store.rows(stored))[0])

    def remove(self) -> None:
        """Nothing was stored."""


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
