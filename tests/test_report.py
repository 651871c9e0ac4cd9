"""The stage: from the files of the earlier stages to page, card and model."""

import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import HOSTILE, ROOT, with_values
from made_run import Run, Runs

from tasks.artifacts.files import hash_file
from tasks.artifacts.records import (
    BackboneInfo,
    Baseline,
    Finetuned,
    Metrics,
    read_record,
    write_record,
)
from tasks.artifacts.tables import (
    ConfusionRow,
    HardestRow,
    HistoryRow,
    ManifestRow,
    PredictionRow,
    read_rows,
    write_rows,
)
from tasks.backbones.catalogue import load_backbone
from tasks.errors import ArtifactError, EngineError, WeightsError
from tasks.heads.classifier import load_finetuned
from tasks.heads.registry import load_head
from tasks.report import Paths, load_shipped, main, open_samples
from tasks.reporting import explained
from tasks.reporting.explained import explain_answers
from tasks.training.outcome import write_history
from tasks.training.phases import TrainingGroup


def images() -> torch.Tensor:
    rng = np.random.default_rng(9)
    return torch.from_numpy(rng.normal(size=(3, 3, 32, 32)).astype(np.float32))


def report(run: Run) -> Paths:
    """Run the stage and give its paths."""
    main(run.arguments("report"))
    return run.paths


@pytest.fixture
def tuned(runs: Runs, tmp_path: Path) -> Run:
    """A run whose fine-tuned model ships, to be changed."""
    return runs("fine-tuned").copy(tmp_path)


@torch.inference_mode()
def exported_logits(folder: Path) -> torch.Tensor:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    logits: torch.Tensor = model(images())
    return logits


def test_the_stage_writes_page_card_and_model_and_says_so(
    tuned: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tasks"):
        paths = report(tuned)
    assert paths.report.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert paths.card.read_text(encoding="utf-8").startswith("---\n")
    assert (paths.export / "model.safetensors").stat().st_size > 100_000
    for fact in (str(paths.report), str(paths.export), "417 kB"):
        assert fact in caplog.messages[-1]


def test_the_fine_tuned_model_is_exported_where_it_ships(tuned: Run) -> None:
    paths = report(tuned)
    classifier = load_finetuned(paths.model, read_record(paths.finetune, Finetuned))
    with torch.inference_mode():
        torch.testing.assert_close(exported_logits(paths.export), classifier(images()))


def test_a_baseline_that_beats_fine_tuning_is_built_from_the_pretrained_weights(
    runs: Runs, tmp_path: Path
) -> None:
    paths = report(runs("rejected").copy(tmp_path))
    info = read_record(paths.backbone, BackboneInfo)
    backbone = load_backbone(info.name, info.weights, image_px=32, seed=17).model
    head = load_head(paths.head, read_record(paths.baseline, Baseline))
    with torch.inference_mode():
        expected = head(backbone(images()))
    torch.testing.assert_close(exported_logits(paths.export), expected)
    about = json.loads((paths.export / "regraft.json").read_text())
    assert about["shipped"] == "baseline"


def test_where_nothing_was_fine_tuned_the_saved_model_is_enough(runs: Runs, tmp_path: Path) -> None:
    frozen = runs("frozen").copy(tmp_path)
    info = read_record(frozen.paths.backbone, BackboneInfo)
    lost = info.model_copy(update={"weights": str(tmp_path / "gone.safetensors")})
    write_record(frozen.paths.backbone, lost)
    shipped = load_shipped(frozen.paths, frozen.findings, frozen.params)
    backbone = load_backbone(info.name, info.weights, image_px=32, seed=17).model
    with torch.inference_mode():
        torch.testing.assert_close(shipped.backbone(images()), backbone(images()))


def test_other_pretrained_weights_than_those_of_the_features_are_refused(runs: Runs) -> None:
    run = runs("rejected")
    with pytest.raises(WeightsError, match=run.findings.backbone.weights_sha256):
        load_shipped(run.paths, run.findings, with_values(run.params, {"seed": 18}))


def test_the_model_folder_tells_temperature_metrics_and_origin(tuned: Run) -> None:
    paths = report(tuned)
    about = json.loads((paths.export / "regraft.json").read_text())
    metrics = read_record(paths.metrics, Metrics)
    assert metrics.finetuned is not None
    assert about["temperature"] == metrics.finetuned.temperature
    assert about["metrics"]["accuracy"] == metrics.finetuned.accuracy.model_dump()
    assert about["provenance"]["data_sha256"] == hash_file(paths.manifest)
    assert about["licenses"]["data"] == tuned.findings.origin.license


@pytest.mark.parametrize(("variant", "own"), [("fine-tuned", set()), ("scratch", {"head.json"})])
def test_the_same_inputs_give_the_same_bytes(
    variant: str, own: set[str], runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs(variant).copy(tmp_path)
    monkeypatch.setenv("PATH", "/none")  # without git: the checkout may change while this runs
    first = written(report(run))
    assert written(report(run)) == first
    assert {"report.html", "model.safetensors", "model.onnx", "SHA256SUMS", *own} <= set(first)


@pytest.mark.slow
def test_another_process_gives_the_same_bytes(
    tuned: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/none")  # without git: the checkout may change while this runs
    monkeypatch.setenv("REGRAFT_THREADS", "1")
    first = written(report(tuned))
    subprocess.run(
        [sys.executable, "-m", "tasks.report", *tuned.arguments("report")],
        check=True,
        cwd=ROOT,
        env={
            "PATH": "/none",
            "PYTHONHASHSEED": "7",
            "REGRAFT_SCRATCH": str(tmp_path),
            "REGRAFT_THREADS": "1",
        },
        capture_output=True,
    )
    assert written(tuned.paths) == first


def written(paths: Paths) -> dict[str, bytes]:
    files = [paths.report, paths.card, *sorted(paths.export.iterdir())]
    return {file.name: file.read_bytes() for file in files}


def test_neither_a_place_nor_a_secret_reaches_the_files(runs: Runs, tuned: Run) -> None:
    source = "https://ada:canary-secret@host.org/x.zip?token=canary-secret"
    tuned.set(
        tuned.params, {"ingest.source": source, "ingest.groups": "/home/canary-home/groups.csv"}
    )
    for content in written(report(tuned)).values():
        for place in (tuned.root, runs("fine-tuned").root, ROOT):
            assert str(place).encode() not in content
        assert b"canary" not in content


def test_hostile_names_are_harmless_everywhere(runs: Runs, tmp_path: Path) -> None:
    unreadable = b"caf\xe9".decode("utf-8", "surrogateescape")
    run = runs("scratch").copy(tmp_path)
    index, path = (
        run.paths.hardest / "index.csv",
        f"{unreadable}/\n<img src=x onerror=alert(1)>.png",
    )
    first, *others = read_rows(index, HardestRow)
    write_rows(index, HardestRow, [replace(first, path=path), *others])
    listed = read_rows(run.paths.manifest, ManifestRow)
    renamed = [replace(row, path=path) if row.path == first.path else row for row in listed]
    write_rows(run.paths.manifest, ManifestRow, renamed)
    report(run)
    page = run.paths.report.read_text(encoding="utf-8")
    card = run.paths.card.read_text(encoding="utf-8")
    assert HOSTILE in run.findings.health.classes
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "caf\\xe9/\\n&lt;img src=x" in page
    assert "<script" not in card


def test_predictions_of_another_run_are_refused(tuned: Run) -> None:
    paths = tuned.paths
    first, *others = read_rows(paths.predictions, PredictionRow)
    other = next(name for name in tuned.findings.health.classes if name != first.predicted)
    rows = [replace(first, predicted=other), *others]
    write_rows(paths.predictions, PredictionRow, rows)
    with pytest.raises(ArtifactError, match=r"confusion\.csv: .*predictions\.csv"):
        _ = tuned.findings
    write_rows(
        paths.confusion, ConfusionRow, [ConfusionRow(row.label, row.predicted) for row in rows]
    )
    with pytest.raises(ArtifactError, match=r"metrics\.json: accuracy 0\.9.*run evaluate again"):
        _ = tuned.findings


@pytest.mark.parametrize("name", ["health", "predictions", "hardest", "finetune"])
def test_a_missing_file_is_named(name: str, tuned: Run) -> None:
    missing = getattr(tuned.paths, name)
    missing = missing / "index.csv" if missing.is_dir() else missing
    missing.unlink()
    with pytest.raises(ArtifactError, match=missing.name):
        _ = tuned.findings


def test_a_class_that_the_manifest_does_not_name_is_refused(tuned: Run) -> None:
    write_rows(tuned.paths.confusion, ConfusionRow, [ConfusionRow("functional", "odd")])
    with pytest.raises(ArtifactError, match=r"'odd'.*manifest"):
        _ = tuned.findings


def test_the_history_of_training_reads_back(tmp_path: Path) -> None:
    group = TrainingGroup("blocks.0", ("backbone.x",))
    row = HistoryRow(
        phase=2,
        epoch=7,
        rates={"head": 1e-3, "blocks.0": 2e-4},
        train_loss=0.5,
        train_accuracy=0.8,
        val_loss=0.6,
        val_accuracy=0.7,
    )
    write_history(tmp_path / "history.csv", [row], [group])
    assert read_rows(tmp_path / "history.csv", HistoryRow) == [row]


def test_pictures_are_never_read_from_outside_their_folder(tuned: Run) -> None:
    hardest = tuned.paths.hardest
    row = read_rows(hardest / "index.csv", HardestRow)[0]
    write_rows(hardest / "index.csv", HardestRow, [replace(row, file=f"../../{row.file}")])
    ((_, picture),) = tuned.findings.hardest
    assert picture.path == hardest / row.file


def test_the_page_shows_heatmaps_of_the_hardest_and_of_right_answers(tuned: Run) -> None:
    page = report(tuned).report.read_text(encoding="utf-8")
    hardest = [row for row, _ in tuned.findings.hardest]
    assert page.count('heatmap" loading') == 2 * len(hardest)
    assert "Grad-CAM, 2 \N{MULTIPLICATION SIGN} 2 places" in page
    right = {row.path for row in read_rows(tuned.paths.predictions, PredictionRow) if row.correct}
    shown = re.findall(r'class="path">([^<]+)<', page[page.index("Right answers, drawn") :])
    assert set(shown) <= right
    assert len(set(shown)) == len(hardest)


def test_another_seed_draws_other_right_answers(tuned: Run) -> None:
    answers = read_rows(tuned.paths.predictions, PredictionRow)
    hardest = [row for row, _ in tuned.findings.hardest]
    shipped = load_shipped(tuned.paths, tuned.findings, tuned.params)
    samples = open_samples(tuned.paths, tuned.params)
    drawn = [
        [row.path for row, *_ in explain_answers(shipped, hardest, answers, one).right]
        for one in (samples, replace(samples, seed=18))
    ]
    assert drawn[0] != drawn[1]


def test_hardest_images_of_another_run_are_refused(tuned: Run) -> None:
    index = tuned.paths.hardest / "index.csv"
    first, *others = read_rows(index, HardestRow)
    write_rows(index, HardestRow, [replace(first, path="other.png"), *others])
    with pytest.raises(ArtifactError, match=r"'other\.png'.*run evaluate again"):
        report(tuned)


def test_a_network_without_a_map_is_told_in_a_sentence(
    tuned: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise EngineError("Odd has no map of places")

    monkeypatch.setattr(explained, "GradCam", refuse)
    page = report(tuned).report.read_text(encoding="utf-8")
    assert "There are no heatmaps of answers: Odd has no map of places." in page
    assert 'heatmap" loading' not in page
