"""Figures of training: losses and accuracies over the epochs of all phases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from tasks.records import Phase
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
)
from tasks.reporting.tables import Epoch
from tasks.reporting.text import given, percent, printable, shortened

LEFT, TOP, BOTTOM = 52.0, 46.0, 222.0


@dataclass(frozen=True)
class Measure:
    """What a panel of curves shows: its axis, and how it is read from an epoch."""

    axis: str
    train: Callable[[Epoch], float]
    val: Callable[[Epoch], float]
    write: Callable[[float], str]
    baseline: float


def loss_curves(history: Sequence[Epoch], phases: Sequence[Phase], baseline: float) -> Drawing:
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


def accuracy_curves(history: Sequence[Epoch], phases: Sequence[Phase], baseline: float) -> Drawing:
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


def _panel(history: Sequence[Epoch], phases: Sequence[Phase], measure: Measure) -> Drawing:
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
    for phase, members in groupby(history, key=lambda epoch: epoch.phase):
        spots = range(start, start := start + len(list(members)))
        for values, kind in ((train, "train"), (val, "val")):
            shapes.append(curve([(x_scale(i + 1), y_scale(values[i])) for i in spots], kind))
        shapes += [
            dot(
                x_scale(spots[record.best_epoch - 1] + 1),
                y_scale(val[spots[record.best_epoch - 1]]),
                "best",
            )
            for record in phases
            if record.name == phase and 1 <= record.best_epoch <= len(spots)
        ]
    keys = (
        ("line train", "train"),
        ("line val", "val"),
        ("best", "best epoch of a phase, which is kept"),
        ("line reference", "frozen baseline on val"),
    )
    return Drawing(figure(266, f"{measure.axis} over {len(history)} epochs", shapes), keys)


def _bands(history: Sequence[Epoch], phases: Sequence[Phase], scale: Scale) -> Markup:
    """Shade the phases, name them, and say which were rolled back."""
    kept = {phase.name: phase.kept for phase in phases}
    shapes, start = [], 0
    for number, (name, members) in enumerate(groupby(history, key=lambda epoch: epoch.phase)):
        end = start + len(list(members))
        left, right = scale(start + 0.5), scale(end + 0.5)
        kind = "band-lost" if not kept.get(name, True) else f"band-{number % 2}"
        shapes.append(box(left, TOP, right - left, BOTTOM - TOP, f"band {kind}", printable(name)))
        room = int((right - left) / 6)
        words = name if kept.get(name, True) else f"{name} (rolled back)"
        shapes.append(
            text(
                (left + right) / 2,
                TOP - 6,
                shortened(words, max(room, 2)),
                anchor="middle",
                kind="tick",
            )
        )
        start = end
    return Markup("").join(shapes)


def _epoch_axis(history: Sequence[Epoch], scale: Scale) -> Markup:
    every = -(-len(history) // 16)
    numbers = [
        text(scale(epoch), BOTTOM + 16, str(epoch), anchor="middle", kind="tick")
        for epoch in range(1, len(history) + 1, every)
    ]
    label = text((LEFT + WIDTH) / 2, BOTTOM + 35, "epoch, all phases", anchor="middle", kind="axis")
    return Markup("").join([*numbers, label])
