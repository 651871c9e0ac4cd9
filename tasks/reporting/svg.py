"""The few shapes that the figures are made of, as inline SVG.

Colors are CSS classes of the page, so that figures follow its light and dark theme. Every text is
escaped.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 480  # of every figure, in its own units; the page scales it


@dataclass(frozen=True)
class Drawing:
    """A figure and its legend: (CSS classes of the mark, name), which the page sets as text."""

    svg: Markup
    keys: tuple[tuple[str, str], ...] = ()


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """Build one element; `class_` becomes `class`, `_` in an attribute `-`; None leaves it out.

    Children that are no Markup are escaped.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inner)


def figure(height: float, label: str, children: Iterable[str]) -> Markup:
    """Wrap shapes as a drawing of WIDTH x height units; `label` is what a screen reader says."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {WIDTH} {_plain(height)}",
        class_="figure",
        role="img",
        aria_label=label,
    )


def text(x: float, y: float, content: str, *, anchor: str = "start", kind: str = "") -> Markup:
    """Write text; `anchor` is start, middle or end; `kind` are CSS classes."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=kind or None)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Draw a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def box(x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> Markup:
    """Draw a filled rectangle; `tip` shows when a pointer rests on it."""
    children = [element("title", tip)] if tip else []
    return element("rect", *children, x=x, y=y, width=width, height=height, class_=kind)


def dot(x: float, y: float, kind: str, *, radius: float = 4.5, tip: str = "") -> Markup:
    """Draw a filled circle."""
    children = [element("title", tip)] if tip else []
    return element("circle", *children, cx=x, cy=y, r=radius, class_=kind)


def curve(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """Draw straight lines through points."""
    steps = " ".join(f"{_plain(x)},{_plain(y)}" for x, y in points)
    return element("polyline", points=steps, class_=f"line {kind}")


def cloud(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """Draw many dots as one path of round caps, which keeps the page small."""
    steps = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
    return element("path", d=steps, class_=f"cloud {kind}")


def whisker(
    scale: "Scale", y: float, value: float, bounds: tuple[float, float] | None, kind: str
) -> Markup:
    """Draw a measured number as a dot with its interval as a line with end marks."""
    shapes = [dot(scale(value), y, kind, radius=5)]
    if bounds:
        low, high = scale(bounds[0]), scale(bounds[1])
        shapes.insert(0, line(low, y, high, y, f"interval {kind}"))
        shapes += [line(end, y - 4, end, y + 4, f"interval {kind}") for end in (low, high)]
    return Markup("").join(shapes)


@dataclass(frozen=True)
class Scale:
    """Linear map of values in [low, high] to positions from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Position of a value; values outside are put on the edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the scale, at most `most` of them."""
        step = _round_step((self.high - self.low) / max(most - 1, 1))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def scale_over(
    values: Iterable[float], start: float, end: float, *, include: Iterable[float] = ()
) -> Scale:
    """Build a scale over values, widened to round numbers; `include` values lie on it too."""
    everything = [value for value in (*values, *include) if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(everything), max(everything)
    if high - low < 1e-12:
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / 5)
    return Scale(
        math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end
    )


def axis_below(
    scale: Scale, top: float, bottom: float, label: str, write: Callable[[float], str]
) -> Markup:
    """Draw a horizontal axis: grid lines from `top` to `bottom`, numbers and label below."""
    shapes = []
    for value in scale.ticks():
        shapes.append(line(scale(value), top, scale(value), bottom, "grid"))
        shapes.append(text(scale(value), bottom + 15, write(value), anchor="middle", kind="tick"))
    middle = (scale.start + scale.end) / 2
    shapes.append(text(middle, bottom + 33, label, anchor="middle", kind="axis"))
    return Markup("").join(shapes)


def axis_left(
    scale: Scale, left: float, right: float, label: str, write: Callable[[float], str]
) -> Markup:
    """Draw a vertical axis: grid lines from `left` to `right`, numbers beside, label at the top."""
    shapes = []
    for value in scale.ticks(5):
        shapes.append(line(left, scale(value), right, scale(value), "grid"))
        shapes.append(text(left - 6, scale(value) + 4, write(value), anchor="end", kind="tick"))
    shapes.append(text(2, 12, label, kind="axis"))
    return Markup("").join(shapes)


def text_width(content: str) -> float:
    """Rough width of a text in figure units."""
    return 6.7 * len(content)


def _round_step(step: float) -> float:
    """Smallest of 1, 2, 2.5, 5 and 10 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(
        factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9)
    )


def _plain(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"
