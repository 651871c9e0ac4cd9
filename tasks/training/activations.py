"""Cached activations: what the frozen layers give for every view, computed once.

They are shards that are mapped into memory. Whole shards of an interrupted run are used again.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.artifacts import Array, read_array, write_array
from tasks.errors import ArtifactError, TrainingError
from tasks.images.store import Pixels, PixelStore
from tasks.progress import progress
from tasks.training.sampling import Indices

log = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
OPEN_SHARDS = 128  # mapped at a time; each holds a file descriptor
ROWS_AT_ONCE = 32  # of the frozen part; shards hold whole multiples, so that batches never differ
HALF_MARGIN = 8.0  # float16 must hold activations so many times larger than those of a sample

Frozen = Callable[[Pixels], tuple[Array, ...]]  # uint8 (n, R, R, 3) to activations


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
            shard[start : start + ROWS_AT_ONCE] = self._checked(
                run_frozen(frozen, self._store, some)
            )
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
    sample = run_frozen(frozen, store, store.clean_rows()[:ROWS_AT_ONCE])
    fits = np.abs(sample).max() * HALF_MARGIN <= np.finfo(np.float16).max
    return sample.shape[1:], np.dtype(np.float16 if fits else np.float32)


def run_frozen(frozen: Frozen, store: PixelStore, rows: Indices) -> Array:
    """Run the frozen layers over rows of a pixel store: float32 (n, ...)."""
    return frozen(store.rows(rows))[0]
