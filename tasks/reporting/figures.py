"""Figures: classes, ruler, shift by layer, projection, and the curves of training.

Bars start at 0; every other axis says where it starts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from tasks.artifacts.records import SPLITS, Distance, GroupShift, KnownSet, Phase
from tasks.artifacts.tables import HistoryRow, PlaneRow, ShiftRow
from tasks.artifacts.words import FROZEN, printable, shortened
from tasks.reporting.svg import (
    WIDTH,
    Drawing,
    Scale,
    axis_below,
    axis_left,
    box,
    cloud,
    curve,
    dot,
    figure,
    line,
    scale_over,
    text,
    text_width,
    whisker,
)
from tasks.reporting.text import amount, count, fixed, given, percent, plural

MOST_BARS = 20
MOST_COLORS = 8
MOST_PLACES = 6_000
LONGEST_LABEL, LONGEST_OF_RULER = 22, 34  # characters
SPLIT_KINDS = ("split-train", "split-val", "split-test")


def class_bars(class_counts: Mapping[str, Mapping[str, int]]) -> Drawing:
    """Draw the images of each class as a bar of its splits, largest class first.

    Of more than MOST_BARS classes the largest and the smallest half are shown.
    """
    totals = {name: sum(counts.values()) for name, counts in class_counts.items()}
    names = sorted(totals, key=lambda name: (-totals[name], name))
    left_out = max(0, len(names) - MOST_BARS)
    if left_out:
        names = names[: MOST_BARS // 2] + names[-MOST_BARS // 2 :]
    left = _label_room(names)
    scale = scale_over(totals.values(), left, WIDTH - 48, include=[0])
    shapes, y = [], 2.0
    for number, name in enumerate(names):
        if left_out and number == MOST_BARS // 2:
            gap = f"{plural(left_out, 'class', 'classes')} between these not shown"
            shapes.append(text(left, y + 14, gap, kind="tick"))
            y += 24
        shapes.append(
            text(left - 8, y + 14, shortened(name, LONGEST_LABEL), anchor="end", kind="key")
        )
        shapes.append(_stacked(scale, y, class_counts[name]))
        shapes.append(text(scale(totals[name]) + 6, y + 14, count(totals[name]), kind="tick"))
        y += 24
    label = f"Images of {plural(len(totals), 'class', 'classes')} by split"
    return Drawing(figure(y + 2, label, shapes), tuple(zip(SPLIT_KINDS, SPLITS, strict=True)))


def _label_room(names: Sequence[str], longest: int = LONGEST_LABEL) -> float:
    return min(8.0 * longest, 14 + max(text_width(shortened(name, longest)) for name in names))


def _stacked(scale: Scale, y: float, counts: Mapping[str, int]) -> Markup:
    bars, start = [], 0
    for split, kind in zip(SPLITS, SPLIT_KINDS, strict=True):
        images = counts.get(split, 0)
        x, end = scale(start), scale(start + images)
        bars.append(box(x, y + 1, end - x, 18, kind, f"{split}: {plural(images, 'image')}"))
        start += images
    return Markup("").join(bars)


def ruler(known: Sequence[KnownSet], name: str, ours: Distance) -> Drawing:
    """Draw where this data lies among known data sets, by the MMD^2 that says domains.

    Args:
        known: The known data sets, measured with the same backbone.
        name: What this data set is called.
        ours: Its matched MMD^2 with interval.
    """
    others = [(other.distance, other.name.partition(" (")[0], False) for other in known]
    rows = sorted([*others, (ours.value, name, True)])
    left = _label_room([label for _, label, _ in rows], LONGEST_OF_RULER)
    values = [value for value, _, _ in rows]
    scale = scale_over([*values, ours.high], left, WIDTH - 56, include=[0])
    bottom = 14.0 + 25 * len(rows)
    shapes = [
        axis_below(
            scale, 8, bottom, "MMD² to the source images that fit best (0: same domain)", given
        )
    ]
    for number, (value, label, is_ours) in enumerate(rows):
        y, strong = 24.0 + 25 * number, " strong" if is_ours else ""
        bounds = (ours.low, ours.high) if is_ours else None
        edge = scale(max(ours.high, value) if is_ours else value)
        shapes += [
            text(
                left - 10,
                y + 4,
                shortened(label, LONGEST_OF_RULER),
                anchor="end",
                kind=f"key{strong}",
            ),
            whisker(scale, y, value, bounds, "finetuned" if is_ours else "known"),
            text(edge + 9, y + 4, fixed(value), kind=f"tick{strong}"),
        ]
    label = f"MMD of {printable(name)} among {plural(len(known), 'known data set')}"
    return Drawing(figure(bottom + 40, label, shapes))


def shift_profile(name: str, layers: Sequence[ShiftRow], groups: Sequence[GroupShift]) -> Drawing:
    """Draw the shift of each layer as a bar from 0, in forward order, and means of groups."""
    means = {group.group: group.value for group in groups}
    left, bottom = 48.0, 190.0
    scale = scale_over(
        [*(layer.shift for layer in layers), *means.values()], bottom, 28, include=[0]
    )
    step = (WIDTH - left - 6) / len(layers)
    shapes = [axis_left(scale, left, WIDTH - 6, "shift (0: as in pretraining)", given)]
    x = left
    for number, (group, members) in enumerate(groupby(layers, key=lambda layer: layer.group)):
        start = x
        for layer in members:
            top = scale(layer.shift)
            tip = f"{printable(layer.layer)}: {amount(layer.shift)}"
            shapes.append(
                box(x + step * 0.12, top, step * 0.76, bottom - top, f"bar-{number % 2}", tip)
            )
            x += step
        if group in means:
            height = scale(means[group])
            shapes.append(line(start + 1, height, x - 1, height, "mean"))
        shapes.append(text((start + x) / 2, 206, str(number), anchor="middle", kind="tick"))
    axis = "group of layers, from input to output"
    shapes.append(text((left + WIDTH) / 2, 225, axis, anchor="middle", kind="axis"))
    return Drawing(
        figure(232, f"{name} of {plural(len(layers), 'layer')}", shapes),
        (("bar-0", "layer (groups alternate)"), ("line mean", "mean of its group")),
    )


def projection(places: Sequence[PlaneRow], classes: Sequence[str]) -> Drawing:
    """Draw images as dots in the plane of the projected features: source gray, data by class.

    More classes than MOST_COLORS share one color; of very many images, every n-th is shown.
    """
    shown = places[:: -(-len(places) // MOST_PLACES)]
    x_scale = scale_over([place.x for place in shown], 10, WIDTH - 10)
    y_scale = scale_over([place.y for place in shown], 330, 10)
    shapes, keys = [box(1, 1, WIDTH - 2, 338, "frame")], []
    for kind, name, members in _layers_of(shown, classes):
        if members:
            shapes.append(cloud([(x_scale(place.x), y_scale(place.y)) for place in members], kind))
            keys.append((kind, name))
    label = f"Features of {plural(len(shown), 'image')} projected to two dimensions"
    return Drawing(figure(340, label, shapes), tuple(keys))


def _layers_of(
    places: Sequence[PlaneRow], classes: Sequence[str]
) -> list[tuple[str, str, list[PlaneRow]]]:
    source = [place for place in places if place.set == "source"]
    target = [place for place in places if place.set != "source"]
    if len(classes) > MOST_COLORS:
        return [("source", "source images", source), ("series-0", "this data", target)]
    return [("source", "source images", source)] + [
        (f"series-{number}", name, [place for place in target if place.label == name])
        for number, name in enumerate(classes)
    ]


LEFT, TOP, BOTTOM = 52.0, 46.0, 222.0
DASH = 10.0  # width of a curve of one point


@dataclass(frozen=True)
class Measure:
    """What a panel of curves shows: its axis, and how it is read from an epoch."""

    axis: str
    train: Callable[[HistoryRow], float]
    val: Callable[[HistoryRow], float]
    write: Callable[[float], str]
    baseline: float


def loss_curves(history: Sequence[HistoryRow], phases: Sequence[Phase], baseline: float) -> Drawing:
    """Draw train and val loss; `baseline` is the calibrated val loss of the frozen baseline."""
    return _panel(
        history,
        phases,
        Measure(
            "cross-entropy loss; of val, calibrated",
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
            points = [(x_scale(i + 1), y_scale(values[i])) for i in spots]
            if len(points) == 1:  # a dash, where a curve of one point would not be seen
                points = [(points[0][0] + aside, points[0][1]) for aside in (-DASH / 2, DASH / 2)]
            shapes.append(curve(points, kind))
        phase = phases[number - 1] if number <= len(phases) else None
        if phase is not None and phase.kept and 1 <= phase.best_epoch <= len(spots):
            spot = spots[phase.best_epoch - 1]
            shapes.append(dot(x_scale(spot + 1), y_scale(val[spot]), "best"))
    keys = (
        ("line train", "train"),
        ("line val", "val"),
        ("best", "best epoch of a phase, which is kept"),
        ("line reference", f"{FROZEN} on val"),
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
