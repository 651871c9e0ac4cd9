"""The benchmark's pure parts: which rate counts, intervals, tables, the page; no peer runs."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from bench import speed
from bench.__main__ import parse_value
from bench.page import FROZEN, REGRAFT, methods_table, summarize, table, write_page
from bench.processes import Measured, run_measured, thread_limits
from bench.results import (
    ENGINE,
    FLOW,
    HEAD,
    TIMM_LOOP,
    Answers,
    Results,
    Trial,
    choose_best,
    read_results,
    write_results,
)
from bench.scratch import (
    STAGES,
    Copy,
    choose_images,
    count_views,
    run_regraft,
    set_values,
)
from conftest import ROOT, ImageFolder
from ruamel.yaml import YAML
from tiny_finetune import make_manifest

from tasks.artifacts.tables import Manifest, PredictionRow, write_manifest, write_rows
from tasks.heads import linear as strength
from tasks.judging.statistics import wilson_interval
from tasks.params_file import load_params

IMAGES = 40


def trial(method: str = "Regraft", seed: int = 1, wrong: int = 4, **values: object) -> Trial:
    """A method that is wrong on the first images; every label is 0."""
    rate = None if method == "Regraft" else 0.001
    known = Trial(method, seed, rate, 0.9, [1] * wrong + [0] * (IMAGES - wrong), 10.0, 10**9, 5.0)
    return replace(known, **values)


def results_of(*trials: Trial) -> Results:
    seeds = {str(one.seed) for one in trials}
    groups = [f"g{number}" for number in range(IMAGES)]
    return Results(
        command="make bench",
        machine={"cores": "2"},
        data="Images: made.",
        options={"seeds": "1"},
        test_sets={seed: Answers([0] * IMAGES, groups) for seed in sorted(seeds)},
        trials=list(trials),
        speeds={"engine, images": 123.4},
    )


def test_val_accuracy_chooses_the_rate_and_the_lower_one_of_equals():
    trials = [trial("a", rate=rate, val_accuracy=val) for rate, val in ((0.1, 0.8), (0.01, 0.9))]
    assert choose_best(trials).rate == 0.01
    assert choose_best([*trials, trial("a", rate=0.001, val_accuracy=0.9)]).rate == 0.001


def test_the_best_rate_on_test_does_not_count():
    lucky = trial("a", wrong=0, val_accuracy=0.5, rate=0.1, seconds=7.0)
    (_, line) = summarize(results_of(trial(), lucky, trial("a", wrong=10)))
    assert line.accuracy.value == 0.75
    assert (line.seconds, line.search_seconds) == (10.0, 17.0)


def test_accuracy_has_the_interval_of_wilson_where_every_image_is_its_own_group():
    (line,) = summarize(results_of(trial(wrong=4)))
    expected = wilson_interval(36, 40, confidence=0.95)
    assert line.accuracy.value == 0.9
    assert line.accuracy.low == pytest.approx(expected.low, abs=0.02)
    assert line.accuracy.high == pytest.approx(expected.high, abs=0.02)
    assert line.differences == [None, None]


def test_differences_are_paired_with_regraft_and_its_row_comes_first():
    lines = summarize(results_of(trial("a", wrong=10), trial("b", wrong=4), trial()))
    assert [line.method for line in lines] == ["Regraft", "a", "b"]
    (worse, unknown), (equal, _) = lines[1].differences, lines[2].differences
    assert unknown is None
    assert worse is not None
    assert equal is not None
    assert (worse.value, equal.value) == (-0.15, 0.0)
    assert worse.high is not None
    assert worse.high < 0
    assert equal.low is not None
    assert equal.low < 0


def test_methods_are_compared_with_both_models_of_regraft():
    lines = summarize(results_of(trial("a", wrong=10), trial(FROZEN, wrong=6), trial()))
    assert [line.method for line in lines] == [REGRAFT, FROZEN, "a"]
    values = [[one and round(one.value, 3) for one in line.differences] for line in lines]
    assert values == [[None, 0.05], [-0.05, None], [-0.15, -0.1]]


def test_an_image_drawn_for_two_seeds_counts_once():
    one = summarize(results_of(trial()))[0].accuracy
    two = summarize(results_of(trial(), trial(seed=2)))[0].accuracy
    assert two.n == 2 * one.n
    assert two.low == pytest.approx(one.low, abs=0.01)
    assert two.high == pytest.approx(one.high, abs=0.01)


def test_a_table_escapes_bars():
    assert table(["a", "b"], [["1|2", "3"]]) == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |"


def test_the_page_holds_what_was_measured_and_how():
    page = write_page(results_of(trial("a", wrong=10), trial()))
    assert "| Regraft | 90.0 [" in page
    assert "| a | 75.0 [" in page
    assert "| -15.0 [" in page
    assert "| 0.001 |" in page
    assert "| engine, images | 123 |" in page
    assert "| cores | 2 |" in page
    assert "`make bench` wrote this page" in page


def test_a_page_of_speeds_alone_names_no_method():
    page = write_page(replace(results_of(trial()), trials=[]))
    assert "Against other libraries" not in page
    assert "Speed of the parts" in page
    assert "times that of the plain timm loop" not in page


def test_the_page_compares_files_with_engine_and_loop():
    speeds = {ENGINE: 120.0, TIMM_LOOP: 20.0, FLOW: 108.0}
    page = write_page(replace(results_of(trial()), speeds=speeds))
    assert "is 90% of the engine's speed on pixels in memory and 5.4 times that of the" in page


def test_values_are_read_as_yaml():
    given = ["augment.policy=light", "augment.views=3", "baseline.heads=[linear]"]
    expected = [("augment.policy", "light"), ("augment.views", 3), ("baseline.heads", ["linear"])]
    assert list(map(parse_value, given)) == expected


def test_the_raw_numbers_give_the_same_page(tmp_path: Path):
    results = results_of(trial("a", wrong=10), trial())
    write_results(tmp_path / "raw.json", results)
    again = read_results(tmp_path / "raw.json")
    assert again == results
    assert methods_table(again) == methods_table(results)


def test_a_process_is_measured_with_its_children(tmp_path: Path):
    child = "import time; block = bytearray(120_000_000); time.sleep(1.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    found = run_measured(
        [sys.executable, "-c", parent],
        cwd=tmp_path,
        environment=thread_limits(1),
        log=tmp_path / "log",
    )
    assert 1.5 < found.seconds < 60
    assert 120e6 < found.peak_bytes < 120e6 + psutil.virtual_memory().total / 20


def test_a_process_that_fails_says_how(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"(?s)failed:.*no such luck"):
        run_measured(
            [sys.executable, "-c", "raise SystemExit('no such luck')"],
            cwd=tmp_path,
            environment={},
            log=tmp_path / "log",
        )


def test_values_of_a_copy_are_replaced_by_key_path(tmp_path: Path):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    set_values(tmp_path / "params.yaml", {"seed": 3, "augment.image_px": 96})
    params = load_params(tmp_path / "params.yaml")
    assert (params.seed, params.augment.image_px) == (3, 96)
    with pytest.raises(KeyError, match=r"augment\.nothing"):
        set_values(tmp_path / "params.yaml", {"augment.nothing": 1})


def test_a_stage_of_a_copy_runs_by_its_command_in_dvc_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    commands: list[list[str]] = []
    monkeypatch.setattr("bench.scratch.run_measured", lambda command, **_: commands.append(command))
    copy = Copy.make(tmp_path / "copy", {}, python="py", environment={})
    for stage in STAGES:
        copy.run(stage)
    assert commands[0][:4] == ["py", "-m", "tasks.ingest", "--manifest"]
    assert [command[2] for command in commands] == [f"tasks.{stage}" for stage in STAGES]
    known = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    assert set(STAGES) == set(known) - {"check", "report"}
    assert not any("$" in word for command in commands for word in command)


def make_test_manifest() -> Manifest:
    """The tiny manifest, its val images as test images."""
    rows = make_manifest().rows
    return Manifest([row if row.split == "train" else replace(row, split="test") for row in rows])


def write_stages(copy: Copy) -> None:
    """Write what run_regraft reads: shipped right but once, frozen head wrong on every image."""
    manifest = make_test_manifest()
    data = copy.root / "data"
    for folder in ("ingest", "baseline", "finetune", "evaluate"):
        (data / folder).mkdir()
    write_manifest(data / "ingest/manifest.csv", manifest)
    names, rows = manifest.class_names, manifest.of("test")
    shipped = [row.label for row in rows]
    wrong = [names[(names.index(label) + 1) % len(names)] for label in shipped]
    shipped[0] = wrong[0]
    found = [
        PredictionRow(row.path, row.label, one, 0.9, 0.9, one == row.label, 0.1, other)
        for row, one, other in zip(rows, shipped, wrong, strict=True)
    ]
    write_rows(data / "evaluate/predictions.csv", PredictionRow, reversed(found))


def test_packing_for_the_speed_is_what_augment_does(tmp_path: Path, image_folder: ImageFolder):
    values: dict[str, object] = {"augment.image_px": 32, "augment.views": 1}
    values["ingest.source"] = str(image_folder(images=8))
    copy = Copy.make(tmp_path / "copy", values, python=sys.executable, environment={})
    for stage in ("ingest", "augment"):
        copy.run(stage)
    first, *rest = copy.stretches(5, most=3)
    assert [len(rows) for rows in (first, *rest)] == [5, 5, 5]
    (train,) = copy.stretches(100, most=3)
    copy.pack(train, tmp_path / "train", workers=1)
    made = {path.name: path.read_bytes() for path in (tmp_path / "train").iterdir()}
    stored = (copy.root / "data/augment/train").iterdir()
    assert made == {path.name: path.read_bytes() for path in stored}
    assert count_views(copy) == 24 + len(train)


def test_both_models_of_regraft_get_their_predictions_and_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seconds = {stage: 10.0**place for place, stage in enumerate(STAGES)}
    monkeypatch.setattr(
        "bench.scratch.run_measured",
        lambda command, **_: Measured(seconds[command[2].removeprefix("tasks.")], 5),
    )
    copy = Copy.make(tmp_path / "copy", {"augment.views": 3}, python="py", environment={})
    write_stages(copy)
    records = {
        "Baseline": SimpleNamespace(val_accuracy=SimpleNamespace(value=0.5)),
        "Finetuned": SimpleNamespace(
            val_accuracy=SimpleNamespace(value=0.9), phases=[SimpleNamespace(epochs=2)] * 3
        ),
    }
    monkeypatch.setattr("bench.scratch.read_record", lambda _, kind: records[kind.__name__])
    shipped, frozen = run_regraft(copy, seed=4)
    manifest = make_test_manifest()
    labels = manifest.labels("test")
    assert (shipped.method, frozen.method) == (REGRAFT, FROZEN)
    assert (np.array(shipped.predictions) == labels).tolist() == [False] + [True] * (
        len(labels) - 1
    )
    assert not (np.array(frozen.predictions) == labels).any()
    assert (shipped.val_accuracy, frozen.val_accuracy) == (0.9, 0.5)
    assert (shipped.seconds, frozen.seconds) == (11_111_111_110.0, 1_111_110.0)
    train, every = len(manifest.of("train")), len(manifest.rows)
    assert shipped.images_per_second == 6 * train / 1e9
    assert frozen.images_per_second == (every + 3 * train) / 1110


def test_a_small_benchmark_takes_each_class_by_its_share():
    manifest = make_manifest()
    chosen = choose_images(manifest, 21)
    labels = {row.path: row.label for row in manifest.rows}
    assert np.unique([labels[path] for path in chosen], return_counts=True)[1].tolist() == [7, 7, 7]
    assert chosen == choose_images(manifest, 21)
    assert len(choose_images(manifest, 10**6)) == len(manifest.rows)


def test_the_speed_of_the_head_is_measured_on_what_baseline_runs(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"HEAD_ROWS": 600, "HEAD_VAL": 60, "HEAD_FEATURES": 8}.items():
        monkeypatch.setattr(speed, name, value)
    fitted = []
    real = strength.choose_linear
    monkeypatch.setattr(
        strength, "choose_linear", lambda *given, **more: fitted.append(real(*given, **more))
    )
    assert speed.run_head()[HEAD] > 0
    (path,) = fitted
    assert len(path.fits) > 1
    assert path.chosen.weight.shape == (speed.HEAD_CLASSES, 8)
