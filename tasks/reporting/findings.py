"""What the earlier stages found out, in one place, and the verdict that a reader sees first."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts.files import read_bytes
from tasks.artifacts.records import (
    Audit,
    AugmentPolicy,
    BackboneChoice,
    BackboneInfo,
    Baseline,
    Decision,
    Estimate,
    Finetuned,
    Health,
    ImageSource,
    Metrics,
    Scores,
    Similarity,
)
from tasks.artifacts.tables import (
    ClassRow,
    HardestRow,
    HistoryRow,
    LikenessRow,
    PairRow,
    PlaneRow,
    ReliabilityRow,
    ShiftRow,
    SuspectRow,
)
from tasks.artifacts.words import (
    ARMS,
    FROZEN,
    listed,
    name_head,
    name_trained,
    printable,
    say_trained,
)
from tasks.heads.curve import CONFIDENCE as CURVE_CONFIDENCE
from tasks.reporting.provenance import CodeState
from tasks.reporting.text import (
    percent,
    percent_interval,
    plural,
    points,
    points_interval,
)


@dataclass(frozen=True)
class Picture:
    """The bytes of a JPEG file, and where it lies."""

    path: Path
    content: bytes = field(repr=False)


def read_picture(path: Path) -> Picture:
    """Read a picture.

    Raises:
        ArtifactError: The file is missing.
    """
    return Picture(path, read_bytes(path))


@dataclass(frozen=True)
class SuspectLabels:
    """How many of so many images have a label that is probably wrong, and pictures of the first."""

    count: int
    images: int
    shown: list[tuple[SuspectRow, Picture]]


@dataclass(frozen=True)
class Findings:
    """Everything that report and model card tell about data, training and results.

    Attributes:
        title: Of the report.
        confidence: Of the intervals of the test results, in (0, 1).
        likest: The training images that are most and least like the source.
        confusion: Of the shipped model on test, int64 (C, C), rows are labels.
        hardest: The test images that the shipped model finds hardest.
        sheet: The augmented views.
        audit: What files and features give away.
        pairs: The likest pairs across splits, side by side.
        suspects: Labels of train and val that are probably wrong.
        test_suspects: The same of test.
    """

    title: str
    confidence: float
    health: Health
    origin: ImageSource
    policy: AugmentPolicy
    choice: BackboneChoice
    backbone: BackboneInfo
    similarity: Similarity
    decision: Decision
    baseline: Baseline
    finetuned: Finetuned
    metrics: Metrics
    layers: list[ShiftRow]
    places: list[PlaneRow]
    likest: list[tuple[LikenessRow, Picture]]
    history: list[HistoryRow]
    classes: list[ClassRow]
    confusion: NDArray[np.int64]
    bins: list[ReliabilityRow]
    hardest: list[tuple[HardestRow, Picture]]
    sheet: Picture
    audit: Audit
    pairs: list[tuple[PairRow, Picture]]
    suspects: SuspectLabels
    test_suspects: SuspectLabels

    @property
    def shipped(self) -> Scores:
        """Test results of the shipped model."""
        if self.metrics.shipped == "finetuned" and self.metrics.finetuned:
            return self.metrics.finetuned
        return self.metrics.baseline

    @property
    def macro_over(self) -> str:
        """Over which classes macro figures are, where some have no test image; else empty."""
        counts = self.health.class_counts.values()
        tested = sum(1 for splits in counts if splits["test"])
        return "" if tested == len(counts) else f" over {tested:,} of {len(counts):,} classes"

    @property
    def tuned_name(self) -> str:
        """What the model of stage finetune is called."""
        return say_trained(self.finetuned.arm)

    @property
    def shipped_head(self) -> str:
        """Whether the head of the shipped model is linear or an mlp."""
        return (self.baseline if self.metrics.shipped == "baseline" else self.finetuned).head

    @property
    def more_images(self) -> str:
        """What twice the images would bring, beside what training brought; empty: unknown."""
        curve, gain = self.baseline.curve, self.finetuned.val_gain
        if curve is None or curve.doubling is None:
            return ""
        more = (
            f"Twice as many images would bring frozen features about {_say_points(curve.doubling)},"
            " by their learning curve."
        )
        if not self.finetuned.phases or gain is None:
            return more
        brought = f"brought {_say_points(gain)} on val"
        if self.finetuned.rejection:
            brought = "was rejected and brought nothing"
        return f"{ARMS[self.finetuned.arm].capitalize()} {brought}. {more}"

    @property
    def curve_confidence(self) -> str:
        """Confidence of the intervals of the learning curve."""
        return f"{CURVE_CONFIDENCE:.0%}"

    @property
    def lost_training(self) -> str:
        """What phases took that were rolled back, in a sentence, also where none was."""
        lost, share = self.finetuned.lost_epochs, self.finetuned.lost_share
        epochs = sum(phase.epochs for phase in self.finetuned.phases)
        cost = "" if share is None else f" ({percent(share, 0)} of the computation)"
        return f"{lost} of {plural(epochs, 'epoch')}{cost} went into phases that were rolled back."

    @property
    def final_weights(self) -> str:
        """What the weights of the fine-tuned model are, in a sentence; empty: those of its end."""
        share = self.finetuned.interpolation
        if self.finetuned.averaged:
            return (
                "The final weights are the average of what the kept phases ended with, chosen on "
                "val."
            )
        if share == 0 and any(phase.kept for phase in self.finetuned.phases):
            return (
                "Val chose none of the fine-tuned weights: the final ones are those of the start."
            )
        if 0 < share < 1:
            return (
                f"The final weights are {percent(share, 0)} fine-tuned and {percent(1 - share, 0)} "
                "start weights, a share chosen on val."
            )
        return ""


def _say_points(change: Estimate) -> str:
    level = f"{CURVE_CONFIDENCE:.0%} interval"
    return f"{points(change.value)} points ({level} {points_interval(change)})"


IMBALANCED = 10.0  # largest class / smallest class from which accuracy alone misleads
WIDE = 0.10  # width of an interval that leaves the result open

MANY_TWINS = 0.1  # share of test images with a twin, by its lower bound: serious from here on
LEAK = "LEAK:"  # how ingest begins such a warning

Level = Literal["serious", "caution"]


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a reader must not miss."""

    level: Level
    title: str
    words: str


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The result in one sentence and its parts."""

    model: str
    data: str
    classes: int
    measure: str
    estimate: Estimate
    confidence: float
    gain: str

    @property
    def value(self) -> str:
        """The leading number with its name: `91.2 % test accuracy`."""
        return f"{percent(self.estimate.value)} {self.measure}"

    @property
    def interval(self) -> str:
        """Its interval and the number of images."""
        return (
            f"{100 * self.confidence:g}\N{NO-BREAK SPACE}% interval "
            f"{percent_interval(self.estimate)}, {plural(self.estimate.n, 'test image')}"
        )

    @property
    def sentence(self) -> str:
        """The whole of it."""
        return (
            f"{self.model} classifies {self.data} images into "
            f"{plural(self.classes, 'class', 'classes')} with {self.value} ({self.interval}). "
            f"{self.gain}"
        )


def leads_with_macro(health: Health) -> bool:
    """Whether the classes are so unequal that accuracy alone misleads."""
    return health.imbalance >= IMBALANCED


def conclude(findings: Findings) -> Conclusion:
    """Say which model ships, how good it is on test and what fine-tuning changed."""
    scores = findings.shipped
    macro = leads_with_macro(findings.health)
    return Conclusion(
        model=name_shipped(findings),
        data=printable(findings.origin.name),
        classes=len(findings.health.classes),
        measure=f"balanced test accuracy{findings.macro_over}" if macro else "test accuracy",
        estimate=scores.balanced_accuracy if macro else scores.accuracy,
        confidence=findings.confidence,
        gain=_say_gain(findings),
    )


def name_shipped(findings: Findings) -> str:
    """Name the shipped model at the head of a sentence."""
    name = findings.backbone.name
    if findings.metrics.shipped == "baseline":
        article = "An" if findings.baseline.head == "mlp" else "A"
        return f"{article} {name_head(findings.baseline.head)} on frozen {name} features"
    words = name_trained(findings.finetuned.arm, name)
    return words if words.startswith(name) else f"{words[0].upper()}{words[1:]}"


def _say_gain(findings: Findings) -> str:
    metrics = findings.metrics
    if metrics.difference is None:
        return "Nothing was fine-tuned."
    if metrics.shipped == "baseline" and not findings.finetuned.rejection:
        return f"The {findings.tuned_name} model is not shipped. {metrics.difference.sentence}"
    return metrics.difference.sentence


def find_alerts(findings: Findings, code: CodeState) -> list[Alert]:
    """List what speaks against trusting the result, serious things first."""
    alerts = [
        *_of_source(findings.origin),
        *_of_tested(findings.health),
        *_of_data(findings.health),
        *_of_audit(findings.audit, findings.metrics),
        *_of_result(findings),
        *_of_split(findings.metrics),
        *_of_choices(findings.decision, findings.finetuned),
        *_of_code(code),
    ]
    return sorted(alerts, key=lambda alert: alert.level != "serious")


def _of_source(origin: ImageSource) -> Iterator[Alert]:
    if origin.caution:
        yield Alert("serious", "What these results do not show", origin.caution)


def _of_tested(health: Health) -> Iterator[Alert]:
    """Name the classes that no figure on test is about."""
    untested = [name for name, counts in health.class_counts.items() if not counts["test"]]
    if untested:
        classes = len(health.class_counts)
        yield Alert(
            "serious",
            "Classes that were never tested",
            f"{len(untested)} of {plural(classes, 'class', 'classes')} "
            f"{'has' if len(untested) == 1 else 'have'} no test image: "
            f"{listed(untested, where='health.json')}. Accuracy, balanced accuracy and macro-F1 "
            f"are over the other {classes - len(untested)}. Add test images of it, or do not rely "
            "on the model for it.",
        )


def _of_data(health: Health) -> Iterator[Alert]:
    for warning in health.warnings:
        if warning.startswith(LEAK):
            words = warning.removeprefix(LEAK).strip()
            yield Alert("serious", "The given splits leak", words[0].upper() + words[1:])
    if health.label_conflicts:
        yield Alert(
            "caution",
            "Labels disagree",
            f"{plural(len(health.label_conflicts), 'picture')} under several labels, for example "
            f"{listed(health.label_conflicts[0], 2)}.",
        )
    if leads_with_macro(health):
        counts = {name: sum(splits.values()) for name, splits in health.class_counts.items()}
        smallest = min(counts, key=lambda name: (counts[name], name))
        yield Alert(
            "caution",
            "Unequal classes",
            f"The largest class has {health.imbalance:.0f} times the images of the smallest "
            f"({printable(smallest)}, {plural(counts[smallest], 'image')}). Read balanced accuracy "
            "and macro-F1 before accuracy.",
        )


def _of_audit(audit: Audit, metrics: Metrics) -> Iterator[Alert]:
    if audit.twin_words:
        share, clean = audit.twins.shares["test"], metrics.twins
        parts = [
            f"{percent(scores.value)} on the {plural(scores.n, 'test image')} {what}"
            for scores, what in (
                (clean and clean.with_relative, "with a twin"),
                (clean and clean.without_relative, "without"),
            )
            if scores
        ]
        words = f" Accuracy is {' and '.join(parts)}." if parts else ""
        if clean and clean.classes:
            both = plural(clean.classes, "class", "classes")
            words = f" Over {both} with both kinds, in the same mix, accuracy is "
            words += f"{' and '.join(parts)}."
        level: Level = "serious" if (share.low or 0.0) >= MANY_TWINS else "caution"
        yield Alert(level, "Twins in train", audit.twin_words + words)
    if audit.file_words:
        yield Alert("serious", "The files give the label away", audit.file_words)


def _of_result(findings: Findings) -> Iterator[Alert]:
    metrics, shipped = findings.metrics, findings.shipped
    for warning in metrics.warnings:
        yield Alert("serious", "Result", warning)
    width = (shipped.accuracy.high or 1.0) - (shipped.accuracy.low or 0.0)
    if width > WIDE:
        yield Alert(
            "caution",
            "Few test images",
            f"The interval of the accuracy is {points(width).removeprefix('+')} points wide; more "
            "test images would narrow it.",
        )
    difference = None if findings.finetuned.rejection else metrics.difference
    if difference and (difference.accuracy.low or 0) <= 0 <= (difference.accuracy.high or 0):
        yield Alert(
            "caution",
            "Within noise",
            f"{plural(difference.accuracy.n, 'test image')} do not tell the {findings.tuned_name} "
            f"model from the {FROZEN}: the interval of the gain, "
            f"{points_interval(difference.accuracy)} points, includes 0.",
        )


def _of_split(metrics: Metrics) -> Iterator[Alert]:
    if metrics.folds and metrics.folds.outside:
        folds, higher = metrics.folds, metrics.folds.difference.value > 0
        yield Alert(
            "serious" if higher else "caution",
            "A lucky split" if higher else "An unlucky split",
            f"The {FROZEN} has {percent(metrics.baseline.accuracy.value)} on test, folds by group "
            f"of all images give {percent(folds.accuracy.value)} "
            f"({percent_interval(folds.accuracy)}): the test images are "
            f"{'easier' if higher else 'harder'} than the others, beyond chance. Expect what the "
            "folds say; more test images or groups, or another seed, would tell better.",
        )


def _of_choices(decision: Decision, finetuned: Finetuned) -> Iterator[Alert]:
    if decision.forced and decision.arm != decision.recommended:
        yield Alert(
            "caution",
            "Forced choice",
            f"params.yaml forces the arm {ARMS[decision.arm]}; the rules recommend "
            f"{ARMS[decision.recommended]}.",
        )
    if decision.confidence == "low":
        yield Alert(
            "caution",
            "Low confidence",
            f"The choice of {ARMS[decision.recommended]} stands on weak evidence; the"
            " reasons say which.",
        )
    lost = [phase for phase in finetuned.phases if phase.stopped == "diverged"]
    if lost:
        names = listed([phase.name for phase in lost])
        yield Alert("caution", "Training diverged", f"In {names}; the last good weights were kept.")


def _of_code(code: CodeState) -> Iterator[Alert]:
    if code.commit and code.changed:
        yield Alert(
            "caution",
            "Written before its commit",
            f"{plural(len(code.changed), 'file')} of code, parameters, groups or corrections "
            f"differed from commit {code.commit[:12]} when this was written. Once they are "
            "committed, `dvc repro -f -s report` names their commit here.",
        )
