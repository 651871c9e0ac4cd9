"""The page of a benchmark: tables of markdown, every number recomputed from the raw ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from bench.results import ENGINE, FLOW, TIMM_LOOP, Answers, Results, Trial, choose_best
from numpy.typing import NDArray

from tasks.artifacts.records import Estimate
from tasks.judging.statistics import accuracy_interval, paired_accuracy_interval

REGRAFT, FROZEN = "Regraft", "Regraft, frozen head"  # its shipped model, and its baseline
REFERENCES = (REGRAFT, FROZEN)
CONFIDENCE, RESAMPLES, SEED = 0.95, 2000, 0
GIGABYTE = 1e9

Right = NDArray[np.bool_]

HOW = """\
Every method runs in a process of its own, one after the other, with the same threads, packaged
weights, images and splits. A peer follows its documentation; of the learning rates tried (their
number stands below) it gets the one with the best val accuracy. Test images are looked at once, by
the model that val chose. Intervals are 95 %, by groups of images; where there are several seeds,
their test images are pooled and an image counts once however often it was drawn. Wall time is that
of the whole process at the chosen rate; the search is what all rates took. Regraft ships the
fine-tuned model or the frozen head, as it decides without looking at test; its time is that of all
stages after ingest. Its frozen head exists before fine-tuning begins and costs the time until then.
Images/s are those shown while training; for the frozen head, those that go from files to features.
Memory is that of the process tree."""


@dataclass(frozen=True)
class Line:
    """A method over all seeds."""

    method: str
    accuracy: Estimate
    differences: list[Estimate | None]  # to each of REFERENCES
    seconds: float
    search_seconds: float
    images_per_second: float
    peak_bytes: int
    rates: list[float | None]


def summarize(results: Results) -> list[Line]:
    """Summarize each method; Regraft first, differences are against its two models."""
    methods = sorted(
        {one.method for one in results.trials}, key=lambda name: (name not in REFERENCES, name)
    )
    chosen = {method: _chosen(results, method) for method in methods}
    references = [chosen.get(name) for name in REFERENCES]
    return [_line(results, method, chosen[method], references) for method in methods]


def _chosen(results: Results, method: str) -> list[Trial]:
    """The best trial of each seed, in the order of the test sets."""
    own = [trial for trial in results.trials if trial.method == method]
    by_seed = [[trial for trial in own if str(trial.seed) == seed] for seed in results.test_sets]
    return [choose_best(trials) for trials in by_seed if trials]


def _line(
    results: Results,
    method: str,
    chosen: Sequence[Trial],
    references: Sequence[Sequence[Trial] | None],
) -> Line:
    own = [trial for trial in results.trials if trial.method == method]
    right, groups = _right(results.test_sets, chosen)
    return Line(
        method=method,
        accuracy=accuracy_interval(
            right, groups, confidence=CONFIDENCE, resamples=RESAMPLES, seed=SEED
        ),
        differences=[
            _difference(results, chosen, reference) if reference else None
            for reference in references
        ],
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
    """Accuracy minus another method's on the same images.

    None where it is the method itself, or where they have no seed in common.
    """
    if chosen[0].method == reference[0].method:
        return None
    seeds = {trial.seed for trial in chosen} & {trial.seed for trial in reference}
    if not seeds:
        return None
    own, groups = _right(results.test_sets, [one for one in chosen if one.seed in seeds])
    other, _ = _right(results.test_sets, [one for one in reference if one.seed in seeds])
    return paired_accuracy_interval(
        other, own, groups, confidence=CONFIDENCE, resamples=RESAMPLES, seed=SEED
    )


def _share_of_engine(speeds: Mapping[str, float]) -> list[str]:
    """How much of the engine's speed is left from files to features; none where not measured."""
    if not {ENGINE, TIMM_LOOP, FLOW} <= speeds.keys():
        return []
    share, times = speeds[FLOW] / speeds[ENGINE], speeds[FLOW] / speeds[TIMM_LOOP]
    return [
        f"From files to features is {share:.0%} of the engine's speed on pixels in memory and "
        f"{times:.1f} times that of the plain timm loop, which decodes nothing."
    ]


# markdown -----------------------------------------------------------------------------------------


def write_page(results: Results) -> str:
    """Make docs/benchmarks.md."""
    parts = [
        "# Benchmarks",
        f"`{results.command}` wrote this page and `benchmarks.json` beside it.",
        *([results.note] if results.note else []),
    ]
    if results.trials:
        alone = {trial.method for trial in results.trials} <= set(REFERENCES)
        title = "## Frozen head and fine-tuning" if alone else "## Against other libraries"
        parts += [title, HOW, results.data, methods_table(results)]
    if results.speeds:
        rows = [[name, f"{value:,.0f}"] for name, value in results.speeds.items()]
        parts += ["## Speed of the parts", table(["median of three", "a second"], rows)]
        parts += _share_of_engine(results.speeds)
    facts = [[name, value] for name, value in {**results.options, **results.machine}.items()]
    parts += ["## Where and how", table(["fact", "value"], facts)]
    return "\n\n".join(parts) + "\n"


def methods_table(results: Results) -> str:
    """One row a method."""
    header = ["method", "test accuracy, %", *(f"against {name}, points" for name in REFERENCES)]
    header += ["wall time, s", "with search, s", "images/s", "memory, GB", "rate"]
    return table(header, [_cells(line) for line in summarize(results)])


def _cells(line: Line) -> list[str]:
    rates = sorted({f"{rate:g}" for rate in line.rates if rate is not None})
    return [
        line.method,
        _percent(line.accuracy, sign=""),
        *(_percent(one, sign="+") if one else "" for one in line.differences),
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
