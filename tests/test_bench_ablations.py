"""Ablations: what a variant changes, paired differences, resuming, the page; one run of all."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench import ablations, variants
from bench.ablations import Ablations, compare_pairs, parse, read_results, write_page
from bench.cells import append_row, read_cells, read_said
from bench.decisions import Bench
from bench.decisions import parse as parse_decisions
from bench.studies import Study
from bench.variants import BASE, VARIANTS, Result, change_views
from conftest import ROOT, ImageFolder
from scipy import stats
from tiny_finetune import make_manifest, make_store

from tasks.artifacts.tables import write_manifest


def result(variant: str, accuracy: float, **values: object) -> Result:
    known = Result(
        set="a", seed=17, px=96, variant=variant, code="c", train_images=60, val_images=40,
        frozen_accuracy=0.5, frozen_loss=1.2, overfit=3.0,
        accuracy=accuracy, loss=1.0, epochs=6, seconds=30.0,
    )  # fmt: skip
    return replace(known, **values)


def test_pairs_have_the_interval_of_student():
    values = [1.0, 2.0, 4.0, 5.0]
    found = compare_pairs(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert found.value == 3.0
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert np.isnan(compare_pairs([1.0]).low)


def test_the_page_compares_the_same_set_and_seed():
    rows = [result(BASE, 0.6), result(BASE, 0.8, seed=18), result("1 stored view", 0.5)]
    rows.append(result("1 stored view", 0.8, seed=18, loss=0.9))
    page = write_page(rows, parse([]), "make it")
    assert "| 1 stored view | all |" not in page
    assert "| 1 stored view | a | 2 | -5.0 [-68.5, +58.5] | -0.050 [-0.685, +0.585] |" in page
    assert "label smoothing 0.05" not in page
    assert "| a | 17 | 60 | 40 | 50.0 | 1.200 | 3.0 | 60.0 | 1.000 | 6 |" in page


def test_what_was_kept_stands_beside_the_table(tmp_path: Path):
    rows = [result(BASE, 0.6), result("twice the rates", 0.7)]
    given = ["--out", str(tmp_path), "--level", "all"]
    page = write_page(rows, parse(given), "make it")
    assert "All training images a class" in page
    assert "| twice the rates | a | 1 | +10.0 |" in page
    assert "What was kept" not in page
    (tmp_path / "kept.md").write_text("Nothing.\n")
    assert "## What was kept\n\nNothing.\n\n## The base" in write_page(rows, parse(given), "")


@pytest.mark.parametrize("name", ["ablations", "rates"])
def test_the_committed_pages_are_those_of_the_committed_tables(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    page = Path(f"docs/benchmarks/{name}.md").read_text()
    _, command, *_ = page.split("`")
    given = shlex.split(command.partition("bench.ablations ")[2])
    results = read_results(Path(f"docs/benchmarks/{name}/ablations.csv"))
    assert write_page(results, parse(given), command) == page


def test_operations_change_views_and_leave_clean_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = make_store(tmp_path / "data/augment/train", "train", 2)
    clean, views = store.rows(store.clean_rows()), store.rows(store.clean_rows() + 1)
    write_manifest(tmp_path / "data/ingest/manifest.csv", make_manifest())
    monkeypatch.setattr(Study, "params", type("Params", (), {"seed": 3}))
    change_views(Study(tmp_path), "TrivialAugmentWide")
    changed = Study(tmp_path).pixels("train")
    assert changed.info == store.info
    assert np.array_equal(changed.rows(changed.clean_rows()), clean)
    assert not np.array_equal(changed.rows(changed.clean_rows() + 1), views)


def test_a_run_goes_on_with_the_variants_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    append_row(tmp_path / "ablations.csv", result(BASE, 0.6))
    given = ["--set", "a=/a", "--seeds", "17", "--out", str(tmp_path)]
    measured = []
    monkeypatch.setattr(Ablations, "measure", lambda _, *what: measured.append(what))
    Ablations(parse(given)).run()
    assert measured == [("a", 17, name) for name in VARIANTS if name != BASE]
    measured.clear()
    Ablations(parse([*given, "--variants", "1 stored view"])).run()
    assert measured == [("a", 17, "1 stored view")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_variants_and_cells_are_made_by_the_stages(
    tmp_path: Path, image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
):
    source = image_folder(images=40)
    chosen = {BASE: VARIANTS[BASE], "flips": VARIANTS["flips averaged at prediction"]}
    for module in (ablations, variants):
        monkeypatch.setattr(module, "VARIANTS", chosen)
    shared = ["--set", f"drawn={source}", "--px", "32", "--seeds", "17"]
    shared += ["--scratch", str(tmp_path / "scratch"), "--out", str(tmp_path / "out")]
    Ablations(parse([*shared, "--level", "10"])).run()
    base, flips = read_results(tmp_path / "out/ablations.csv")
    assert (base.variant, flips.variant) == (BASE, "flips")
    assert base.train_images == flips.train_images == 30
    assert base.epochs > 0
    assert Bench(parse_decisions([*shared, "--levels", "10"])).run() == 0
    cells = {cell.arm: cell for cell in read_cells(tmp_path / "out/cells.csv")}
    assert set(cells) == {"frozen", "top", "most", "all", "other", "scratch"}
    assert {cell.test_images for cell in cells.values()} == {cells["frozen"].test_images}
    assert all(cell.phases and cell.seconds > 0 for arm, cell in cells.items() if arm != "frozen")
    (said,) = read_said(tmp_path / "out/evidence.csv")
    assert said.images == 30
