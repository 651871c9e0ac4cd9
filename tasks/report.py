"""Stage report: one offline page for a person, a model card, and the model to deploy."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tasks.artifacts.files import hash_file, write_text
from tasks.artifacts.pixels import open_pixels
from tasks.artifacts.records import (
    Audit,
    AugmentPolicy,
    BackboneChoice,
    BackboneInfo,
    Baseline,
    Calibration,
    Conversion,
    Decision,
    Finetuned,
    Health,
    ImageSource,
    Metrics,
    Similarity,
    read_record,
)
from tasks.artifacts.tables import (
    ClassRow,
    ConfusionRow,
    HardestRow,
    HistoryRow,
    LikenessRow,
    PairRow,
    PlaneRow,
    PredictionRow,
    ReliabilityRow,
    ShiftRow,
    read_manifest,
    read_rows,
)
from tasks.backbones.catalogue import load_backbone
from tasks.delivery.in_domain import InDomain
from tasks.delivery.onnx_files import Samples
from tasks.errors import ArtifactError, WeightsError
from tasks.heads.classifier import load_finetuned
from tasks.heads.registry import load_head
from tasks.params import Params
from tasks.reporting.card import render_card
from tasks.reporting.confusion import count_answers
from tasks.reporting.explained import Explained, explain_answers
from tasks.reporting.export import Exported, ShippedModel, export_model
from tasks.reporting.findings import Findings, read_picture
from tasks.reporting.html import render_report
from tasks.reporting.provenance import (
    Provenance,
    installed_versions,
    list_params,
    read_code_state,
)
from tasks.reporting.results import read_suspects
from tasks.reporting.text import size
from tasks.runtime.device import configure_torch
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments, run_stage
from tasks.runtime.machine import read_machine

log = logging.getLogger(__name__)

SUSPECTS, TEST_SUSPECTS = 24, 8  # pictures of train and val, and of test
PROJECT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    health: Read
    origin: Read
    conversion: Read
    manifest: Read
    sheet: Read
    policy: Read
    train: Read
    val: Read
    test: Read
    choice: Read
    backbone: Read
    similarity: Read
    profile: Read
    projection: Read
    pictures: Read
    decision: Read
    head: Read
    baseline: Read
    model: Read
    finetune: Read
    history: Read
    metrics: Read
    predictions: Read
    classes: Read
    confusion: Read
    reliability: Read
    hardest: Read
    reference: Read
    audit: Read
    pairs: Read
    suspects: Read
    suspect_pixels: Read
    test_suspects: Read
    test_suspect_pixels: Read
    report: Write
    card: Write
    export: Write


@dataclass(frozen=True)
class Report:
    """What a person reads: the page, html, and the model card, Markdown."""

    page: str
    card: str


def report(
    findings: Findings, exported: Exported, explained: Explained, provenance: Provenance
) -> Report:
    """Tell what was found, what was exported, what answers rest on and where all comes from."""
    return Report(
        page=render_report(findings, exported, explained, provenance),
        card=render_card(findings, exported, provenance),
    )


def tell_about(findings: Findings, provenance: Provenance) -> dict[str, Any]:
    """Give the facts of regraft.json beside architecture, classes and preprocessing."""
    return {
        "shipped": findings.metrics.shipped,
        "metrics": findings.shipped.model_dump(mode="json"),
        "licenses": {
            "data": findings.origin.license,
            "pretrained_weights": findings.backbone.weights_license,
        },
        "provenance": {
            "commit": provenance.code.commit,
            "uncommitted_changes": provenance.code.changes_sha256,
            "data_sha256": provenance.data_sha256,
            "pretrained_weights_sha256": findings.backbone.weights_sha256,
        },
    }


# reading and writing -----------------------------------------------------------------------------


def read_findings(paths: Paths, params: Params) -> Findings:
    """Read what the earlier stages wrote.

    Raises:
        ArtifactError: A file is missing, damaged or from another run than the others.
    """
    health = read_record(paths.health, Health)
    confusion = read_rows(paths.confusion, ConfusionRow)
    findings = Findings(
        title=params.report.title,
        confidence=params.evaluate.confidence,
        health=health,
        origin=read_record(paths.origin, ImageSource),
        policy=read_record(paths.policy, AugmentPolicy),
        choice=read_record(paths.choice, BackboneChoice),
        backbone=read_record(paths.backbone, BackboneInfo),
        similarity=read_record(paths.similarity, Similarity),
        decision=read_record(paths.decision, Decision),
        baseline=read_record(paths.baseline, Baseline),
        finetuned=read_record(paths.finetune, Finetuned),
        metrics=read_record(paths.metrics, Metrics),
        layers=read_rows(paths.profile, ShiftRow),
        places=read_rows(paths.projection, PlaneRow),
        likest=[
            (row, read_picture(paths.pictures / Path(row.file).name))
            for row in read_rows(paths.pictures / "index.csv", LikenessRow)
        ],
        history=read_rows(paths.history, HistoryRow),
        classes=read_rows(paths.classes, ClassRow),
        confusion=count_answers([(row.actual, row.predicted) for row in confusion], health.classes),
        bins=read_rows(paths.reliability, ReliabilityRow),
        hardest=[
            (row, read_picture(paths.hardest / Path(row.file).name))
            for row in read_rows(paths.hardest / "index.csv", HardestRow)
        ],
        sheet=read_picture(paths.sheet),
        audit=read_record(paths.audit, Audit),
        pairs=[
            (row, read_picture(paths.pairs / Path(row.file).name))
            for row in read_rows(paths.pairs / "index.csv", PairRow)
        ],
        suspects=read_suspects(
            paths.suspects,
            paths.suspect_pixels,
            images=health.split_counts["train"] + health.split_counts["val"],
            most=SUSPECTS,
        ),
        test_suspects=read_suspects(
            paths.test_suspects,
            paths.test_suspect_pixels,
            images=health.split_counts["test"],
            most=TEST_SUSPECTS,
        ),
    )
    _check_recomputed(paths, findings)
    return findings


def _check_recomputed(paths: Paths, findings: Findings) -> None:
    """Compare what can be counted in predictions.csv with metrics.json and confusion.csv."""
    predictions = read_rows(paths.predictions, PredictionRow)
    answers = [(row.label, row.predicted) for row in predictions]
    counts = count_answers(answers, findings.health.classes)
    if not np.array_equal(counts, findings.confusion):
        raise ArtifactError(
            f"{paths.confusion}: counts other images than {paths.predictions}; run evaluate again"
        )
    told = findings.shipped.accuracy
    counted = float(np.trace(counts) / max(counts.sum(), 1))
    if told.n != counts.sum() or abs(counted - told.value) > 1e-9:
        raise ArtifactError(
            f"{paths.metrics}: accuracy {told.value:.6f} of {told.n} images, {paths.predictions} "
            f"gives {counted:.6f} on {counts.sum()}; run evaluate again"
        )


def read_provenance(paths: Paths, params: Params) -> Provenance:
    """Find out from what code, data, parameters and packages this run is."""
    return Provenance(
        code=read_code_state(PROJECT, inputs=[params.ingest.groups, params.ingest.corrections]),
        data_sha256=hash_file(paths.manifest),
        params=list_params(params.model_dump(mode="json")),
        versions=installed_versions(),
    )


def open_samples(paths: Paths, params: Params) -> Samples:
    """Open the images that the ONNX files are measured with.

    Raises:
        ArtifactError: A store or the manifest is missing or damaged, or they are of different runs.
    """
    manifest = read_manifest(paths.manifest)
    stores = open_pixels(manifest, [paths.train, paths.val, paths.test])
    return Samples(stores, manifest, params.seed, read_machine().compute_threads)


def load_shipped(paths: Paths, findings: Findings, params: Params) -> ShippedModel:
    """Build the model that ships.

    Where nothing was fine-tuned, model.safetensors is the frozen backbone with the baseline's head.
    Where the baseline ships in spite of a fine-tuned model, its backbone is loaded as extract did.

    Raises:
        ArtifactError: A file is missing or damaged.
        WeightsError: The pretrained weights cannot be had, or are not those that made the features.
    """
    backbone, head = _modules(paths, findings, seed=params.seed)
    return ShippedModel(
        name=findings.backbone.name,
        backbone=backbone,
        head=head,
        input=findings.backbone.input,
        fit=findings.policy.fit,
        conversion=read_record(paths.conversion, Conversion),
        classes=findings.health.classes,
        calibration=_calibration(paths, findings),
        known=InDomain.read(paths.reference),
        limits={
            "max_pixels": params.ingest.max_pixels,
            "min_side_px": params.ingest.min_side_px,
        },
    )


def _calibration(paths: Paths, findings: Findings) -> Calibration:
    sets, domain = findings.metrics.sets, findings.metrics.domain
    if sets is None or domain is None:
        raise ArtifactError(f"{paths.metrics}: of an older version; run evaluate again")
    return Calibration(
        temperature=findings.shipped.temperature,
        fitted_on="val",
        images=findings.health.split_counts["val"],
        set_coverage=sets.asked,
        set_thresholds=sets.kinds[0].thresholds,
        in_domain=domain.threshold,
        false_alarm=domain.asked,
    )


def _modules(paths: Paths, findings: Findings, *, seed: int) -> tuple[nn.Module, nn.Module]:
    if findings.metrics.shipped == "finetuned" or findings.metrics.finetuned is None:
        classifier = load_finetuned(paths.model, findings.finetuned)
        return classifier.backbone, classifier.head
    info = findings.backbone
    loaded = load_backbone(info.name, info.weights, image_px=info.input.image_px, seed=seed)
    if loaded.weights_sha256 != info.weights_sha256:
        raise WeightsError(
            f"backbone {info.name}, {info.weights}: sha256 {loaded.weights_sha256}, expected "
            f"{info.weights_sha256}, from which the features were made; run the pipeline again"
        )
    model: Any = loaded.model
    model.reset_classifier(0)
    return model, load_head(paths.head, findings.baseline)


def main(argv: Sequence[str] | None = None) -> None:
    """Read everything, export and explain the model, write report and model card."""
    paths, params = read_arguments(Paths, "report", __doc__ or "", argv)
    configure_torch(read_machine(), params.seed)
    findings, provenance = read_findings(paths, params), read_provenance(paths, params)
    shipped, samples = load_shipped(paths, findings, params), open_samples(paths, params)
    exported = export_model(paths.export, shipped, tell_about(findings, provenance), samples)
    hardest = [row for row, _ in findings.hardest]
    answers = read_rows(paths.predictions, PredictionRow)
    explained = explain_answers(shipped, hardest, answers, samples)
    told = report(findings, exported, explained, provenance)
    write_text(paths.report, told.page)
    write_text(paths.card, told.card)
    for words in exported.words:
        log.info("%s", words)
    log.info(
        "report at %s, model in %s (%s, loads with timm%s)",
        paths.report,
        paths.export,
        size(exported.size),
        "" if exported.whole else "; its head is a file of its own",
    )


if __name__ == "__main__":
    sys.exit(run_stage("report", main))
