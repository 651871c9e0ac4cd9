"""What the json files and tables of the stages hold, so that writer and reader cannot disagree.

Fractions are in [0, 1]. A record keeps its keys; new facts get new keys. A table is a dataclass:
its fields are the columns, in this order (`tasks.artifacts.tables.columns_of`).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.artifacts.files import read_bytes, write_text
from tasks.errors import ArtifactError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Arm = Literal["scratch", "feature_extraction", "fine_tune"]
Domain = Literal["similar", "intermediate", "far"]
DOMAINS: tuple[Domain, ...] = ("similar", "intermediate", "far")
HeadKind = Literal["linear", "mlp"]
ModelName = Literal["baseline", "finetuned"]
Fit = Literal["squash", "crop", "pad"]


class Record(BaseModel):
    """Base of every json record: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(Record):
    """A measured number with its interval and the number of images (or rows) behind it."""

    value: float
    low: float | None
    high: float | None
    n: int


# check -------------------------------------------------------------------------------------------


class NamedPaths(Record):
    """The paths that params.yaml names, as it writes them (data/check/paths.json)."""

    source: str
    groups: str
    corrections: str
    weights: str | None


# ingest ------------------------------------------------------------------------------------------


class ImageSource(Record):
    """Where the images of the manifest lie, without any path of this machine for packaged data.

    kind `package`: `root` is relative to the folder of the Python package `package`.
    kind `folder` and `csv`: `root` is a folder, relative to the project or absolute.
    """

    kind: Literal["folder", "csv", "package"]
    name: str
    root: str
    package: str | None
    license: str | None
    citation: str | None
    label_rule: str | None
    caution: str | None = None  # what results on these images do not show, in a sentence


class Conversion(Record):
    """How all images of the set become 8-bit sRGB (data/ingest/conversion.json).

    A range is the pair of values that become black and white; what lies beyond is clipped.
    """

    background: tuple[int, int, int]  # what shows through transparent pixels, in [0, 255]
    integers: tuple[int, int]  # range of integers of more than 8 bits
    floats: tuple[float, float]  # range of floating-point values
    transparent: int  # images with transparent pixels
    deep: int  # images of more than 8 bits
    profiled: int  # images whose color profile is not sRGB's
    notes: list[str]  # sentences for a person


class Health(Record):
    """What ingest found out about the data (data/ingest/health.json)."""

    source: str
    images: int
    rejected: int
    rejected_reasons: dict[str, int]
    rejected_by_class: dict[str, int] = {}
    ignored_files: int
    classes: list[str]
    class_counts: dict[str, dict[str, int]]  # class -> split -> images
    split_counts: dict[str, int]
    groups: int
    exact_duplicates: int  # images beyond the first of each sha256
    near_duplicates: int  # images grouped with another one by perceptual hash only
    label_conflicts: list[list[str]]  # paths of the same picture under several labels
    split_leaks: list[list[str]]  # paths of the same picture in several given splits
    mixed_copies: list[list[str]]  # paths of pictures that look alike under several labels
    imbalance: float  # largest class / smallest class
    modes: dict[str, int]
    width: list[int]  # smallest, median, largest
    height: list[int]
    looks: dict[str, dict[str, int]] = {}  # class -> flat, dark, profiled, hashless -> images
    warnings: list[str]  # sentences for a person
    relabeled: int = 0  # usable images that ingest.corrections gave another label
    dropped: int = 0  # usable images that ingest.corrections left out


# augment -----------------------------------------------------------------------------------------


class StoreInfo(Record):
    """Shape of a packed pixel store: `count` images of one clean and `views` augmented rows."""

    count: int
    views: int
    image_px: int
    shard_rows: int
    shards: int


class AugmentPolicy(Record):
    """How the packed pixels were made (data/augment/policy.json)."""

    policy: str
    ranges: dict[str, float]  # of the drawn operations, by their names in params.yaml
    views: int
    image_px: int
    fit: Fit
    images: dict[str, int]  # split -> images
    bytes: dict[str, int]  # split -> bytes of pixels
    notes: list[str]  # sentences for a person


# extract -----------------------------------------------------------------------------------------


class InputSpec(Record):
    """What a backbone expects: float32 (N, 3, image_px, image_px), (pixel / 255 - mean) / std."""

    image_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class LayerGroup(Record):
    """One group of layers in forward order, as fine-tuning unfreezes them; the head is not one."""

    name: str
    parameters: int
    blocks: int  # residual blocks, transformer layers: what timm groups at its finest


class BackboneRank(Record):
    """What the frozen features of one candidate are worth on some training images."""

    name: str
    ridge_accuracy: Estimate  # without the image's own group
    gain: Estimate | None  # of that accuracy over the best candidate before; None for the first
    better: bool  # beyond doubt than the best before
    logme: Estimate
    h_score: Estimate


class BackboneChoice(Record):
    """The backbone that is used (data/select/choice.json).

    `ranking` is empty, and `images` 0, where the parameters name it.
    """

    name: str
    weights: str
    images: int
    ranking: list[BackboneRank]


class BackboneInfo(Record):
    """The frozen network that made the features (data/extract/backbone.json)."""

    name: str
    weights: str
    weights_sha256: str  # of the state dict's tensors
    weights_license: str | None
    weights_source: str | None
    input: InputSpec
    groups: list[LayerGroup]
    feature_dim: int
    norm: Literal["batch", "other"]
    engine: str
    parity: float | None  # largest |engine - torch| of the features / their largest value


# audit -------------------------------------------------------------------------------------------


class TwinAudit(Record):
    """Which val and test images have a twin in train, by their features."""

    threshold: float  # deviations from which on two images are twins
    shares: dict[str, Estimate]  # val, test -> share of images that have one
    within_train: Estimate | None  # the same of training images, in another group
    classes: dict[str, float]  # share of test images by class, the ten largest that are not 0


class Telltale(Record):
    """How one fact differs between the images of a class and all others, in a sentence."""

    fact: str
    auc: float  # of the fact alone, cross-validated
    words: str


class ClassShortcut(Record):
    """How well facts tell one class from all others."""

    name: str
    auc: Estimate  # one class against the rest, cross-validated; 0.5: not at all
    told_by: list[Telltale]  # best first


class ShortcutAudit(Record):
    """How well the label can be told from facts that are no content."""

    facts: list[str]
    images: int
    chance: float  # balanced accuracy of guessing
    balanced_accuracy: Estimate  # cross-validated by groups
    told: list[ClassShortcut]  # classes that the facts give away, the worst first, ten at most
    told_classes: int


class Audit(Record):
    """What files and features give away (data/audit/audit.json); reported, never chosen by."""

    twins: TwinAudit
    file_facts: ShortcutAudit | None  # None: too few groups of a class
    look_facts: ShortcutAudit | None  # the same with brightness, border and bytes a pixel
    # Sentences for a person; empty: nothing to say.
    twin_words: str
    file_words: str
    look_words: str


# similarity --------------------------------------------------------------------------------------


class Distance(Record):
    """An unbiased MMD^2 with its interval; it may lie below 0."""

    value: float
    low: float
    high: float
    n: int


class MmdResult(Distance):
    """MMD^2 between the source card and the training features."""

    p_value: float
    bandwidths: list[float]
    estimator: Literal["full", "block"]
    source: str  # name of the card
    source_rows: int
    matched: Distance  # the same of a source whose images are weighed to come nearest
    narrowness: float  # the rest of the value: the target pictures less than the source


class Marks(Record):
    """Where domains end, on the scale of the matched MMD^2 of one backbone and image size."""

    similar: float  # below: similar
    far: float  # above: far


class GroupShift(Record):
    """Mean shift over the normalization layers of one group."""

    group: str
    value: float


class MomentShift(Record):
    """Shift of layers whose weights tell nothing of the source, against the images of its card.

    It describes; no rule reads it.
    """

    source: str  # name of the card
    shift: Estimate  # mean over the layers
    groups: list[GroupShift]
    words: str  # one sentence


class KnownSet(Record):
    """The same distance of a data set that readers know, as a mark on the ruler."""

    name: str
    images: int
    mmd: float
    distance: float  # matched MMD^2
    domain: Domain | None  # as people see it; None: not said


class TextureRange(Record):
    """One statistic of pictures: 5, 50 and 95 % quantiles of the data, and of the source's images.

    Those of the source are None where its card does not have them.
    """

    name: str  # of `tasks.images.texture`
    low: float
    median: float
    high: float
    source_low: float | None
    source_median: float | None
    source_high: float | None
    inside: float | None  # share of the images between low and high of the source


class SeenAs(Record):
    """A class of the source, and the share of images in which its head sees it first."""

    name: str
    share: float


class ClassSeen(Record):
    """What the source's head sees in the images of one class, the most frequent first."""

    name: str
    images: int
    seen: list[SeenAs]
    sure: float  # median of the highest probability


class Semantics(Record):
    """What the head that the backbone was pretrained with sees in the data."""

    head: str  # what its classes are
    images: int
    classes: list[ClassSeen]  # the largest ones, in the order of their names
    classes_total: int  # of all these images
    sure: float  # median of the highest probability
    source: str | None  # name of the source card; None: there is none
    source_px: int | None  # side of its images, pixels
    source_sure: float | None  # the same of the images of the source card
    source_right: float | None  # share of these that it names rightly, at their size


class Look(Record):
    """How the images look beside those of the source; for a person, nothing chooses by it."""

    images: int  # whose pixels were looked at
    left_out: int  # further ones, of whose padded pictures too little is left
    classes: int  # of these images
    classes_total: int  # of all training images
    source: str | None  # name of the card that has the same of its images
    gray: float  # share of the images without color
    source_gray: float | None
    even: float  # share that is mostly even areas, as what is drawn, rendered or cut out
    source_even: float | None
    deep: int  # images of all splits with more than 8 bits
    texture: list[TextureRange]
    semantics: Semantics | None  # None: the backbone has no head with known classes
    words: str  # a paragraph


class Similarity(Record):
    """How far the data is from the source, and what the features are worth (similarity.json)."""

    images: int
    mmd: MmdResult | None  # None: no source card for this backbone and image size
    shift: Estimate | None  # of batch-norm layers; None: the network has no running statistics
    shift_groups: list[GroupShift]
    ridge_accuracy: Estimate  # leave-one-out
    random_ridge_accuracy: Estimate
    transfer_gain: Estimate  # ridge of pretrained minus ridge of random features
    summary: str  # one plain sentence
    notes: list[str]
    marks: Marks | None = None  # None: no ruler for these weights and this image size
    known: list[KnownSet] = []  # nearest to the source first; empty: no ruler for these weights
    look: Look | None = None  # None: measured before there was one
    # Missing: the network has running statistics, or no card tells the same of the source.
    moments: MomentShift | None = Field(default=None, exclude_if=lambda found: found is None)


# baseline ----------------------------------------------------------------------------------------


class TriedHead(Record):
    """One head that was tried on the frozen features, judged on val."""

    head: HeadKind
    setting: str
    val_loss: float
    val_accuracy: float
    train_accuracy: float
    chosen: bool


class CurvePoint(Record):
    """A linear head that learned from a part of the training images."""

    images: int
    val_accuracy: Estimate
    val_loss: float  # calibrated


class LearningCurve(Record):
    """What more training images bring to a linear head on frozen features, judged on val."""

    points: list[CurvePoint]  # ascending; the last one is of all images
    last_step: Estimate | None  # accuracy, from the last but one point, paired; None: one point
    pays: bool  # val says beyond doubt that the last step brought something
    doubling: Estimate | None  # what twice the images would add to val accuracy, by a power law


class Baseline(Record):
    """The frozen baseline (baseline.json); its head is head.safetensors beside it."""

    head: HeadKind
    hidden: int  # width of an MLP; 0 for a linear head
    dropout: float
    feature_dim: int
    classes: list[str]
    candidates: list[TriedHead]
    val_accuracy: Estimate
    val_loss: float  # calibrated
    class_balanced: bool = False  # whether all classes counted the same in fitting and judging
    majority_accuracy: float  # of always naming the largest training class, on val
    notes: list[str]
    l2_strength: float  # of the linear heads that audit the data
    overfit: float | None = None  # loss of the linear (or only) head on val over that on train
    folds_accuracy: Estimate | None = None  # of linear heads, by folds over train and val
    room: Estimate | None = None  # val accuracy that a model without mistakes would add
    curve: LearningCurve | None = None


# race --------------------------------------------------------------------------------------------


class Racer(Record):
    """An arm after a round, against frozen features that learned from the same images."""

    name: str  # top, most, all (of the blocks), scratch
    arm: Arm
    cut: int  # lowest trained layer group
    val_accuracy: float
    val_loss: float  # calibrated
    accuracy_gain: Estimate
    loss_change: Estimate
    better: bool  # beyond doubt
    worse: bool


class RaceRound(Record):
    """Arms that learned from the same part of the training images."""

    images: int
    epochs: int
    frozen_accuracy: float  # on val, of a head on frozen features
    frozen_loss: float
    racers: list[Racer]  # the cheapest first


class Race(Record):
    """Arms trained on the same part of the images (data/race/race.json)."""

    skipped: str | None  # why there was no race, in a sentence
    rounds: list[RaceRound] = []
    winner: Racer | None = None  # see `tasks.racing.race.find_winner`
    val_images: int = 0  # that judged
    cost: float = 0.0  # planned multiply-adds as a share of what fine-tuning is expected to cost
    twice_the_images: Estimate | None = (
        None  # val accuracy of frozen features on twice the images minus the best racer's
    )
    words: str = ""  # what the race says, for a person


# decide ------------------------------------------------------------------------------------------


class Rule(Record):
    """One rule of the decision: what it asks, what it saw, whether it fired."""

    name: str
    statement: str
    inputs: dict[str, float | int | str | None]
    fired: bool
    votes_for: Arm | None


class ConsideredArm(Record):
    """One way to transfer, and what is known of it."""

    name: str  # frozen, top, most, all (of the blocks), scratch
    arm: Arm
    cut: int | None  # lowest trained layer group; None: frozen
    chosen: bool
    said: str  # a sentence


class DecisionEvidence(Record):
    """What the images themselves say, beside their distance to the source."""

    frozen_accuracy: Estimate  # on val
    folds_accuracy: Estimate | None  # of linear heads, by folds over train and val
    room: Estimate | None  # val accuracy that a model without mistakes would add
    at_ceiling: bool  # frozen features make hardly a mistake, and val could not tell a better model
    curve: LearningCurve | None
    race: Race | None


class Decision(Record):
    """How to transfer, with its audit trail (decision.json)."""

    arm: Arm
    forced: bool  # the user named the arm in params.yaml
    recommended: Arm  # what the rules say, also when forced
    domain: Domain | Literal["unknown"]
    confidence: Literal["low", "medium", "high"]
    phases: list[int]  # lowest unfrozen group of each phase, top down; scratch [0]; frozen []
    raised: bool = False  # whether fine-tuning has the raised rates
    rules: list[Rule]
    would_change: list[str]  # sentences: what would have changed the answer
    reasons: list[str]  # sentences, most important first
    arms: list[ConsideredArm] = []
    evidence: DecisionEvidence | None = None


class Transfer(Record):
    """What fine-tuning does, and no more of the decision than that (transfer.json)."""

    arm: Arm
    phases: list[int]  # lowest unfrozen group of each phase, top down; scratch [0]; frozen []
    raised: bool = False  # whether fine-tuning has the raised rates


# finetune ----------------------------------------------------------------------------------------


class Phase(Record):
    """What one phase of fine-tuning did."""

    name: str
    unfrozen_from: int  # lowest trained backbone group
    epochs: int
    best_epoch: int
    stopped: Literal["finished", "patience", "diverged"]
    val_loss: float  # calibrated
    val_accuracy: float
    change_in_val_accuracy: Estimate  # against the state before the phase, paired
    rate_share: float = 1.0  # multiple of the rates of params.yaml
    kept: bool
    reason: str


class Finetuned(Record):
    """The fine-tuned model (finetune.json); weights in model.safetensors beside it.

    Tensors named `backbone.*` are timm's state dict without its classifier, `head.*` the head's.
    """

    arm: Arm
    backbone: str
    input: InputSpec
    head: HeadKind
    hidden: int
    dropout: float
    feature_dim: int
    classes: list[str]
    phases: list[Phase]
    interpolation: float  # share of the fine-tuned weights in the final ones
    averaged: bool = False  # whether these are the average of what the kept phases ended with
    class_balanced: bool = False  # whether all classes counted the same in training and judging
    val_accuracy: Estimate
    val_loss: float  # calibrated, as classes count in judging
    baseline_val_loss: float  # the same of the frozen baseline
    notes: list[str]
    lost_share: float | None = None  # of the multiply-adds, what phases took that were rolled back
    val_gain: Estimate | None = None  # of val accuracy over the frozen baseline, paired

    @property
    def lost_epochs(self) -> int:
        """Epochs of phases that were rolled back."""
        return sum(phase.epochs for phase in self.phases if not phase.kept)

    @property
    def rejection(self) -> str | None:
        """Why val wanted nothing of the fine-tuning, in a sentence; None where it wanted some."""
        if not self.phases or self.interpolation:
            return None
        if any(phase.kept for phase in self.phases):
            why = "of the weights tried on val those of the start have the lowest loss"
        else:
            why = f"{self.phases[-1].name}: {self.phases[-1].reason}"
        return f"Fine-tuning was rejected, both models are the same: {why}."


# evaluate ----------------------------------------------------------------------------------------


class Scores(Record):
    """Test results of one model."""

    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    nll: Estimate
    brier: Estimate
    ece: Estimate  # as trained
    ece_calibrated: Estimate  # after temperature scaling fitted on val
    nll_calibrated: float
    temperature: float


class Difference(Record):
    """Fine-tuned minus baseline on the same test images."""

    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_f1: Estimate
    mcnemar_p: float  # exact; the images of a group count as one trial
    only_baseline_right: int
    only_finetuned_right: int
    sentence: str  # says in words whether the difference is within noise


class ValSummary(Record):
    """What runs are compared and chosen by, of val alone (data/finetune/val.json).

    Of the model that stage finetune ends with, and of the frozen baseline; losses are calibrated,
    as classes count in judging, nats. Where nothing was trained but heads, both are the same.
    """

    val_accuracy: float
    val_loss: float
    val_accuracy_frozen: float
    val_loss_frozen: float


class Summary(Record):
    """What test says of the model that was chosen without it (data/evaluate/summary.json)."""

    test_accuracy: float  # of the model that ships, as all that names no other
    test_accuracy_low: float | None
    test_accuracy_high: float | None
    test_accuracy_frozen: float
    test_gain: float | None  # accuracy of the tuned model minus that of the frozen one
    test_gain_low: float | None
    test_gain_high: float | None
    test_balanced_accuracy: float
    test_macro_f1: float
    test_nll: float
    test_ece: float


class CleanScores(Record):
    """Accuracy of the shipped model on test images with and without a relative in train."""

    with_relative: Estimate | None  # None: there are no such images
    without_relative: Estimate | None
    classes: int | None = None  # with images of both kinds, which alone count; None: all count


class Folds(Record):
    """A linear head on frozen features, fitted and judged in folds by group of all images.

    `outside`: the frozen baseline's accuracy on test differs from it by more than chance.
    """

    accuracy: Estimate
    by_fold: list[float]
    difference: Estimate  # accuracy of the frozen baseline on test minus that of the folds
    outside: bool


class SetScores(Record):
    """What conformal sets of one kind hold on test."""

    method: Literal["lac", "aps"]
    thresholds: list[float]  # largest score of each class that is in a set
    coverage: Estimate  # share of labels that are in their set
    lowest_of_a_class: float  # the same of the class with the least
    lowest_images: int  # test images of that class
    mean_size: float
    single: float  # share of sets with one class


class PredictionSets(Record):
    """Sets of classes that hold the label with a stated probability; `predict` gives the first."""

    asked: float
    kinds: list[SetScores]


class DomainCheck(Record):
    """Whether the test images look to the shipped model as the training images did."""

    threshold: float | None  # largest score in the domain; None: val has too few images to tell
    asked: float  # share of images in the domain that may be called out of it
    false_alarms: Estimate  # share of test images that are


class Metrics(Record):
    """The whole record of the test results (data/evaluate/metrics.json)."""

    majority: Estimate  # accuracy of always naming the largest training class
    baseline: Scores
    finetuned: Scores | None  # None where nothing was fine-tuned
    difference: Difference | None
    shipped: ModelName
    shipped_reason: str
    val_baseline: float
    val_finetuned: float | None
    warnings: list[str] = []  # sentences for a person
    twins: CleanScores | None = None  # relative: a twin by features; None: no image has one
    leaks: CleanScores | None = None  # relative: of one group, in given splits; None: none leaks
    folds: Folds | None = None  # None: all images are of one group
    sets: PredictionSets | None = None  # of the shipped model; so of the next
    domain: DomainCheck | None = None


# report ------------------------------------------------------------------------------------------


class Calibration(Record):
    """What makes the answers of the exported model true (model/calibration.json)."""

    temperature: float  # probabilities are softmax(logits / temperature)
    fitted_on: Split
    images: int
    set_coverage: float  # with which probability a label is in its set of classes
    set_thresholds: list[float]  # a class is in it whose probability is at least 1 minus its own
    in_domain: float | None  # largest score by reference.safetensors; None: there is no limit
    false_alarm: float  # share of images in the domain whose score is larger


class OnnxFile(Record):
    """What was measured of an ONNX file of the exported model (in model/regraft.json)."""

    shipped: bool
    reason: str  # in a sentence
    bytes: int | None = None
    weight_bits: int | None = None  # 32, or 8 or 7 where weights and activations are integers
    test_images: int = 0
    largest_difference: float | None = None  # of a probability on test, to torch in float32
    answers_that_differ: int | None = None  # on test, from torch's
    val_images: int = 0
    val_accuracy: float | None = None
    val_accuracy_lost: float | None = None  # of integers, against model.onnx
    expected_accuracy_lost: float | None = None  # by torch's probabilities, on val and test


R = TypeVar("R", bound=Record)


# json --------------------------------------------------------------------------------------------


def write_record(path: Path, record: Record) -> None:
    """Write a record as json with full precision."""
    write_json(path, record.model_dump(mode="json"))


def read_record(path: Path, kind: type[R]) -> R:
    """Read a record.

    Raises:
        ArtifactError: The file is missing or does not hold such a record.
    """
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ArtifactError(
            f"{path}: is no {kind.__name__} ({where}: {first['msg']}); "
            "run the stage that writes it again"
        ) from err


def write_json(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write plain values as indented json; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a json file.

    Raises:
        ArtifactError: The file is missing or no json.
    """
    try:
        return json.loads(read_bytes(path))
    except ValueError as err:
        raise ArtifactError(
            f"{path}: is no json ({err}); run the stage that writes it again"
        ) from err
