"""What the trained part reads: activations of the frozen part, cached or on the fly, or pixels.

The frozen part never changes while fine-tuning, so its activations are computed once for every view
and kept as shards that are mapped into memory. Whole shards of an interrupted run are used again.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tasks.artifacts import Array, read_array, write_array
from tasks.backbones.runtime import normalize
from tasks.errors import ArtifactError, TrainingError
from tasks.images.store import Pixels, PixelStore
from tasks.progress import progress
from tasks.records import InputSpec
from tasks.training.sampling import Indices

log = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
OPEN_SHARDS = 128  # mapped at a time; each holds a file descriptor
ROWS_AT_ONCE = 32  # of the frozen part; shards hold whole multiples, so that batches never differ
HALF_MARGIN = 8.0  # float16 must hold activations so many times larger than those of a sample

Frozen = Callable[[Pixels], tuple[Array, ...]]  # uint8 (n, R, R, 3) to activations


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
        return torch.from_numpy(_run(self._frozen, self._store, rows))

    def remove(self) -> None:
        """Nothing was stored."""


class CachedRows:
    """Activations on disk, computed by `fill` for the first `views` augmented views of each image.

    Args:
        folder: Of the shards; its name tells all that the activations depend on.
        store: The pixels.
        shape: Of the activation of one image.
        dtype: float16, or float32 where float16 cannot hold the activations.
        views: Augmented views of each image that are cached.
    """

    def __init__(
        self,
        folder: Path,
        store: PixelStore,
        shape: tuple[int, ...],
        *,
        dtype: "np.dtype[np.floating]",
        views: int,
    ) -> None:
        self.views = views
        self._folder, self._store, self._shape, self._dtype = folder, store, shape, dtype
        self._total = store.info.count * (views + 1)
        self._row_bytes = int(np.prod(shape)) * dtype.itemsize
        self._shard_rows = ROWS_AT_ONCE * max(1, SHARD_BYTES // self._row_bytes // ROWS_AT_ONCE)
        self._shard = lru_cache(OPEN_SHARDS)(lambda number: read_array(self._path(number)))

    def fill(self, frozen: Frozen, what: str) -> None:
        """Compute the shards that are not there yet.

        Raises:
            TrainingError: An activation is not finite or too large for the shards' type.
            ArtifactError: A shard cannot be written, for example because the disk is full.
        """
        with progress(what, self._total, "views") as meter:
            for number, rows in self._shards():
                if not self._is_whole(number, len(rows)):
                    write_array(self._path(number), self._compute(frozen, rows))
                meter.advance(len(rows))

    def missing_bytes(self) -> int:
        """Size of the shards that are not there yet."""
        missing = [rows for number, rows in self._shards() if not self._is_whole(number, len(rows))]
        return sum(len(rows) for rows in missing) * self._row_bytes

    def read(self, rows: Indices) -> Tensor:
        """Read rows from the shards."""
        out = np.empty((len(rows), *self._shape), dtype=np.float32)
        shards, offsets = np.divmod(rows, self._shard_rows)
        for number in np.unique(shards):
            at = np.flatnonzero(shards == number)
            out[at] = self._shard(int(number))[offsets[at]]
        return torch.from_numpy(out)

    def remove(self) -> None:
        """Delete the shards."""
        self._shard.cache_clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _shards(self) -> Iterator[tuple[int, Indices]]:
        """Yield the number of each shard and its rows."""
        for number, start in enumerate(range(0, self._total, self._shard_rows)):
            yield number, np.arange(start, min(start + self._shard_rows, self._total))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npy"

    def _is_whole(self, number: int, rows: int) -> bool:
        if not self._path(number).is_file():
            return False
        try:
            shard = read_array(self._path(number))
        except ArtifactError:
            return False
        return shard.shape == (rows, *self._shape) and shard.dtype == self._dtype

    def _compute(self, frozen: Frozen, rows: Indices) -> Array:
        shard = np.empty((len(rows), *self._shape), dtype=self._dtype)
        images, views = np.divmod(rows, self.views + 1)
        wanted = self._store.row_of(images, views)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = wanted[start : start + ROWS_AT_ONCE]
            shard[start : start + ROWS_AT_ONCE] = self._checked(_run(frozen, self._store, some))
        return shard

    def _checked(self, activations: Array) -> Array:
        largest = np.abs(activations).max()
        if not largest <= np.finfo(self._dtype).max:
            raise TrainingError(
                f"the frozen layers gave an activation of {largest:g}, which {self._dtype} cannot "
                "hold; set finetune.cache_gb to 0 to train without a cache, or use other weights"
            )
        return activations


def measure_activation(
    frozen: Frozen, store: PixelStore
) -> tuple[tuple[int, ...], "np.dtype[np.floating]"]:
    """Shape of the activation of one image, and the type that is wide enough to store it."""
    sample = _run(frozen, store, store.clean_rows()[:ROWS_AT_ONCE])
    fits = np.abs(sample).max() * HALF_MARGIN <= np.finfo(np.float16).max
    return sample.shape[1:], np.dtype(np.float16 if fits else np.float32)


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


def _run(frozen: Frozen, store: PixelStore, rows: Indices) -> Array:
    return frozen(store.rows(rows))[0]
