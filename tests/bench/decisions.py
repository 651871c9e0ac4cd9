"""Try every way to transfer on many sets and numbers of images, and judge the decision by it.

`make bench-decisions`, or `PYTHONPATH=tests python -m bench.decisions --help`. Every result is kept
at once in docs/benchmarks/decisions/, and a further run goes on from there; `--page` alone writes
docs/decisions.md of what there is.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.arms import train_arm, train_frozen
from bench.cells import (
    ARMS,
    CellArm,
    Said,
    Task,
    append_row,
    nearest_arm,
    read_cells,
    read_said,
)
from bench.decisions_page import write_page
from bench.pools import Pool, make_pool
from bench.scratch import parse_value, set_values
from bench.studies import Study, read_graph
from bench.subsets import ALL, choose_subset

from tasks.artifacts.records import BackboneInfo, Decision, Similarity, read_record
from tasks.runtime.machine import prepare_memory

OUT = Path("docs/benchmarks/decisions")
PAGE = Path("docs/decisions.md")
COMMAND = "make bench-decisions BENCH='--set NAME=SOURCE ...'"
LEVELS = ("10", "50", "200", ALL)
BEFORE = ("check", "ingest", "augment", "select", "extract", "audit")  # made, or not needed
SCRATCH: tuple[CellArm, ...] = ("scratch",)
TRANSFER = tuple(arm for arm in ARMS if arm not in SCRATCH)

log = logging.getLogger(__name__)


def order_work(
    names: Sequence[str], levels: Sequence[str], seeds: Sequence[int], px: int
) -> list[tuple[Task, CellArm]]:
    """Order all that is to be trained so that what was done first tells most.

    First few images with one seed, on all sets, then few images with the other seeds, then more
    images. Training from scratch takes longest and wins least, so it comes late.
    """
    few, more, first, later = levels[:2], levels[2:], seeds[:1], seeds[1:]
    stretches = [
        (first, few, TRANSFER),
        (later, few, TRANSFER),
        (first, few, SCRATCH),
        *((first, [level], TRANSFER) for level in more),
        (first, more, SCRATCH),
        (later, more, TRANSFER),
        (later, levels, SCRATCH),
    ]
    return [
        ((name, level, seed, px), arm)
        for some_seeds, some_levels, arms in stretches
        for seed in some_seeds
        for level in some_levels
        for name in names
        for arm in arms
    ]


@dataclass
class Bench:
    """One run of the command."""

    options: argparse.Namespace

    def run(self) -> int:
        """Train what is not there yet; give the number of what failed."""
        done = {(cell.task, cell.arm) for cell in read_cells(self.cells)}
        said = {one.task for one in read_said(self.said) if one.decider == self.options.decider}
        options, failed = self.options, 0
        for task, arm in order_work(list(options.sets), options.levels, options.seeds, options.px):
            if arm not in options.arms or ((task, arm) in done and task in said):
                continue
            try:
                study = self.open_study(task)
                if study is not None and (task, arm) not in done:
                    self.train(study, task, arm)
                if study is not None and task not in said:
                    self.decide(study, task)
                    said.add(task)
            except Exception:  # one that fails must not cost a night
                failed += 1
                log.exception("%s %s failed", task, arm)
        return failed

    def train(self, study: Study, task: Task, arm: CellArm) -> None:
        """Train an arm and keep what it brought."""
        if arm != "frozen" and not study.path("baseline/baseline.json").exists():
            study.run("baseline")
        cell = train_frozen(study, task) if arm == "frozen" else train_arm(study, task, arm)
        append_row(self.cells, cell)
        say(f"{' '.join(map(str, task))} {arm}: test {cell.test_accuracy:.3f}, {cell.seconds} s")

    def decide_again(self) -> None:
        """Let the rules of this checkout decide on every task that has cells."""
        options = self.options
        said = {one.task for one in read_said(self.said) if one.decider == options.decider}
        for task in dict.fromkeys(cell.task for cell in read_cells(self.cells)):
            study = Study(self.study_folder(task))
            asked = task[1] in options.levels and task not in said
            if asked and study.root.exists():
                self.decide(study, task)

    def decide(self, study: Study, task: Task) -> None:
        """Decide beside a study and keep what was said."""
        decider = self.options.decider
        folder = self.options.scratch / "decided" / decider / study.root.name
        fork = study.fork(folder)
        set_values(fork.root / "params.yaml", dict(map(parse_value, self.options.values)))
        said = decide(fork, task, decider)
        append_row(self.said, said)
        say(f"{' '.join(map(str, task))}: {decider} chose {said.arm} ({said.confidence})")

    def study_folder(self, task: Task) -> Path:
        """Where the study of a task lies."""
        name, level, seed, px = task
        return Path(self.options.scratch / "studies" / f"{name}-{px}-{level}-{seed}")

    def open_study(self, task: Task) -> Study | None:
        """Make or open the study of a task; None where the set has too few images for it."""
        name, level, seed, _ = task
        pool = self.open_pool(name)
        subset = choose_subset(pool.rows, level, pool.copy.params().ingest, seed=seed)
        root = self.study_folder(task)
        return None if subset is None else Study.make(pool, subset, root, seed=seed)

    def open_pool(self, name: str) -> Pool:
        """Make or open the pool of a set."""
        px, scratch = self.options.px, self.options.scratch
        values = {"augment.image_px": px}
        source = self.options.sets[name]
        return make_pool(name, source, scratch / f"pool-{name}-{px}", sys.executable, values=values)

    @property
    def cells(self) -> Path:
        """The table of arms."""
        return Path(self.options.out / "cells.csv")

    @property
    def said(self) -> Path:
        """The table of decisions."""
        return Path(self.options.out / "evidence.csv")


def decide(study: Study, task: Task, decider: str) -> Said:
    """Run the stages that a decision rests on, and note what it knew and said."""
    took = {stage: study.run(stage) for stage in [*stages_before("decide"), "decide"]}
    seconds = sum(took.values()) - took.get("baseline", 0.0)
    similarity = read_record(study.path("similarity/similarity.json"), Similarity)
    decision = read_record(study.path("decide/decision.json"), Decision)
    groups = read_record(study.path("extract/backbone.json"), BackboneInfo).groups
    name, level, seed, px = task
    mmd = similarity.mmd
    return Said(
        set=name,
        images_per_class=level,
        seed=seed,
        px=px,
        decider=decider,
        images=len(study.manifest.of("train")),
        classes=len(study.manifest.class_names),
        groups=len(groups),
        mmd=mmd and round(mmd.value, 4),
        mmd_p_value=mmd and round(mmd.p_value, 4),
        shift=similarity.shift and round(similarity.shift.value, 4),
        gain=round(similarity.transfer_gain.value, 4),
        ridge_accuracy=round(similarity.ridge_accuracy.value, 4),
        domain=decision.domain,
        chosen=decision.arm,
        cuts=" ".join(map(str, decision.phases)),
        arm=nearest_arm(decision.arm, decision.phases, [group.blocks for group in groups]),
        confidence=decision.confidence,
        seconds=round(seconds, 1),
    )


def stages_before(stage: str) -> list[str]:
    """Stages after extract that a stage depends on, in their order."""
    graph = read_graph()
    made = {out: name for name, one in graph.items() for out in _outs(one)}
    needed: set[str] = set()
    open_stages = [stage]
    while open_stages:
        found = {made[dep] for dep in graph[open_stages.pop()]["deps"] if dep in made}
        open_stages += sorted(found - needed - set(BEFORE))
        needed |= found
    return [name for name in graph if name in needed - set(BEFORE)]


def _outs(stage: dict[str, object]) -> list[str]:
    """Paths that a stage writes, those with options included."""
    listed = [one for kind in ("outs", "metrics", "plots") for one in stage.get(kind, [])]  # type: ignore[attr-defined]
    return [path for one in listed for path in (one if isinstance(one, dict) else [one])]


# command line ------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m bench.decisions", description=__doc__)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="a folder, csv or descriptor; corrupt:SOURCE corrupts its images",
    )
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), help="training images a class")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="trained")
    parser.add_argument("--px", type=int, default=96, help="side of the images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--decider", default="today", help="name of the rules that decide")
    parser.add_argument(
        "--values", nargs="+", default=[], metavar="KEY=VALUE", help="of params.yaml, to decide by"
    )
    parser.add_argument("--decide-only", action="store_true", help="train nothing")
    parser.add_argument("--page", action="store_true", help="write docs/decisions.md and no more")
    parser.add_argument("--scratch", type=Path, default=Path(".regraft/bench"), help="is kept")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the tables")
    return parse_sets(parser, argv)


def parse_sets(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Read options with --set and --scratch; `sets` has the sources by name, paths are absolute."""
    options = parser.parse_args(argv)
    pairs = (one.partition("=") for one in options.set)
    options.sets = {name: absolute(source) for name, _, source in pairs}
    options.scratch = options.scratch.absolute()
    return options


def absolute(source: str) -> str:
    """Make the path of a source absolute."""
    before, colon, path = source.rpartition(":")
    return f"{before}{colon}{Path(path).absolute()}"


def say(text: str) -> None:
    """Tell what was done."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)  # noqa: T201


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    prepare_memory()
    bench = Bench(parse(argv))
    if bench.options.page:
        path = bench.options.out / "kept.md"
        kept = path.read_text() if path.exists() else ""
        PAGE.write_text(write_page(read_cells(bench.cells), read_said(bench.said), COMMAND, kept))
        return 0
    if bench.options.decide_only:
        bench.decide_again()
        return 0
    return int(bench.run() > 0)


if __name__ == "__main__":
    sys.exit(main())
