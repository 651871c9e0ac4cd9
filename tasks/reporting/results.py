"""Figures of the test results: models side by side, classes, reliability; always with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path

from markupsafe import Markup

from tasks.artifacts.arrays import read_array
from tasks.artifacts.records import Difference, Estimate, Look, Metrics, Scores
from tasks.artifacts.tables import ClassRow, ReliabilityRow, SuspectRow, read_rows
from tasks.artifacts.words import FROZEN, shortened
from tasks.delivery.explanations import encode
from tasks.errors import ArtifactError
from tasks.reporting.findings import Picture, SuspectLabels
from tasks.reporting.svg import (
    WIDTH,
    Drawing,
    Scale,
    axis_below,
    axis_left,
    dot,
    figure,
    line,
    scale_over,
    text,
    text_width,
    whisker,
)
from tasks.reporting.text import (
    count,
    percent,
    percent_interval,
    plural,
    points,
    points_interval,
)

MOST_CLASSES = 25
SHARES = ("accuracy", "balanced accuracy", "macro-F1")


def shares_of(scores: Scores) -> tuple[Estimate, Estimate, Estimate]:
    """Give the three shares that models are compared by, in the order of SHARES."""
    return scores.accuracy, scores.balanced_accuracy, scores.macro_f1


def comparison(metrics: Metrics, tuned: str) -> Drawing:
    """Draw the shares of baseline and fine-tuned model with intervals; `tuned` names the latter."""
    models = [("baseline", metrics.baseline)]
    if metrics.finetuned:
        models.append(("finetuned", metrics.finetuned))
    drawn = [estimate for _, scores in models for estimate in shares_of(scores)]
    ends = [end for estimate in drawn for end in (estimate.value, *(_bounds(estimate) or ()))]
    scale = _share_scale(ends, 128, WIDTH - 50)
    shapes, y = [], 12.0
    for number, name in enumerate(SHARES):
        shapes.append(text(0, y + 4, name, kind="key strong"))
        for kind, scores in models:
            shapes.append(_measured(scale, y, shares_of(scores)[number], kind))
            y += 19
        if number == 0:
            shapes.append(_measured(scale, y, metrics.majority, "majority"))
            y += 19
        y += 13
    shapes.insert(0, axis_below(scale, 2, y - 8, _share_axis("share of images", scale), _whole))
    names = {"baseline": FROZEN, "finetuned": tuned}
    keys = [(kind, names[kind]) for kind, _ in models] + [("majority", "always the largest class")]
    return Drawing(figure(y + 32, "Test results with intervals", shapes), tuple(keys))


def _measured(scale: Scale, y: float, estimate: Estimate, kind: str) -> Markup:
    """Draw a share with its interval and number; one left of the axis is written only."""
    if estimate.value < scale.low:
        words = f"\N{LEFTWARDS ARROW} {percent(estimate.value)} ({percent_interval(estimate)})"
        return text(scale.start, y + 4, words, kind="tick")
    edge = scale(max(estimate.value, estimate.high or 0))
    return Markup("").join(
        [
            whisker(scale, y, estimate.value, _bounds(estimate), kind),
            text(edge + 8, y + 4, percent(estimate.value), kind="tick"),
        ]
    )


def gains(difference: Difference) -> Drawing:
    """Draw the model of stage finetune minus the baseline in points with intervals, around 0."""
    estimates = (difference.accuracy, difference.balanced_accuracy, difference.macro_f1)
    ends = [end for estimate in estimates for end in (estimate.value, *(_bounds(estimate) or ()))]
    scale = scale_over(ends, 128, WIDTH - 20, include=[0])
    shapes = [
        axis_below(scale, 2, 122, f"points; right of 0: better than the {FROZEN}", points_tick),
        line(scale(0), 2, scale(0), 122, "zero"),
    ]
    for number, (name, estimate) in enumerate(zip(SHARES, estimates, strict=True)):
        y = 22.0 + 38 * number
        words = f"{points(estimate.value)}  ({points_interval(estimate)})"
        shapes += [
            text(0, y + 4, name, kind="key strong"),
            whisker(scale, y, estimate.value, _bounds(estimate), "finetuned"),
            text(scale(estimate.value), y + 19, words, anchor="middle", kind="tick halo"),
        ]
    return Drawing(figure(162, f"Difference to the {FROZEN} with intervals", shapes))


def points_tick(value: float) -> str:
    """Write a share as points of an axis: 0.02 as `+2`."""
    return points(value, 0 if abs(100 * value - round(100 * value)) < 1e-9 else 1)


def weakest(classes: Sequence[ClassRow], most: int) -> list[ClassRow]:
    """Give the rows of all classes, or of the `most` with the lowest recall, in their order."""
    if len(classes) <= most:
        return list(classes)
    found = [row for row in classes if row.recall is not None]
    lowest = sorted(found, key=lambda row: (row.recall, row.class_))[:most]
    kept = {row.class_ for row in lowest}
    return [row for row in classes if row.class_ in kept]


def class_recalls(classes: Sequence[ClassRow]) -> Drawing:
    """Draw the recall of each class with its interval, worst first; of many only the worst."""
    found = [(row.recall, row) for row in classes if row.recall is not None]
    worst = sorted(found, key=lambda pair: (pair[0], pair[1].class_))[:MOST_CLASSES]
    left = min(175.0, 16 + max(text_width(shortened(row.class_, 22)) for _, row in worst))
    scale = _share_scale([row.recall_low for _, row in worst], left, WIDTH - 92)
    bottom = 8.0 + 24 * len(worst)
    shapes = [axis_below(scale, 2, bottom, _share_axis("recall on test", scale), _whole)]
    for number, (value, row) in enumerate(worst):
        y = 17.0 + 24 * number
        of_all = f"{count(round(value * row.n))} of {count(row.n)}"
        shapes += [
            text(left - 10, y + 4, shortened(row.class_, 22), anchor="end", kind="key"),
            whisker(scale, y, value, (row.recall_low, row.recall_high), "finetuned"),
            text(WIDTH, y + 4, of_all, anchor="end", kind="tick"),
        ]
    label = f"Recall of {plural(len(worst), 'class', 'classes')}"
    return Drawing(figure(bottom + 38, label, shapes))


def reliability(bins: Sequence[ReliabilityRow]) -> Drawing:
    """Draw accuracy against confidence, before and after calibration, with intervals."""
    lowest = min(min(b.confidence, b.accuracy_low) for b in bins)
    x_scale = _share_scale([lowest], 52, WIDTH - 14)
    y_scale = _share_scale([lowest], 300, 30)
    shapes = [
        axis_below(x_scale, 30, 300, _share_axis("confidence", x_scale), _whole),
        axis_left(y_scale, 52, WIDTH - 14, _share_axis("accuracy", y_scale), _whole),
        line(x_scale(0), y_scale(0), x_scale(1), y_scale(1), "line reference"),
    ]
    for b in bins:
        x = x_scale(b.confidence)
        kind = "finetuned" if b.calibrated else "baseline"
        spoken = f"confidence {percent(b.confidence)}, accuracy {percent(b.accuracy)}"
        tip = f"{plural(b.n, 'image')}: {spoken}"
        shapes += [
            line(x, y_scale(b.accuracy_low), x, y_scale(b.accuracy_high), f"interval thin {kind}"),
            dot(x, y_scale(b.accuracy), kind, tip=tip),
        ]
    keys = (
        ("baseline", "as trained"),
        ("finetuned", "after temperature scaling"),
        ("line reference", "confidence equals accuracy"),
    )
    return Drawing(figure(340, "Reliability of the probabilities", shapes), keys)


def _share_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """Scale of shares up to 100 %, from a round number below everything drawn."""
    low = min(values)
    step = 0.1 if low < 0.8 else 0.05
    return Scale(max(0.0, floor(low / step - 1e-9) * step), 1.0, start, end)


def _share_axis(name: str, scale: Scale) -> str:
    return name if scale.low == 0 else f"{name} (axis starts at {percent(scale.low, 0)})"


def _whole(value: float) -> str:
    return percent(value, 0)


def _bounds(estimate: Estimate) -> tuple[float, float] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return estimate.low, estimate.high


TEXTURES = {  # statistic of a picture -> name and remark
    "slope": ("Slope of the power spectrum", "0: white noise; about -2: photographs"),
    "entropy": ("Local entropy, bits", "of 32 steps of gray in blocks of 16 px, at most 5"),
    "sharpness": ("Sharpness", "Laplacian over contrast; 4.5: white noise"),
    "chroma": ("Chroma", "largest minus smallest channel, of 255"),
    "even": ("Even areas", "share of neighboring pixels that are the same"),
}


@dataclass(frozen=True, slots=True)
class TextureRow:
    """A row of the table: what is measured, median and range of data and source, share inside."""

    name: str
    remark: str
    data: str
    source: str
    inside: str


def texture_rows(look: Look | None) -> list[TextureRow]:
    """Write the statistics of the pictures; of the source where its card has them."""
    return [
        TextureRow(
            *TEXTURES.get(one.name, (one.name, "")),
            data=_spread(one.median, one.low, one.high),
            source=_spread(one.source_median, one.source_low, one.source_high),
            inside="" if one.inside is None else percent(one.inside, 0),
        )
        for one in (look.texture if look else [])
    ]


def _spread(median: float | None, low: float | None, high: float | None) -> str:
    if median is None or low is None or high is None:
        return ""
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def read_suspects(table: Path, pixels: Path, *, images: int, most: int) -> SuspectLabels:
    """Read a table of suspects and the pictures of the first of them.

    Args:
        table: suspects.csv.
        pixels: suspects.npy, clean views, uint8 (n, R, R, 3), in the order of the table.
        images: How many images were looked at.
        most: So many are shown.

    Raises:
        ArtifactError: A file is missing or damaged, or they do not fit each other.
    """
    rows, views = read_rows(table, SuspectRow), read_array(pixels)
    if len(views) > len(rows) or (rows and not len(views)):
        raise ArtifactError(
            f"{pixels}: {len(views)} pictures for {len(rows)} rows of {table.name}; "
            "run the stage that writes them"
        )
    shown = [
        (row, Picture(pixels, encode(view))) for row, view in zip(rows[:most], views, strict=False)
    ]
    return SuspectLabels(len(rows), images, shown)
