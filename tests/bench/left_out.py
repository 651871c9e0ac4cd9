"""Rules with numbers, the numbers fitted to all sets but one and tested on that one."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from bench.cells import CellArm, Said, Task
from bench.regret import NEEDED, Cells, Choice, constant, family, judge_choice

Distance = Callable[[Said], float]
Regrets = Mapping[Task, Mapping[CellArm, float]]  # points
Bucket = tuple[int, int]  # level of distance, level of data
DATA_LEVELS = (20, 100, 400)  # images a class


@dataclass(frozen=True)
class Table:
    """Two thresholds of a distance and an arm for each level of distance and of data.

    Attributes:
        thresholds: Of the distance: similar up to the first, far above the second.
        arms: What is done at each level of distance and of data.
        otherwise: What is done where no task taught anything.
    """

    thresholds: tuple[float, float]
    arms: Mapping[Bucket, CellArm]
    otherwise: CellArm

    def choose(self, said: Said, distance: Distance) -> CellArm:
        """Look the arm up."""
        return self.arms.get(bucket_of(said, self.thresholds, distance), self.otherwise)


def bucket_of(said: Said, thresholds: tuple[float, float], distance: Distance) -> Bucket:
    """Levels of a task: distance from 0 (similar) to 2 (far), data from 0 (few) to 3."""
    images = said.images / said.classes
    far = sum(distance(said) > threshold for threshold in thresholds)
    return far, sum(images > level for level in DATA_LEVELS)


def leave_one_set_out(cells: Cells, said: Sequence[Said], distance: Distance) -> dict[Task, Choice]:
    """Choose on every set by a table that was fitted to all sets of other families."""
    here = [one for one in said if one.task in cells]
    regrets = {one.task: _regrets_of(cells, one.task) for one in here}
    choices: dict[Task, Choice] = {}
    for name in sorted({family(one.set) for one in here}):
        table = fit_table(regrets, [one for one in here if family(one.set) != name], distance)
        left_out = [one for one in here if family(one.set) == name]
        choices |= {one.task: constant(table.choose(one, distance)) for one in left_out}
    return choices


def fit_table(regrets: Regrets, said: Sequence[Said], distance: Distance) -> Table:
    """Find the thresholds and the table of arms with the least mean regret on some tasks."""
    values = sorted({distance(one) for one in said})
    places = [-np.inf, *((a + b) / 2 for a, b in itertools.pairwise(values))]
    pairs = itertools.combinations_with_replacement(places, 2)
    tables = [_fill_table(regrets, said, pair, distance) for pair in pairs]
    return min(tables, key=lambda table: _mean_regret(regrets, said, table, distance))


def _regrets_of(cells: Cells, task: Task) -> dict[CellArm, float]:
    return {arm: judge_choice(cells[task], constant(arm)).regret for arm in NEEDED}


def _fill_table(
    regrets: Regrets, said: Sequence[Said], thresholds: tuple[float, float], distance: Distance
) -> Table:
    buckets: dict[Bucket, list[Task]] = defaultdict(list)
    for one in said:
        buckets[bucket_of(one, thresholds, distance)].append(one.task)
    best = {bucket: _best_arm(regrets, tasks) for bucket, tasks in buckets.items()}
    return Table(thresholds, best, _best_arm(regrets, [one.task for one in said]))


def _best_arm(regrets: Regrets, tasks: Sequence[Task]) -> CellArm:
    """Arm with the least regret; of equal ones the cheaper."""
    return min(NEEDED, key=lambda arm: sum(regrets[task][arm] for task in tasks))


def _mean_regret(regrets: Regrets, said: Sequence[Said], table: Table, distance: Distance) -> float:
    """Mean over sets of the mean over their tasks."""
    by_set: dict[str, list[float]] = defaultdict(list)
    for one in said:
        by_set[one.set].append(regrets[one.task][table.choose(one, distance)])
    return float(np.mean([np.mean(values) for values in by_set.values()]))
