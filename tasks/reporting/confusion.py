"""The confusion matrix as a figure, and the most frequent mistakes as a list."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from tasks.artifacts.arrays import Ints
from tasks.artifacts.words import printable, shortened
from tasks.errors import ArtifactError
from tasks.reporting.svg import WIDTH, Drawing, element, figure, text, text_width
from tasks.reporting.text import count, percent, plural

MOST_CELLS = 24  # classes of a matrix that is drawn whole
GATHERED_CELLS = 16  # rows where some stand for several classes
MOST_MISTAKES = 15


@dataclass(frozen=True, slots=True)
class Mistake:
    """Images of one class that were given another one; `share` is of the class's images."""

    label: str
    predicted: str
    images: int
    share: float


def count_answers(pairs: Iterable[tuple[str, str]], classes: Sequence[str]) -> Ints:
    """Count pairs of label and answer: int64 (C, C), rows are labels.

    Raises:
        ArtifactError: A name is none of the classes.
    """
    index = {name: number for number, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    try:
        for label, answer in pairs:
            counts[index[label], index[answer]] += 1
    except KeyError as err:
        raise ArtifactError(
            f"test images are of a class {err} that the manifest does not name; run evaluate again"
        ) from err
    return counts


def mistakes(counts: Ints, classes: Sequence[str]) -> list[Mistake]:
    """List the most frequent mistakes of a confusion matrix, int64 (C, C), rows are labels."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_MISTAKES].tolist()
    return [
        Mistake(
            label=classes[row],
            predicted=classes[column],
            images=int(wrong[row, column]),
            share=float(wrong[row, column] / counts[row].sum()),
        )
        for row, column in (divmod(flat, len(classes)) for flat in order)
        if wrong[row, column]
    ]


def matrix(counts: Ints, classes: Sequence[str]) -> Drawing:
    """Draw a confusion matrix, int64 (C, C): rows are labels, shades are shares of the row.

    Of more than MOST_CELLS classes the ones with the most errors are drawn, the others together.
    """
    cells = _gathered(counts, classes) if len(classes) > MOST_CELLS else _Cells(counts, classes)
    names = [shortened(name, 16) for name in cells.names]
    left = min(130.0, 14 + max(map(text_width, names)))
    side = min(92.0, (WIDTH - left - 4) / len(names))
    slanted = side < 10 + max(map(text_width, names))
    top = 28.0 + (min(88.0, left * 0.75) if slanted else 14.0)
    middle = left + side * len(names) / 2
    shapes = [text(middle, 12, "predicted", anchor="middle", kind="axis")]
    for number, name in enumerate(names):
        near = side * (number + 0.5)
        shapes += [
            _column_name(left + near, top - 8, name, slanted=slanted),
            text(left - 8, top + near + 4, name, anchor="end", kind="key"),
            *(cells.draw(number, column, (left, top), side) for column in range(len(names))),
        ]
    label = f"Confusion matrix of {plural(len(classes), 'class', 'classes')}, rows are labels"
    return Drawing(
        figure(top + side * len(names) + 6, label, shapes),
        (("hit", "right"), ("miss", "wrong; darker is a larger share of the row")),
    )


@dataclass(frozen=True)
class _Cells:
    """What a matrix shows; the last row and column stand for several classes if `gathered`."""

    counts: Ints
    names: Sequence[str]
    gathered: bool = False

    def draw(self, row: int, column: int, corner: tuple[float, float], side: float) -> Markup:
        """Draw one cell of a matrix whose upper left corner and side of a cell are given."""
        images = int(self.counts[row, column])
        share = images / max(int(self.counts[row].sum()), 1)
        x, y = corner[0] + side * column, corner[1] + side * row
        words = f"{percent(share)} of the images of {printable(self.names[row])}"
        tip = f"{plural(images, 'image')} called {printable(self.names[column])}: {words}"
        cell = element(
            "rect",
            element("title", tip),
            x=x + 1,
            y=y + 1,
            width=side - 2,
            height=side - 2,
            class_=f"cell {self._kind(row, column)}",
            fill_opacity=0.05 + 0.9 * share if images else 0.03,
        )
        written = _numbers(x + side / 2, y + side / 2, images, share, side) if images else ""
        return Markup("").join([cell, written])

    def _kind(self, row: int, column: int) -> str:
        if row != column:
            return "miss"
        return "mixed" if self.gathered and row == len(self.names) - 1 else "hit"


def _numbers(x: float, y: float, images: int, share: float, side: float) -> Markup:
    """Write images and, where there is room, their share into a cell with this middle."""
    strong = " on-strong" if share > 0.8 else ""
    if side < 6.6 * len(count(images)):
        return Markup("")
    if side < 46:
        return text(x, y + 4, count(images), anchor="middle", kind=f"in-cell{strong}")
    return Markup("").join(
        [
            text(x, y, count(images), anchor="middle", kind=f"in-cell large{strong}"),
            text(x, y + 16, percent(share), anchor="middle", kind=f"in-cell{strong}"),
        ]
    )


def _column_name(x: float, y: float, name: str, *, slanted: bool) -> Markup:
    if not slanted:
        return text(x, y, name, anchor="middle", kind="key")
    turned = Markup('<g transform="translate({:.1f} {:.1f}) rotate(-45)">{}</g>')
    return turned.format(x, y, text(0, 0, name, kind="key"))


def _gathered(counts: Ints, classes: Sequence[str]) -> _Cells:
    """Keep the classes with the most errors and add up the others."""
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    chosen = sorted(np.argsort(-errors, kind="stable")[: GATHERED_CELLS - 1].tolist())
    place = np.full(len(classes), len(chosen))
    place[chosen] = np.arange(len(chosen))
    small = np.zeros((len(chosen) + 1, len(chosen) + 1), dtype=np.int64)
    np.add.at(small, (place[:, None], place[None, :]), counts)
    names = [*(classes[number] for number in chosen), f"{len(classes) - len(chosen)} others"]
    return _Cells(small, names, gathered=True)
