"""A whole run as the report stage finds it: every file of the earlier stages, made up."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from tasks.artifacts.records import (
    AugmentPolicy,
    BackboneInfo,
    Baseline,
    Decision,
    Difference,
    Estimate,
    Finetuned,
    GroupShift,
    HeadKind,
    Health,
    ImageSource,
    InputSpec,
    KnownSet,
    LayerGroup,
    Metrics,
    MmdResult,
    ModelName,
    Phase,
    Rule,
    Scores,
    Similarity,
    TriedHead,
    write_record,
)
from tasks.artifacts.tables import (
    ClassRow,
    ConfusionRow,
    HardestRow,
    HistoryRow,
    Manifest,
    ManifestRow,
    PlaneRow,
    PredictionRow,
    ReliabilityRow,
    ShiftRow,
    write_manifest,
    write_rows,
)
from tasks.backbones.catalogue import create_architecture, load_backbone
from tasks.heads.classifier import Classifier, write_classifier
from tasks.heads.kinds import build_head, write_head
from tasks.params import Params
from tasks.report import Paths, read_findings
from tasks.reporting.export import Exported
from tasks.reporting.findings import Findings
from tasks.reporting.provenance import CodeState, Provenance

GROUPS = ["stem", *(f"blocks.{number}" for number in range(7)), "conv_head"]
KNOWN = [
    ("photographs (trashnet)", 0.024),
    ("clothing photographs", 0.053),
    ("fashion_mnist", 0.084),
    ("omniglot (symbols)", 0.137),
    ("hand signs of digits", 0.214),
    ("uniform noise", 0.299),
]
HOSTILE = "<script>alert(1)</script>"


@dataclass(frozen=True)
class Shape:
    """What a made up run looks like."""

    classes: Sequence[str] = ("defective", "functional")
    name: str = "ELPV"
    test: int = 60
    wrong: int = 6
    baseline_wrong: int = 7
    arm: Literal["scratch", "feature_extraction", "fine_tune"] = "fine_tune"
    shipped: Literal["baseline", "finetuned"] = "finetuned"
    head: HeadKind = "linear"
    backbone: str = "test_efficientnet"
    weights: str = "random"
    image_px: int = 32
    picture_px: int = 32
    hardest: int = 4
    card: bool = True
    health: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] = field(default_factory=dict)


def fake_run(folder: Path, shape: Shape, seed: int = 3) -> Paths:
    """Write every file that the report stage reads; give its arguments."""
    rng = np.random.default_rng(seed)
    paths = paths_in(folder)
    folder.mkdir(parents=True, exist_ok=True)
    labels = [shape.classes[number % len(shape.classes)] for number in range(shape.test)]
    predicted = _answers(labels, shape.classes, shape.wrong, rng)
    before = _answers(labels, shape.classes, shape.baseline_wrong, rng)
    _write_data(paths, shape, rng)
    backbone = _write_backbone(paths, shape)
    _write_similarity(paths, shape, rng)
    _write_decision(paths, shape)
    _write_training(paths, shape, backbone, rng)
    _write_evaluation(paths, shape, labels, predicted, before, rng)
    return paths


def fake_findings(folder: Path, shape: Shape, params: Params) -> Findings:
    """Write a run and read it as the stage does."""
    return read_findings(fake_run(folder, shape), params)


def fake_exported(*, whole: bool = True) -> Exported:
    """What an export could have written."""
    return Exported(
        whole=whole,
        files=(("config.json", 512), ("model.safetensors", 13_500_000)),
        sha256="ab" * 32,
        difference=0.0,
    )


def fake_provenance(changed: tuple[str, ...] = ()) -> Provenance:
    """Provenance of a run at some commit."""
    return Provenance(
        code=CodeState("0123456789abcdef" * 2, changed, "cd" * 32 if changed else None),
        data_sha256="ef" * 32,
        params=(("seed", "17"), ("finetune.head_lr", "0.0005")),
        versions=(("python", "3.11.9"), ("torch", "2.10.0")),
    )


def paths_in(folder: Path) -> Paths:
    """Paths of a run in one folder."""
    files = {
        "health": "health.json",
        "origin": "source.json",
        "manifest": "manifest.csv",
        "sheet": "contact_sheet.jpg",
        "policy": "policy.json",
        "backbone": "backbone.json",
        "similarity": "similarity.json",
        "profile": "shift_profile.csv",
        "projection": "projection.csv",
        "decision": "decision.json",
        "head": "head.safetensors",
        "baseline": "baseline.json",
        "model": "model.safetensors",
        "finetune": "finetune.json",
        "history": "history.csv",
        "metrics": "metrics.json",
        "predictions": "predictions.csv",
        "classes": "per_class.csv",
        "confusion": "confusion.csv",
        "reliability": "reliability.csv",
        "hardest": "hardest",
        "report": "out/report.html",
        "card": "out/MODEL_CARD.md",
        "export": "out/model",
    }
    return Paths(**{name: folder / file for name, file in files.items()})


def arguments(paths: Paths) -> list[str]:
    """Give the paths as command line arguments of the stage."""
    return [word for name, path in vars(paths).items() for word in (f"--{name}", str(path))]


def share(value: float, half: float, n: int = 60) -> Estimate:
    """A share with a symmetric interval."""
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half), n=n)


def number(value: float, half: float, n: int = 60) -> Estimate:
    """A number with a symmetric interval."""
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def _answers(
    labels: Sequence[str], classes: Sequence[str], wrong: int, rng: np.random.Generator
) -> list[str]:
    answers = list(labels)
    for image in rng.choice(len(labels), wrong, replace=False):
        near = (classes.index(labels[image]) + 1 + int(rng.integers(0, 3) == 0)) % len(classes)
        other = near if classes[near] != labels[image] else (near + 1) % len(classes)
        answers[image] = classes[other]
    return answers


def _write_data(paths: Paths, shape: Shape, rng: np.random.Generator) -> None:
    per_class = {
        name: {
            "train": 40 + 90 // (position + 1),
            "val": 12,
            "test": len(range(position, shape.test, len(shape.classes))),
        }
        for position, name in enumerate(shape.classes)
    }
    totals = [sum(counts.values()) for counts in per_class.values()]
    rows = [
        ManifestRow(f"{name}/{image}.png", name, "test", f"g{image}", f"{image:064x}", 40, 32, "L")
        for image, name in enumerate(shape.classes)
    ]
    write_manifest(paths.manifest, Manifest(rows))
    facts: dict[str, Any] = {
        "source": shape.name,
        "images": sum(totals),
        "rejected": 0,
        "rejected_reasons": {},
        "ignored_files": 1,
        "classes": list(shape.classes),
        "class_counts": per_class,
        "split_counts": {
            split: sum(counts[split] for counts in per_class.values())
            for split in ("train", "val", "test")
        },
        "groups": sum(totals) - 4,
        "exact_duplicates": 0,
        "near_duplicates": 4,
        "label_conflicts": [],
        "split_leaks": [],
        "imbalance": max(totals) / min(totals),
        "modes": {"L": sum(totals)},
        "width": [300, 300, 300],
        "height": [300, 300, 300],
        "warnings": [],
    }
    write_record(paths.health, Health(**(facts | shape.health)))
    source = ImageSource(
        kind="package",
        name=shape.name,
        root="data",
        package="elpv_dataset",
        license="CC BY-NC-SA 4.0 (images and labels; for demonstration, not for commercial use)",
        citation="Buerhop-Lutz et al., A Benchmark for Visual Identification of Defective Solar "
        "Cells in Electroluminescence Imagery, EU PVSEC 2018",
        label_rule="A cell is functional where its defect probability is 0 or 1/3 and defective "
        "where it is 2/3 or 1.",
    )
    write_record(paths.origin, source)
    policy = AugmentPolicy(
        policy="custom",
        ranges={"flip_horizontal": 0.5, "crop_scale_min": 0.6, "brightness": 0.2},
        views=3,
        image_px=shape.image_px,
        fit="squash",
        images={"train": 90, "val": 24, "test": shape.test},
        bytes={"train": 1_000_000, "val": 100_000, "test": 200_000},
        notes=["Flips left to right are on; they are wrong for digits and letters."],
    )
    write_record(paths.policy, policy)
    _draw(paths.sheet, rng, (4 * shape.picture_px, 3 * shape.picture_px))


def _draw(path: Path, rng: np.random.Generator, size: tuple[int, int]) -> None:
    coarse = rng.integers(40, 200, (6, 6), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    picture.convert("RGB").save(path, quality=85)


def _write_backbone(paths: Paths, shape: Shape) -> BackboneInfo:
    loaded = load_backbone(shape.backbone, shape.weights, image_px=shape.image_px, seed=17)
    info = BackboneInfo(
        name=shape.backbone,
        weights=shape.weights,
        weights_sha256=loaded.weights_sha256,
        weights_license="Apache-2.0",
        weights_source="https://example.org/weights",
        input=InputSpec(image_px=shape.image_px, mean=loaded.input.mean, std=loaded.input.std),
        groups=[LayerGroup(name=name, parameters=1000) for name in GROUPS],
        feature_dim=loaded.feature_dim,
        norm="batch",
        engine="onnxruntime",
        parity=3.1e-6,
    )
    write_record(paths.backbone, info)
    return info


def _write_similarity(paths: Paths, shape: Shape, rng: np.random.Generator) -> None:
    shifts = 0.2 + np.abs(rng.normal(0.1, 0.2, 49)) + np.linspace(0, 0.3, 49)
    layers = [
        ShiftRow(f"{group}.bn{i}", group, i, float(shifts[i]))
        for i, group in enumerate(GROUPS[i * 9 // 49] for i in range(49))
    ]
    write_rows(paths.profile, ShiftRow, layers)
    places = [PlaneRow(*rng.normal(0, 1, 2), "source", "") for _ in range(300)]
    for position, name in enumerate(shape.classes):
        center = rng.normal(0, 2.5, 2)
        count = max(4, 600 // len(shape.classes) // (position + 1))
        places += [
            PlaneRow(*(center + rng.normal(0, 0.6, 2)), "target", name) for _ in range(count)
        ]
    write_rows(paths.projection, PlaneRow, places)
    mmd = MmdResult(
        value=0.186,
        low=0.174,
        high=0.199,
        n=500,
        p_value=0.002,
        bandwidths=[10.0, 20.0, 40.0],
        estimator="full",
        source="ImageNet",
        source_rows=1000,
    )
    means = [
        GroupShift(
            group=name,
            value=float(np.mean([layer.shift for layer in layers if layer.group == name])),
        )
        for name in GROUPS
    ]
    record = Similarity(
        images=500,
        mmd=mmd if shape.card else None,
        shift=number(0.43, 0.02, 500),
        shift_groups=means,
        logme=number(-0.4, 0.03, 500),
        h_score=number(0.61, 0.04, 500),
        knn_accuracy=share(0.84, 0.03, 500),
        ridge_accuracy=share(0.88, 0.03, 500),
        random_ridge_accuracy=share(0.67, 0.04, 500),
        transfer_gain=number(0.21, 0.04, 500),
        summary=f"{shape.name} is far from the photographs that the backbone was trained on "
        "(MMD² 0.186, as far as hand signs of digits), yet its features carry over: they classify "
        "21 points better than those of random weights.",
        notes=[],
        known=[
            KnownSet(name=name, images=500, mmd=mmd, shift=0.1, transfer_gain=0.3)
            for name, mmd in KNOWN
        ]
        if shape.card
        else [],
    )
    write_record(paths.similarity, record)


def _write_decision(paths: Paths, shape: Shape) -> None:
    facts: dict[str, Any] = {
        "arm": shape.arm,
        "forced": False,
        "recommended": shape.arm,
        "domain": "far",
        "confidence": "high",
        "phases": {"fine_tune": [7, 5], "scratch": [0], "feature_extraction": []}[shape.arm],
        "rules": [
            Rule(
                name="scratch_needs_data",
                statement="From scratch only with at least 500,000 images in a far domain.",
                inputs={"train_images": 1785, "scratch_min_images": 500_000, "domain": "far"},
                fired=shape.arm == "scratch",
                votes_for="scratch",
            ),
            Rule(
                name="never_frozen_on_far",
                statement="Frozen features alone are not enough on a far domain.",
                inputs={"mmd": 0.186, "far_mmd": 0.12},
                fired=True,
                votes_for="fine_tune",
            ),
        ],
        "would_change": ["With MMD² below 0.12 the domain would be intermediate: one phase less."],
        "reasons": [
            "The domain is far: MMD² 0.186 is above 0.12.",
            "893 images a class are enough to fine-tune the upper groups.",
        ],
    }
    write_record(paths.decision, Decision(**(facts | shape.decision)))


def _write_training(
    paths: Paths, shape: Shape, backbone: BackboneInfo, rng: np.random.Generator
) -> None:
    hidden = 8 if shape.head == "mlp" else 0
    torch.manual_seed(5)
    head = build_head(
        shape.head, backbone.feature_dim, len(shape.classes), hidden=hidden, dropout=0.2
    )
    write_head(paths.head, head.eval())
    candidates = [
        TriedHead(
            head=kind,
            setting=setting,
            val_loss=loss,
            val_accuracy=0.88 - loss / 10,
            train_accuracy=0.93,
            chosen=kind == shape.head and loss < 0.4,
        )
        for kind, setting, loss in [
            ("linear", "l2 0.01", 0.41),
            ("linear", "l2 0.1", 0.33),
            ("mlp", "hidden 256, dropout 0.4", 0.35),
        ]
    ]
    common: dict[str, Any] = {
        "head": shape.head,
        "hidden": hidden,
        "dropout": 0.2,
        "feature_dim": backbone.feature_dim,
        "classes": list(shape.classes),
        "val_accuracy": share(0.869, 0.03, 367),
        "val_loss": 0.33,
        "notes": [],
    }
    write_record(paths.baseline, Baseline(candidates=candidates, majority_accuracy=0.66, **common))
    phases, rows = _phases(shape, rng)
    network = create_architecture(shape.backbone, image_px=shape.image_px)
    if shape.arm == "feature_extraction":
        loaded = load_backbone(shape.backbone, shape.weights, image_px=shape.image_px, seed=17)
        network.load_state_dict(loaded.model.state_dict(), strict=False)
    write_classifier(paths.model, Classifier(network, head))
    finetuned = Finetuned(
        arm=shape.arm,
        backbone=shape.backbone,
        input=backbone.input,
        phases=phases,
        interpolation=0.75 if phases else 1.0,
        **(common | {"val_accuracy": share(0.892, 0.03, 367), "val_loss": 0.29}),
    )
    write_record(paths.finetune, finetuned)
    write_rows(paths.history, HistoryRow, rows, ["head", *GROUPS])


def _phases(shape: Shape, rng: np.random.Generator) -> tuple[list[Phase], list[HistoryRow]]:
    starts = {"fine_tune": [7, 5, 3], "scratch": [0], "feature_extraction": []}[shape.arm]
    phases, rows, loss = [], [], 0.36
    for position, start in enumerate(starts):
        kept = position < 2
        name = f"unfrozen from {GROUPS[start]}"
        for epoch in range(1, 7):
            loss *= 0.985 if kept else 1.03
            peaks = [0.0 if g < start else 2e-4 * 0.7 ** (8 - g) for g in range(len(GROUPS))]
            noise = float(rng.normal(0, 0.006))
            rows.append(
                HistoryRow(
                    phase=position + 1,
                    epoch=len(rows) + 1,
                    rates={"head": 5e-4, **dict(zip(GROUPS, peaks, strict=True))},
                    train_loss=loss * 0.9,
                    train_accuracy=0.9 + epoch / 300,
                    val_loss=loss + noise,
                    baseline_val_loss=1.1,
                    val_accuracy=1.13 - loss * 0.75 + noise,
                )
            )
        phases.append(
            Phase(
                name=name,
                unfrozen_from=start,
                epochs=6,
                best_epoch=5,
                stopped="finished",
                val_loss=loss,
                val_accuracy=0.885,
                change_in_val_accuracy=number(0.011 if kept else -0.02, 0.013, 367),
                kept=kept,
                reason="val does not speak against it" if kept else "val says that it is worse",
            )
        )
    return phases, rows


def _write_evaluation(
    paths: Paths,
    shape: Shape,
    labels: list[str],
    predicted: list[str],
    before: list[str],
    rng: np.random.Generator,
) -> None:
    tuned = shape.arm != "feature_extraction"
    n = shape.test
    ours = _scores(1 - shape.wrong / n, n)
    frozen = ours if shape.shipped == "baseline" else _scores(1 - shape.baseline_wrong / n, n)
    finetuned = ours if shape.shipped == "finetuned" else _scores(1 - shape.baseline_wrong / n, n)
    gain = finetuned.accuracy.value - frozen.accuracy.value
    difference = Difference(
        accuracy=number(gain, 0.031, n),
        balanced_accuracy=number(gain + 0.005, 0.034, n),
        macro_f1=number(gain + 0.003, 0.033, n),
        mcnemar_p=0.087,
        only_baseline_right=11,
        only_finetuned_right=21,
        sentence=f"Fine-tuning changes accuracy by {100 * gain:+.1f} points, within noise (95 % "
        f"interval {100 * gain - 3.1:.1f} to {100 * gain + 3.1:.1f}, {n:,} images).",
    )
    metrics = Metrics(
        majority=share(labels.count(shape.classes[0]) / n, 0.05, n),
        baseline=frozen,
        finetuned=finetuned if tuned else None,
        difference=difference if tuned else None,
        shipped=shape.shipped,
        shipped_reason="Better on val: accuracy 0.892 against 0.869 (367 images).",
        val_baseline=0.869,
        val_finetuned=0.892 if tuned else None,
    )
    write_record(paths.metrics, metrics)
    probability = np.round(0.6 + 0.4 * rng.random(n), 6)
    predictions = [
        PredictionRow(
            path=f"{labels[i]}/{i}.png",
            label=labels[i],
            predicted=predicted[i],
            probability=probability[i],
            label_probability=0.5,
            correct=labels[i] == predicted[i],
            loss=0.7,
            baseline_predicted=before[i],
        )
        for i in range(n)
    ]
    write_rows(paths.predictions, PredictionRow, predictions)
    write_rows(paths.confusion, ConfusionRow, map(ConfusionRow, labels, predicted))
    _write_classes(paths, shape, labels, predicted)
    _write_bins(paths, shape, rng)
    _write_hardest(paths, shape, labels, rng)


def _scores(accuracy: float, n: int) -> Scores:
    return Scores(
        accuracy=share(accuracy, 0.027, n),
        balanced_accuracy=share(accuracy - 0.012, 0.029, n),
        macro_f1=share(accuracy - 0.01, 0.03, n),
        nll=number(0.24, 0.04, n),
        brier=number(0.069, 0.01, n),
        ece=share(0.043, 0.012, n),
        ece_calibrated=share(0.021, 0.011, n),
        nll_calibrated=0.22,
        temperature=1.31,
    )


def _write_classes(paths: Paths, shape: Shape, labels: list[str], predicted: list[str]) -> None:
    rows = []
    for name in shape.classes:
        actual, called = labels.count(name), predicted.count(name)
        right = sum(a == b == name for a, b in zip(labels, predicted, strict=True))
        found = right / actual if actual else None
        pure = right / called if called else None
        rows.append(
            ClassRow(
                class_=name,
                n=actual,
                predicted=called,
                recall=found,
                recall_low=max(0.0, (found or 0) - 0.06),
                recall_high=min(1.0, (found or 1) + 0.05),
                precision=pure,
                precision_low=max(0.0, (pure or 0) - 0.06),
                precision_high=min(1.0, (pure or 1) + 0.05),
                f1=2 * right / (actual + called) if actual + called else None,
            )
        )
    write_rows(paths.classes, ClassRow, rows)


def _write_bins(paths: Paths, shape: Shape, rng: np.random.Generator) -> None:
    rows = []
    models: tuple[ModelName, ...] = ("baseline", "finetuned")
    for model in models:
        for calibrated in (False, True):
            for number_of_bin in range(10):
                sure = 0.55 + 0.045 * number_of_bin
                right = min(1.0, sure - 0.05 * (1 - calibrated) + float(rng.normal(0, 0.02)))
                low, high = max(0.0, right - 0.1), min(1.0, right + 0.1)
                images = shape.test // 10
                rows.append(
                    ReliabilityRow(model, calibrated, number_of_bin, sure, right, low, high, images)
                )
    write_rows(paths.reliability, ReliabilityRow, rows)


def _write_hardest(paths: Paths, shape: Shape, labels: list[str], rng: np.random.Generator) -> None:
    paths.hardest.mkdir()
    rows = []
    for rank in range(shape.hardest):
        file = f"{rank:03d}_image_{rank:06d}.jpg"
        _draw(paths.hardest / file, rng, (shape.picture_px, shape.picture_px))
        label = labels[rank]
        other = shape.classes[(shape.classes.index(label) + 1) % len(shape.classes)]
        path = f"{label}/cell{rank:04d}.png"
        rows.append(HardestRow(file, path, label, other, 0.99 - rank / 100, 3.0))
    write_rows(paths.hardest / "index.csv", HardestRow, rows)
