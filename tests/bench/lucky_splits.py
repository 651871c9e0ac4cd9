"""Draw test splits, honest ones and lucky ones, and see which of them the folds call lucky.

`PYTHONPATH=tests python -m bench.lucky_splits --help`; writes docs/benchmarks/lucky_splits.md.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench.frozen import FrozenSet, add_options, command_of, read_sets, table

from tasks.artifacts.arrays import Bools, Ints
from tasks.auditing.held_out import Pool, compare_with_folds, hold_out, right_in_folds
from tasks.heads.features import Labeled
from tasks.heads.linear import ScaledRows, fit_path
from tasks.params import Params

OUT = Path("docs/benchmarks/lucky_splits.md")
STRENGTH = 0.1
BIASES = (0.0, 0.05, 0.1, -0.1)  # accuracy of the test images in the folds minus that of all
SPLITS_A_BIAS = 20
INTRO = """\
A linear head of L2 strength {strength} on frozen features is judged in five folds by group of all
images. Then groups with {share:.0%} of the images are drawn as test, {splits} times a row, others
with {val:.0%} are left out as val, and a head fitted on the rest is tested. *Luck* is by how much
the drawn images are easier in the folds than all images: none for groups drawn by chance, else
groups were exchanged until it was reached. *Told* is the number of splits whose test figure
`evaluate` calls outside of the folds at 95 % confidence: about 5 % of splits drawn by chance should
be. About {images} images a set at {px} px.
"""


@dataclass(frozen=True)
class Row:
    """What the folds say of the splits of one set and luck."""

    name: str
    bias: float
    folds: float
    tests: list[float]
    told: list[bool]
    images: float


def measure(data: FrozenSet, params: Params, bias: float, seed: int) -> Row:
    """Draw splits of one luck and compare them with the folds."""
    classes = len(data.classes)
    everything = Labeled(data.features[:, None], data.labels, data.groups)
    held_out = hold_out(Pool([everything]), STRENGTH, classes=classes, seed=seed)
    right = right_in_folds(held_out)
    rng = np.random.default_rng([seed, round(1000 * (1 + bias))])
    groups = np.unique(np.array(data.groups, dtype=object), return_inverse=True)[1]
    tests, told, images = [], [], []
    for _ in range(SPLITS_A_BIAS):
        test = draw_test(groups, right, params.ingest.test_fraction, bias, rng)
        train = np.setdiff1d(np.arange(len(right)), test)
        val = draw_groups(groups[train], params.ingest.val_fraction * len(right), rng)
        rows = ScaledRows(everything, train[~val])
        head = next(fit_path(rows, classes, [STRENGTH]))
        hits = head.logits(data.features[test]).argmax(axis=1) == data.labels[test]
        found = compare_with_folds(held_out, test, hits, params.evaluate, seed=seed)
        assert found is not None
        tests.append(float(hits.mean()))
        told.append(found.outside)
        images.append(len(test))
    return Row(data.name, bias, float(right.mean()), tests, told, float(np.mean(images)))


def draw_test(
    groups: Ints, right: Bools, share: float, bias: float, rng: np.random.Generator
) -> Ints:
    """Draw groups by chance, then exchange some until their images are as easy as asked for."""
    sizes, hits = np.bincount(groups), np.bincount(groups, right)
    held = np.zeros(len(sizes), dtype=np.bool_)
    held[groups[draw_groups(groups, share * len(groups), rng)]] = True
    goal = right.mean() + bias
    for candidate in rng.permutation(np.flatnonzero(~held)) if bias else []:
        gap = hits[held].sum() / sizes[held].sum() - goal
        if gap * bias >= 0:
            break
        leaving = rng.choice(np.flatnonzero(held))
        gain = hits[candidate] / sizes[candidate] - hits[leaving] / sizes[leaving]
        if gain * bias > 0:
            held[candidate], held[leaving] = True, False
    return np.flatnonzero(held[groups])


def draw_groups(groups: Ints, images: float, rng: np.random.Generator) -> Bools:
    """Draw groups that hold about so many images; mark these, (N,)."""
    order = rng.permutation(np.unique(groups))
    sizes = np.bincount(groups)
    return np.isin(groups, order[: np.searchsorted(np.cumsum(sizes[order]), images)])


def write_page(rows: Sequence[Row], options: argparse.Namespace, params: Params) -> str:
    """Write the page."""
    cells = [
        [
            row.name,
            f"{100 * row.bias:+.0f}" if row.bias else "none",
            f"{row.images:.0f}",
            f"{100 * row.folds:.1f} %",
            f"{100 * np.mean(row.tests):.1f} %",
            f"{100 * min(row.tests):.1f} to {100 * max(row.tests):.1f} %",
            f"{sum(row.told)} of {len(row.told)}",
        ]
        for row in rows
    ]
    intro = INTRO.format(
        strength=STRENGTH,
        share=params.ingest.test_fraction,
        val=params.ingest.val_fraction,
        splits=SPLITS_A_BIAS * len(options.seeds),
        images=f"{options.images:,}",
        px=options.px,
    )
    head = ["set", "luck, points", "test images", "folds", "test, mean", "test, range", "told"]
    command = f"`{command_of('bench.lucky_splits', options)}` wrote this page."
    return "\n".join(["# Lucky splits", "", command, "", intro, table(head, cells), ""])


def main() -> None:
    """Measure all sets, write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.lucky_splits", description=__doc__)
    options = add_options(parser, OUT).parse_args()
    sets, params = read_sets(options)
    rows: list[Row] = []
    for data in sets:
        for bias in BIASES:
            found = [measure(data, params, bias, seed) for seed in options.seeds]
            rows.append(
                Row(
                    data.name,
                    bias,
                    float(np.mean([one.folds for one in found])),
                    [test for one in found for test in one.tests],
                    [told for one in found for told in one.told],
                    float(np.mean([one.images for one in found])),
                )
            )
            print(f"{data.name}, luck {bias:+.2f}", file=sys.stderr, flush=True)  # noqa: T201
            options.out.write_text(write_page(rows, options, params))


if __name__ == "__main__":
    main()
