"""What the trained part reads: activations of the frozen layers, stored or computed, or pixels."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tasks.backbones.runtime import normalize
from tasks.images.store import PixelStore
from tasks.records import InputSpec
from tasks.training.activations import Frozen
from tasks.training.sampling import Indices


class RowSource(Protocol):
    """Gives what the trained part reads for rows `image * (views + 1) + view`."""

    views: int

    def read(self, rows: Indices) -> Tensor:
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

    def read(self, rows: Indices) -> Tensor:
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

    def read(self, rows: Indices) -> Tensor:
        """Run the frozen part over the pixels of rows."""
        stored = self._store.row_of(*np.divmod(rows, self.views + 1))
        return torch.from_numpy(self._frozen(self._store.rows(stored))[0])

    def remove(self) -> None:
        """Nothing was stored."""
