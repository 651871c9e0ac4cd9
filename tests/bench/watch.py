"""Let simulated lifetimes of weekly looks pass: `PYTHONPATH=tests python -m bench.watch --help`.

False alarms while the world stays, weeks until the alarm once it drifts. Writes
docs/benchmarks/watch.md.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
from bench.frozen import scratch_of, table
from bench.planted import Backbone
from bench.watch_features import BLUR_PX, CHANGES, DARKER, StreamSet, read_sets
from scipy.stats import betabinom, binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.utils.extmath import randomized_svd

from tasks.artifacts.arrays import Bools, Features, Floats, Ints
from tasks.delivery.appearance import Appearance
from tasks.evaluation.unknown import Embedded, fit_in_domain
from tasks.monitor import RECENT_IMAGES
from tasks.transferability.mmd import gaussian_kernel, median_bandwidths
from tasks.watching.looks import Subject
from tasks.watching.repeated import ALARM_RATE, HALF_SPENT, level_of, smallest_needed
from tasks.watching.shifts import (
    Seen,
    appearance_p_values,
    enough_for,
    shares_p_value,
    strangers_p_value,
)

log = logging.getLogger(__name__)

WEEKS, DRIFT_FROM, PATIENCE = 100, 51, 50  # a drift that is not found so many weeks later is missed
SIZES, DRIFTING_SIZES = (20, 50, 200), (20, 200)  # images a week
SHARES = (0.05, 0.1, 0.25, 1.0)
DRIFTS = ("another set", "blurred", "darkened", "one class")
TRAINED, HELD_OUT = 0.4, 0.4  # of all images; of those that are left
EXPECTED = 0.05  # of held-out images out of the domain
COMPONENTS = 128  # of the kernel
BACKBONE = "tf_efficientnet_lite0"
INTRO = """\
# Watching

`{command}` wrote this page.

Features of the frozen {backbone} at {px} px. {trained:.0%} of the images of a set are
train (for the distance to the domain and a linear head), {held_out:.0%} of the others held out,
the rest comes in; all by group, and the latter two are dealt anew for every lifetime. A lifetime is
{weeks} weeks, a look a week. The rate of the whole lifetime is {rate:g}; {expected:.0%} of the
held-out images count as out of the domain. In brackets intervals of 95 % (Clopper and Pearson). To
be fast, MMD is computed from the {components} leading components of the kernel, {explained} of its
trace, with a bandwidth of all the images of a set. Brightness, light at the border and sharpness
are tested; facts of the files are not, since all are made equal here, but have their part of the
rate.

## The world stays

Lifetimes with a false alarm, in %, and false alarms a look, in %; {lifetimes} lifetimes a cell.

"""
GROUPED = """
In {names} every person made about ten images. There a held-out person counts once, but the
images that come in are taken for independent, and nothing tells that they are not.
"""
DRIFTED = """
## The world drifts

From week {first} on a share of the images is of another set, blurred (radius {blur:g} px at 128
px), darkened (to {darker:.0%} of the light), or of one class alone. Weeks until the alarm: median
and, in brackets, 90th percentile of {drifting} lifetimes a cell; 1 is the first look that saw it,
`-` means later than {patience} weeks.

"""
RULES = """
## How the rate is spent

Share of the rate left to a look, and weeks until the test of images out of the domain alone finds
{share:.0%} strangers among {size} images a week, from week {first} on ({runs} lifetimes, median and
90th percentile; {held} held-out images).

"""


@dataclass(frozen=True)
class World:
    """What can come in of one set, one row an image in one state.

    Attributes:
        name: Of the set.
        components: float32 (M, COMPONENTS), whose products are the kernel.
        explained: Share of the kernel's trace that they hold.
        scores: float64 (M,).
        predicted: int64 (M,).
        looks: float64 (M, 7).
        states: First row of each state; every state but `another set` has the same images.
        labels: int64 (N,), of the images of a state.
        groups: int64 (N,).
        strangers: How many images of another set there are.
    """

    name: str
    components: Features
    explained: float
    scores: Floats
    predicted: Ints
    looks: Floats
    states: Mapping[str, int]
    labels: Ints
    groups: Ints
    strangers: int

    @cached_property
    def is_grouped(self) -> bool:
        """Whether most images share their group."""
        return len(np.unique(self.groups)) < 0.5 * len(self.groups)


def make_world(data: StreamSet, other: StreamSet, seed: int) -> World:
    """Measure all that can come in once."""
    order = np.random.default_rng([seed, 0]).permutation(np.unique(data.groups))
    trained = np.isin(data.groups, order[: round(TRAINED * len(order))])
    train, left = data.features["clean"][trained], np.flatnonzero(~trained)
    strangers = other.features["clean"][: len(left) // 2]
    rows: Features = np.concatenate([*(data.features[name][left] for name in CHANGES), strangers])
    looks = [*(data.looks[name][left] for name in CHANGES), other.looks["clean"][: len(strangers)]]
    scale = train.std(axis=0) + 1e-6
    head = LogisticRegression(C=0.01, max_iter=300).fit(train / scale, data.labels[trained])
    learned = Embedded(train, data.labels[trained], [str(group) for group in data.groups[trained]])
    known = fit_in_domain(learned, learned, false_alarm=0.05)  # its limit is not used
    components = leading_components(rows.astype(np.float64) - train.mean(axis=0), len(left))
    return World(
        name=data.name,
        components=components,
        explained=float(np.square(components).sum() / len(rows)),
        scores=known.scores(rows),
        predicted=head.predict(rows / scale),
        looks=np.concatenate(looks),
        states={name: len(left) * place for place, name in enumerate([*CHANGES, "another set"])},
        labels=data.labels[left],
        groups=data.groups[left],
        strangers=len(strangers),
    )


def leading_components(rows: Floats, own: int) -> Features:
    """Factor the kernel once, so that a relabeling costs little; the first rows set its width."""
    kernel = gaussian_kernel(rows, rows, median_bandwidths(rows[:own]))
    vectors, values, _ = randomized_svd(kernel, COMPONENTS, n_iter=3, random_state=0)
    return np.asarray(vectors * np.sqrt(values), dtype=np.float32)


def alarms_by_mmd(rows: Features, first: int, permutations: int, seed: int) -> bool:
    """Decide as `permutation_p_value` of as many relabelings does, on factors of the kernel (N, R).

    Of 2 / p relabelings at most one may reach the data, so that the second one ends it.
    """
    count, rng, total = len(rows), np.random.default_rng(seed), rows.sum(axis=0)
    own = np.einsum("nr,nr->n", rows, rows)
    labels, rest = np.arange(count) < first, count - first

    def mmd(marks: Features) -> Features:
        x, trace = marks @ rows, marks @ own
        y = total - x
        xx, yy = np.square(x).sum(1) - trace, np.square(y).sum(1) - (own.sum() - trace)
        found: Features = xx / (first * (first - 1)) + yy / (rest * (rest - 1))
        return found - 2 * (x * y).sum(1) / (first * rest)

    observed, reached, drawn = mmd(labels[None].astype(np.float32))[0], 0, 0
    while drawn < permutations and reached < 2:
        size = min(max(8, drawn), 500, permutations - drawn)
        marks = rng.permuted(np.broadcast_to(labels, (size, count)), axis=1).astype(np.float32)
        reached, drawn = reached + int(np.sum(mmd(marks) >= observed)), drawn + size
    return reached < 2


class Lifetime:
    """Weeks of one stream against one held-out sample.

    Args:
        world: What can come in.
        size: Images a week.
        seed: Of everything drawn.
    """

    def __init__(self, world: World, size: int, seed: int) -> None:
        self._world, self._size, self._rng = world, size, np.random.default_rng(seed)
        order = self._rng.permutation(np.unique(world.groups))
        held = np.isin(world.groups, order[: round(HELD_OUT * len(order))])
        turn = self._rng.permutation(np.flatnonzero(held))
        one_each = turn[np.unique(world.groups[turn], return_index=True)[1]]
        self._pool, self._known = np.flatnonzero(~held), one_each
        beyond = round(EXPECTED * len(turn))
        self._threshold = float(np.sort(world.scores[turn])[-1 - beyond])
        self._class = int(self._rng.choice(world.labels[self._pool]))
        self._recent: Ints = np.empty(0, np.int64)  # rows of the newest images
        self._drawn: Ints = np.empty(0, np.int64)  # the images that they show

    def come_in(self, drift: str, share: float) -> Ints:
        """Draw the images of a week; none of the newest ones comes again."""
        fresh = np.setdiff1d(self._pool, self._drawn[-(RECENT_IMAGES - self._size) :])
        rows = self._rng.permutation(fresh)[: self._size]
        drifted = self._rng.random(len(rows)) < share
        new = self._change(rows, drifted, drift) if drifted.any() else rows
        self._drawn = np.concatenate([self._drawn, rows])[-RECENT_IMAGES:]
        self._recent = np.concatenate([self._recent, new])[-RECENT_IMAGES:]
        return new

    def _change(self, rows: Ints, drifted: Bools, drift: str) -> Ints:
        world, count, new = self._world, int(drifted.sum()), rows.copy()
        if drift == "another set":
            new[drifted] = world.states[drift] + self._rng.permutation(world.strangers)[:count]
        elif drift == "one class":
            own = self._pool[world.labels[self._pool] == self._class]
            new[drifted] = self._rng.choice(own, count, replace=count > len(own))
        else:
            new[drifted] += world.states[drift]
        return new

    def look(self, new: Ints, week: int) -> bool:
        """Take a look; tell whether it alarms. The tests that cost little come first."""
        longer = len(self._recent) > len(new)
        windows = [new, self._recent] if longer else [new]
        needed = smallest_needed(len(get_args(Subject)) * len(windows), week)
        known, predicted = self._seen(self._known), self._world.predicted
        return (
            any(
                strangers_p_value(known, self._seen(rows), self._threshold) <= needed
                for rows in windows
            )
            or any(
                min(appearance_p_values(known, self._seen(rows)).values()) <= needed
                for rows in windows
            )
            or any(
                shares_p_value(known.predicted, predicted[rows], needed=needed, seed=week) <= needed
                for rows in windows
            )
            or any(self._mmd(rows, needed, week) for rows in windows)
        )

    def _seen(self, rows: Ints) -> Seen:
        nothing = np.empty((0, 1), np.float32)
        world = self._world
        looks = Appearance(world.looks[rows], [""] * len(rows))
        return Seen(nothing, world.scores[rows], world.predicted[rows], looks)

    def _mmd(self, rows: Ints, needed: float, seed: int) -> bool:
        both = self._world.components[np.concatenate([self._known, rows])]
        return alarms_by_mmd(both, len(self._known), enough_for(needed), seed)


def count_false_alarms(world: World, size: int, lifetimes: int, seed: int) -> Floats:
    """Count the false alarms of lifetimes in which nothing drifts, (L,)."""
    found = []
    for number in range(lifetimes):
        life = Lifetime(world, size, seed=hash_of(seed, number))
        looks = [life.look(life.come_in("", 0.0), week) for week in range(1, WEEKS + 1)]
        found.append(sum(looks))
    return np.array(found, dtype=np.float64)


def hash_of(seed: int, number: int) -> int:
    """Give a seed of its own to a lifetime."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def weeks_until(
    world: World, size: int, drift: str, share: float, lifetimes: int, seed: int
) -> Floats:
    """Give weeks until the alarm, infinite where it is missed, (L,)."""
    found = np.full(lifetimes, np.inf)
    for number in range(lifetimes):
        life = Lifetime(world, size, seed=hash_of(seed, number))
        for _ in range(min(DRIFT_FROM - 1, RECENT_IMAGES // size)):
            life.come_in("", 0.0)
        looks = (
            week
            for week in range(1, PATIENCE + 1)
            if life.look(life.come_in(drift, share), DRIFT_FROM - 1 + week)
        )
        found[number] = next(looks, np.inf)
    return found


# rules -------------------------------------------------------------------------------------------


RULES_TRIED = {
    f"c / ((c + k - 1)(c + k)), c = {HALF_SPENT}": lambda k: level_of(k) / ALARM_RATE,
    "6 / (pi k)^2": lambda k: 6 / (np.pi * k) ** 2,
    f"1 / {HALF_SPENT}, for {HALF_SPENT} looks only": lambda k: 1 / HALF_SPENT,
}


def compare_rules(share: float, size: int, runs: int, held: int) -> list[list[str]]:
    """Let the exact test of images out of the domain run under every rule, on the same counts."""
    rng = np.random.default_rng(5)
    beyond = round(EXPECTED * held)
    looks, tests = RECENT_IMAGES // size, 2 * len(get_args(Subject))
    weeks = np.arange(1, 4 * PATIENCE)
    true = rng.beta(beyond + 1, held - beyond, runs)  # what a threshold of held-out images keeps
    rates = np.concatenate([np.zeros(looks), np.full(len(weeks), share)])
    counts = rng.binomial(size, true[:, None] + (1 - true[:, None]) * rates)
    sums = np.stack([counts[:, week : week + looks].sum(axis=1) for week in weeks], axis=1)
    p_new = betabinom(size, beyond + 1, held - beyond).sf(counts[:, looks:] - 1)
    p_recent = betabinom(size * looks, beyond + 1, held - beyond).sf(sums - 1)
    smallest = np.minimum(p_new, p_recent)
    lines = []
    for name, rule in RULES_TRIED.items():
        levels = np.array([rule(DRIFT_FROM - 1 + week) for week in weeks]) * ALARM_RATE / tests
        hit = smallest <= levels
        first = np.where(hit.any(axis=1), 1 + hit.argmax(axis=1), np.inf)
        shown = [f"{rule(look):.2g}" for look in (1, DRIFT_FROM, HALF_SPENT)]
        lines.append([name, *shown, say_weeks(first, len(weeks))])
    return lines


# page --------------------------------------------------------------------------------------------


def say_weeks(weeks: Floats, most: float) -> str:
    """Write median and 90th percentile."""
    middle, late = np.quantile(weeks, [0.5, 0.9], method="higher")
    return f"{_week(middle, most)} [{_week(late, most)}]"


def _week(week: float, most: float) -> str:
    return f"{week:.0f}" if week <= most else "-"


def say_share(count: int, n: int) -> str:
    """Write a share of trials in % with its interval."""
    bounds = binomtest(count, n).proportion_ci(method="exact")
    digits = 1 if n < 10_000 else 3
    shown = [f"{100 * share:.{digits}f}" for share in (count / n, bounds.low, bounds.high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def tell_false_alarms(worlds: Sequence[World], lifetimes: int) -> str:
    """Write the table of false alarms, and what all sets but the grouped ones have together."""
    rows, every = [], []
    for world in worlds:
        cells = [count_false_alarms(world, size, lifetimes, seed=3) for size in SIZES]
        every += [] if world.is_grouped else cells
        rows.append([world.name, *map(_cell, cells)])
        log.info("%s", " | ".join(rows[-1]))
    rows.append(
        ["all that are not grouped", _cell(np.concatenate(every)), *[""] * (len(SIZES) - 1)]
    )
    return table(["set", *(f"{size} images a week" for size in SIZES)], rows)


def _cell(alarms: Floats) -> str:
    lives = say_share(int(np.sum(alarms > 0)), len(alarms))
    return f"{lives}; {say_share(int(alarms.sum()), WEEKS * len(alarms))}"


def tell_drifts(worlds: Sequence[World], lifetimes: int) -> str:
    """Write the table of weeks until the alarm."""
    rows = []
    for world, drift, size in product(worlds, DRIFTS, DRIFTING_SIZES):
        weeks = (weeks_until(world, size, drift, share, lifetimes, seed=4) for share in SHARES)
        cells = [say_weeks(found, PATIENCE) for found in weeks]
        rows.append([world.name, drift, str(size), *cells])
        log.info("%s", " | ".join(rows[-1]))
    head = ["set", "drift", "images a week", *(f"{share:.0%}" for share in SHARES)]
    return f"{table(head, rows)}\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.watch", description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders, csv, .yaml")
    parser.add_argument("--images", type=int, default=2_000, help="of each set, at most")
    parser.add_argument("--px", type=int, default=128, help="side of the images")
    parser.add_argument("--lifetimes", type=int, default=25, help="a cell, without drift")
    parser.add_argument("--drifting", type=int, default=9, help="lifetimes a cell, with drift")
    parser.add_argument("--drift-sets", type=int, default=4, help="the first so many drift")
    parser.add_argument("--scratch", type=Path, help="folder that keeps features between runs")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/watch.md"))
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    backbone = Backbone(BACKBONE, options.px, 17)
    with scratch_of(options) as scratch:
        sets = read_sets(
            options.data, backbone, options.px, images=options.images, seed=17, scratch=scratch
        )
    others = [*sets[1:], sets[0]]
    worlds = [make_world(one, other, 17) for one, other in zip(sets, others, strict=True)]
    options.out.write_text(write_page(worlds, options))


def write_page(worlds: Sequence[World], options: argparse.Namespace) -> str:
    """Run all lifetimes and write what they show."""
    names = " ".join(f"images/{source.name}" for source in options.data)
    command = (
        f"PYTHONPATH=tests python -m bench.watch --data {names} --images {options.images} "
        f"--px {options.px} --lifetimes {options.lifetimes} --drifting {options.drifting} "
        f"--drift-sets {options.drift_sets}"
    )
    text = INTRO.format(
        command=command,
        backbone=BACKBONE,
        px=options.px,
        trained=TRAINED,
        held_out=HELD_OUT,
        weeks=WEEKS,
        rate=ALARM_RATE,
        expected=EXPECTED,
        lifetimes=options.lifetimes,
        components=COMPONENTS,
        explained=" to ".join(f"{f([one.explained for one in worlds]):.0%}" for f in (min, max)),
    )
    text += tell_false_alarms(worlds, options.lifetimes) + "\n"
    grouped = [world.name for world in worlds if world.is_grouped]
    text += GROUPED.format(names=", ".join(grouped)) if grouped else ""
    text += DRIFTED.format(
        first=DRIFT_FROM, blur=BLUR_PX, darker=DARKER, drifting=options.drifting, patience=PATIENCE
    )
    text += tell_drifts(worlds[: options.drift_sets], options.drifting)
    text += RULES.format(share=0.1, size=50, first=DRIFT_FROM, runs=1_000, held=500)
    head = ["rule", "look 1", f"look {DRIFT_FROM}", f"look {HALF_SPENT}", "weeks"]
    return text + table(head, compare_rules(0.1, 50, 1_000, 500)) + "\n"


if __name__ == "__main__":
    main()
