"""Cached activations are those of the frozen part; the cache keeps to its budget, resumably."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tells
from tiny_finetune import COUNTS, SIDE, make_store

from tasks.artifacts.arrays import Pixels
from tasks.artifacts.records import InputSpec
from tasks.errors import TrainingError
from tasks.runtime.device import normalize
from tasks.runtime.processes import Processes
from tasks.training.feed import activations
from tasks.training.feed.activations import CachedRows
from tasks.training.feed.rows import (
    SPARE_BYTES,
    ComputedRows,
    PixelRows,
    Stores,
    affordable_views,
    cache_together,
    open_rows,
)

VIEWS = 2
ROW_BYTES = 3 * 4 * 2  # of the activation below, as float16
IMAGES, VAL = COUNTS["train"], COUNTS["val"]


class Frozen:
    """Stands for frozen layers: pixels (n, R, R, 3) to (n, 3, 4); counts the rows it has seen."""

    def __init__(self, scale: float = 1.0) -> None:
        self.rows = 0
        self.scale = scale

    def __call__(self, pixels: Pixels) -> tuple[np.ndarray, ...]:
        self.rows += len(pixels)
        means = pixels.reshape(len(pixels), 4, -1, 3).mean(axis=2)
        return (self.scale * means.transpose(0, 2, 1).astype(np.float32) / 7,)


class TwoFrozen(Frozen):
    """Gives two activations: that of `Frozen`, and one of 40 numbers an image."""

    def __call__(self, pixels: Pixels) -> tuple[np.ndarray, ...]:
        (first,) = super().__call__(pixels)
        return first, np.tile(first.mean(axis=(1, 2))[:, None], 40)


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(
        make_store(tmp_path / "train", "train", VIEWS), make_store(tmp_path / "val", "val", 0)
    )


def test_cached_activations_are_the_computed_ones_rounded_to_half(stores: Stores, tmp_path: Path):
    cached = open_rows(stores, Frozen(), folder=tmp_path / "cache", budget_gb=1)
    computed = open_rows(stores, Frozen(), folder=tmp_path / "none", budget_gb=0)
    rows = np.array([5, 0, 88, 5, 31])
    assert isinstance(cached.train, CachedRows)
    assert isinstance(computed.train, ComputedRows)
    exact = computed.train.read(rows)
    assert torch.equal(cached.train.read(rows), exact.half().float())
    torch.testing.assert_close(cached.train.read(rows), exact, rtol=1e-3, atol=0)
    val = np.arange(VAL)
    assert torch.equal(cached.val.read(val), computed.val.read(val).half().float())


def test_rows_are_found_across_shards(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(activations, "SHARD_BYTES", 1)
    cached = open_rows(stores, Frozen(), folder=tmp_path / "cache", budget_gb=1)
    shards = sorted((tmp_path / "cache" / "train").glob("*.npy"))
    assert [len(np.load(path)) for path in shards] == [32, 32, 26]
    rows = np.random.default_rng(0).permutation(IMAGES * (VIEWS + 1))
    exact = ComputedRows(stores.train, Frozen()).read(rows)
    assert torch.equal(cached.train.read(rows), exact.half().float())


def test_processes_fill_a_cache_together_each_shard_once(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(activations, "SHARD_BYTES", 1)
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    monkeypatch.setattr(Processes, "any", lambda self, mine: mine)
    folder, filled = tmp_path / "cache", []
    for rank in (2, 0, 1):
        frozen = Frozen()
        rows = open_rows(stores, frozen, folder=folder, budget_gb=1, processes=Processes(rank, 3))
        filled.append(frozen.rows - IMAGES)  # without the sample
    alone = open_rows(stores, Frozen(), folder=tmp_path / "alone", budget_gb=1)
    assert sorted(filled) == [26, 32, 32 + VAL]
    everything = np.arange(IMAGES * (VIEWS + 1))
    assert torch.equal(rows.train.read(everything), alone.train.read(everything))


def test_only_missing_and_damaged_shards_are_computed_again(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(activations, "SHARD_BYTES", 1)
    folder = tmp_path / "cache"
    first = open_rows(stores, Frozen(), folder=folder, budget_gb=1).train.read(np.arange(90))
    (folder / "train" / "000000.npy").unlink()
    damaged = folder / "train" / "000002.npy"
    damaged.write_bytes(damaged.read_bytes()[:-10])
    frozen = Frozen()
    again = open_rows(stores, frozen, folder=folder, budget_gb=1).train.read(np.arange(90))
    sample = 30
    assert frozen.rows == sample + 32 + 26
    assert torch.equal(first, again)


def test_fewer_views_are_used_where_all_of_them_do_not_fit(
    stores: Stores, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    budget = ROW_BYTES * (IMAGES * 2 + VAL) / 1e9
    rows = open_rows(stores, Frozen(), folder=tmp_path / "cache", budget_gb=budget)
    assert rows.train.views == 1
    assert "only 1 augmented view" in caplog.text
    store_rows = np.array([0, 1, 3, 4, 6, 7])  # clean and first view of three images
    exact = ComputedRows(stores.train, Frozen()).read(store_rows)
    assert torch.equal(rows.train.read(np.arange(6)), exact.half().float())


def test_without_room_for_a_single_augmented_view_nothing_is_cached(
    stores: Stores, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    budget = (ROW_BYTES * (IMAGES * 2 + VAL) - 1) / 1e9
    rows = open_rows(stores, Frozen(), folder=tmp_path / "cache", budget_gb=budget)
    assert isinstance(rows.train, ComputedRows)
    assert rows.train.views == VIEWS
    assert "slower" in caplog.text
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("rows_that_fit", "views"),
    [(0, -1), (VAL, -1), (VAL + IMAGES - 1, -1), (VAL + IMAGES, 0), (VAL + 3 * IMAGES - 1, 1)],
)
def test_views_that_a_budget_affords(stores: Stores, rows_that_fit: int, views: int):
    assert affordable_views(10, stores, 10.0 * rows_that_fit) == views


def test_more_budget_than_needed_affords_no_more_views_than_there_are(stores: Stores):
    assert affordable_views(10, stores, 1e9) == VIEWS


def test_large_activations_are_stored_as_float32(stores: Stores, tmp_path: Path):
    frozen = Frozen(scale=1000.0)
    rows = open_rows(stores, frozen, folder=tmp_path / "cache", budget_gb=1)
    exact = ComputedRows(stores.train, frozen).read(np.arange(90))
    assert exact.max() > 8000
    assert torch.equal(rows.train.read(np.arange(90)), exact)


def test_an_activation_that_is_not_finite_is_refused(stores: Stores, tmp_path: Path):
    with pytest.raises(TrainingError, match="an activation of nan"):
        open_rows(stores, Frozen(scale=np.nan), folder=tmp_path / "cache", budget_gb=1)


def leave_free(monkeypatch: pytest.MonkeyPatch, folder: Path, bytes_free: int) -> None:
    usage = shutil.disk_usage(folder)._replace(free=bytes_free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_a_disk_without_room_costs_time_only_and_is_told(
    stores: Stores,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    needed = ROW_BYTES * (IMAGES * (VIEWS + 1) + VAL)
    leave_free(monkeypatch, tmp_path, SPARE_BYTES + needed - 1)
    rows = open_rows(stores, Frozen(), folder=tmp_path / "cache", budget_gb=1)
    assert isinstance(rows.train, ComputedRows)
    assert rows.train.views == VIEWS
    assert not (tmp_path / "cache").exists()
    assert "REGRAFT_SCRATCH" in caplog.text
    leave_free(monkeypatch, tmp_path, SPARE_BYTES + needed)
    cached = open_rows(stores, Frozen(), folder=tmp_path / "cache", budget_gb=1)
    assert isinstance(cached.train, CachedRows)


def test_what_an_interrupted_run_has_cached_makes_room_where_the_rest_does_not_fit(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(activations, "SHARD_BYTES", 32 * ROW_BYTES)
    folders = {number: tmp_path / "both" / str(number) for number in range(2)}
    open_rows(stores, Frozen(), folder=tmp_path / "one", budget_gb=1)
    cache_together(stores, TwoFrozen(), folders, budget_gb=1)
    for folder in (tmp_path / "one", *folders.values()):
        (folder / "train" / "000001.npy").unlink()
    leave_free(monkeypatch, tmp_path, SPARE_BYTES)
    open_rows(stores, Frozen(), folder=tmp_path / "one", budget_gb=1)
    cache_together(stores, TwoFrozen(), folders, budget_gb=1)
    assert not list(tmp_path.rglob("*/train/*.npy"))
    assert not list(tmp_path.rglob("*/val/*.npy"))


def test_views_that_the_budget_leaves_are_the_same_without_room_on_the_disk(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    budget = ROW_BYTES * (IMAGES * 2 + VAL) / 1e9
    cached = open_rows(stores, Frozen(), folder=tmp_path / "cache", budget_gb=budget)
    leave_free(monkeypatch, tmp_path, 0)
    computed = open_rows(stores, Frozen(), folder=tmp_path / "full", budget_gb=budget)
    assert computed.train.views == cached.train.views == 1
    wanted = np.arange(IMAGES * 2)
    exact = computed.train.read(wanted)
    assert torch.equal(cached.train.read(wanted), exact.half().float())


def test_caches_for_which_the_disk_has_no_room_together_are_left_to_each_phase(
    stores: Stores,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    both = (ROW_BYTES + 80) * (IMAGES * (VIEWS + 1) + VAL)
    leave_free(monkeypatch, tmp_path, SPARE_BYTES + both - 1)
    folders = {0: tmp_path / "0", 1: tmp_path / "1"}
    assert cache_together(stores, TwoFrozen(), folders, budget_gb=1) == {}
    assert "run anew in each phase" in caplog.text
    rows = open_rows(stores, Frozen(), folder=tmp_path / "alone", budget_gb=1)
    assert isinstance(rows.train, CachedRows)


def test_several_caches_are_filled_in_one_pass_with_the_bytes_of_each_alone(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(activations, "SHARD_BYTES", 32 * ROW_BYTES)  # shards of unequal lengths
    frozen, folders = TwoFrozen(), {0: tmp_path / "both" / "0", 1: tmp_path / "both" / "1"}
    rows = cache_together(stores, frozen, folders, budget_gb=1)
    sample = 30
    assert frozen.rows == sample + IMAGES * (VIEWS + 1) + VAL
    open_rows(stores, Frozen(), folder=tmp_path / "alone", budget_gb=1)
    shards = list((tmp_path / "alone").rglob("*.npy"))
    assert len(shards) > 2
    for path in shards:
        together = folders[0] / path.relative_to(tmp_path / "alone")
        assert together.read_bytes() == path.read_bytes()
    exact = frozen(stores.train.rows(np.arange(5)))[1]
    assert torch.equal(rows[1].train.read(np.arange(5)), torch.from_numpy(exact).half().float())


def test_an_interrupted_pass_goes_on_with_the_shards_that_are_missing(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(activations, "SHARD_BYTES", 1)
    folders = {0: tmp_path / "0", 1: tmp_path / "1"}
    cache_together(stores, TwoFrozen(), folders, budget_gb=1)
    expected = {path: path.read_bytes() for path in tmp_path.rglob("[01]/*/*.npy")}
    (folders[0] / "train" / "000001.npy").unlink()
    (folders[1] / "train" / "000002.npy").unlink()
    (folders[1] / "val" / "000000.npy").unlink()
    frozen = TwoFrozen()
    cache_together(stores, frozen, folders, budget_gb=1)
    assert frozen.rows == 30 + 32 + 26 + VAL
    assert {path: path.read_bytes() for path in expected} == expected


def test_caches_that_do_not_fit_together_are_left_to_each_phase(
    stores: Stores, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    together = (ROW_BYTES + 80) * (IMAGES * (VIEWS + 1) + VAL) / 1e9
    folders = {1: tmp_path / "cache"}
    assert cache_together(stores, TwoFrozen(), folders, budget_gb=0.999 * together) == {}
    assert tells(caplog.text, "each phase", "frozen layers anew")
    assert not (tmp_path / "cache").exists()
    assert list(cache_together(stores, TwoFrozen(), folders, budget_gb=together)) == [1]


def test_removed_rows_leave_nothing_behind(stores: Stores, tmp_path: Path):
    rows = open_rows(stores, Frozen(), folder=tmp_path / "cache", budget_gb=1)
    rows.train.read(np.arange(3))
    rows.remove()
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_pixel_rows_are_normalized_images(stores: Stores):
    spec = InputSpec(image_px=SIDE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    rows = PixelRows(stores.train, spec)
    wanted = np.array([7, 2])
    expected = normalize(torch.from_numpy(stores.train.rows(wanted)), spec)
    assert torch.equal(rows.read(wanted), expected)
    assert rows.views == VIEWS


def test_using_fewer_views_is_a_warning_not_a_silent_choice(
    stores: Stores, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    open_rows(stores, Frozen(), folder=tmp_path / "cache", budget_gb=1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
