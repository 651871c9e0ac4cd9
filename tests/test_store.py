"""Rows come back as they went in, whatever the shards; a damaged store is refused."""

import errno
import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tasks.artifacts import pixels as store_module
from tasks.artifacts.arrays import read_array
from tasks.artifacts.files import replacing_folder
from tasks.artifacts.pixels import PixelStore, StoreWriter, bytes_of, open_pixels, store_info
from tasks.artifacts.records import StoreInfo, read_record
from tasks.artifacts.tables import Manifest, ManifestRow
from tasks.errors import ArtifactError

PX = 16


def some_rows(count: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, PX, PX, 3), dtype=np.uint8)


def write_store(
    folder: Path, rows: np.ndarray, *, views: int, shard_rows: int, step: int = 5
) -> None:
    folder.mkdir()
    count = len(rows) // (1 + views)
    info = StoreInfo(
        count=count,
        views=views,
        image_px=PX,
        shard_rows=shard_rows,
        shards=-(-len(rows) // shard_rows),
    )
    with StoreWriter(folder, info) as writer:
        for start in range(0, len(rows), step):
            writer.append(rows[start : start + step])


@pytest.mark.parametrize("shard_rows", [1, 4, 7, 24, 100])
@pytest.mark.parametrize("step", [1, 5, 24])
def test_rows_come_back_in_any_order(tmp_path: Path, shard_rows: int, step: int) -> None:
    rows = some_rows(24)
    write_store(tmp_path / "s", rows, views=2, shard_rows=shard_rows, step=step)
    store = PixelStore.open(tmp_path / "s")
    order = np.random.default_rng(0).integers(0, 24, 50)
    assert np.array_equal(store.rows(order), rows[order])
    assert np.array_equal(store.rows([23, 0, 0]), rows[[23, 0, 0]])


def test_shards_are_plain_arrays_of_fixed_length(tmp_path: Path) -> None:
    rows = some_rows(10)
    write_store(tmp_path / "s", rows, views=1, shard_rows=4)
    shards = [read_array(path) for path in sorted((tmp_path / "s").glob("*.npy"))]
    assert [len(shard) for shard in shards] == [4, 4, 2]
    assert np.array_equal(np.concatenate(shards), rows)
    assert all(isinstance(shard, np.memmap) for shard in shards)
    np.save(tmp_path / "other.npy", rows[:4])
    assert (tmp_path / "other.npy").read_bytes() == (tmp_path / "s/000000.npy").read_bytes()


def test_clean_rows_and_views_are_numbered_by_image(tmp_path: Path) -> None:
    rows = some_rows(12)
    write_store(tmp_path / "s", rows, views=3, shard_rows=5)
    store = PixelStore.open(tmp_path / "s")
    assert store.clean_rows().tolist() == [0, 4, 8]
    assert store.clean_rows().dtype == np.int64
    assert store.row_of(2) == 8
    assert store.row_of(2, 3) == 11
    assert store.row_of(np.array([0, 2]), np.array([1, 2])).tolist() == [1, 10]


def test_batches_keep_order_and_lose_nothing(tmp_path: Path) -> None:
    rows = some_rows(11)
    write_store(tmp_path / "s", rows, views=0, shard_rows=4)
    store = PixelStore.open(tmp_path / "s")
    order = np.random.default_rng(1).permutation(11)
    batches = list(store.batches(order, 4))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert np.array_equal(np.concatenate(batches), rows[order])


def test_rows_are_a_copy(tmp_path: Path) -> None:
    rows = some_rows(4)
    write_store(tmp_path / "s", rows, views=0, shard_rows=4)
    store = PixelStore.open(tmp_path / "s")
    store.rows([0])[:] = 0
    assert np.array_equal(store.rows([0]), rows[:1])


def test_many_shards_keep_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "OPEN_SHARDS", 3)
    rows = some_rows(20)
    write_store(tmp_path / "s", rows, views=0, shard_rows=1)
    store = PixelStore.open(tmp_path / "s")
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    assert np.array_equal(store.rows(range(20)), rows)
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) - before <= 3


def test_a_store_without_images_is_a_store(tmp_path: Path) -> None:
    write_store(tmp_path / "s", some_rows(0), views=0, shard_rows=4)
    store = PixelStore.open(tmp_path / "s")
    assert store.rows([]).shape == (0, PX, PX, 3)
    assert store.clean_rows().tolist() == []
    assert list(store.batches(store.clean_rows(), 8)) == []


@pytest.mark.parametrize(
    ("count", "views", "image_px"), [(0, 0, 16), (1, 0, 224), (10_000, 3, 224)]
)
def test_shards_take_about_64_mb_whatever_the_count(count: int, views: int, image_px: int) -> None:
    info = store_info(count, views=views, image_px=image_px)
    row_bytes = 3 * image_px**2
    assert info.shard_rows == store_info(7, views=0, image_px=image_px).shard_rows
    assert 60e6 < info.shard_rows * row_bytes <= 2**26
    assert bytes_of(count, views, image_px) == count * (1 + views) * row_bytes
    rows = count * (1 + views)
    assert (info.shards - 1) * info.shard_rows < rows <= info.shards * info.shard_rows


def test_rows_larger_than_a_shard_get_one_each() -> None:
    assert store_info(3, views=0, image_px=5000).shard_rows == 1


@pytest.mark.parametrize("rows", [[-1], [6], [0, 99]])
def test_rows_out_of_range_are_refused(tmp_path: Path, rows: list[int]) -> None:
    write_store(tmp_path / "s", some_rows(6), views=0, shard_rows=4)
    with pytest.raises(IndexError, match="of a store of 6"):
        PixelStore.open(tmp_path / "s").rows(rows)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, PX, PX + 1, 3), np.uint8), "expected uint8"),
        (np.zeros((1, PX, PX, 3), np.float32), "expected uint8"),
        (np.zeros((3, PX, PX, 3), np.uint8), "more than the 2 announced rows"),
    ],
)
def test_wrong_pixels_are_not_written(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    writer = StoreWriter(tmp_path, store_info(2, views=0, image_px=PX))
    with pytest.raises(ValueError, match=message):
        writer.append(pixels)
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_store_has_no_info(tmp_path: Path) -> None:
    info = store_info(3, views=0, image_px=PX)
    with pytest.raises(ValueError, match="2 rows of 3"), StoreWriter(tmp_path, info) as writer:
        writer.append(some_rows(2))
    with pytest.raises(ArtifactError, match=r"info\.json"):
        PixelStore.open(tmp_path)


def test_failure_inside_replacing_folder_leaves_the_old_store(tmp_path: Path) -> None:
    old = some_rows(3)
    write_store(tmp_path / "s", old, views=0, shard_rows=4)

    def fail_while_writing() -> None:
        with (
            replacing_folder(tmp_path / "s") as folder,
            StoreWriter(folder, store_info(5, views=0, image_px=PX)) as writer,
        ):
            writer.append(some_rows(2))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail_while_writing()
    assert np.array_equal(PixelStore.open(tmp_path / "s").rows([0, 1, 2]), old)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_disk_that_takes_a_shard_no_more_fails_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    synced = itertools.count(1)

    def sync(descriptor: int) -> None:
        if next(synced) == fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(OSError, match="No space left on device"):
        write_store(tmp_path / "s", some_rows(12), views=0, shard_rows=4)
    assert not (tmp_path / "s" / "info.json").exists()


def test_a_short_or_missing_shard_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s", some_rows(6), views=0, shard_rows=4)
    shard = tmp_path / "s" / "000001.npy"
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(ArtifactError, match=r"000001\.npy: 500 bytes, expected more than 1,536"):
        PixelStore.open(tmp_path / "s")
    shard.unlink()
    with pytest.raises(ArtifactError, match=r"000001\.npy: 0 bytes"):
        PixelStore.open(tmp_path / "s")


def test_a_shard_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_store(tmp_path / "s", some_rows(6), views=0, shard_rows=4)
    np.save(tmp_path / "s" / "000001.npy", np.zeros((2, PX, PX, 4), np.uint8))
    store = PixelStore.open(tmp_path / "s")
    with pytest.raises(ArtifactError, match=r"expected uint8 \(2, 16, 16, 3\)"):
        store.rows([5])


def test_stores_of_other_images_than_the_manifest_lists_are_refused(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("val", 2)):
        write_store(tmp_path / name, some_rows(count), views=0, shard_rows=4)
    row = ManifestRow("a.png", "a", "train", "a", "a", PX, PX, "RGB")
    manifest = Manifest([row, row, row, replace(row, split="val")])
    folders = [tmp_path / "train", tmp_path / "val"]
    (train,) = open_pixels(manifest, folders[:1]).values()
    assert train.info.count == 3
    with pytest.raises(ArtifactError, match="val: 2 images, the manifest lists 1; run the augment"):
        open_pixels(manifest, folders)


def test_info_is_read_back(tmp_path: Path) -> None:
    write_store(tmp_path / "s", some_rows(6), views=1, shard_rows=4)
    info = StoreInfo(count=3, views=1, image_px=PX, shard_rows=4, shards=2)
    assert read_record(tmp_path / "s" / "info.json", StoreInfo) == info
    assert PixelStore.open(tmp_path / "s").info == info
