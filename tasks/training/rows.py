"""What the trained part reads: activations of the frozen layers, stored or computed, or pixels."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tasks.backbones.runtime import normalize
from tasks.errors import TrainingError
from tasks.images.store import PixelStore
from tasks.records import InputSpec
from tasks.training.activations import CachedRows, Frozen, measure_activation, run_frozen
from tasks.training.sampling import Indices

log = logging.getLogger(__name__)


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
    """Activations that the frozen part computes anew each time."""

    def __init__(self, store: PixelStore, frozen: Frozen) -> None:
        self._store, self._frozen = store, frozen
        self.views = store.info.views

    def read(self, rows: Indices) -> Tensor:
        """Run the frozen part over rows of the pixel store."""
        return torch.from_numpy(run_frozen(self._frozen, self._store, rows))

    def remove(self) -> None:
        """Nothing was stored."""


def open_rows(stores: Stores, frozen: Frozen, *, folder: Path, budget_gb: float) -> Rows:
    """Cache the activations of all images, or compute them on the fly where they do not fit.

    Args:
        stores: The pixels.
        frozen: The frozen part.
        folder: Of the cache; its name tells all that the activations depend on.
        budget_gb: Disk that the cache may take, GB; 0: no cache.

    Raises:
        TrainingError: The disk has less room than the cache needs, or activations cannot be stored.
    """
    computed = Rows(ComputedRows(stores.train, frozen), ComputedRows(stores.val, frozen))
    if budget_gb == 0:
        return computed
    shape, dtype = measure_activation(frozen, stores.train)
    row_bytes = int(np.prod(shape)) * dtype.itemsize
    images, views = stores.train.info.count, stores.train.info.views
    fitting = affordable_views(row_bytes, stores, budget_gb * 1e9)
    needed = row_bytes * (images * (views + 1) + stores.val.info.count) / 1e9
    if fitting < min(views, 1):
        log.warning(
            "the activations of all %d views would take %.1f GB, and finetune.cache_gb is %g: the "
            "frozen layers run anew in every step, which is slower",
            views,
            needed,
            budget_gb,
        )
        return computed
    if fitting < views:
        log.warning(
            "the activations of all %d views would take %.1f GB, and finetune.cache_gb is %g: only "
            "%d augmented views of each image are used",
            views,
            needed,
            budget_gb,
            fitting,
        )
    train = CachedRows(folder / "train", stores.train, shape, dtype=dtype, views=fitting)
    val = CachedRows(folder / "val", stores.val, shape, dtype=dtype, views=0)
    _check_room(folder, train.missing_bytes() + val.missing_bytes())
    train.fill(frozen, "frozen layers over train")
    val.fill(frozen, "frozen layers over val")
    return Rows(train, val)


def affordable_views(row_bytes: int, stores: Stores, budget: float) -> int:
    """How many augmented views of each training image fit a budget in bytes, beside the clean ones.

    Returns:
        At most as many as there are; -1 where not even the clean views fit.
    """
    images = stores.train.info.count
    rows = int(budget // row_bytes) - stores.val.info.count
    return max(-1, min(stores.train.info.views, rows // images - 1))


def _check_room(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TrainingError(
            f"{folder}: the activation cache needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            "free; free some, set REGRAFT_SCRATCH to a larger disk, or lower finetune.cache_gb"
        )
