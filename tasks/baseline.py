"""Train new heads on the frozen features: one or more of the kinds in `tasks.heads`.

Labels of train and val that the features do not bear out are listed, nothing is changed.

Val chooses. The first head of baseline.heads stays unless a later one is better beyond doubt. That
is the linear one by default: it has fewer ways to be wrong, and a model that ends in it can be
exported as a plain timm model.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from tasks.artifacts.arrays import Logits, write_array
from tasks.artifacts.pixels import open_pixels
from tasks.artifacts.records import Baseline, HeadKind, TriedHead, write_record
from tasks.artifacts.tables import SuspectRow, read_manifest, write_rows
from tasks.artifacts.words import name_head
from tasks.auditing.held_out import Pool, accuracy_in_folds, hold_out, right_in_folds
from tasks.auditing.suspects import list_suspects, picture_suspects
from tasks.heads.curve import measure_curve
from tasks.heads.features import Labeled, read_features
from tasks.heads.registry import ROWS_AT_ONCE, TrainedHead, apply_head, find_head, write_head
from tasks.judging.metrics import right_images
from tasks.judging.rule import RESAMPLES, ValSet, describe_gap, judge_change, measure_room
from tasks.judging.statistics import accuracy_interval
from tasks.params import BaselineParams
from tasks.runtime.device import configure_torch
from tasks.runtime.entry import Read, StagePaths, Write, read_arguments, run_stage
from tasks.runtime.machine import read_machine

log = logging.getLogger(__name__)

CONFIDENCE = 0.95  # of the interval of the val accuracy
BALANCED = (
    "All classes count the same in fitting the head and where val judges it (class_balanced)."
)
LOSS_IMAGES = 8192  # most training images on which a loss is measured
LATER_CONFIDENCE = 0.9  # with which a later head must be better to be chosen


@dataclass(frozen=True)
class Paths(StagePaths):
    """What the stage reads and writes."""

    manifest: Read
    train_features: Read
    val_features: Read
    train: Read
    val: Read
    head: Write
    summary: Write
    val_logits: Write
    suspects: Write
    suspect_pixels: Write


@dataclass(frozen=True)
class FrozenBaseline:
    """The chosen head, its summary and its logits on val, float32 (N_val, C).

    `linear_logits` are those of the linear head, None where `baseline.heads` has none.
    """

    head: nn.Module
    summary: Baseline
    val_logits: Logits
    linear_logits: Logits | None


@dataclass(frozen=True)
class JudgedHead:
    """A trained head, its accuracy on train and its logits on val, float32 (N_val, C)."""

    kind: HeadKind
    trained: TrainedHead
    train_accuracy: float
    val_logits: Logits


def train_baseline(
    train: Labeled, val: Labeled, params: BaselineParams, *, class_names: list[str], seed: int
) -> FrozenBaseline:
    """Train the heads and choose one on val.

    Args:
        train: Features, float32 (N, V, D), of the training images in all of their views.
        val: Features, float32 (N_val, 1, D), of the val images.
        params: The `baseline` block.
        class_names: A label is an index into it.
        seed: The run's seed.
    """
    classes = len(class_names)
    first, *later = params.heads
    tried, chosen = _train(first, train, val, params, classes=classes, seed=seed)
    notes = [*([BALANCED] if train.balanced else []), *chosen.trained.notes]
    strength = chosen.trained.strength
    best: dict[HeadKind, JudgedHead] = {first: chosen}
    for kind in later:
        more, rival = _train(kind, train, val, params, classes=classes, seed=seed)
        tried, best[kind] = [*tried, *more], rival
        strength = strength or rival.trained.strength
        verdict = judge_change(
            chosen.val_logits,
            rival.val_logits,
            val.judge,
            confidence=LATER_CONFIDENCE,
            seed=seed,
        )
        change = f"From the {name_head(chosen.kind)} to the {name_head(kind)}, {verdict.reason}."
        notes += [*rival.trained.notes, change]
        chosen = rival if verdict.better else chosen
    val_accuracy = val.judge.accuracy(chosen.val_logits)
    gap = describe_gap(chosen.train_accuracy, val_accuracy)
    notes += [gap] if gap else []
    summary = Baseline(
        head=chosen.kind,
        hidden=chosen.trained.hidden,
        dropout=chosen.trained.dropout,
        feature_dim=train.features.shape[2],
        classes=class_names,
        candidates=[_describe(one, val, chosen=one is chosen) for one in tried],
        val_accuracy=accuracy_interval(
            val.judge.right(chosen.val_logits),
            val.groups,
            confidence=CONFIDENCE,
            resamples=RESAMPLES,
            seed=seed,
        ),
        val_loss=val.judge.loss(chosen.val_logits),
        class_balanced=train.balanced,
        majority_accuracy=float(np.mean(val.labels == np.bincount(train.labels).argmax())),
        notes=notes,
        l2_strength=strength or _middle(params.l2_strengths),
        overfit=_overfit(best.get("linear", chosen), train, val),
        room=measure_room(chosen.val_logits, val.judge, confidence=LATER_CONFIDENCE, seed=seed),
    )
    linear_logits = best["linear"].val_logits if "linear" in best else None
    return FrozenBaseline(chosen.trained.module, summary, chosen.val_logits, linear_logits)


def _middle(strengths: Sequence[float]) -> float:
    return sorted(strengths)[len(strengths) // 2]


def _train(
    kind: HeadKind,
    train: Labeled,
    val: Labeled,
    params: BaselineParams,
    *,
    classes: int,
    seed: int,
) -> tuple[list[JudgedHead], JudgedHead]:
    """Train heads of a kind; give all of them and the chosen one."""
    path = find_head(kind).train(train, val, params, classes=classes, seed=seed)
    tried = [
        JudgedHead(
            kind, one, _accuracy(one.module, train), apply_head(one.module, val.features[:, 0])
        )
        for one in path.tried
    ]
    return tried, next(one for one in tried if one.trained is path.chosen)


def _accuracy(head: nn.Module, data: Labeled) -> float:
    """Accuracy on clean views; logits of many images and classes never stand in memory at once."""
    right = 0
    for start in range(0, len(data.labels), ROWS_AT_ONCE):
        some = slice(start, start + ROWS_AT_ONCE)
        right += int(
            right_images(apply_head(head, data.features[some, 0]), data.labels[some]).sum()
        )
    return right / len(data.labels)


def _overfit(head: JudgedHead, train: Labeled, val: Labeled) -> float | None:
    """Calibrated loss on val over that on train, clean views; None where train has none.

    Of very many training images, as many are asked as tell it well.
    """
    some = slice(None, None, -(-len(train.labels) // LOSS_IMAGES))
    judge = ValSet(train.labels[some], train.groups[some], balanced=train.balanced)
    on_train = judge.loss(apply_head(head.trained.module, train.features[some, 0]))
    return val.judge.loss(head.val_logits) / on_train if on_train > 0 else None


def _describe(head: JudgedHead, val: Labeled, *, chosen: bool) -> TriedHead:
    return TriedHead(
        head=head.kind,
        setting=head.trained.setting,
        val_loss=val.judge.loss(head.val_logits),
        val_accuracy=val.judge.accuracy(head.val_logits),
        train_accuracy=head.train_accuracy,
        chosen=chosen,
    )


def main(argv: Sequence[str] | None) -> None:
    """Read features, train the heads, write the chosen one."""
    paths, params = read_arguments(
        Paths, "baseline", "Train a new head on the frozen features", argv
    )
    configure_torch(read_machine(), params.seed)
    manifest, balanced = read_manifest(paths.manifest), params.class_balanced
    train = read_features(paths.train_features, manifest, "train")
    val = read_features(paths.val_features, manifest, "val")
    classes = len(manifest.class_names)
    train, val = replace(train, balanced=balanced), replace(val, balanced=balanced)
    baseline = train_baseline(
        train, val, params.baseline, class_names=manifest.class_names, seed=params.seed
    )
    held_out = hold_out(
        Pool([train, val]),
        baseline.summary.l2_strength,
        classes=classes,
        seed=params.seed,
    )
    summary = baseline.summary.model_copy(
        update={
            "folds_accuracy": accuracy_in_folds(
                held_out,
                right_in_folds(held_out),
                confidence=CONFIDENCE,
                resamples=RESAMPLES,
                seed=params.seed,
            ),
            "curve": measure_curve(
                train,
                val,
                params.baseline.l2_strengths,
                classes=classes,
                seed=params.seed,
                whole=baseline.linear_logits,
            ),
        }
    )
    suspects = list_suspects(manifest, ["train", "val"], held_out.answers)
    write_head(paths.head, baseline.head)
    write_record(paths.summary, summary)
    write_array(paths.val_logits, baseline.val_logits)
    write_rows(paths.suspects, SuspectRow, suspects)
    stores = open_pixels(manifest, [paths.train, paths.val])
    write_array(paths.suspect_pixels, picture_suspects(suspects, manifest, stores))
    for note in summary.notes:
        log.info("%s", note)
    log.info(
        "the %s reaches val accuracy %.3f [%.3f, %.3f]; always naming the largest class %.3f",
        name_head(summary.head),
        summary.val_accuracy.value,
        summary.val_accuracy.low,
        summary.val_accuracy.high,
        summary.majority_accuracy,
    )
    log.info("%s of %s labels look wrong", len(suspects), len(train.labels) + len(val.labels))


if __name__ == "__main__":
    sys.exit(run_stage("baseline", main))
