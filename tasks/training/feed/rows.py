"""What the trained layers read: activations, cached or computed, or pixels; and these layers."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from tasks.artifacts.arrays import Array, Ints, Pixels
from tasks.artifacts.pixels import PixelStore
from tasks.artifacts.records import InputSpec
from tasks.runtime.device import normalize
from tasks.runtime.processes import ALONE, Processes
from tasks.training.feed.activations import (
    Activation,
    CachedRows,
    Frozen,
    fill_caches,
    measure_activations,
)

log = logging.getLogger(__name__)


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


SPARE_BYTES = 500 * 10**6  # of the scratch disk that caches leave free, for checkpoints


def open_rows(
    stores: Stores,
    frozen: Frozen,
    *,
    folder: Path,
    budget_gb: float,
    processes: Processes = ALONE,
) -> Rows:
    """Cache the activations of all images, or compute them on the fly where they do not fit.

    The budget, a parameter, may cost views; the disk, a fact of the machine, costs time only, and
    what an interrupted run has cached makes room. Computed activations are those of the cache but
    for its rounding to float16.

    Args:
        stores: The pixels.
        frozen: The frozen part.
        folder: Of the cache; its name tells all that the activations depend on.
        budget_gb: Disk that the cache may take, GB; 0: no cache.
        processes: Fill the cache together.

    Raises:
        TrainingError: Activations cannot be stored.
    """
    computed = Rows(ComputedRows(stores.train, frozen), ComputedRows(stores.val, frozen))
    if budget_gb == 0:
        return computed
    activation = measure_activations(frozen, stores.train)[0]
    views = stores.train.info.views
    fitting = affordable_views(activation.row_bytes, stores, budget_gb * 1e9)
    needed = _bytes_of_all(activation, stores) / 1e9
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
    rows = _CachedRows.at(folder, activation, stores, views=fitting)
    if _lacks_room([rows], "in every step, which is slower", processes):
        rows.remove()
        return Rows(ComputedRows(stores.train, frozen, views=fitting), computed.val)
    _fill([rows], stores, frozen, processes)
    return rows


def cache_together(
    stores: Stores,
    frozen: Frozen,
    folders: Mapping[int, Path],
    *,
    budget_gb: float,
    processes: Processes = ALONE,
) -> dict[int, Rows]:
    """Cache several outputs of the frozen part in one pass over the pixels.

    Args:
        stores: The pixels.
        frozen: The frozen part.
        folders: Of the cache of each output that is wanted, by the output's number.
        budget_gb: Disk that the caches of all outputs, wanted or not, may take together, GB.
        processes: Fill the caches together.

    Returns:
        Rows of each wanted output; none where those of all views do not fit together, into the
        budget or on the disk.

    Raises:
        TrainingError: Activations cannot be stored.
    """
    activations = measure_activations(frozen, stores.train)
    needed = sum(_bytes_of_all(activation, stores) for activation in activations) / 1e9
    if needed > budget_gb:
        log.info(
            "the activations of %d phases would take %.1f GB together, and finetune.cache_gb is "
            "%g: each phase runs its frozen layers anew",
            len(activations),
            needed,
            budget_gb,
        )
        return {}
    views = stores.train.info.views
    rows = {
        number: _CachedRows.at(folder, activations[number], stores, views=views)
        for number, folder in folders.items()
    }
    if _lacks_room(list(rows.values()), "in each phase", processes):
        for one in rows.values():
            one.remove()
        return {}

    def wanted(pixels: Pixels) -> tuple[Array, ...]:
        outputs = frozen(pixels)
        return tuple(outputs[number] for number in rows)

    _fill(list(rows.values()), stores, wanted, processes)
    return dict(rows)


def _bytes_of_all(activation: Activation, stores: Stores) -> int:
    train, val = stores.train.info, stores.val.info
    return activation.row_bytes * (train.count * (train.views + 1) + val.count)


@dataclass(frozen=True)
class _CachedRows(Rows):
    """Rows that are both cached."""

    train: CachedRows
    val: CachedRows
    folder: Path

    @classmethod
    def at(cls, folder: Path, activation: Activation, stores: Stores, *, views: int) -> Self:
        train, val = stores.train.info.count, stores.val.info.count
        return cls(
            CachedRows(folder / "train", activation, images=train, views=views),
            CachedRows(folder / "val", activation, images=val, views=0),
            folder,
        )


def _fill(
    rows: Sequence[_CachedRows], stores: Stores, frozen: Frozen, processes: Processes
) -> None:
    train, val = [one.train for one in rows], [one.val for one in rows]
    fill_caches(train, stores.train, frozen, "frozen layers over train", processes)
    fill_caches(val, stores.val, frozen, "frozen layers over val", processes)


def _lacks_room(rows: Sequence[_CachedRows], anew: str, processes: Processes) -> bool:
    """Whether a process finds too little free disk; those that do say when layers run `anew`."""
    folder = rows[0].folder
    missing = sum(one.train.missing_bytes() + one.val.missing_bytes() for one in rows)
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = max(0, shutil.disk_usage(existing).free - SPARE_BYTES)
    if missing > free:
        log.warning(
            "%s: cached activations would take %.1f GB more, and the disk has %.1f GB to spare: "
            "the frozen layers run anew %s, and what was cached is deleted; free some, or set "
            "REGRAFT_SCRATCH to a folder on a larger disk",
            folder,
            missing / 1e9,
            free / 1e9,
            anew,
        )
    return processes.any(missing > free)


def affordable_views(row_bytes: int, stores: Stores, budget: float) -> int:
    """How many augmented views of each training image fit a budget in bytes, beside the clean ones.

    Returns:
        At most as many as there are; -1 where not even the clean views fit.
    """
    images = stores.train.info.count
    rows = int(budget // row_bytes) - stores.val.info.count
    return max(-1, min(stores.train.info.views, rows // images - 1))
