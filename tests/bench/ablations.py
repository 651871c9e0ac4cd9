"""Try single changes of how fine-tuning is done, on val, one at a time.

`PYTHONPATH=tests python -m bench.ablations --help`. Every result is kept at once in
ablations.csv of the folder --out, a further run goes on from there; `--page` writes a page of what
there is beside the folder, with what kept.md in it says was made of it.
"""

import argparse
import logging
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench.cells import append_row
from bench.decisions import parse_sets, say
from bench.frozen import table
from bench.pools import list_images
from bench.scratch import Copy
from bench.studies import Study
from bench.subsets import ALL, choose_subset
from bench.variants import ARM, BASE, VARIANTS, Result, average_flips, train_variant
from scipy import stats

from tasks.artifacts.tables import read_rows
from tasks.runtime.machine import prepare_memory
from tasks.transferability.arms import IN_WORDS

OUT = Path("docs/benchmarks/ablations")
VAL_SHARE = 10.0  # so that val is all that there is: it is what measures here
CONFIDENCE = 0.95
INTRO = """\
One change at a time, against a base: {views} stored views beside the clean image, label smoothing
{smoothing:g}, rates of the backbone up to {rate:g}, no averaging. {level} training images a class
at {px} px, {arm}, {sets}; seeds {seeds}, each with
its own split and subset. One seed decides nothing. Val is large here, all that a fifth of the
groups holds, because nothing but val may choose: the figures are of the very val that chose epochs
and weights of each variant, which flatters all of them alike.

Differences are to the base of the same set and seed: means over the pairs, with 95 % intervals of
Student's t over them (pairs of one set are no independent samples of sets). Loss is calibrated, in
nats; less is better. *12 stored views* stands for views drawn anew in each epoch: no view is shown
twice in twelve epochs. Operations of torchvision act on the views of the policy, with the defaults
of torchvision. A frozen head changes with its views alone.
"""


@dataclass
class Ablations:
    """One run of the command."""

    options: argparse.Namespace

    def run(self) -> None:
        """Train what is not there yet."""
        done = {(one.pair, one.variant) for one in read_results(self.path)}
        for seed in self.options.seeds:
            for name in self.options.sets:
                for variant in dict.fromkeys([BASE, *self.options.variants]):
                    if ((name, seed, self.options.px), variant) not in done:
                        self.measure(name, seed, variant)

    def measure(self, name: str, seed: int, variant: str) -> None:
        """Train or predict with one variant and keep what it brought."""
        if VARIANTS[variant].flip:
            study = self.open_study(name, seed, BASE)
            if not study.path("finetune/finetune.json").exists():
                train_variant(study, name, BASE)
            result = average_flips(study, name, variant)
        else:
            study = self.start_study(name, seed, variant)
            result = train_variant(study, name, variant)
            if variant != BASE:
                shutil.rmtree(study.root)
        append_row(self.path, result)
        say(f"{name} {seed} {variant}: val {result.accuracy:.3f}, loss {result.loss:.3f}")

    def open_study(self, name: str, seed: int, variant: str) -> Study:
        """Open the study of a variant, or start it."""
        root = self.folder(name, seed, variant)
        ready = (root / "data/finetune/finetune.json").exists()
        return Study(root) if ready else self.start_study(name, seed, variant)

    def start_study(self, name: str, seed: int, variant: str) -> Study:
        """Choose the images of a study and put the values of a variant into its parameters."""
        copy, change = self.open_set(name), VARIANTS[variant]
        rows, level, params = copy.manifest().rows, self.options.level, copy.params().ingest
        subset = choose_subset(rows, level, params, seed=seed, val_share=VAL_SHARE)
        assert subset is not None, f"{name} has fewer than {level} training images a class"
        values = {"seed": seed, **change.values}
        return Study.start(copy, subset.rows(rows), self.folder(name, seed, variant), values)

    def folder(self, name: str, seed: int, variant: str) -> Path:
        """Where the study of a variant lies."""
        number = list(VARIANTS).index(variant)
        return Path(self.options.scratch / f"ablations/{name}-{self.options.px}-{seed}-{number}")

    def open_set(self, name: str) -> Copy:
        """List the images of a set, or find them listed."""
        folder = self.options.scratch / f"listed-{name}-{self.options.px}"
        if (folder / "data/ingest/conversion.json").exists():
            return Copy(folder, sys.executable, {})
        values = {"augment.image_px": self.options.px}
        return list_images(name, self.options.sets[name], folder, sys.executable, values=values)

    @property
    def path(self) -> Path:
        """The table."""
        return Path(self.options.out / "ablations.csv")


def read_results(path: Path) -> list[Result]:
    """Read the table, of each pair and variant the last row; none where there is no file yet."""
    rows = read_rows(path, Result) if path.exists() else []
    return list({(row.pair, row.variant): row for row in rows}.values())


# the page ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences with its interval; the bounds are NaN for a single pair."""

    value: float
    low: float
    high: float


def compare_pairs(differences: Sequence[float]) -> Difference:
    """Give the mean of some differences, with the interval of Student's t."""
    values = np.asarray(differences, dtype=np.float64)
    half = np.nan
    if len(values) > 1:
        error = values.std(ddof=1) / np.sqrt(len(values))
        half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error
    return Difference(
        float(values.mean()), float(values.mean() - half), float(values.mean() + half)
    )


def write_page(results: Sequence[Result], options: argparse.Namespace, command: str) -> str:
    """Write the page."""
    sets = list(dict.fromkeys(one.set for one in results))
    base = VARIANTS[BASE]
    facts = {
        "views": base.views,
        "smoothing": base.smoothing,
        "rate": base.backbone_lr,
        "level": "All" if options.level == ALL else f"About {options.level}",
        "px": options.px,
        "arm": IN_WORDS[ARM],
        "sets": ", ".join(sets),
    }
    facts["seeds"] = ", ".join(map(str, sorted({one.seed for one in results})))
    head = ["variant", "set", "pairs", "val accuracy, points", "loss", "loss of the frozen head"]
    head += ["seconds"]
    rows = [
        [variant if number == 0 else "", *row]
        for variant in VARIANTS
        if variant != BASE
        for number, row in enumerate(_difference_rows(results, variant, sets))
    ]
    parts = ["# Ablations of fine-tuning", f"`{command}` wrote this page."]
    parts += [INTRO.format(**facts).rstrip(), table(head, rows)]
    kept = options.out / "kept.md"
    if kept.exists():
        parts += ["## What was kept", kept.read_text().rstrip()]
    parts += ["## The base", _base(results)]
    return "\n\n".join(parts) + "\n"


def _difference_rows(
    results: Sequence[Result], variant: str, sets: Sequence[str]
) -> list[list[str]]:
    """Write a variant against the base, on all sets and on each; nothing where it was not tried."""
    base = {one.pair: one for one in results if one.variant == BASE}
    pairs = [
        (base[one.pair], one) for one in results if one.variant == variant and one.pair in base
    ]
    parts = [("all", pairs)] if len(sets) > 1 else []
    parts += [(name, [pair for pair in pairs if pair[0].set == name]) for name in sets]
    return [[name, *_describe_pairs(some)] for name, some in parts if some]


def _describe_pairs(pairs: Sequence[tuple[Result, Result]]) -> list[str]:
    accuracy = compare_pairs([100 * (one.accuracy - other.accuracy) for other, one in pairs])
    loss = compare_pairs([one.loss - other.loss for other, one in pairs])
    frozen = compare_pairs([one.frozen_loss - other.frozen_loss for other, one in pairs])
    seconds = np.mean([one.seconds - other.seconds for other, one in pairs if one.seconds] or [0.0])
    shown = [show(accuracy, 1), show(loss, 3), show(frozen, 3)]
    return [str(len(pairs)), *shown, f"{seconds:+.0f}"]


def show(difference: Difference, digits: int) -> str:
    """Write a difference with its interval, where there is one."""
    text = f"{difference.value:+.{digits}f}"
    if np.isnan(difference.low):
        return text
    return f"{text} [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"


def _base(results: Sequence[Result]) -> str:
    """Write what the base reaches."""
    rows = [
        [one.set, str(one.seed), str(one.train_images), str(one.val_images),
         f"{100 * one.frozen_accuracy:.1f}", f"{one.frozen_loss:.3f}",
         "-" if np.isnan(one.overfit) else f"{one.overfit:.1f}",
         f"{100 * one.accuracy:.1f}", f"{one.loss:.3f}", str(one.epochs)]
        for one in results
        if one.variant == BASE
    ]  # fmt: skip
    head = ["set", "seed", "train", "val", "frozen, %", "its loss", "times that on train"]
    return table([*head, "fine-tuned, %", "its loss", "epochs"], rows)


# command line ------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m bench.ablations", description=__doc__)
    what = "a folder, csv or descriptor"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=SOURCE", help=what)
    parser.add_argument("--level", default="60", help="training images a class")
    parser.add_argument("--px", type=int, default=96, help="side of the images")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--scratch", type=Path, default=Path(".regraft/bench"), help="is kept")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the table")
    parser.add_argument("--page", action="store_true", help="write the page and no more")
    return parse_sets(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, or write the page."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    prepare_memory()
    options = parse(argv)
    ablations = Ablations(options)
    if not options.page:
        ablations.run()
        return
    given = " ".join(map(shlex.quote, sys.argv[1:] if argv is None else argv))
    command = f"PYTHONPATH=tests python -m bench.ablations {given}"
    page = options.out.with_suffix(".md")
    page.write_text(write_page(read_results(ablations.path), options, command))


if __name__ == "__main__":
    main()
