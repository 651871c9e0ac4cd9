"""How templates are read and write numbers and names, and figures as files of their own."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.artifacts import words
from tasks.reporting import svg, text
from tasks.reporting.svg import WIDTH, Drawing, element, text_width


def make_environment(
    filters: Mapping[str, Callable[[str], str]], *, autoescape: bool
) -> Environment:
    """Build the environment of the templates; an unknown name in one is an error.

    Args:
        filters: Further filters by name.
        autoescape: Whether every value is escaped for html.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "amount": text.amount,
        "amount_interval": text.amount_interval,
        "arm": words.ARMS.__getitem__,
        "count": text.count,
        "domain_words": words.say_domain,
        "given": text.given,
        "listed": words.listed,
        "p_value": text.p_value,
        "percent": text.percent,
        "percent_interval": text.percent_interval,
        "percent_range": text.percent_range,
        "plural": text.plural,
        "points": text.points,
        "points_interval": text.points_interval,
        "printable": words.printable,
        "sentence": text.sentence,
        "sets_words": words.say_sets,
        "size": text.size,
        **filters,
    }
    return environment


MARGIN, LINE = 16.0, 20.0


def picture(drawings: Sequence[tuple[str, Drawing]]) -> str:
    """Draw figures below each other as one SVG file, each with its title and its legend.

    Args:
        drawings: (title, figure).
    """
    shapes, y = [], MARGIN
    for title, drawing in drawings:
        shapes.append(svg.text(MARGIN, y + 12, title, kind="strong"))
        legend, y = _legend(drawing, y + 1.6 * LINE)
        height = _height(drawing.svg)
        shapes += [legend, _placed(drawing.svg, y, height)]
        y += height + LINE
    style = make_environment({}, autoescape=False).get_template("report.css.jinja").render()
    whole = ".figure { max-width: none; width: auto; }"
    return str(
        element(
            "svg",
            element("style", Markup(style + whole)),
            Markup('<rect width="100%" height="100%" style="fill: var(--paper)"></rect>'),
            *shapes,
            xmlns="http://www.w3.org/2000/svg",
            class_="figure",
            viewBox=f"0 0 {WIDTH + 2 * MARGIN:g} {y:g}",
            width=f"{WIDTH + 2 * MARGIN:g}",
            height=f"{y:g}",
        )
    )


def _legend(drawing: Drawing, y: float) -> tuple[Markup, float]:
    """Draw the marks and their names in a row, or more; give the place below them too."""
    shapes, x = [], MARGIN
    for kind, name in drawing.keys:
        if x > MARGIN and x + LINE + text_width(name) > WIDTH + MARGIN:
            x, y = MARGIN, y + LINE
        if "line" in kind:
            mark = element("line", x1=x, y1=y - 4, x2=x + 14, y2=y - 4, class_=kind)
        else:
            mark = element("circle", cx=x + 7, cy=y - 4, r=4.5, class_=kind)
        shapes += [mark, svg.text(x + LINE, y, name)]
        x += LINE + text_width(name) + LINE
    return Markup("").join(shapes), y + LINE / 2 if drawing.keys else y


def _height(figure: Markup) -> float:
    found = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', figure)
    assert found is not None
    return float(found[1])


def _placed(figure: Markup, y: float, height: float) -> Markup:
    """Put a figure at a place; the page's rules for figures hold for the whole picture."""
    place = f'<svg x="{MARGIN:g}" y="{y:g}" width="{WIDTH}" height="{height:g}" '
    return Markup(str(figure).replace("<svg ", place, 1).replace(' class="figure"', "", 1))
