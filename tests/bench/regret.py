"""Regret: what a choice of arm lost against the best arm on test, looked up in the cells.

Of a task count only the arms that were trained; where scratch is missing, the best of the others
is the best.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from bench.cells import ARMS, Cell, CellArm, Said, Task

RESAMPLES = 2000
NEEDED: tuple[CellArm, ...] = ("frozen", "top", "half", "all")
RIGHT = 1.0  # points of regret up to which a choice counts as right

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
    """Give the arms of every task whose transfer arms have all been trained."""
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


RANDOM: Choice = {arm: 1.0 for arm in ARMS}


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


def mean_over_sets(
    outcomes: Sequence[Outcome], value: Callable[[Outcome], float], *, seed: int = 0
) -> Interval:
    """Mean over sets of the mean over their tasks; the interval resamples sets."""
    by_set: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        by_set[outcome.task[0]].append(value(outcome))
    means = np.array([np.mean(values) for values in by_set.values()])
    draws = np.random.default_rng(seed).integers(0, len(means), (RESAMPLES, len(means)))
    low, high = np.quantile(means[draws].mean(axis=1), [0.025, 0.975])
    return Interval(float(means.mean()), float(low), float(high))


# leave one set out -------------------------------------------------------------------------------

Bucket = tuple[int, int]  # level of distance, level of data


@dataclass(frozen=True)
class Table:
    """Rules with numbers: two thresholds of a distance, one table of arms.

    Attributes:
        thresholds: Of the distance: similar below the first, far above the second.
        arms: What is done at each level of distance and of data.
        otherwise: What is done where no task taught anything.
    """

    thresholds: tuple[float, float]
    arms: Mapping[Bucket, CellArm]
    otherwise: CellArm

    def choose(self, said: Said, distance: Callable[[Said], float]) -> CellArm:
        """Look the arm up."""
        return self.arms.get(bucket_of(said, self.thresholds, distance), self.otherwise)


DATA_LEVELS = (20, 100, 400)  # images a class


def bucket_of(
    said: Said, thresholds: tuple[float, float], distance: Callable[[Said], float]
) -> Bucket:
    """Levels of a task: distance from 0 (similar) to 2 (far), data from 0 (few) to 3."""
    images = said.images / said.classes
    far = sum(distance(said) > threshold for threshold in thresholds)
    return far, sum(images > level for level in DATA_LEVELS)


def fit_table(cells: Cells, said: Sequence[Said], distance: Callable[[Said], float]) -> Table:
    """Find the thresholds and the table of arms with the least mean regret on some tasks."""
    values = sorted({distance(one) for one in said})
    middles = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    places = [-np.inf, *middles]
    pairs = [(low, high) for low in places for high in places if low <= high]
    tables = [_fill_table(cells, said, pair, distance) for pair in pairs]
    regrets = [_mean_regret(cells, said, table, distance) for table in tables]
    return tables[int(np.argmin(regrets))]


def leave_one_set_out(
    cells: Cells, said: Sequence[Said], distance: Callable[[Said], float]
) -> dict[Task, Choice]:
    """Choose on every set by a table that was fitted to all other sets."""
    here = [one for one in said if one.task in cells]
    choices: dict[Task, Choice] = {}
    for name in sorted({one.set for one in here}):
        table = fit_table(cells, [one for one in here if one.set != name], distance)
        choices |= {
            one.task: constant(table.choose(one, distance)) for one in here if one.set == name
        }
    return choices


def _fill_table(
    cells: Cells,
    said: Sequence[Said],
    thresholds: tuple[float, float],
    distance: Callable[[Said], float],
) -> Table:
    buckets: dict[Bucket, list[Task]] = defaultdict(list)
    for one in said:
        buckets[bucket_of(one, thresholds, distance)].append(one.task)
    best = {bucket: _best_arm(cells, tasks) for bucket, tasks in buckets.items()}
    return Table(thresholds, best, _best_arm(cells, [one.task for one in said]))


def _best_arm(cells: Cells, tasks: Sequence[Task]) -> CellArm:
    """Transfer arm with the least mean regret; of equal ones the cheaper."""
    regret = {
        arm: np.mean([judge_choice(cells[task], constant(arm)).regret for task in tasks])
        for arm in NEEDED
    }
    return min(NEEDED, key=lambda arm: regret[arm])


def _mean_regret(
    cells: Cells, said: Sequence[Said], table: Table, distance: Callable[[Said], float]
) -> float:
    outcomes = [
        judge_choice(cells[one.task], constant(table.choose(one, distance))) for one in said
    ]
    return mean_over_sets(outcomes, lambda one: one.regret).value
