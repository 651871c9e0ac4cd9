"""Cells: what each arm brought on a set with so many images, and what the decision knew and said.

Two tables, kept in git: one row an arm (cells.csv), one row a decision (evidence.csv). They grow by
a row at a time, so that a run that is ended has lost nothing, and any later decision can be looked
up in the first.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tasks.artifacts.records import Arm, Domain
from tasks.artifacts.tables import Ratio, read_rows, write_rows
from tasks.transferability.arms import DEPTHS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CellArm = Literal["scratch", "frozen", "top", "most", "all", "other"]  # most at other rates: other
ARMS: tuple[CellArm, ...] = ("frozen", "top", "most", "all", "other", "scratch")
TUNED: tuple[CellArm, ...] = ("top", "most", "all")

Task = tuple[str, str, int, int]  # set, images a class, seed, px


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm on one task.

    Attributes:
        set: Name of the set.
        images_per_class: Training images a class: a number or `all`.
        seed: Of split, subset and training.
        px: Side of the images.
        arm: What was trained.
        code: Fingerprint of what trains, 8 hexadecimal digits.
        train_images: How many; so of val and test.
        val_images: See there.
        test_images: See there.
        classes: How many.
        val_accuracy: Of the arm's own model, as the next five.
        val_loss: Calibrated, nats.
        test_accuracy: On all test images.
        test_a: On every other one of them, each class by turns.
        test_b: On those between.
        shipped: Which model val prefers: the frozen head or the arm's own.
        shipped_accuracy: Of that model on test, as the next two.
        shipped_a: On the first half.
        shipped_b: On the second half.
        seconds: Processor time of training, beyond the frozen head; of the frozen head its own.
        epochs: Of all phases.
        phases: `cut:epochs:kept:seconds` or `cut:epochs:lost:seconds` of each, by spaces.
        raised: Whether rates were raised.
    """

    set: str
    images_per_class: str
    seed: int
    px: int
    arm: CellArm
    code: str
    train_images: int
    val_images: int
    test_images: int
    classes: int
    val_accuracy: float
    val_loss: float
    test_accuracy: float
    test_a: float
    test_b: float
    shipped: Literal["baseline", "finetuned"]
    shipped_accuracy: float
    shipped_a: float
    shipped_b: float
    seconds: float
    epochs: int
    phases: str
    raised: bool

    @property
    def task(self) -> Task:
        """What all arms and decisions of the same images share."""
        return self.set, self.images_per_class, self.seed, self.px

    @property
    def lost_seconds(self) -> float:
        """Processor time of the phases that were rolled back."""
        phases = [phase.split(":") for phase in self.phases.split()]
        return sum(float(seconds) for _, _, fate, seconds in phases if fate == "lost")


@dataclass(frozen=True, slots=True)
class Said:
    """What a decision knew and said of one task.

    Attributes:
        set: As in a cell, as the next three.
        images_per_class: See there.
        seed: See there.
        px: See there.
        decider: Name of the rules that decided.
        images: Training images.
        classes: How many.
        groups: Layer groups of the backbone.
        mmd: MMD² to the source card; None where there is none, as of the next two.
        mmd_p_value: Of the permutation test.
        shift: Of the batch-norm layers.
        gain: Accuracy of pretrained minus random features.
        ridge_accuracy: Leave-one-out, of pretrained features.
        domain: Similar, intermediate, far or unknown.
        chosen: The decision's arm.
        cuts: Lowest unfrozen group of each phase, by spaces.
        arm: The arm of the cells that is nearest to it.
        confidence: The decision's own.
        seconds: Processor time of what was measured for it alone.
    """

    set: str
    images_per_class: str
    seed: int
    px: int
    decider: str
    images: int
    classes: int
    groups: int
    mmd: Ratio
    mmd_p_value: Ratio
    shift: Ratio
    gain: float
    ridge_accuracy: float
    domain: Domain | Literal["unknown"]
    chosen: Arm
    cuts: str
    arm: CellArm
    confidence: Literal["low", "medium", "high"]
    seconds: float

    @property
    def task(self) -> Task:
        """What all arms and decisions of the same images share."""
        return self.set, self.images_per_class, self.seed, self.px


def nearest_arm(chosen: Arm, cuts: Sequence[int], blocks: Sequence[int]) -> CellArm:
    """Find the arm of the cells that trains about as many blocks; of two the shallower."""
    if chosen == "feature_extraction":
        return "frozen"
    if chosen == "scratch":
        return "scratch"
    share = sum(blocks[cuts[-1] :]) / sum(blocks)
    return min(TUNED, key=lambda arm: abs(DEPTHS[arm] - share))


def read_cells(path: Path) -> list[Cell]:
    """Read cells.csv, of each arm and task the last row; none where there is no file yet."""
    rows = read_rows(path, Cell) if path.exists() else []
    return list({(row.task, row.arm): row for row in rows}.values())


def read_said(path: Path) -> list[Said]:
    """Read evidence.csv, of each decider and task the last row; none where there is no file yet."""
    rows = read_rows(path, Said) if path.exists() else []
    return list({(row.task, row.decider): row for row in rows}.values())


def append_row(path: Path, row: "DataclassInstance") -> None:
    """Add a row at the end, in one write: several runs may add to one table."""
    if not path.exists():
        write_rows(path, type(row), [])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(
        "" if value is None else value for value in astuple(row)
    )
    with path.open("a") as file:
        file.write(text.getvalue())
