"""The stage: from the files of the earlier stages to page, card and model."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, with_values
from fake_run import HOSTILE, Shape, arguments, fake_run
from ruamel.yaml import YAML

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
    PredictionRow,
    read_rows,
    write_rows,
)
from tasks.backbones.catalogue import load_backbone
from tasks.errors import ArtifactError, WeightsError
from tasks.heads.classifier import load_finetuned
from tasks.heads.kinds import load_head
from tasks.params import Params
from tasks.report import Paths, load_shipped, main, read_findings
from tasks.reporting.provenance import hash_file
from tasks.training.outcome import write_history
from tasks.training.phases import TrainingGroup


def images() -> torch.Tensor:
    rng = np.random.default_rng(9)
    return torch.from_numpy(rng.normal(size=(3, 3, 32, 32)).astype(np.float32))


def run(paths: Paths, params: Path = ROOT / "params.yaml") -> None:
    main(arguments(replace(paths, params=params)))


@torch.inference_mode()
def exported_logits(folder: Path) -> torch.Tensor:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    logits: torch.Tensor = model(images())
    return logits


def test_the_stage_writes_page_card_and_model_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = fake_run(tmp_path, Shape())
    with caplog.at_level(logging.INFO, logger="tasks"):
        run(paths)
    assert paths.report.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert paths.card.read_text(encoding="utf-8").startswith("---\n")
    assert (paths.export / "model.safetensors").stat().st_size > 100_000
    assert f"report at {paths.report}, model in {paths.export} (417 kB, loads with timm)" in (
        caplog.messages
    )


def test_the_fine_tuned_model_is_exported_where_it_ships(tmp_path: Path) -> None:
    paths = fake_run(tmp_path, Shape())
    run(paths)
    classifier = load_finetuned(paths.model, read_record(paths.finetune, Finetuned))
    with torch.inference_mode():
        torch.testing.assert_close(exported_logits(paths.export), classifier(images()))


def test_a_baseline_that_beats_fine_tuning_is_built_from_the_pretrained_weights(
    tmp_path: Path,
) -> None:
    paths = fake_run(tmp_path, Shape(shipped="baseline"))
    run(paths)
    info = read_record(paths.backbone, BackboneInfo)
    backbone = load_backbone(info.name, info.weights, image_px=32, seed=17).model
    head = load_head(paths.head, read_record(paths.baseline, Baseline))
    with torch.inference_mode():
        expected = head(backbone(images()))
    torch.testing.assert_close(exported_logits(paths.export), expected)
    about = json.loads((paths.export / "regraft.json").read_text())
    assert about["shipped"] == "baseline"


def test_where_nothing_was_fine_tuned_the_saved_model_is_enough(
    tmp_path: Path, default_params: Params
) -> None:
    paths = fake_run(tmp_path, Shape(arm="feature_extraction", shipped="baseline"))
    info = read_record(paths.backbone, BackboneInfo)
    lost = info.model_copy(update={"weights": str(tmp_path / "gone.safetensors")})
    write_record(paths.backbone, lost)
    shipped = load_shipped(paths, read_findings(paths, default_params), seed=17)
    backbone = load_backbone(info.name, info.weights, image_px=32, seed=17).model
    with torch.inference_mode():
        torch.testing.assert_close(shipped.backbone(images()), backbone(images()))


def test_other_pretrained_weights_than_those_of_the_features_are_refused(
    tmp_path: Path, default_params: Params
) -> None:
    paths = fake_run(tmp_path, Shape(shipped="baseline"))
    findings = read_findings(paths, default_params)
    with pytest.raises(WeightsError, match=r"sha256 .* expected .* run the pipeline again"):
        load_shipped(paths, findings, seed=18)


def test_the_model_folder_tells_temperature_metrics_and_origin(tmp_path: Path) -> None:
    paths = fake_run(tmp_path, Shape())
    run(paths)
    about = json.loads((paths.export / "regraft.json").read_text())
    metrics = read_record(paths.metrics, Metrics)
    assert metrics.finetuned is not None
    assert about["temperature"] == metrics.finetuned.temperature
    assert about["metrics"]["accuracy"] == metrics.finetuned.accuracy.model_dump()
    assert about["provenance"]["data_sha256"] == hash_file(paths.manifest)
    assert about["licenses"]["pretrained_weights"] == "Apache-2.0"


def test_the_same_inputs_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = fake_run(tmp_path, Shape(head="mlp"))
    monkeypatch.setenv("PATH", "/none")  # without git: the checkout may change while this runs
    run(paths)
    first = written(paths)
    run(paths)
    assert written(paths) == first
    assert len(first) == 7


@pytest.mark.slow
def test_another_process_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = fake_run(tmp_path, Shape())
    monkeypatch.setenv("PATH", "/none")  # without git: the checkout may change while this runs
    run(paths)
    first = written(paths)
    subprocess.run(
        [sys.executable, "-m", "tasks.report", *arguments(paths)],
        check=True,
        cwd=ROOT,
        env={"PATH": "/none", "PYTHONHASHSEED": "7", "REGRAFT_SCRATCH": str(tmp_path)},
        capture_output=True,
    )
    assert written(paths) == first
    assert len(first) == 5


def written(paths: Paths) -> dict[str, bytes]:
    files = [paths.report, paths.card, *sorted(paths.export.iterdir())]
    return {file.name: file.read_bytes() for file in files}


def test_neither_a_place_nor_a_secret_reaches_the_files(
    tmp_path: Path, default_params: Params
) -> None:
    paths = fake_run(tmp_path, Shape())
    source = "https://ada:canary-secret@host.org/x.zip?token=canary-secret"
    values = {"ingest.source": source, "ingest.groups": "/home/canary-home/groups.csv"}
    tree = with_values(default_params, values).model_dump()
    YAML().dump(tree, tmp_path / "params.yaml")
    run(paths, tmp_path / "params.yaml")
    for file in [paths.report, paths.card, *paths.export.iterdir()]:
        content = file.read_bytes()
        for secret in (b"canary", str(tmp_path).encode(), str(ROOT).encode()):
            assert secret not in content, file.name


def test_hostile_names_are_harmless_everywhere(tmp_path: Path) -> None:
    unreadable = b"caf\xe9".decode("utf-8", "surrogateescape")
    paths = fake_run(tmp_path, Shape(classes=(HOSTILE, "ok"), name=HOSTILE))
    first, *others = read_rows(paths.hardest / "index.csv", HardestRow)
    first = replace(first, path=f"{unreadable}/\n<img src=x onerror=alert(1)>.png")
    write_rows(paths.hardest / "index.csv", HardestRow, [first, *others])
    run(paths)
    page = paths.report.read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "caf\\xe9/\\n&lt;img src=x" in page
    assert "<script" not in paths.card.read_text(encoding="utf-8")


def test_predictions_of_another_run_are_refused(tmp_path: Path, default_params: Params) -> None:
    paths = fake_run(tmp_path, Shape())
    first, *others = read_rows(paths.predictions, PredictionRow)
    other = "defective" if first.predicted == "functional" else "functional"
    rows = [replace(first, predicted=other), *others]
    write_rows(paths.predictions, PredictionRow, rows)
    with pytest.raises(ArtifactError, match=r"confusion\.csv: counts other images"):
        read_findings(paths, default_params)
    pairs = [ConfusionRow(row.label, row.predicted) for row in rows]
    write_rows(paths.confusion, ConfusionRow, pairs)
    with pytest.raises(ArtifactError, match=r"metrics\.json: accuracy 0\.9.*run evaluate again"):
        read_findings(paths, default_params)


@pytest.mark.parametrize("name", ["health", "predictions", "hardest", "finetune"])
def test_a_missing_file_is_named(name: str, tmp_path: Path, default_params: Params) -> None:
    paths = fake_run(tmp_path, Shape())
    missing = getattr(paths, name)
    missing = missing / "index.csv" if missing.is_dir() else missing
    missing.unlink()
    with pytest.raises(ArtifactError, match=missing.name):
        read_findings(paths, default_params)


def test_a_class_that_the_manifest_does_not_name_is_refused(
    tmp_path: Path, default_params: Params
) -> None:
    paths = fake_run(tmp_path, Shape())
    write_rows(paths.confusion, ConfusionRow, [ConfusionRow("functional", "odd")])
    with pytest.raises(ArtifactError, match=r"a class 'odd' that the manifest does not name"):
        read_findings(paths, default_params)


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


def test_pictures_are_never_read_from_outside_their_folder(
    tmp_path: Path, default_params: Params
) -> None:
    paths = fake_run(tmp_path, Shape(hardest=1))
    (row,) = read_rows(paths.hardest / "index.csv", HardestRow)
    write_rows(paths.hardest / "index.csv", HardestRow, [replace(row, file=f"../../{row.file}")])
    ((_, picture),) = read_findings(paths, default_params).hardest
    assert picture.path == paths.hardest / row.file
