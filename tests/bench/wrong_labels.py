"""Plant wrong labels in sets of images, let the audit find them, and see what mending brings.

`PYTHONPATH=tests python -m bench.wrong_labels --help`; writes docs/benchmarks/wrong_labels.md.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from bench.frozen import (
    FrozenSet,
    add_options,
    command_of,
    make_features,
    read_sets,
    scratch_of,
    table,
)
from bench.scratch import ROOT
from sklearn.metrics import roc_auc_score

from tasks.artifacts.arrays import Bools, Ints
from tasks.auditing.held_out import Pool, hold_out
from tasks.auditing.suspects import Suspects, find_suspects
from tasks.heads.features import Labeled
from tasks.heads.linear import choose_linear
from tasks.images.splits import assign_splits
from tasks.judging.statistics import paired_accuracy_interval
from tasks.params import Params

OUT = Path("docs/benchmarks/wrong_labels.md")
ELPV = "data/sources/elpv.yaml"
RATES = (0.0, 0.05, 0.1, 0.2)
FIRST = 100
INTRO = """\
So many labels of train and val, drawn by chance, were replaced by another class, every other class
alike. The audit of `baseline` ranked all of them by margin, from linear heads on frozen features
that saw neither the image nor its group. AUROC: how well the rank tells planted labels from the
others. Then the share of planted labels among the first {first} (where fewer are planted, less
than all can be), how many images confident learning calls suspects, how many of these were planted,
and how many of the planted ones are among them. Labels that were wrong before count as mistakes of
the audit; without planted labels all suspects are such ones or hard images. Means over {seeds}
seeds, each with its own split and noise; about {images} images a set at {px} px.
"""
MENDING = """\
A new linear head, its strength chosen on val, is trained on what is left or mended and tested on
labels that were never touched. *Dropped*: without the suspects. *Relabeled*: suspects get the
likely class, unseen. *Looked at*: suspects get their true label, as from a person who looks at them
and is always right; `data/corrections.csv` does that. Differences are to the noisy labels, in
points, with 95 % intervals by group over the test images of all seeds.
"""
REAL = """\
The raters of ELPV, the packaged set, were not sure of every cell, and its table says of which. They
were unsure of {all:.0%} of the {images:,} cells of train and val, of {suspects:.0%} of the {named}
suspects and of {first:.0%} of the first {count} of them.
"""


@dataclass(frozen=True)
class Found:
    """What the audit did in one trial."""

    planted: int
    auroc: float
    first: float
    suspects: float
    precision: float
    recall: float
    relabeled: float


@dataclass(frozen=True)
class Trial:
    """One set, rate and seed: the audit, and which test images each head has right, (n,)."""

    name: str
    rate: float
    found: Found
    right: dict[str, Bools]
    groups: list[str]


def plant(labels: Ints, rate: float, classes: int, rng: np.random.Generator) -> Ints:
    """Give a share of the labels another class, every other one with the same probability."""
    wrong = rng.permutation(len(labels))[: round(rate * len(labels))]
    noisy = labels.copy()
    noisy[wrong] = (noisy[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return noisy


def measure(data: FrozenSet, params: Params, seed: int) -> Iterator[Trial]:
    """Run all rates on one set."""
    splits = np.array(split_anew(data, params, seed))
    test = splits == "test"
    test_groups = [group for group, held in zip(data.groups, test, strict=True) if held]
    for rate in RATES:
        rng = np.random.default_rng([seed, round(1000 * rate)])
        noisy = data.labels.copy()
        noisy[~test] = plant(data.labels[~test], rate, len(data.classes), rng)
        trainer = Trainer(data, splits, params, seed)
        right = {"noisy": trainer.right(noisy), "clean": trainer.right(data.labels)}
        seen = np.flatnonzero(~test)
        suspects = trainer.audit(noisy, seen)
        named = seen[suspects.images]
        relabeled, looked_at = noisy.copy(), noisy.copy()
        relabeled[named], looked_at[named] = suspects.likely, data.labels[named]
        kept = np.ones(len(noisy), dtype=np.bool_)
        kept[named] = False
        right["dropped"] = trainer.right(noisy, kept)
        right["relabeled"] = trainer.right(relabeled)
        right["looked at"] = trainer.right(looked_at)
        planted = (noisy != data.labels)[seen]
        found = describe(suspects, planted, relabeled[named] == data.labels[named])
        yield Trial(data.name, rate, found, right, test_groups)


def split_anew(data: FrozenSet, params: Params, seed: int) -> Sequence[str]:
    """Cut val and test by group, whatever the source gives."""
    names = [data.classes[label] for label in data.labels]
    ingest = params.ingest.model_copy(update={"small_class": "train_only"})
    given = [None] * len(names)
    return assign_splits(names, data.groups, given, params=ingest, seed=seed).splits


@dataclass
class Trainer:
    """Trains linear heads on a set whose labels change, and audits them as baseline does."""

    data: FrozenSet
    splits: "np.ndarray[tuple[int], np.dtype[np.str_]]"
    params: Params
    seed: int
    strength: float = 0.0

    def right(self, labels: Ints, kept: Bools | None = None) -> Bools:
        """Train on the labels, of the kept images alone, and answer the clean test images."""
        allowed = np.ones(len(labels), dtype=np.bool_) if kept is None else kept
        train, val = (self._part(labels, (self.splits == s) & allowed) for s in ("train", "val"))
        strengths, classes = self.params.baseline.l2_strengths, len(self.data.classes)
        path = choose_linear(train, val, strengths, classes=classes, seed=self.seed)
        self.strength = self.strength or path.chosen.strength  # the first one is of noisy labels
        test = self.splits == "test"
        answers = path.chosen.logits(self.data.features[test]).argmax(axis=1)
        return np.asarray(answers == self.data.labels[test])

    def audit(self, labels: Ints, images: Ints) -> Suspects:
        """Find suspects among some images."""
        pool = Pool([self._part(labels, np.isin(np.arange(len(labels)), images))])
        classes = len(self.data.classes)
        held_out = hold_out(pool, self.strength, classes=classes, seed=self.seed)
        return find_suspects(labels[images], held_out.answers, classes=classes)

    def _part(self, labels: Ints, chosen: Bools) -> Labeled:
        groups = [group for group, one in zip(self.data.groups, chosen, strict=True) if one]
        return Labeled(self.data.features[chosen][:, None], labels[chosen], groups)


def describe(suspects: Suspects, planted: Bools, relabeled: Bools) -> Found:
    """Compare what the audit says with what was planted, bool (N,)."""
    judged = np.flatnonzero(~np.isnan(suspects.margins))
    ranked = judged[np.argsort(suspects.margins[judged], kind="stable")]
    both = planted.any()
    hits = planted[suspects.images]
    return Found(
        planted=int(planted.sum()),
        auroc=float(roc_auc_score(planted[judged], -suspects.margins[judged])) if both else np.nan,
        first=float(planted[ranked[:FIRST]].mean()) if both else np.nan,
        suspects=len(suspects.images) / len(planted),
        precision=float(hits.mean()) if both and len(hits) else np.nan,
        recall=float(hits.sum() / planted.sum()) if both else np.nan,
        relabeled=float(relabeled.mean()) if both and len(hits) else np.nan,
    )


def rate_real_labels(options: argparse.Namespace, params: Params) -> str:
    """Compare the suspects of ELPV with what its raters were unsure of, in a sentence."""
    with scratch_of(options) as scratch:
        values = {"augment.image_px": options.px}
        source = ROOT / ELPV
        data = make_features(source, scratch / f"elpv-{options.px}", images=10**6, values=values)
    splits = np.array(data.splits)
    trainer = Trainer(data, splits, params, params.seed)
    trainer.right(data.labels)
    seen = np.flatnonzero(splits != "test")
    suspects = trainer.audit(data.labels, seen).images
    table = files("elpv_dataset").joinpath("data/labels.csv").read_text().splitlines()
    chances = {path: float(chance) for path, chance, _ in map(str.split, table)}
    unsure = np.array([0 < chances[data.paths[image]] < 1 for image in seen])
    return REAL.format(
        all=unsure.mean(),
        images=len(seen),
        suspects=unsure[suspects].mean(),
        named=len(suspects),
        first=unsure[suspects[:FIRST]].mean(),
        count=FIRST,
    )


# the page ----------------------------------------------------------------------------------------


def write_page(trials: Sequence[Trial], real: str, options: argparse.Namespace) -> str:
    """Write the page."""
    cells: dict[tuple[str, float], list[Trial]] = defaultdict(list)
    for trial in trials:
        cells[trial.name, trial.rate].append(trial)
    facts = {"first": FIRST, "seeds": len(options.seeds), "images": f"{options.images:,}"}
    found = [
        [name, f"{rate:.0%}", *audit_cells([trial.found for trial in some])]
        for (name, rate), some in cells.items()
    ]
    mended = [[name, f"{rate:.0%}", *mending_cells(some)] for (name, rate), some in cells.items()]
    audit = ["set", "planted", "labels", "AUROC", f"first {FIRST}", "suspects", "of them planted"]
    audit += ["planted ones found", "likely class right"]
    mending = ["set", "planted", "clean", "noisy", "dropped", "relabeled", "looked at"]
    return "\n".join(
        [
            "# Wrong labels",
            "",
            f"`{command_of('bench.wrong_labels', options)}` wrote this page.",
            "",
            INTRO.format(**facts, px=options.px),
            table(audit, found),
            "",
            "## What mending brings",
            "",
            MENDING,
            table(mending, mended),
            "",
            "## Real labels",
            "",
            real,
        ]
    )


def audit_cells(found: Sequence[Found]) -> list[str]:
    """Write the means of what the audit did; a dash where nothing was planted."""
    auroc = np.mean([one.auroc for one in found])
    shares = [
        np.mean([getattr(one, name) for one in found])
        for name in ("first", "suspects", "precision", "recall", "relabeled")
    ]
    cells = [f"{100 * share:.0f} %" for share in shares]
    planted = f"{np.mean([one.planted for one in found]):.0f}"
    cells = [planted, f"{auroc:.3f}", *cells]
    return ["-" if cell in ("nan", "nan %") else cell for cell in cells]


def mending_cells(trials: Sequence[Trial]) -> list[str]:
    """Write accuracy on clean and noisy labels, and what each way of mending gains, in points."""
    right = {name: np.concatenate([t.right[name] for t in trials]) for name in trials[0].right}
    groups = [group for trial in trials for group in trial.groups]
    cells = [f"{100 * right[name].mean():.1f} %" for name in ("clean", "noisy")]
    for name in ("dropped", "relabeled", "looked at"):
        gain = paired_accuracy_interval(
            right["noisy"], right[name], groups, confidence=0.95, resamples=2000, seed=0
        )
        bounds = [100 * (number or 0.0) for number in (gain.value, gain.low, gain.high)]
        cells.append(f"{bounds[0]:+.1f} [{bounds[1]:+.1f}, {bounds[2]:+.1f}]")
    return cells


def main() -> None:
    """Measure all sets and seeds, write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.wrong_labels", description=__doc__)
    options = add_options(parser, OUT).parse_args()
    sets, params = read_sets(options)
    real = rate_real_labels(options, params)
    trials = []
    for data in sets:
        for seed in options.seeds:
            trials += list(measure(data, params, seed))
            print(f"{data.name}, seed {seed}", file=sys.stderr, flush=True)  # noqa: T201
            options.out.write_text(write_page(trials, real, options))


if __name__ == "__main__":
    main()
