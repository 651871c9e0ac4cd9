"""Cached activations: what the frozen layers give for every view, computed once.

They are shards that are mapped into memory. Whole shards of an interrupted run are used again.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.artifacts.arrays import Array, Ints, Pixels, read_array, release_pages, write_array
from tasks.artifacts.pixels import PixelStore
from tasks.errors import ArtifactError, TrainingError
from tasks.runtime.processes import ALONE, Processes
from tasks.runtime.progress import progress

log = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
OPEN_SHARDS = 128  # mapped at a time; each holds a file descriptor
ROWS_AT_ONCE = 32  # of the frozen part; shards hold whole multiples, so that batches never differ
HALF_MARGIN = 8.0  # float16 must hold activations so many times larger than those of a sample

Frozen = Callable[[Pixels], tuple[Array, ...]]  # uint8 (n, R, R, 3) to activations


@dataclass(frozen=True)
class Activation:
    """Shape of the activation of one image, and the type that is wide enough to store it."""

    shape: tuple[int, ...]
    dtype: "np.dtype[np.floating]"

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class CachedRows:
    """Activations on disk, written by `fill_caches`.

    Args:
        folder: Of the shards; its name tells all that the activations depend on.
        activation: Of one image.
        images: Number of images.
        views: Augmented views of each image that are cached, its first ones.
    """

    def __init__(self, folder: Path, activation: Activation, *, images: int, views: int) -> None:
        self.views, self.total = views, images * (views + 1)
        self._folder, self._activation = folder, activation
        batches = SHARD_BYTES // activation.row_bytes // ROWS_AT_ONCE
        self.shard_rows = ROWS_AT_ONCE * max(1, batches)
        self._shard = lru_cache(OPEN_SHARDS)(lambda number: read_array(self._path(number)))

    def read(self, rows: Ints) -> Tensor:
        """Read rows from the shards."""
        out = np.empty((len(rows), *self._activation.shape), dtype=np.float32)
        shards, offsets = np.divmod(rows, self.shard_rows)
        for number in np.unique(shards):
            at = np.flatnonzero(shards == number)
            shard = self._shard(int(number))
            out[at] = shard[offsets[at]]
            release_pages(shard)
        return torch.from_numpy(out)

    def remove(self) -> None:
        """Delete the shards."""
        self._shard.cache_clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def missing_shards(self) -> set[int]:
        """Numbers of the shards that are not there yet, or damaged."""
        return {
            number for number in range(-(-self.total // self.shard_rows)) if self._lacks(number)
        }

    def shards_of(self, processes: Processes) -> set[int]:
        """Numbers of the shards that are this process's: one stretch of the rows."""
        own = processes.share(self.total)
        return set(range(-(-own.start // self.shard_rows), -(-own.stop // self.shard_rows)))

    def missing_bytes(self) -> int:
        """Size of the shards that are not there yet."""
        rows = sum(self._rows_in(number) for number in self.missing_shards())
        return rows * self._activation.row_bytes

    def empty_shard(self, number: int) -> Array:
        """Give an array to fill and to hand to `write_shard`."""
        return np.empty(self._shape_of(number), dtype=self._activation.dtype)

    def write_shard(self, number: int, shard: Array) -> None:
        """Write a shard.

        Raises:
            ArtifactError: It cannot be written, for example because the disk is full.
        """
        write_array(self._path(number), shard)

    def _rows_in(self, number: int) -> int:
        return min(self.shard_rows, self.total - number * self.shard_rows)

    def _shape_of(self, number: int) -> tuple[int, ...]:
        return (self._rows_in(number), *self._activation.shape)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npy"

    def _lacks(self, number: int) -> bool:
        if not self._path(number).is_file():
            return True
        try:
            shard = read_array(self._path(number))
        except ArtifactError:
            return True
        kind = self._activation.dtype
        return shard.shape != self._shape_of(number) or shard.dtype != kind


def fill_caches(
    caches: Sequence[CachedRows],
    store: PixelStore,
    frozen: Frozen,
    what: str,
    processes: Processes = ALONE,
) -> None:
    """Compute the shards that are not there yet, in one pass over the pixels.

    Each process computes its stretch of the shards. When this returns, all are there.

    Args:
        caches: Of the images of `store`, all with the same views; cache i holds output i.
        store: The pixels.
        frozen: The frozen layers.
        what: For the progress.
        processes: Fill the same caches together.

    Raises:
        TrainingError: An activation is not finite or too large for the shards' type.
        ArtifactError: A shard cannot be written, for example because the disk is full.
        PeerError: Another process has ended.
    """
    views, total = caches[0].views, caches[0].total
    fillings = [_Filling(cache, processes) for cache in caches]
    with progress(what, total, "views") as meter:
        for start in range(0, total, ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, total))
            if any(filling.wants(start) for filling in fillings):
                outputs = frozen(store.rows(store.row_of(*np.divmod(rows, views + 1))))
                for filling, activations in zip(fillings, outputs, strict=True):
                    filling.put(start, activations)
            meter.advance(len(rows))
    processes.wait()


class _Filling:
    """The shard of a cache that is being computed, batch by batch."""

    def __init__(self, cache: CachedRows, processes: Processes) -> None:
        self._cache = cache
        self._missing = cache.missing_shards() & cache.shards_of(processes)
        self._shard = cache.empty_shard(0)

    def wants(self, start: int) -> bool:
        """Whether the rows from `start` on are in a shard that is missing."""
        return start // self._cache.shard_rows in self._missing

    def put(self, start: int, activations: Array) -> None:
        """Take the activations of the rows from `start` on; a full shard is written if missing."""
        number, offset = divmod(start, self._cache.shard_rows)
        if number not in self._missing:
            return
        if offset == 0:
            self._shard = self._cache.empty_shard(number)
        self._shard[offset : offset + len(activations)] = _checked(activations, self._shard.dtype)
        if offset + len(activations) == len(self._shard):
            self._cache.write_shard(number, self._shard)


def _checked(activations: Array, dtype: "np.dtype[np.floating]") -> Array:
    largest = np.abs(activations).max()
    if not largest <= np.finfo(dtype).max:
        raise TrainingError(
            f"the frozen layers gave an activation of {largest:g}, which {dtype} cannot hold; set "
            "finetune.cache_gb to 0 to train without a cache, or use other weights"
        )
    return activations


def measure_activations(frozen: Frozen, store: PixelStore) -> list[Activation]:
    """Measure each output of the frozen layers on some images."""
    outputs = frozen(store.rows(store.clean_rows()[:ROWS_AT_ONCE]))
    return [Activation(output.shape[1:], _wide_enough(output)) for output in outputs]


def _wide_enough(sample: Array) -> "np.dtype[np.floating]":
    fits = np.abs(sample).max() * HALF_MARGIN <= np.finfo(np.float16).max
    return np.dtype(np.float16 if fits else np.float32)
