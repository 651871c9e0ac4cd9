"""Figures of training: losses and accuracies over the epochs of all phases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from tasks.records import HistoryRow, Phase
from tasks.reporting.svg import (
    WIDTH,
    Drawing,
    Scale,
    axis_left,
    box,
    curve,
    dot,
    figure,
    line,
    scale_over,
    text,
    text_width,
)
from tasks.reporting.text import given, percent, printable

LEFT, TOP, BOTTOM = 52.0, 46.0, 222.0


@dataclass(frozen=True)
class Measure:
    """What a panel of curves shows: its axis, and how it is read from an epoch."""

    axis: str
    train: Callable[[HistoryRow], float]
    val: Callable[[HistoryRow], float]
    write: Callable[[float], str]
    baseline: float


def loss_curves(history: Sequence[HistoryRow], phases: Sequence[Phase], baseline: float) -> Drawing:
    """Draw train and val loss; `baseline` is the val loss of the frozen baseline."""
    return _panel(
        history,
        phases,
        Measure(
            "cross-entropy loss",
            lambda epoch: epoch.train_loss,
            lambda epoch: epoch.val_loss,
            given,
            baseline,
        ),
    )


def accuracy_curves(
    history: Sequence[HistoryRow], phases: Sequence[Phase], baseline: float
) -> Drawing:
    """Draw train and val accuracy; `baseline` is the val accuracy of the frozen baseline."""
    return _panel(
        history,
        phases,
        Measure(
            "accuracy",
            lambda epoch: epoch.train_accuracy,
            lambda epoch: epoch.val_accuracy,
            lambda value: percent(value, 0),
            baseline,
        ),
    )


def _panel(history: Sequence[HistoryRow], phases: Sequence[Phase], measure: Measure) -> Drawing:
    train, val = (
        [measure.train(epoch) for epoch in history],
        [measure.val(epoch) for epoch in history],
    )
    y_scale = scale_over([*train, *val], BOTTOM, TOP, include=[measure.baseline])
    x_scale = Scale(0.5, len(history) + 0.5, LEFT, WIDTH - 6)
    name = f"{measure.axis} (axis starts at {measure.write(y_scale.low)})"
    height = y_scale(measure.baseline)
    shapes = [
        _bands(history, phases, x_scale),
        axis_left(y_scale, LEFT, WIDTH - 6, name, measure.write),
        line(LEFT, height, WIDTH - 6, height, "line reference"),
        _epoch_axis(history, x_scale),
    ]
    start = 0
    for number, members in groupby(history, key=lambda epoch: epoch.phase):
        spots = range(start, start := start + len(list(members)))
        for values, kind in ((train, "train"), (val, "val")):
            shapes.append(curve([(x_scale(i + 1), y_scale(values[i])) for i in spots], kind))
        best = phases[number - 1].best_epoch if number <= len(phases) else 0
        if 1 <= best <= len(spots):
            spot = spots[best - 1]
            shapes.append(dot(x_scale(spot + 1), y_scale(val[spot]), "best"))
    keys = (
        ("line train", "train"),
        ("line val", "val"),
        ("best", "best epoch of a phase, which is kept"),
        ("line reference", "frozen baseline on val"),
    )
    return Drawing(figure(266, f"{measure.axis} over {len(history)} epochs", shapes), keys)


def _bands(history: Sequence[HistoryRow], phases: Sequence[Phase], scale: Scale) -> Markup:
    """Shade the phases, number them, and say which were rolled back."""
    shapes, start = [], 0
    for number, members in groupby(history, key=lambda epoch: epoch.phase):
        end = start + len(list(members))
        left, right = scale(start + 0.5), scale(end + 0.5)
        phase = phases[number - 1] if number <= len(phases) else None
        lost = phase is not None and not phase.kept
        kind = "band-lost" if lost else f"band-{number % 2}"
        tip = printable(phase.name) if phase else ""
        words = f"phase {number} (rolled back)" if lost else f"phase {number}"
        if text_width(words) > right - left:
            words = str(number)
        shapes += [
            box(left, TOP, right - left, BOTTOM - TOP, kind, tip),
            text((left + right) / 2, TOP - 6, words, anchor="middle", kind="tick"),
        ]
        start = end
    return Markup("").join(shapes)


def _epoch_axis(history: Sequence[HistoryRow], scale: Scale) -> Markup:
    every = -(-len(history) // 16)
    numbers = [
        text(scale(epoch), BOTTOM + 16, str(epoch), anchor="middle", kind="tick")
        for epoch in range(1, len(history) + 1, every)
    ]
    label = text((LEFT + WIDTH) / 2, BOTTOM + 35, "epoch, all phases", anchor="middle", kind="axis")
    return Markup("").join([*numbers, label])
