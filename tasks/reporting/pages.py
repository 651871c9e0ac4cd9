"""How the templates beside this file are read, and what they can do with numbers and names."""

from collections.abc import Callable, Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.artifacts import words
from tasks.reporting import text


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
        "size": text.size,
        **filters,
    }
    return environment
