"""`regraft compare`: values and metrics that differ, accuracies paired by image."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import tells
from test_cli import said, stopped
from toy import ToyProject

from tasks.artifacts.arrays import write_array
from tasks.artifacts.records import SPLITS, write_json
from tasks.artifacts.tables import (
    Manifest,
    ManifestRow,
    PredictionRow,
    write_manifest,
    write_rows,
)
from tasks.judging.statistics import paired_accuracy_interval
from tasks.params_file import load_params

pytest_plugins = ["toy_fixtures"]
pytestmark = pytest.mark.slow

IMAGES = 20  # of each split
FILES = (
    "data/ingest/manifest.csv",
    "data/evaluate/metrics.json",
    "data/evaluate/predictions.csv",
    "data/finetune/val_logits.npy",
    "data/baseline/val_logits.npy",
)


def manifest(splits: Sequence[str] = SPLITS) -> list[ManifestRow]:
    """Images in pairs, each pair a group."""
    return [
        ManifestRow(f"{split}/{i}", "ab"[i % 2], split, f"{split}{i // 2}", f"{i:064}", 40, 32, "L")  # type: ignore[arg-type]
        for split in splits
        for i in range(IMAGES)
    ]


def write_results(
    project: ToyProject, wrong: Sequence[int], rows: list[ManifestRow], *more: str
) -> None:
    """What a run leaves whose model is wrong about some images of val and of test."""
    write_manifest(project.root / FILES[0], Manifest(rows))
    write_json(project.root / FILES[1], {"shipped": "finetuned"})
    test = [row for row in rows if row.split == "test"]
    write_rows(
        project.root / FILES[2],
        PredictionRow,
        [
            PredictionRow(row.path, row.label, row.label, 0.9, 0.9, i not in wrong, 0.1, row.label)
            for i, row in enumerate(test)
        ],
    )
    logits = np.zeros((IMAGES, 2), dtype=np.float32)
    for i in range(IMAGES):
        logits[i, (i + (i in wrong)) % 2] = 1.0
    write_array(project.root / FILES[3], logits)
    write_array(project.root / FILES[4], np.zeros_like(logits))
    share = 1 - len(wrong) / IMAGES
    scores = {"val_accuracy": share, "test_accuracy": share, "test_accuracy_low": share - 0.1}
    scores["test_accuracy_high"] = share + 0.1
    write_json(project.root / "data/evaluate/summary.json", scores)
    project.dvc("add", *FILES, *more)


@pytest.fixture(scope="session")
def made_states(finished: ToyProject, tmp_path_factory: pytest.TempPathFactory) -> ToyProject:
    """The last commit is wrong about 6 images, the one before it about 10; 2 are new."""
    toy = ToyProject(tmp_path_factory.mktemp("states") / "toy")
    shutil.copytree(finished.root, toy.root, symlinks=True)
    toy.write("dvc.yaml", toy.read("dvc.yaml") + "metrics:\n  - data/evaluate/summary.json\n")
    write_results(toy, range(10), manifest())
    toy.commit("Ten")
    toy.set("finetune.head_lr", 0.5)
    write_results(toy, [6, 7, 8, 9, 10, 11], manifest())
    toy.commit("Six")
    return toy


@pytest.fixture
def two_states(made_states: ToyProject, tmp_path: Path) -> ToyProject:
    """A copy of the project of two states."""
    shutil.copytree(made_states.root, tmp_path / "toy", symlinks=True)
    return ToyProject(tmp_path / "toy")


def test_values_and_metrics_that_differ_are_told(two_states: ToyProject) -> None:
    lines = said(two_states.root, "compare", "HEAD~1", "HEAD").splitlines()
    assert lines[0].split() == ["params", "HEAD~1", "HEAD"]
    assert lines[1].split() == ["finetune.head_lr", "0.0005", "0.5"]
    assert lines[2].split() == ["metrics", "HEAD~1", "HEAD"]
    assert [line.split() for line in lines[3:5]] == [
        ["val_accuracy", "0.5", "0.7"],
        ["test_accuracy", "0.5", "0.7"],
    ]


@pytest.mark.parametrize("split", ["val", "test"])
def test_accuracies_are_paired_by_image(two_states: ToyProject, split: str) -> None:
    (line,) = [
        line
        for line in said(two_states.root, "compare", "HEAD~1", "HEAD").splitlines()
        if line.startswith(f"accuracy on {split}")
    ]
    params = load_params(two_states.root / "params.yaml")
    index = np.arange(IMAGES)
    gain = paired_accuracy_interval(
        index >= 10,
        (index < 6) | (index > 11),
        [f"{split}{i // 2}" for i in index],
        confidence=params.evaluate.confidence,
        resamples=params.evaluate.bootstrap,
        seed=params.seed,
    )
    assert gain.low is not None and gain.high is not None  # noqa: PT018
    interval = f"+20.0 points [{100 * gain.low:.1f}, {100 * gain.high:.1f}], 95 % interval paired"
    assert tells(line, "50.0 -> 70.0 %", interval, "20 images that both have")
    assert tells(line, "6 right only in HEAD,", "2 only in HEAD~1")


def test_the_files_as_they_are_can_be_compared(two_states: ToyProject) -> None:
    write_results(two_states, [0], manifest())
    text = said(two_states.root, "compare", "HEAD", "workspace")
    assert len(re.findall(r"70\.0 -> 95\.0 %", text)) == 2
    assert text.startswith("params: no difference\n")


def test_only_images_that_both_have_are_paired(two_states: ToyProject) -> None:
    rows = [row for row in manifest() if row.split != "test" or int(row.path[5:]) < 15]
    write_results(two_states, [0], rows)
    text = said(two_states.root, "compare", "HEAD", "workspace")
    assert "60.0 -> 93.3 %" in text
    assert "15 images of 20 that both have" in text


def test_an_image_with_another_label_is_not_paired(two_states: ToyProject) -> None:
    rows = manifest()
    first = next(i for i, row in enumerate(rows) if row.split == "test")
    rows[first] = ManifestRow("test/0", "b", "test", "test0", f"{0:064}", 40, 32, "L")
    write_results(two_states, [0], rows)
    assert "19 images of 20 that both have" in said(two_states.root, "compare", "HEAD", "workspace")


def test_states_whose_results_are_gone_keep_their_own_intervals(two_states: ToyProject) -> None:
    shutil.rmtree(two_states.root / ".dvc/cache")
    text = said(two_states.root, "compare", "HEAD~1", "HEAD")
    assert "HEAD~1 50.0 % [40.0, 60.0], HEAD 70.0 % [60.0, 80.0]; not paired by image" in text
    assert tells(text, "data/ingest/manifest.csv is not in DVC's cache", "dvc pull")


def test_a_state_without_results_is_not_to_be_pulled(two_states: ToyProject) -> None:
    two_states.git("rm", "--quiet", "dvc.lock", *(f"{file}.dvc" for file in FILES))
    two_states.commit("Code alone")
    text = said(two_states.root, "compare", "HEAD", "HEAD~1")
    assert "of HEAD there are no results: its dvc.lock names no data/ingest/manifest.csv" in text
    assert "dvc pull" not in text


def test_an_experiment_is_a_state(two_states: ToyProject) -> None:
    two_states.dvc("exp", "run", "--name", "swift-owl", "-S", "finetune.head_lr=0.25", "left")
    text = said(two_states.root, "compare", "HEAD", "swift-owl")
    assert re.search(r"finetune\.head_lr +0\.5 +0\.25\n", text)


def test_a_state_that_is_not_there_is_told(two_states: ToyProject) -> None:
    text = stopped(two_states.root, "compare", "HEAD", "nowhere")
    assert tells(text, "regraft stopped: ", "nowhere")
