"""Train one arm in a study and test what it would have shipped."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
from bench.cells import Cell, CellArm, Task
from bench.studies import Study

from tasks.artifacts.arrays import Bools, Logits, read_array
from tasks.artifacts.records import (
    Arm,
    BackboneInfo,
    Baseline,
    Finetuned,
    ModelName,
    Phase,
    Transfer,
    read_record,
    write_record,
)
from tasks.evaluate import run_model
from tasks.evaluation.shipping import choose_model
from tasks.heads.classifier import load_finetuned
from tasks.heads.features import read_features
from tasks.heads.registry import apply_head, load_head
from tasks.judging.rule import ValSet
from tasks.params import Params
from tasks.training.phases import next_phase
from tasks.training.resume.workspace import CONSTRAINTS, IMPORTED, TASKS, fingerprint
from tasks.transferability.arms import DEPTHS
from tasks.transferability.rules import choose_cuts, gather_evidence, raises_rates


def code_of(params: Params) -> str:
    """Fingerprint of what trains: code, values and libraries, 8 hexadecimal digits."""
    own = ("baseline.py", "finetune.py", "transferability/arms.py", "transferability/rules.py")
    code = [TASKS / name for name in (*own, *IMPORTED)]
    values = [str(params.baseline), str(params.finetune)]
    return fingerprint([], values, [*code, CONSTRAINTS])[:8]


def train_frozen(study: Study, task: Task) -> Cell:
    """Train the frozen baseline, the start of all arms, and test it."""
    seconds = study.run("baseline")
    summary = read_record(study.path("baseline/baseline.json"), Baseline)
    right = _test_frozen(study, summary)
    return _cell(
        study,
        task,
        "frozen",
        val=(summary.val_accuracy.value, summary.val_loss),
        right=right,
        shipped=("baseline", right),
        seconds=seconds,
        phases="",
        epochs=0,
        raised=False,
    )


def train_arm(study: Study, task: Task, arm: CellArm) -> Cell:
    """Train an arm after the frozen baseline; val says which of both ships."""
    transfer = transfer_by(arm, study)
    write_record(study.path("decide/transfer.json"), transfer)
    # What a killed run left would save time that is measured.
    shutil.rmtree(study.root / ".regraft", ignore_errors=True)
    with timing_phases() as marks:
        seconds = study.run("finetune")
    summary = read_record(study.path("finetune/finetune.json"), Finetuned)
    model = load_finetuned(study.path("finetune/model.safetensors"), summary)
    pixels, params = study.pixels("test"), study.params
    logits = run_model(model, summary.input, pixels, seed=params.seed, what=arm)
    right = np.equal(logits.argmax(axis=1), study.manifest.labels("test"))
    frozen = read_record(study.path("baseline/baseline.json"), Baseline)
    shipped = "baseline" if summary.rejection else _ship(study, params, transfer.arm)
    return _cell(
        study,
        task,
        arm,
        val=(summary.val_accuracy.value, summary.val_loss),
        right=right,
        shipped=(shipped, right if shipped == "finetuned" else _test_frozen(study, frozen)),
        seconds=seconds,
        phases=describe_phases(summary.phases, marks),
        epochs=sum(phase.epochs for phase in summary.phases),
        raised=transfer.raised,
    )


def transfer_by(arm: CellArm, study: Study) -> Transfer:
    """Phases and rates with which the rules reach the depth of an arm; after baseline.

    `other` has the depth of `most` and the rates that the rules do not choose.
    """
    if arm == "scratch":
        return Transfer(arm="scratch", phases=[0])
    params = study.params.decide
    baseline = read_record(study.path("baseline/baseline.json"), Baseline)
    info = read_record(study.path("extract/backbone.json"), BackboneInfo)
    evidence = gather_evidence(info, study.manifest, baseline)
    depths = params.model_copy(update={"depth": DEPTHS.get(arm, DEPTHS["most"])})
    cuts = choose_cuts("fine_tune", evidence, depths)
    raised = raises_rates(evidence) != (arm == "other")
    return Transfer(arm="fine_tune", phases=list(cuts), raised=raised)


@contextmanager
def timing_phases() -> Iterator[list[float]]:
    """Note the processor time whenever finetune asks for the next phase."""
    marks: list[float] = []

    def timed(*given: object) -> object:
        marks.append(time.process_time())
        return next_phase(*given)  # type: ignore[arg-type]

    with patch("tasks.finetune.next_phase", timed):
        yield marks


def describe_phases(phases: Sequence[Phase], marks: Sequence[float]) -> str:
    """Write the phases as in `Cell.phases`; the last mark follows the last phase."""
    seconds = np.diff(marks)[-len(phases) :] if phases else []
    return " ".join(
        f"{phase.unfrozen_from}:{phase.epochs}:{'kept' if phase.kept else 'lost'}:{took:.1f}"
        for phase, took in zip(phases, seconds, strict=True)
    )


def halves(right: Bools, labels: Sequence[int]) -> tuple[float, float]:
    """Accuracy on two halves of the images (N,), every class going to both by turns."""
    order = np.argsort(labels, kind="stable")
    return float(right[order[::2]].mean()), float(right[order[1::2]].mean())


def _test_frozen(study: Study, summary: Baseline) -> Bools:
    """Which test images the frozen baseline has right, (N,)."""
    test = read_features(study.path("extract/test"), study.manifest, "test")
    head = load_head(study.path("baseline/head.safetensors"), summary)
    logits = apply_head(head, test.features[:, 0])
    return np.equal(logits.argmax(axis=1), test.labels)


def _ship(study: Study, params: Params, arm: Arm) -> ModelName:
    """Choose on val, as evaluate does."""
    manifest = study.manifest
    return choose_model(
        _logits(study.path("baseline/val_logits.npy")),
        _logits(study.path("finetune/val_logits.npy")),
        ValSet(manifest.labels("val"), manifest.groups("val")),
        confidence=params.evaluate.confidence,
        seed=params.seed,
        arm=arm,
    ).shipped


def _logits(path: Path) -> Logits:
    return np.array(read_array(path), dtype=np.float32)


def _cell(
    study: Study,
    task: Task,
    arm: CellArm,
    *,
    val: tuple[float, float],
    right: Bools,
    shipped: tuple[ModelName, Bools],
    seconds: float,
    phases: str,
    epochs: int,
    raised: bool,
) -> Cell:
    manifest = study.manifest
    labels = manifest.labels("test")
    name, level, seed, px = task
    (test_a, test_b), (shipped_a, shipped_b) = halves(right, labels), halves(shipped[1], labels)
    return Cell(
        set=name,
        images_per_class=level,
        seed=seed,
        px=px,
        arm=arm,
        code=code_of(study.params),
        train_images=len(manifest.of("train")),
        val_images=len(manifest.of("val")),
        test_images=len(labels),
        classes=len(manifest.class_names),
        val_accuracy=round(val[0], 4),
        val_loss=round(val[1], 4),
        test_accuracy=round(float(right.mean()), 4),
        test_a=round(test_a, 4),
        test_b=round(test_b, 4),
        shipped=shipped[0],
        shipped_accuracy=round(float(shipped[1].mean()), 4),
        shipped_a=round(shipped_a, 4),
        shipped_b=round(shipped_b, 4),
        seconds=round(seconds, 1),
        epochs=epochs,
        phases=phases,
        raised=raised,
    )
