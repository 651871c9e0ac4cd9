"""Prove what the model says where it does not know: sets of classes, and images unlike the others.

`PYTHONPATH=tests python -m bench.unknown --help`; writes docs/benchmarks/unknown.md.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from bench.decisions import parse_sets
from bench.frozen import number_labels, table
from bench.lucky_splits import draw_groups
from bench.pools import Pool, make_pool
from bench.scratch import ROOT
from PIL import Image, ImageFilter
from scipy import stats
from sklearn.metrics import roc_auc_score

from tasks.artifacts.arrays import Features, Floats, Ints, Pixels
from tasks.artifacts.records import PredictionSets
from tasks.backbones.catalogue import load_backbone
from tasks.backbones.engine import make_engine
from tasks.backbones.groups import PooledFeatures
from tasks.delivery.in_domain import scale_rows
from tasks.evaluation.unknown import Answered, Embedded, fit_in_domain, judge_sets
from tasks.heads.features import Labeled
from tasks.heads.linear import LinearFit, ScaledRows, fit_path
from tasks.judging.conformal import conformal_quantile
from tasks.judging.metrics import log_probabilities
from tasks.judging.rule import ValSet
from tasks.params import EvaluateParams
from tasks.params_file import load_params
from tasks.runtime.machine import prepare_memory, read_machine

OUT = Path("docs/benchmarks/unknown.md")
STRENGTH = 0.03
IMAGES = 1200  # of a set, at most, by groups
FOREIGN = 400  # of another set
TRAIN, VAL = 0.5, 0.2  # shares of the images; the rest is test
NEIGHBORS = 5
Change = Callable[[Image.Image], Image.Image]
CHANGES: dict[str, Change] = {
    "blurred (2 px)": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "dark (a third)": lambda image: image.point(lambda value: value / 3),
    "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}
NOISE = "noise"
INTRO = """\
A linear head of L2 strength {strength} on frozen features of {backbone} at {px} px; {train:.0%} of
the images of a set train it, {val:.0%} are val, which sets temperature and limits, the rest is
test; groups stay together; at most {images:,} images a set. {splits} splits.

## Sets of classes

Asked to hold the label of {asked:.0%} of the images. *Inside*: splits whose share of labels held on
test lies between the 2.5 and 97.5 % points of the beta-binomial distribution that exact coverage
would give with one threshold and so many groups; about 95 % should. A class with enough groups in
val has a threshold of its own, for which this is approximate, and the others share one.
"""
SHIFTED = """

Under shift they hold less than they promise. Labels held, %, by the first split's LAC sets, of the
same test images:

"""
DOMAIN = """

## Images unlike those of training

{false:.0%} of the images may be called strange. AUROC of the score: {foreign} images of another
set, or the set's own test images changed, against the unchanged; in brackets the share called
strange, %. *Mahalanobis* is what Regraft uses, on features of length 1; *{k} nearest* the distance
to the {k}th nearest training image (2204.06507) on the same features; *plain Mahalanobis* leaves
their length as it is (1807.03888). The first split; means over the other sets, with the least.

"""
EACH = """

Each set against each other by *Mahalanobis*, AUROC; lines are trained on, columns are strangers:

"""


@dataclass(frozen=True)
class Part:
    """Some images of a set: features (N, D), labels and groups (N,), pixels (N, R, R, 3)."""

    features: Features
    labels: Ints
    groups: Sequence[str]
    numbers: Ints


@dataclass
class DataSet:
    """A set with the features of its clean views."""

    name: str
    pool: Pool

    @cached_property
    def everything(self) -> Part:
        """All images, or as many groups as hold about `IMAGES`."""
        groups = np.array([row.group for row in self.pool.rows], dtype=object)
        numbers = np.unique(groups, return_inverse=True)[1]
        kept = draw_groups(numbers, min(IMAGES, len(numbers)), np.random.default_rng(0))
        chosen = np.flatnonzero(kept) if kept.any() else np.arange(len(numbers))
        labels = number_labels(self.pool.rows, self.pool.copy.manifest().class_names)
        features = np.array(self.pool.features[chosen, 0], dtype=np.float32)
        return Part(features, labels[chosen], list(groups[chosen]), chosen)

    def split(self, seed: int) -> tuple[Part, Part, Part]:
        """Draw train, val and test by groups."""
        whole = self.everything
        groups = np.unique(np.array(whole.groups, dtype=object), return_inverse=True)[1]
        rng, count = np.random.default_rng([seed, 1]), len(groups)
        train = draw_groups(groups, TRAIN * count, rng)
        left = np.flatnonzero(~train)
        val = left[draw_groups(groups[left], VAL * count, rng)]
        parts = np.flatnonzero(train), val, np.setdiff1d(left, val)
        return tuple(_take(whole, part) for part in parts)  # type: ignore[return-value]

    def changed(self, part: Part, change: Change) -> Features:
        """Give the features of images that were changed."""
        info, machine = self.pool.info, read_machine()
        backbone = load_backbone(info.name, info.weights, image_px=info.input.image_px, seed=0)
        pixels = _change(self.pool.pixels.rows(self.pool.pixels.row_of(part.numbers)), change)
        engine = make_engine(PooledFeatures(backbone.model), backbone.input, machine, pixels[:8])
        batches = range(0, len(pixels), 32)
        return np.concatenate([engine(pixels[at : at + 32])[0] for at in batches])

    def noise(self, part: Part) -> Features:
        """Give the features of as many images of noise."""
        rng = np.random.default_rng(3)
        side = self.pool.info.input.image_px

        def draw(image: Image.Image) -> Image.Image:
            return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))

        return self.changed(part, draw)


def _take(part: Part, images: Ints) -> Part:
    groups = [part.groups[image] for image in images]
    return Part(part.features[images], part.labels[images], groups, part.numbers[images])


def _change(pixels: Pixels, change: Change) -> Pixels:
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in pixels])


# sets of classes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A linear head with its temperature."""

    head: LinearFit
    temperature: float

    @classmethod
    def fit(cls, train: Part, val: Part, classes: int) -> "Model":
        """Fit on train, calibrate on val."""
        labeled = Labeled(train.features[:, None], train.labels, train.groups)
        rows = ScaledRows(labeled, np.arange(len(train.labels)))
        head = next(fit_path(rows, classes, [STRENGTH]))
        judge = ValSet(val.labels, val.groups)
        return cls(head, judge.temperature(head.logits(val.features)))

    def answer(self, part: Part, features: Features | None = None) -> Answered:
        """Give calibrated probabilities."""
        logits = self.head.logits(part.features if features is None else features)
        return Answered(
            np.exp(log_probabilities(logits, self.temperature)), part.labels, part.groups
        )


def judge_split(
    data: DataSet, seed: int, params: EvaluateParams
) -> tuple[PredictionSets, int, int]:
    """Give what the sets of one split hold, and how many groups val and test have."""
    train, val, test = data.split(seed)
    model = Model.fit(train, val, data.everything.labels.max() + 1)
    found = judge_sets(model.answer(val), model.answer(test), params, seed=seed)
    return found, len(set(val.groups)), len(set(test.groups))


def inside(coverage: float, val: int, test: int, asked: float) -> bool:
    """Whether a share of labels held is one that exact coverage would give."""
    rank = int(np.ceil((val + 1) * asked))
    exact = stats.betabinom(test, rank, val + 1 - rank)
    return bool(exact.ppf(0.025) <= coverage * test <= exact.ppf(0.975))


def set_rows(sets: Sequence[DataSet], splits: int, params: EvaluateParams) -> Iterator[list[str]]:
    """Give the lines of the first table."""
    for data in sets:
        found = [judge_split(data, seed, params) for seed in range(splits)]
        for kind in range(2):
            scores = [one.kinds[kind] for one, _, _ in found]
            held = np.array([one.coverage.value for one in scores])
            fits = [
                inside(share, val, test, params.set_coverage)
                for share, (_, val, test) in zip(held, found, strict=True)
            ]
            half = stats.t.ppf(0.975, splits - 1) * held.std(ddof=1) / np.sqrt(splits)
            yield [
                data.name if kind == 0 else "",
                scores[0].method.upper(),
                f"{100 * held.mean():.1f} [{100 * (held.mean() - half):.1f}, "
                f"{100 * (held.mean() + half):.1f}]",
                f"{sum(fits)} of {splits}",
                f"{100 * np.mean([one.lowest_of_a_class for one in scores]):.1f}",
                f"{np.mean([one.mean_size for one in scores]):.2f}",
                f"{100 * np.mean([one.single for one in scores]):.0f}",
            ]
        say(data.name)


def shifted_rows(sets: Sequence[DataSet], params: EvaluateParams) -> Iterator[list[str]]:
    """Give what sets hold of changed images."""
    for data in sets:
        train, val, test = data.split(0)
        test = _take(test, np.arange(min(FOREIGN, len(test.labels))))
        model = Model.fit(train, val, data.everything.labels.max() + 1)
        cells = []
        for features in (test.features, *(data.changed(test, one) for one in CHANGES.values())):
            found = judge_sets(model.answer(val), model.answer(test, features), params, seed=0)
            cells.append(f"{100 * found.kinds[0].coverage.value:.1f}")
        yield [data.name, *cells]


# strangers ---------------------------------------------------------------------------------------

Score = Callable[[Features], Floats]


def make_scores(train: Part, val: Part, false_alarm: float) -> dict[str, tuple[Score, float]]:
    """Give each way to tell strangers with its limit."""
    known = fit_in_domain(_see(train), _see(val), false_alarm=false_alarm)
    points = scale_rows(train.features)

    def nearest(features: Features) -> Floats:
        squares = 2 - 2 * scale_rows(features) @ points.T
        return np.asarray(np.partition(squares, NEIGHBORS - 1, axis=1)[:, NEIGHBORS - 1])

    ways: dict[str, Score] = {
        "Mahalanobis": known.scores,
        f"{NEIGHBORS} nearest": nearest,
        "plain Mahalanobis": _plain(train),
    }
    groups = len(set(val.groups))
    limits = {
        name: conformal_quantile(score(val.features), groups, 1 - false_alarm)
        for name, score in ways.items()
    }
    return {name: (score, limits[name] or np.inf) for name, score in ways.items()}


def _see(part: Part) -> Embedded:
    return Embedded(part.features, part.labels, part.groups)


def _plain(train: Part) -> Score:
    """Mahalanobis distance of features as they are, with the same shrinkage."""
    from sklearn.covariance import LedoitWolf

    classes = np.unique(train.labels)
    means = np.stack([train.features[train.labels == c].mean(axis=0) for c in classes])
    centered = train.features - means[np.searchsorted(classes, train.labels)]
    precision = LedoitWolf(assume_centered=True).fit(centered).precision_

    def score(features: Features) -> Floats:
        gaps = [features - mean for mean in means]
        return np.min([np.einsum("nd,de,ne->n", gap, precision, gap) for gap in gaps], axis=0)

    return score


@dataclass(frozen=True)
class Told:
    """How well one way tells strangers from images of a set."""

    auroc: float
    share: float


def tell(usual: Floats, strange: Floats, limit: float) -> Told:
    """Compare scores."""
    truth = np.repeat([0, 1], [len(usual), len(strange)])
    found = roc_auc_score(truth, np.concatenate([usual, strange]))
    return Told(float(found), float(np.mean(strange > limit)))


def domain_rows(
    sets: Sequence[DataSet], params: EvaluateParams
) -> tuple[list[list[str]], list[list[str]]]:
    """Give the lines of the tables of strangers."""
    rows, each = [], []
    for data in sets:
        train, val, test = data.split(0)
        some = _take(test, np.arange(min(FOREIGN, len(test.labels))))
        own = {name: data.changed(some, change) for name, change in CHANGES.items()}
        own[NOISE] = data.noise(_take(some, np.arange(min(100, len(some.labels)))))
        others = {one.name: one.everything.features[:FOREIGN] for one in sets if one is not data}
        for way, (score, limit) in make_scores(train, val, params.false_alarm).items():
            usual = score(test.features)
            told = {name: tell(usual, score(found), limit) for name, found in others.items()}
            if way == "Mahalanobis":
                each.append([data.name] + [_auroc(told.get(one.name)) for one in sets])
            rows.append(
                [
                    data.name if way == "Mahalanobis" else "",
                    way,
                    f"{100 * np.mean(usual > limit):.1f}",
                    f"{np.mean([one.auroc for one in told.values()]):.3f}, "
                    f"{min(one.auroc for one in told.values()):.3f} "
                    f"({100 * np.mean([one.share for one in told.values()]):.0f})",
                    *(_both(tell(score(some.features), score(own[name]), limit)) for name in own),
                ]
            )
        say(f"{data.name}: strangers")
    return rows, each


def _auroc(told: Told | None) -> str:
    return "-" if told is None else f"{told.auroc:.3f}"


def _both(told: Told) -> str:
    return f"{told.auroc:.3f} ({100 * told.share:.0f})"


def say(words: str) -> None:
    """Tell that something is done."""
    print(words, file=sys.stderr, flush=True)  # noqa: T201


# the page ----------------------------------------------------------------------------------------


def write_page(sets: Sequence[DataSet], options: argparse.Namespace) -> str:
    """Measure and write."""
    params, info = load_params(ROOT / "params.yaml").evaluate, sets[0].pool.info
    intro = INTRO.format(
        strength=STRENGTH, backbone=info.name, px=options.px, train=TRAIN, val=VAL, images=IMAGES,
        splits=options.splits, asked=params.set_coverage,
    )  # fmt: skip
    head = ["set", "kind", "labels held, %", "inside", "class with the least, %"]
    head += ["classes a set", "sets of one, %"]
    named = " ".join(f"--set {name}=..." for name in options.sets)
    command = f"PYTHONPATH=tests python -m bench.unknown {named} --px {options.px}"
    domain = DOMAIN.format(false=params.false_alarm, foreign=FOREIGN, k=NEIGHBORS)
    kinds = ["set", "by", "false alarms, %", "other sets: mean, least", *CHANGES, NOISE]
    held = table(head, list(set_rows(sets, options.splits, params)))
    shifted = table(["set", "unchanged", *CHANGES], list(shifted_rows(sets, params)))
    rows, each = domain_rows(sets, params)
    return "".join(
        [
            f"# Where the model does not know\n\n`{command}` wrote this page.\n\n{intro}\n{held}",
            f"{SHIFTED}{shifted}{domain}{table(kinds, rows)}",
            f"{EACH}{table(['trained on', *(one.name for one in sets)], each)}\n",
        ]
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m bench.unknown", description=__doc__)
    what = "a folder, csv or descriptor"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=SOURCE", help=what)
    parser.add_argument("--px", type=int, default=96, help="side of the images")
    parser.add_argument("--splits", type=int, default=20, help="of each set")
    parser.add_argument("--scratch", type=Path, default=Path(".regraft/bench"), help="is kept")
    parser.add_argument("--out", type=Path, default=OUT, help="the page")
    return parse_sets(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the pools, measure, write the page."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    prepare_memory()
    options = parse(argv)
    values = {"augment.image_px": options.px}
    sets = [
        DataSet(
            name,
            make_pool(
                name,
                source,
                options.scratch / f"pool-{name}-{options.px}",
                sys.executable,
                values=values,
            ),
        )
        for name, source in options.sets.items()
    ]
    options.out.write_text(write_page(sets, options))


if __name__ == "__main__":
    main()
