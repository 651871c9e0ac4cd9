"""Packed pixels: uint8 rows in .npy shards of fixed length, written in order, mapped when read.

Every image has 1 + views rows one after the other: the clean one, then its augmented views. A
shard takes about 64 MB, so that neither writer nor reader needs more memory with more images.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Self, overload

import numpy as np
from numpy.lib import format as npy

from tasks.artifacts.arrays import Ints, Pixels, read_array, release_pages
from tasks.artifacts.records import SPLITS, Split, StoreInfo, read_record, write_record
from tasks.artifacts.tables import Manifest
from tasks.errors import ArtifactError

SHARD_BYTES = 64 * 2**20
OPEN_SHARDS = 128  # mapped at a time; each holds a file descriptor

INFO = "info.json"


def store_info(count: int, *, views: int, image_px: int) -> StoreInfo:
    """Plan a store of `count` images of one clean and `views` augmented rows each."""
    shard_rows = max(1, SHARD_BYTES // _row_bytes(image_px))
    shards = -(-count * (1 + views) // shard_rows)
    return StoreInfo(
        count=count, views=views, image_px=image_px, shard_rows=shard_rows, shards=shards
    )


def bytes_of(count: int, views: int, image_px: int) -> int:
    """Size in bytes of the pixels of `count` images with `views` augmented views each."""
    return count * (1 + views) * _row_bytes(image_px)


def _row_bytes(image_px: int) -> int:
    return image_px * image_px * 3


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npy"


class StoreWriter:
    """Writes a store into an existing, empty folder, row by row; use as a context manager.

    A full shard goes to the disk while the next rows are made; at the end all have arrived.

    Args:
        folder: Where shards and info.json go, usually inside `replacing_folder`.
        info: Shape of the store, see `store_info`; info.json is written when all rows are there.
    """

    def __init__(self, folder: Path, info: StoreInfo) -> None:
        self.info = info
        self._folder = folder
        self._rows = 0
        self._file: BinaryIO | None = None
        self._disk = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._disk.shutdown()
            if self._file is not None:
                self._file.close()

    def append(self, pixels: Pixels) -> None:
        """Write the next rows.

        Args:
            pixels: uint8 (n, image_px, image_px, 3).

        Raises:
            ValueError: The pixels have another shape or type, or are more than announced.
            OSError: The disk is full; it may be told of earlier rows, or at the end only.
        """
        side = self.info.image_px
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3):
            raise ValueError(
                f"{pixels.dtype} {pixels.shape}, expected uint8 (n, {side}, {side}, 3)"
            )
        if self._rows + len(pixels) > _total_rows(self.info):
            raise ValueError(f"more than the {_total_rows(self.info)} announced rows")
        done = 0
        while done < len(pixels):
            filled = self._rows % self.info.shard_rows
            if filled == 0:
                self._open_shard()
            some = pixels[done : done + self.info.shard_rows - filled]
            assert self._file is not None
            self._file.write(np.ascontiguousarray(some).data)
            self._rows += len(some)
            done += len(some)

    def _open_shard(self) -> None:
        self._close_shard()
        number = self._rows // self.info.shard_rows
        self._file = _shard_path(self._folder, number).open("wb")
        header = {"descr": "|u1", "fortran_order": False, "shape": _shard_shape(self.info, number)}
        npy.write_array_header_1_0(self._file, header)

    def _close_shard(self) -> None:
        if self._file is None:
            return
        self._wait()  # one shard is under way at most, however slow the disk
        self._syncing = self._disk.submit(_sync_and_close, self._file)
        self._file = None

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.result()

    def _finish(self) -> None:
        self._close_shard()
        self._wait()
        if self._rows != _total_rows(self.info):
            raise ValueError(f"{self._rows} rows of {_total_rows(self.info)} were written")
        write_record(self._folder / INFO, self.info)


def _sync_and_close(file: BinaryIO) -> None:
    with file:
        file.flush()
        os.fsync(file.fileno())


def _total_rows(info: StoreInfo) -> int:
    return info.count * (1 + info.views)


def _shard_shape(info: StoreInfo, number: int) -> tuple[int, int, int, int]:
    rows = min(info.shard_rows, _total_rows(info) - number * info.shard_rows)
    return rows, info.image_px, info.image_px, 3


class PixelStore:
    """Reads a store. Only the rows that are asked for leave the disk."""

    def __init__(self, folder: Path, info: StoreInfo) -> None:
        self.folder = folder
        self.info = info
        self._shard = lru_cache(OPEN_SHARDS)(lambda number: _read_shard(folder, info, number))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store and check that its shards are there and whole.

        Raises:
            ArtifactError: info.json or a shard is missing, or a shard is too short.
        """
        info = read_record(folder / INFO, StoreInfo)
        for number in range(info.shards):
            _check_shard(folder, info, number)
        return cls(folder, info)

    @overload
    def row_of(self, image: int, view: int = 0) -> int: ...
    @overload
    def row_of(self, image: Ints, view: int | Ints = 0) -> Ints: ...
    def row_of(self, image: int | Ints, view: int | Ints = 0) -> int | Ints:
        """Row number of a view of an image; view 0 is the clean one. Arrays give arrays."""
        return image * (self.info.views + 1) + view

    def clean_rows(self) -> Ints:
        """Row numbers of the clean views: int64 (count,)."""
        return self.row_of(np.arange(self.info.count, dtype=np.int64))

    def rows(self, indices: Sequence[int] | Ints) -> Pixels:
        """Read rows in the order asked for.

        Args:
            indices: Row numbers in [0, count * (1 + views)), in any order, with or without repeats.

        Returns:
            uint8 (n, image_px, image_px, 3), a copy.

        Raises:
            IndexError: A row number is out of range.
            ArtifactError: A shard cannot be read.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        total, side = _total_rows(self.info), self.info.image_px
        if wanted.size and (wanted.min() < 0 or wanted.max() >= total):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of a store of {total}")
        out = np.empty((len(wanted), side, side, 3), dtype=np.uint8)
        shards, offsets = np.divmod(wanted, self.info.shard_rows)
        for number in np.unique(shards):
            at = np.flatnonzero(shards == number)
            shard = self._shard(int(number))
            out[at] = shard[offsets[at]]
            release_pages(shard)
        return out

    def batches(self, rows: Sequence[int] | Ints, batch_size: int) -> Iterator[Pixels]:
        """Read rows in order, `batch_size` at a time; the last batch may be smaller."""
        for start in range(0, len(rows), batch_size):
            yield self.rows(rows[start : start + batch_size])


def open_pixels(manifest: Manifest, folders: Sequence[Path]) -> dict[Split, PixelStore]:
    """Open the stores of train, val and test, in this order, or of the first of them.

    Raises:
        ArtifactError: A store is missing, damaged or of other images than the manifest lists.
    """
    stores = {}
    for split, folder in zip(SPLITS, folders, strict=False):
        stores[split] = store = PixelStore.open(folder)
        listed = len(manifest.of(split))
        if store.info.count != listed:
            raise ArtifactError(
                f"{store.folder}: {store.info.count} images, the manifest lists {listed}; run the "
                "augment stage again"
            )
    return stores


class ChosenPixels(PixelStore):
    """Some images of a store as a store of their own; nothing is copied.

    Args:
        store: All images.
        images: Numbers of those that count, in this order, int64 (n,).
    """

    def __init__(self, store: PixelStore, images: Ints) -> None:
        super().__init__(store.folder, store.info.model_copy(update={"count": len(images)}))
        self._store, self._images = store, images

    def rows(self, indices: Sequence[int] | Ints) -> Pixels:
        """Read rows of the chosen images, as `PixelStore.rows` does of all."""
        image, view = np.divmod(np.asarray(indices, dtype=np.int64), self.info.views + 1)
        return self._store.rows(self._store.row_of(self._images[image], view))


def _check_shard(folder: Path, info: StoreInfo, number: int) -> None:
    path = _shard_path(folder, number)
    pixels = _shard_shape(info, number)[0] * _row_bytes(info.image_px)
    size = path.stat().st_size if path.is_file() else 0
    if size <= pixels:  # the header comes on top
        raise ArtifactError(
            f"{path}: {size:,} bytes, expected more than {pixels:,}; run the augment stage again"
        )


def _read_shard(folder: Path, info: StoreInfo, number: int) -> Pixels:
    path = _shard_path(folder, number)
    shard = read_array(path)
    if shard.dtype != np.uint8 or shard.shape != _shard_shape(info, number):
        raise ArtifactError(
            f"{path}: {shard.dtype} {shard.shape}, expected uint8 {_shard_shape(info, number)}; "
            "run the augment stage again"
        )
    return shard
