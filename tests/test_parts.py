"""Cutting for planned phases: one pass over the pixels fills the caches of all of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_finetune import COUNTS, make_inputs

from tasks.artifacts.arrays import Pixels
from tasks.backbones.engine import Engine
from tasks.heads.classifier import Classifier, start_classifier
from tasks.runtime.machine import Machine
from tasks.training.feed import parts as parts_module
from tasks.training.feed.parts import BackboneParts, CachePlan
from tasks.training.feed.rows import ComputedRows, PixelRows
from tasks.training.inputs import FinetuneInputs
from tasks.training.phases import training_groups

MACHINE = Machine(device="cpu", threads=1, engine="torch")
SAMPLE, VIEWS = 30, 1
ALL_ROWS = COUNTS["train"] * (VIEWS + 1) + COUNTS["val"]


@pytest.fixture
def inputs(tmp_path: Path) -> FinetuneInputs:
    return make_inputs(tmp_path / "inputs", views=VIEWS)


def start(inputs: FinetuneInputs) -> Classifier:
    return start_classifier(inputs.backbone, inputs.baseline, inputs.head, arm="fine_tune", seed=17)


def make_parts(
    inputs: FinetuneInputs,
    folder: Path,
    cuts: Sequence[int] = (5, 4),
    budget_gb: float = 1.0,
    classifier: Classifier | None = None,
) -> BackboneParts:
    classifier = classifier or start(inputs)
    return BackboneParts(
        classifier,
        training_groups(classifier),
        inputs.stores,
        inputs.backbone.input,
        MACHINE,
        CachePlan(folder, budget_gb, cuts),
    )


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that the frozen layers have seen, one number a call."""
    rows: list[int] = []
    real = parts_module.make_engine

    class Counting:
        def __init__(self, engine: Engine) -> None:
            self.engine, self.name = engine, engine.name

        def __call__(self, pixels: Pixels) -> tuple[np.ndarray, ...]:
            rows.append(len(pixels))
            return self.engine(pixels)

    monkeypatch.setattr(
        parts_module, "make_engine", lambda *args, **named: Counting(real(*args, **named))
    )
    return rows


def cached(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy"))


def test_two_phases_run_the_frozen_layers_once(
    inputs: FinetuneInputs, tmp_path: Path, seen: list[int]
):
    parts = make_parts(inputs, tmp_path / "cache")
    parts.open(5)
    assert sum(seen) == SAMPLE + ALL_ROWS
    name = "groups-5-4-torch"
    shards = [f"{name}/{cut}/{split}/000000.npy" for cut in (4, 5) for split in ("train", "val")]
    assert cached(tmp_path / "cache") == shards
    parts.open(4)
    assert sum(seen) == SAMPLE + ALL_ROWS
    assert cached(tmp_path / "cache") == shards[:2]
    parts.close()
    assert cached(tmp_path / "cache") == []


def test_filled_together_or_alone_the_rows_are_the_same(inputs: FinetuneInputs, tmp_path: Path):
    together = make_parts(inputs, tmp_path / "together")
    rows = np.arange(COUNTS["train"] * (VIEWS + 1))
    for cut in (5, 4):
        alone = make_parts(inputs, tmp_path / "alone", cuts=[cut]).open(cut).rows
        found = together.open(cut).rows
        assert torch.equal(found.train.read(rows), alone.train.read(rows)), cut
        assert torch.equal(found.val.read(rows[:12]), alone.val.read(rows[:12])), cut


def test_a_run_that_goes_on_in_a_later_phase_fills_the_same_bytes(
    inputs: FinetuneInputs, tmp_path: Path
):
    make_parts(inputs, tmp_path / "whole").open(5)
    trained = start(inputs)
    parts = make_parts(inputs, tmp_path / "resumed", classifier=trained)
    with torch.no_grad():  # phase 1 has trained group 5
        trained.backbone.blocks[4][0].bn1.weight.mul_(3.0)
    parts.open(4)
    shards = cached(tmp_path / "resumed")
    assert shards == [f"groups-5-4-torch/4/{split}/000000.npy" for split in ("train", "val")]
    for shard in shards:
        whole = (tmp_path / "whole" / shard).read_bytes()
        assert (tmp_path / "resumed" / shard).read_bytes() == whole


def test_caches_too_large_together_are_filled_one_at_a_time(
    inputs: FinetuneInputs, tmp_path: Path, seen: list[int]
):
    deepest = make_parts(inputs, tmp_path / "probe", cuts=[4]).open(4).rows
    budget = deepest.train.read(np.arange(1)).numel() * 2 * ALL_ROWS / 1e9
    seen.clear()
    parts = make_parts(inputs, tmp_path / "cache", budget_gb=budget)
    for cut in (5, 4):
        parts.open(cut)
        names = [f"group-{cut}-torch/{split}/000000.npy" for split in ("train", "val")]
        assert cached(tmp_path / "cache") == names
    assert sum(seen) == 3 * SAMPLE + 2 * ALL_ROWS


def test_without_a_cache_the_frozen_layers_run_when_asked(
    inputs: FinetuneInputs, tmp_path: Path, seen: list[int]
):
    part = make_parts(inputs, tmp_path / "cache", budget_gb=0.0).open(5)
    assert isinstance(part.rows.train, ComputedRows)
    assert seen == []
    part.rows.train.read(np.arange(7))
    assert seen == [7]


def test_where_nothing_is_frozen_pixels_are_read(inputs: FinetuneInputs, tmp_path: Path):
    parts = make_parts(inputs, tmp_path / "cache", cuts=[5, 0])
    assert cached(tmp_path / "cache") == []
    assert isinstance(parts.open(0).rows.train, PixelRows)


def test_an_open_part_is_not_made_again(inputs: FinetuneInputs, tmp_path: Path, seen: list[int]):
    parts = make_parts(inputs, tmp_path / "cache")
    first = parts.open(5)
    ran = sum(seen)
    assert parts.open(5) is first
    assert sum(seen) == ran
