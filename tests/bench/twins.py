"""Plant twins and count hits and false alarms: `PYTHONPATH=tests python -m bench.twins --help`.

Writes docs/benchmarks/twins.md.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench.planted import PICTURES, Backbone, ImageSet, read_images

from tasks.artifacts.arrays import Bools, Features, Ints
from tasks.auditing.twins import (
    CROWD,
    DOUBTFUL,
    SURE,
    Nearest,
    Whitened,
    choose_threshold,
    find_nearest,
    measure_pairs,
    whiten,
)

SHARES = (0.02, 0.1, 0.5, 0.95)  # of the test images
COPIES = 2  # further pictures of a planted thing in train, where train is full of twins
TEST = 0.2
NEAR = 20  # file numbers
INTRO = """\
# Twins across splits

`{command}` wrote this page.

Images are split by group ({test:.0%} test). A twin is planted by making a second picture of a
training image and putting it into test in place of another one. *Hits* are the planted ones that
`audit` finds, *false alarms* the other test images that it calls twins. An image is a twin from
{sure:g} robust deviations above the pairs of its class on, in narrow sets from {doubtful:g} on.
{px} px, {backbone}.
"""
AS_THEY_ARE = """
## The sets as they are

*Near numbers*: how many of the pairs found have file numbers at most {near} apart, and how many
pairs of a class drawn by chance do. Where it is much more, the pairs are pictures taken one after
the other.

| set | train, test | threshold | test with a twin | train: other group | near numbers | chance |
|---|---|---|---|---|---|---|
"""
PLANTED = """
## Planted

Hits in %, for the share of test that was planted; the last column with {copies} more such pictures
of each thing in train. In brackets the false alarms, in % of the other test images.

| set | second picture | {shares} | {most:.0%}, train full of twins |
|---|---|{dashes}---|
"""


@dataclass(frozen=True)
class Split:
    """Rows of train and test."""

    train: Ints
    test: Ints


def split_groups(data: ImageSet, seed: int) -> Split:
    """Cut test by groups."""
    order = np.random.default_rng(seed).permutation(np.unique(data.groups))
    tested = np.isin(data.groups, order[: round(TEST * len(order))])
    return Split(np.flatnonzero(~tested), np.flatnonzero(tested))


def audit(
    features: Features, labels: Ints, groups: Ints, train: int
) -> tuple[Nearest, Nearest, float]:
    """Nearest training images of test images and of training images, and the threshold.

    Args:
        features: Of train, then test, (N, D).
        labels: int64 (N,).
        groups: int64 (N,).
        train: How many are train.
    """
    sample = Whitened(whiten(features, seed=1), labels, groups)
    trained = sample.take(np.arange(train))
    pairs = measure_pairs(trained, seed=1)
    within = find_nearest(trained, trained, pairs, apart=True)
    crowd = find_nearest(trained, trained, pairs, apart=True, rank=CROWD)
    tested = sample.take(np.arange(train, len(labels)))
    return find_nearest(tested, trained, pairs, apart=False), within, choose_threshold(crowd)


@dataclass
class Planter:
    """One set with its features and second pictures, made once."""

    data: ImageSet
    backbone: Backbone
    seed: int

    def __post_init__(self) -> None:
        self.split = split_groups(self.data, self.seed)
        self.clean = self.backbone.features(self.data.images)
        most = min(round(SHARES[-1] * len(self.split.test)), len(self.split.train))
        rng = np.random.default_rng([self.seed, 1])
        self.chosen = rng.permutation(self.split.train)[:most]
        self.pictures = {
            kind: [self._take_again(number, draw) for draw in range(1 + COPIES)]
            for number, kind in enumerate(PICTURES)
        }

    def _take_again(self, number: int, draw: int) -> Features:
        again = list(PICTURES.values())[number]
        return self.backbone.features(
            [
                again(self.data.images[row], np.random.default_rng([number, draw, int(row)]))
                for row in self.chosen
            ]
        )

    def measure(self, kind: str, share: float, copies: int) -> tuple[float, float]:
        """Share of hits among the planted and of false alarms among the other test images."""
        count = min(max(1, round(share * len(self.split.test))), len(self.chosen))
        planted, train = self.chosen[:count], self.split.train
        others = self.split.test[: max(len(self.split.test) - count, 20)]
        more = [self.pictures[kind][1 + copy][:count] for copy in range(copies)]
        rows = np.concatenate([train, *[planted] * copies, others, planted])
        features = np.concatenate(
            [self.clean[train], *more, self.clean[others], self.pictures[kind][0][:count]]
        )
        groups = self.data.groups[rows].copy()
        fresh = len(train) + np.arange(copies * count)
        groups[fresh] = groups.max() + 1 + fresh  # nobody knows that they belong together
        found, _, threshold = audit(
            features, self.data.labels[rows], groups, len(train) + copies * count
        )
        twins = found.twins(threshold)
        return float(twins[-count:].mean()), float(twins[:-count].mean())

    def rows(self) -> list[str]:
        """The lines of the table."""
        lines = []
        for kind in PICTURES:
            cells = [self.measure(kind, share, 0) for share in SHARES]
            cells.append(self.measure(kind, SHARES[-1], COPIES))
            words = [f"{100 * hits:.0f} ({100 * alarms:.1f})" for hits, alarms in cells]
            lines.append(f"| {self.data.name} | {kind} | {' | '.join(words)} |")
        return lines

    def as_it_is(self) -> str:
        """A line of the table of the sets as they are."""
        train, test = self.split.train, self.split.test
        rows = np.concatenate([train, test])
        found, within, threshold = audit(
            self.clean[rows], self.data.labels[rows], self.data.groups[rows], len(train)
        )
        twins = found.twins(threshold)
        numbers = [
            int((re.findall(r"\d+", Path(path).stem) or ["-1"])[-1]) for path in self.data.paths
        ]
        near = self._near(numbers, test[twins], train[found.rows[twins]])
        rng = np.random.default_rng(2)
        drawn = [
            rng.choice(np.flatnonzero(self.data.labels == self.data.labels[row])) for row in test
        ]
        chance = self._near(numbers, test, np.array(drawn))
        return (
            f"| {self.data.name} | {len(train):,}, {len(test):,} "
            f"| {threshold:.1f} | {_percent(twins)} | {_percent(within.twins(threshold))} | {near} "
            f"| {chance} |"
        )

    @staticmethod
    def _near(numbers: Sequence[int], one: Ints, other: Ints) -> str:
        known = [
            abs(numbers[a] - numbers[b]) <= NEAR
            for a, b in zip(one.tolist(), other.tolist(), strict=True)
            if numbers[a] >= 0 and numbers[b] >= 0
        ]
        return f"{100 * np.mean(known):.0f} %" if known else ""


def _percent(some: Bools) -> str:
    return f"{100 * float(some.mean()):.1f} %"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the sets one after the other and write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.twins", description=__doc__)
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders, csv or descriptors"
    )
    parser.add_argument("--images", type=int, default=1_000, help="of each set, at most")
    parser.add_argument("--px", type=int, default=160)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/twins.md"))
    options = parser.parse_args(argv)
    backbone = Backbone(options.backbone, options.px, options.seed)
    as_they_are, planted = [], []
    for source in options.data:
        planter = Planter(read_images(source, options.images, options.seed), backbone, options.seed)
        as_they_are.append(planter.as_it_is())
        planted += planter.rows()
    names = " ".join(path.name for path in options.data)
    command = (
        f"PYTHONPATH=tests python -m bench.twins --data {names} --images {options.images} "
        f"--px {options.px}"
    )
    text = INTRO.format(
        command=command,
        test=TEST,
        sure=SURE,
        doubtful=DOUBTFUL,
        px=options.px,
        backbone=options.backbone,
    )
    text += AS_THEY_ARE.format(near=NEAR) + "\n".join(as_they_are) + "\n"
    shares = " | ".join(f"{share:.0%}" for share in SHARES)
    text += PLANTED.format(
        copies=COPIES, most=SHARES[-1], shares=shares, dashes="---|" * len(SHARES)
    )
    options.out.write_text(text + "\n".join(planted) + "\n")


if __name__ == "__main__":
    main()
