"""Stage evaluate: judge the frozen baseline and the fine-tuned model on the test images, once.

Val chooses the temperatures and the model that ships; test only reports.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from tasks.artifacts.arrays import Ints, Logits, read_array, write_array, write_tensors
from tasks.artifacts.pixels import PixelStore, open_pixels
from tasks.artifacts.records import (
    SPLITS,
    Arm,
    Baseline,
    Finetuned,
    InputSpec,
    Metrics,
    ModelName,
    Split,
    read_record,
    write_record,
)
from tasks.artifacts.sampling import choose_rows
from tasks.artifacts.tables import (
    ClassRow,
    ConfusionRow,
    FactRow,
    Manifest,
    PredictionRow,
    ReliabilityRow,
    SuspectRow,
    TwinRow,
    read_manifest,
    read_rows,
    write_rows,
)
from tasks.artifacts.words import name_trained
from tasks.auditing.held_out import HeldOut, Pool, compare_with_folds, hold_out
from tasks.auditing.suspects import list_suspects, picture_suspects
from tasks.backbones.engine import make_engine
from tasks.delivery.appearance import Appearance
from tasks.delivery.in_domain import InDomain
from tasks.errors import ArtifactError
from tasks.evaluation import tables
from tasks.evaluation.relatives import find_related, judge_relatives
from tasks.evaluation.scores import compare, judge_models, score
from tasks.evaluation.shipping import (
    ONLY_BASELINE,
    choose_model,
    majority_right,
    warn_of_majority,
)
from tasks.evaluation.tables import hardest_images, write_hardest
from tasks.evaluation.unknown import Answered, Embedded, check_domain, fit_in_domain, judge_sets
from tasks.evaluation.words import say_results, warn_of_unknown
from tasks.heads.classifier import Classifier, load_finetuned
from tasks.heads.features import ROWS_AT_ONCE, read_features
from tasks.heads.registry import apply_head, load_head
from tasks.judging.calibration import Judged, ModelLogits
from tasks.judging.metrics import log_probabilities
from tasks.judging.rule import ValSet
from tasks.judging.statistics import GroupBootstrap, accuracy_interval
from tasks.params import EvaluateParams
from tasks.runtime.device import configure_torch
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments, run_stage
from tasks.runtime.machine import read_machine
from tasks.runtime.progress import progress

log = logging.getLogger(__name__)

BATCH_SIZE = 32
SEEN: dict[Split, int] = {"train": 5000, "val": 2000, "test": 2000}  # images whose features tell


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Read
    train: Read
    val: Read
    test: Read
    test_features: Read
    train_features: Read
    val_features: Read
    head: Read
    baseline: Read
    baseline_logits: Read
    model: Read
    finetune: Read
    finetune_logits: Read
    twins: Read
    facts: Read
    summary: Write
    metrics: Write
    predictions: Write
    logits: Write
    classes: Write
    confusion: Write
    reliability: Write
    hardest: Write
    suspects: Write
    suspect_pixels: Write
    reference: Write


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the stage reads, checked to belong together. No fine-tuned model: features sufficed.

    `held_out` has the frozen features of all images, those of test last, and a linear head for each
    fold; `facts` are those of the val images; `model` is the fine-tuned one.
    """

    manifest: Manifest
    pixels: dict[Split, PixelStore]
    baseline: ModelLogits
    finetuned: ModelLogits | None
    arm: Arm
    held_out: HeldOut
    facts: list[FactRow]
    model: Classifier | None = None
    spec: InputSpec | None = None
    balanced: bool = False
    rejection: str | None = None

    def logits_of(self, name: ModelName) -> ModelLogits:
        """Give the logits of one of the models."""
        found = self.finetuned if name == "finetuned" else self.baseline
        assert found is not None
        return found

    @property
    def test_images(self) -> Ints:
        """Numbers of the test images among all of `held_out`, (n,)."""
        images = len(self.held_out.judge)
        return np.arange(images - len(self.baseline.test), images)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics, and the answers of every model to the test images."""

    metrics: Metrics
    models: dict[ModelName, Judged]

    @property
    def shipped(self) -> Judged:
        """Answers of the model that ships."""
        return self.models[self.metrics.shipped]


def evaluate(
    manifest: Manifest,
    baseline: ModelLogits,
    finetuned: ModelLogits | None,
    params: EvaluateParams,
    *,
    seed: int,
    arm: Arm,
    balanced: bool = False,
) -> Evaluation:
    """Judge one or two models.

    Args:
        manifest: Labels and groups of all images.
        baseline: Logits of the frozen baseline.
        finetuned: Logits of the model of stage finetune; None where nothing was fine-tuned.
        params: Resamples, confidence and bins.
        seed: The run's seed.
        arm: How stage finetune trained its model, if it did.
        balanced: Whether all classes count the same in choosing the model that ships.
    """
    models: dict[ModelName, ModelLogits] = {"baseline": baseline}
    if finetuned:
        models["finetuned"] = finetuned
    val = ValSet(manifest.labels("val"), manifest.groups("val"), balanced=balanced)
    test = judge_models(manifest, models)
    groups = manifest.groups("test")
    bootstrap = GroupBootstrap(groups, resamples=params.bootstrap, seed=seed)
    scores = {name: score(judged, bootstrap, params) for name, judged in test.items()}
    choice, difference = ONLY_BASELINE, None
    if finetuned:
        choice = choose_model(
            baseline.val,
            finetuned.val,
            val,
            confidence=params.confidence,
            seed=seed,
            arm=arm,
        )
        difference = compare(test["baseline"], test["finetuned"], bootstrap, params, arm=arm)
    majority = majority_right(manifest)
    metrics = Metrics(
        majority=accuracy_interval(
            majority,
            groups,
            confidence=params.confidence,
            resamples=params.bootstrap,
            seed=seed,
        ),
        baseline=scores["baseline"],
        finetuned=scores.get("finetuned"),
        difference=difference,
        shipped=choice.shipped,
        shipped_reason=choice.reason,
        val_baseline=val.accuracy(baseline.val),
        val_finetuned=val.accuracy(finetuned.val) if finetuned else None,
        warnings=warn_of_majority(test[choice.shipped].right, majority, groups, params, seed=seed),
    )
    return Evaluation(metrics, test)


def explain_rejection(result: Evaluation, rejection: str) -> Evaluation:
    """Say why both models are the same, where a comparison would find no difference."""
    assert result.metrics.difference is not None
    difference = result.metrics.difference.model_copy(update={"sentence": rejection})
    told = {"difference": difference, "shipped": "baseline", "shipped_reason": rejection}
    return replace(result, metrics=result.metrics.model_copy(update=told))


# reading -----------------------------------------------------------------------------------------


def read_inputs(paths: Paths, *, seed: int) -> Inputs:
    """Read everything and run both models on the test images.

    Raises:
        ArtifactError: A file is missing, damaged or from another run than the others.
    """
    manifest = read_manifest(paths.manifest)
    summary = read_record(paths.baseline, Baseline)
    finetuned = read_record(paths.finetune, Finetuned)
    for path, classes in ((paths.baseline, summary.classes), (paths.finetune, finetuned.classes)):
        _expect(path, "classes", classes, manifest.class_names)
    pixels = open_pixels(manifest, [paths.train, paths.val, paths.test])
    folders = (paths.train_features, paths.val_features, paths.test_features)
    parts = [read_features(at, manifest, split) for at, split in zip(folders, SPLITS, strict=True)]
    pool = Pool([replace(part, balanced=summary.class_balanced) for part in parts])
    held_out = hold_out(pool, summary.l2_strength, classes=len(manifest.class_names), seed=seed)
    test = apply_head(load_head(paths.head, summary), pool.parts[-1].features[:, 0])
    baseline = _model_logits(paths.baseline_logits, paths.head, test, manifest)
    facts = _read_facts(paths.facts, manifest)
    if finetuned.arm == "feature_extraction":
        return Inputs(manifest, pixels, baseline, None, finetuned.arm, held_out, facts)
    model = load_finetuned(paths.model, finetuned)
    what = f"{name_trained(finetuned.arm)} on test"
    test = run_model(model, finetuned.input, pixels["test"], seed=seed, what=what)
    logits = _model_logits(paths.finetune_logits, paths.model, test, manifest)
    return Inputs(
        manifest,
        pixels,
        baseline,
        logits,
        finetuned.arm,
        held_out,
        facts,
        model,
        finetuned.input,
        finetuned.class_balanced,
        finetuned.rejection,
    )


def _read_facts(path: Path, manifest: Manifest) -> list[FactRow]:
    """Read the facts of the val images, in the order of the manifest."""
    names = [row.path for row in manifest.of("val")]
    wanted = set(names)
    by_name = {row.path: row for row in read_rows(path, FactRow) if row.path in wanted}
    _expect(path, "facts of val images", len(by_name), len(wanted))
    return [by_name[name] for name in names]


def run_model(
    model: nn.Module,
    spec: InputSpec,
    pixels: PixelStore,
    *,
    seed: int,
    what: str,
    images: Ints | None = None,
) -> Logits:
    """Run a network over the clean views of some images.

    Args:
        model: Normalized images to one row each.
        spec: What it expects.
        pixels: Of one split.
        seed: The run's seed.
        what: Names the progress.
        images: Their numbers in the split; None: all of them.

    Returns:
        A classifier's logits, or a backbone's features, float32 (N, C).
    """
    machine = read_machine()
    configure_torch(machine, seed)
    rows = pixels.clean_rows() if images is None else pixels.row_of(images)
    engine = make_engine(model, spec, machine, pixels.rows(rows[:BATCH_SIZE]))
    parts = []
    with progress(what, len(rows)) as meter:
        for batch in pixels.batches(rows, BATCH_SIZE):
            parts.append(engine(batch)[0])
            meter.advance(len(batch))
    return np.concatenate(parts)


def see_images(inputs: Inputs, shipped: ModelName, *, seed: int) -> dict[Split, Embedded]:
    """Give the features that the shipped model has of some images of every split.

    Training images come with their labels, all others with what is predicted of them.
    """
    logits = inputs.logits_of(shipped)
    answers = {"train": inputs.manifest.labels("train")}
    answers |= {"val": logits.val.argmax(axis=1), "test": logits.test.argmax(axis=1)}
    found: dict[Split, Embedded] = {}
    for number, (split, most) in enumerate(SEEN.items()):
        rows = inputs.manifest.of(split)
        images = choose_rows(rows, most, seed=seed)
        if shipped == "baseline":
            features = inputs.held_out.pool.parts[number].features[images, 0]
        else:
            assert inputs.model is not None
            assert inputs.spec is not None
            features = run_model(
                inputs.model.backbone,
                inputs.spec,
                inputs.pixels[split],
                seed=seed,
                what=f"features of {split}",
                images=images,
            )
        groups = [rows[image].group for image in images]
        seen = Embedded(features, answers[split][images], groups)
        looks = measure_looks(inputs, images) if split == "val" else None
        found[split] = replace(seen, appearance=looks)
    return found


def measure_looks(inputs: Inputs, images: Ints) -> Appearance:
    """Measure how val images look."""
    store, at, parts = inputs.pixels["val"], 0, []
    for views in store.batches(store.row_of(images), ROWS_AT_ONCE):
        some = images[at : at + len(views)].tolist()
        parts.append(Appearance.measure(views, [inputs.facts[image] for image in some]))
        at += len(views)
    return Appearance.join(parts)


def judge_unknown(
    inputs: Inputs, result: Evaluation, params: EvaluateParams, *, seed: int
) -> tuple[Evaluation, InDomain]:
    """Add what the shipped model says where it does not know; give what tells the domain, too."""
    shipped, manifest = result.metrics.shipped, inputs.manifest
    judged = result.models[shipped]
    log_p = log_probabilities(inputs.logits_of(shipped).val, judged.temperature)
    val = Answered(np.exp(log_p), manifest.labels("val"), manifest.groups("val"))
    test = Answered(np.exp(judged.calibrated), judged.labels, manifest.groups("test"))
    seen = see_images(inputs, shipped, seed=seed)
    known = fit_in_domain(seen["train"], seen["val"], false_alarm=params.false_alarm)
    sets = judge_sets(val, test, params, seed=seed)
    domain = check_domain(known, seen["test"], params, seed=seed)
    warnings = [*result.metrics.warnings, *warn_of_unknown(sets, domain)]
    told = {"sets": sets, "domain": domain, "warnings": warnings}
    return replace(result, metrics=result.metrics.model_copy(update=told)), known


def _model_logits(
    val_path: Path, model_path: Path, test: Logits, manifest: Manifest
) -> ModelLogits:
    """Put the logits of one model together and check that they are finite and fit the manifest."""
    val = np.array(read_array(val_path), dtype=np.float32)
    checked: list[tuple[Path, Logits, Split]] = [
        (val_path, val, "val"),
        (model_path, test, "test"),
    ]
    for path, logits, split in checked:
        expected = (len(manifest.of(split)), len(manifest.class_names))
        _expect(path, f"shape of the {split} logits", logits.shape, expected)
        if not np.isfinite(logits).all():
            raise ArtifactError(f"{path}: {split} logits are not finite; train the model again")
    return ModelLogits(val, test)


def _expect(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ArtifactError(
            f"{path}: {what} {found}, the manifest says {expected}; the files are of different "
            "runs, run the pipeline again"
        )


# writing -----------------------------------------------------------------------------------------


def write_outputs(paths: Paths, inputs: Inputs, result: Evaluation, params: EvaluateParams) -> None:
    """Write metrics, logits, tables and pictures."""
    names, groups = inputs.manifest.class_names, inputs.manifest.groups("test")
    images = [row.path for row in inputs.manifest.of("test")]
    shipped, models = result.shipped, result.models
    logits = {"baseline": inputs.baseline.test}
    if inputs.finetuned:
        logits["finetuned"] = inputs.finetuned.test
    write_tensors(paths.logits, logits)
    predictions = tables.prediction_rows(images, shipped, models["baseline"], names)
    write_rows(paths.predictions, PredictionRow, predictions)
    classes = tables.class_rows(shipped, groups, names, params.confidence)
    write_rows(paths.classes, ClassRow, classes)
    write_rows(paths.confusion, ConfusionRow, tables.confusion_rows(shipped, names))
    reliability = tables.reliability_rows(models, groups, params.ece_bins, params.confidence)
    write_rows(paths.reliability, ReliabilityRow, reliability)
    hardest = hardest_images(shipped.losses, params.hardest)
    test = inputs.pixels["test"]
    pictures = test.rows(test.row_of(hardest))
    write_hardest(paths.hardest, hardest, pictures, judged=shipped, paths=images, class_names=names)
    answers = [(np.arange(len(images)), shipped.calibrated)]
    suspects = list_suspects(inputs.manifest, ["test"], lambda: answers)
    write_rows(paths.suspects, SuspectRow, suspects)
    shown = picture_suspects(suspects, inputs.manifest, {"test": test})
    write_array(paths.suspect_pixels, shown)
    write_record(paths.metrics, result.metrics)
    write_record(paths.summary, tables.summarize_metrics(result.metrics))


def main(argv: Sequence[str] | None) -> None:
    """Read, judge, write."""
    paths, params = read_arguments(
        Paths, "evaluate", "Judge baseline and fine-tuned model on the test images, once.", argv
    )
    inputs = read_inputs(paths, seed=params.seed)
    result = evaluate(
        inputs.manifest,
        inputs.baseline,
        inputs.finetuned,
        params.evaluate,
        seed=params.seed,
        arm=inputs.arm,
        balanced=inputs.balanced,
    )
    if inputs.rejection:
        result = explain_rejection(result, inputs.rejection)
    related = find_related(inputs.manifest, read_rows(paths.twins, TwinRow))
    metrics = judge_relatives(
        result.metrics, result.shipped.right, related, params.evaluate, seed=params.seed
    )
    result = replace(result, metrics=metrics)
    folds = compare_with_folds(
        inputs.held_out,
        inputs.test_images,
        result.models["baseline"].right,
        params.evaluate,
        seed=params.seed,
    )
    result = replace(result, metrics=result.metrics.model_copy(update={"folds": folds}))
    result, known = judge_unknown(inputs, result, params.evaluate, seed=params.seed)
    known.write(paths.reference)
    write_outputs(paths, inputs, result, params.evaluate)
    for warning in result.metrics.warnings:
        log.warning("%s", warning)
    log.info("%s", say_results(result.metrics, inputs.arm))


if __name__ == "__main__":
    sys.exit(run_stage("evaluate", main))
