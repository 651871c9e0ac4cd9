"""Fine-tune every candidate of `select`: is the one that it names by features the one to take?

`PYTHONPATH=tests python -m bench.backbones --help`. Every result is kept at once in trials.csv of
the folder --out, a further run goes on from there; `--page` writes a page of what there is beside
the folder, with what kept.md in it says was made of it.
"""

import argparse
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench.ablations import compare_pairs, show
from bench.arms import code_of, train_arm, train_frozen
from bench.cells import CellArm, append_row
from bench.decisions import parse_sets, say
from bench.frozen import table
from bench.pools import make_pool
from bench.scratch import ROOT
from bench.studies import Study
from bench.subsets import choose_subset

from tasks.artifacts.records import BackboneChoice
from tasks.artifacts.tables import read_rows
from tasks.params_file import load_params
from tasks.runtime.machine import prepare_memory
from tasks.transferability.ranking import choose_backbone

OUT = Path("docs/benchmarks/backbones")
ARM: CellArm = "most"
INTRO = """\
Every candidate of `select` is fine-tuned (the upper two thirds of the blocks, at the rates that the
rules choose) on {level} training images a class at {px} px, and what val ships of it is tested.
Sets: {sets}; seeds: {seeds}, each with a split and subset of its own, the same for all candidates.

*By features* is what `select` takes: from the cheapest on, a dearer one that surely has the better
features takes its place. *Foreseen* is the difference of accuracy by which it judges, on training
images. Differences are to {first} on the same images, in points of test accuracy: means with 95 %
intervals of Student's t (pairs of one set are no independent samples of sets). Seconds are
processor time of one thread for training, without features.
"""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a candidate brought.

    Attributes:
        set: Name of the set.
        images_per_class: Training images a class: a number or `all`.
        seed: Of split, subset and training.
        px: Side of the images.
        backbone: timm's name.
        code: Fingerprint of what trains.
        train_images: How many; so of test.
        test_images: See there.
        taken: Whether `select` takes it.
        foreseen: Accuracy of ridge regression on its features, of the training images.
        frozen_accuracy: Of the frozen head on test.
        accuracy: Of what ships, on test.
        seconds: Processor time of training.
    """

    set: str
    images_per_class: str
    seed: int
    px: int
    backbone: str
    code: str
    train_images: int
    test_images: int
    taken: bool
    foreseen: float
    frozen_accuracy: float
    accuracy: float
    seconds: float

    @property
    def images(self) -> tuple[str, str, int, int]:
        """What is compared on the same images."""
        return self.set, self.images_per_class, self.seed, self.px


@dataclass
class Trials:
    """One run of the command."""

    options: argparse.Namespace

    def run(self) -> None:
        """Train what is not there yet."""
        options = self.options
        names = load_params(ROOT / "params.yaml").select.candidates
        done = {(one.images, one.backbone) for one in read_trials(self.path)}
        for seed in options.seeds:
            for name in options.sets:
                images = (name, options.level, seed, options.px)
                if all((images, backbone) in done for backbone in names):
                    continue
                choice = self.choose(self.open_study(name, seed, names[0]))
                for backbone in names:
                    if (images, backbone) not in done:
                        self.train(name, seed, backbone, choice)

    def choose(self, study: Study) -> BackboneChoice:
        """Choose as `select` does, by the training images of a study."""
        params = study.params
        return choose_backbone(
            study.manifest,
            study.pixels("train"),
            params.select,
            params.similarity,
            weights=params.backbone.weights,
            seed=params.seed,
        )

    def train(self, name: str, seed: int, backbone: str, choice: BackboneChoice) -> None:
        """Fine-tune a candidate and keep what it brought."""
        study = self.open_study(name, seed, backbone)
        task = (name, self.options.level, seed, self.options.px)
        frozen = train_frozen(study, task)
        tuned = train_arm(study, task, ARM)
        known = next(one for one in choice.ranking if one.name == backbone)
        trial = Trial(
            set=name,
            images_per_class=self.options.level,
            seed=seed,
            px=self.options.px,
            backbone=backbone,
            code=code_of(study.params),
            train_images=tuned.train_images,
            test_images=tuned.test_images,
            taken=backbone == choice.name,
            foreseen=round(known.ridge_accuracy.value, 4),
            frozen_accuracy=frozen.test_accuracy,
            accuracy=tuned.shipped_accuracy,
            seconds=round(frozen.seconds + tuned.seconds, 1),
        )
        append_row(self.path, trial)
        say(f"{name} {seed} {backbone}: {trial.frozen_accuracy:.3f}, {trial.accuracy:.3f}")

    def open_study(self, name: str, seed: int, backbone: str) -> Study:
        """Make or open the study of a candidate."""
        px, level, scratch = self.options.px, self.options.level, self.options.scratch
        values = {"augment.image_px": px, "backbone.name": backbone}
        place = f"{name}-{px}-{backbone}"
        source = self.options.sets[name]
        pool = make_pool(name, source, scratch / f"pool-{place}", sys.executable, values=values)
        subset = choose_subset(pool.rows, level, pool.copy.params().ingest, seed=seed)
        assert subset is not None, f"{name} has fewer than {level} training images a class"
        return Study.make(pool, subset, scratch / f"backbones/{place}-{level}-{seed}", seed=seed)

    @property
    def path(self) -> Path:
        """The table."""
        return Path(self.options.out / "trials.csv")


def read_trials(path: Path) -> list[Trial]:
    """Read the table; nothing where there is none yet."""
    return read_rows(path, Trial) if path.exists() else []


# the page ----------------------------------------------------------------------------------------


def choices_of(trials: Sequence[Trial]) -> dict[str, dict[tuple[str, str, int, int], Trial]]:
    """By its name every choice, and what it brought on the images that all candidates have."""
    by_images: dict[tuple[str, str, int, int], dict[str, Trial]] = defaultdict(dict)
    for trial in trials:
        by_images[trial.images][trial.backbone] = trial
    names = list(dict.fromkeys(trial.backbone for trial in trials))
    whole = {images: all_ for images, all_ in by_images.items() if len(all_) == len(names)}
    choices = {name: {images: all_[name] for images, all_ in whole.items()} for name in names}
    choices["by features"] = {
        images: next(one for one in all_.values() if one.taken) for images, all_ in whole.items()
    }
    return choices


def write_page(trials: Sequence[Trial], command: str, kept: str) -> str:
    """Write the page."""
    choices = choices_of(trials)
    first = next(iter(choices))
    sets = list(dict.fromkeys(trial.set for trial in trials))
    levels = dict.fromkeys(trial.images_per_class for trial in trials)
    intro = INTRO.format(
        level=" and ".join(levels),
        px=" and ".join(map(str, dict.fromkeys(trial.px for trial in trials))),
        sets=", ".join(sets),
        seeds=", ".join(map(str, dict.fromkeys(trial.seed for trial in trials))),
        first=first,
    )
    rows = [
        [name if number == 0 else "", *row]
        for name, chosen in choices.items()
        for number, row in enumerate(_rows_of(chosen, choices[first], sets))
    ]
    head = ["candidate", "set", "trials", "foreseen", "frozen", "shipped", "shipped, %", "seconds"]
    parts = ["# Backbones", f"`{command}` wrote this page.", intro.rstrip(), table(head, rows)]
    if kept:
        parts += ["## What was kept", kept.rstrip()]
    return "\n\n".join(parts) + "\n"


def _rows_of(
    chosen: Mapping[tuple[str, str, int, int], Trial],
    first: Mapping[tuple[str, str, int, int], Trial],
    sets: Sequence[str],
) -> list[list[str]]:
    """A choice against the first candidate: on all sets and on each."""

    def differences(value: Callable[[Trial], float], some: Sequence[Trial]) -> str:
        found = [100 * (value(one) - value(first[one.images])) for one in some]
        return show(compare_pairs(found), 1)

    rows = []
    for name in ("all", *sets):
        some = [one for one in chosen.values() if name in ("all", one.set)]
        if some:
            rows.append([
                name, str(len(some)),
                differences(lambda one: one.foreseen, some),
                differences(lambda one: one.frozen_accuracy, some),
                differences(lambda one: one.accuracy, some),
                f"{100 * np.mean([one.accuracy for one in some]):.1f}",
                f"{np.mean([one.seconds for one in some]):.0f}",
            ])  # fmt: skip
    return rows


# command line ------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m bench.backbones", description=__doc__)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=SOURCE")
    parser.add_argument("--level", default="50", help="training images a class")
    parser.add_argument("--px", type=int, default=160, help="side of the images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--scratch", type=Path, default=Path(".regraft/bench"), help="is kept")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the table")
    parser.add_argument("--page", action="store_true", help="write the page of what there is")
    return parse_sets(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, or write the page."""
    options = parse(argv)
    if options.page:
        path = options.out / "kept.md"
        kept = path.read_text() if path.exists() else ""
        given = shlex.join(sys.argv[1:] if argv is None else argv)
        command = f"PYTHONPATH=tests python -m bench.backbones {given}"
        page = write_page(read_trials(options.out / "trials.csv"), command, kept)
        options.out.with_suffix(".md").write_text(page)
        return
    prepare_memory()
    Trials(options).run()


if __name__ == "__main__":
    main()
