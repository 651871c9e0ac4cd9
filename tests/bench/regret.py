"""Regret: what a choice of arm lost against the best arm on test, looked up in the cells.

Of a task count only the arms that were trained; where scratch or `other` is missing, the best of
the others is the best.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from bench.cells import Cell, CellArm, Said, Task

RESAMPLES = 2000
NEEDED: tuple[CellArm, ...] = ("frozen", "top", "most", "all")
RIGHT = 1.0  # points of regret by halves up to which a choice counts as right

Cells = Mapping[Task, Mapping[CellArm, Cell]]
Choice = Mapping[CellArm, float]  # arms and the probability that each is taken


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outcome:
    """What a choice came to on one task.

    Attributes:
        task: The task.
        regret: Points of test accuracy of what ships, below that of the best arm.
        unbiased: The same against the arm that is best on one half of the test images, measured on
            the other; may be negative.
        seconds: Processor time of training, the frozen head included.
        lost: Of it, in phases that were rolled back.
    """

    task: Task
    regret: float
    unbiased: float
    seconds: float
    lost: float


def complete(cells: Sequence[Cell]) -> Cells:
    """Give the arms of every task of which the frozen head and all depths have been trained."""
    by_task: dict[Task, dict[CellArm, Cell]] = defaultdict(dict)
    for cell in cells:
        by_task[cell.task][cell.arm] = cell
    return {task: arms for task, arms in by_task.items() if set(NEEDED) <= set(arms)}


def judge_choice(arms: Mapping[CellArm, Cell], choice: Choice) -> Outcome:
    """Compare a choice, perhaps of several arms by chance, with the best arm."""
    known = {arm: share for arm, share in choice.items() if arm in arms}
    total = sum(known.values())
    shares = {arm: share / total for arm, share in known.items()}

    def mean(value: Callable[[Cell], float]) -> float:
        return sum(share * value(arms[arm]) for arm, share in shares.items())

    best = max(cell.shipped_accuracy for cell in arms.values())
    by_a = max(arms.values(), key=lambda cell: cell.shipped_a)
    by_b = max(arms.values(), key=lambda cell: cell.shipped_b)
    other = (by_a.shipped_b + by_b.shipped_a) / 2
    head = arms["frozen"].seconds
    return Outcome(
        task=arms["frozen"].task,
        regret=100 * (best - mean(lambda cell: cell.shipped_accuracy)),
        unbiased=100 * (other - mean(lambda cell: (cell.shipped_a + cell.shipped_b) / 2)),
        seconds=head + mean(lambda cell: cell.seconds if cell.arm != "frozen" else 0.0),
        lost=mean(lambda cell: cell.lost_seconds),
    )


def constant(arm: CellArm) -> Choice:
    """Always take one arm."""
    return {arm: 1.0}


RANDOM: Choice = dict.fromkeys((*NEEDED, "scratch"), 1.0)


def follow(cells: Cells, said: Sequence[Said], decider: str) -> dict[Task, Choice]:
    """Give what a decider chose on the tasks that have cells; an arm that is missing is left out.

    Scratch may not have been trained; a decision for it then cannot be judged.
    """
    return {
        one.task: constant(one.arm)
        for one in said
        if one.decider == decider and one.task in cells and one.arm in cells[one.task]
    }


def judge_all(cells: Cells, choices: Mapping[Task, Choice]) -> list[Outcome]:
    """Judge a choice for each of some tasks."""
    return [judge_choice(cells[task], choice) for task, choice in choices.items()]


def family(name: str) -> str:
    """What a set has its images from: `clothing` of `clothing-corrupted`."""
    return name.partition("-")[0]


def mean_over_sets(
    outcomes: Sequence[Outcome], value: Callable[[Outcome], float], *, seed: int = 0
) -> Interval:
    """Mean over sets of the mean over their tasks; the interval resamples families of sets."""
    by_set: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        by_set[outcome.task[0]].append(value(outcome))
    means: dict[str, list[float]] = defaultdict(list)
    for name, values in by_set.items():
        means[family(name)].append(float(np.mean(values)))
    sums = np.array([sum(some) for some in means.values()])
    counts = np.array([len(some) for some in means.values()])
    draws = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    drawn = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))
