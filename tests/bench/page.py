"""The page of a benchmark: tables of markdown, every number recomputed from the raw ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from bench.results import Answers, Results, Trial, choose_best
from numpy.typing import NDArray

from tasks.records import Estimate
from tasks.statistics import accuracy_interval, paired_accuracy_interval

REGRAFT = "Regraft"
CONFIDENCE, RESAMPLES, SEED = 0.95, 2000, 0
GIGABYTE = 1e9

Right = NDArray[np.bool_]

HOW = """\
Every method runs in a process of its own, one after the other, with the same threads, packaged
weights, images and splits. A peer follows its documentation; of three learning rates it gets the
one with the best val accuracy. Test images are looked at once, by the model that val chose.
Intervals are 95 %, by groups of images; where there are several seeds, their test images are
pooled and an image counts once however often it was drawn. Wall time is that of the whole process
at the chosen rate, for Regraft that of all stages after ingest; the search is what all rates took.
Training images are those shown while training. Memory is that of the process tree."""


@dataclass(frozen=True)
class Line:
    """A method over all seeds."""

    method: str
    accuracy: Estimate
    difference: Estimate | None
    seconds: float
    search_seconds: float
    images_per_second: float
    peak_bytes: int
    rates: list[float | None]


def summarize(results: Results) -> list[Line]:
    """Summarize each method; Regraft first, differences are against it."""
    methods = sorted(
        {one.method for one in results.trials}, key=lambda name: (name != REGRAFT, name)
    )
    chosen = {method: _chosen(results, method) for method in methods}
    reference = chosen.get(REGRAFT)
    return [
        _line(results, method, chosen[method], reference if method != REGRAFT else None)
        for method in methods
    ]


def _chosen(results: Results, method: str) -> list[Trial]:
    """The best trial of each seed, in the order of the test sets."""
    own = [trial for trial in results.trials if trial.method == method]
    by_seed = [[trial for trial in own if str(trial.seed) == seed] for seed in results.test_sets]
    return [choose_best(trials) for trials in by_seed if trials]


def _line(
    results: Results, method: str, chosen: Sequence[Trial], reference: Sequence[Trial] | None
) -> Line:
    own = [trial for trial in results.trials if trial.method == method]
    right, groups = _right(results.test_sets, chosen)
    return Line(
        method=method,
        accuracy=accuracy_interval(
            right, groups, confidence=CONFIDENCE, resamples=RESAMPLES, seed=SEED
        ),
        difference=_difference(results, chosen, reference) if reference else None,
        seconds=float(np.mean([trial.seconds for trial in chosen])),
        search_seconds=sum(trial.seconds for trial in own) / len(chosen),
        images_per_second=float(np.mean([trial.images_per_second for trial in chosen])),
        peak_bytes=max(trial.peak_bytes for trial in chosen),
        rates=[trial.rate for trial in chosen],
    )


def _right(test_sets: dict[str, Answers], chosen: Sequence[Trial]) -> tuple[Right, list[str]]:
    """Whether each test image of all seeds was classified correctly, and its group."""
    sets = [test_sets[str(trial.seed)] for trial in chosen]
    pairs = zip(chosen, sets, strict=True)
    right = [np.array(trial.predictions) == np.array(one.labels) for trial, one in pairs]
    return np.concatenate(right), [group for one in sets for group in one.groups]


def _difference(
    results: Results, chosen: Sequence[Trial], reference: Sequence[Trial]
) -> Estimate | None:
    """Accuracy minus Regraft's on the same images; None where they have no seed in common."""
    seeds = {trial.seed for trial in chosen} & {trial.seed for trial in reference}
    if not seeds:
        return None
    own, groups = _right(results.test_sets, [one for one in chosen if one.seed in seeds])
    other, _ = _right(results.test_sets, [one for one in reference if one.seed in seeds])
    return paired_accuracy_interval(
        other, own, groups, confidence=CONFIDENCE, resamples=RESAMPLES, seed=SEED
    )


# markdown -----------------------------------------------------------------------------------------


def write_page(results: Results) -> str:
    """Make docs/benchmarks.md."""
    parts = [
        "# Benchmarks",
        f"`{results.command}` wrote this page and `benchmarks.json` beside it.",
    ]
    if results.trials:
        parts += ["## Against other libraries", HOW, results.data, methods_table(results)]
    if results.speeds:
        rows = [[name, f"{value:,.0f}"] for name, value in results.speeds.items()]
        parts += ["## Speed of the parts", table(["what", "a second"], rows)]
    facts = [[name, value] for name, value in {**results.options, **results.machine}.items()]
    parts += ["## Where and how", table(["fact", "value"], facts)]
    return "\n\n".join(parts) + "\n"


def methods_table(results: Results) -> str:
    """One row a method."""
    header = ["method", "test accuracy, %", "against Regraft, points", "wall time, s"]
    header += ["with search, s", "training images/s", "memory, GB", "rate"]
    return table(header, [_cells(line) for line in summarize(results)])


def _cells(line: Line) -> list[str]:
    rates = sorted({f"{rate:g}" for rate in line.rates if rate is not None})
    return [
        line.method,
        _percent(line.accuracy, sign=""),
        _percent(line.difference, sign="+") if line.difference else "",
        f"{line.seconds:,.0f}",
        f"{line.search_seconds:,.0f}",
        f"{line.images_per_second:,.1f}",
        f"{line.peak_bytes / GIGABYTE:.1f}",
        ", ".join(rates) or "its own",
    ]


def _percent(estimate: Estimate, *, sign: str) -> str:
    low, high = estimate.low, estimate.high
    assert low is not None
    assert high is not None
    value, low, high = (f"{100 * number:{sign}.1f}" for number in (estimate.value, low, high))
    return f"{value} [{low}, {high}]"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a table of markdown; a bar inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
    )
