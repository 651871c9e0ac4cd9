"""Numbers as a person reads them."""

import math

from tasks.artifacts.records import Estimate
from tasks.artifacts.words import NBSP, printable
from tasks.artifacts.words import plural as plural

MINUS = "\N{MINUS SIGN}"


def percent(share: float, digits: int = 1) -> str:
    """Write a share as a percentage: 0.912 as `91.2 %`."""
    return f"{_signed(100 * share, digits)}{NBSP}%"


def points(difference: float, digits: int = 1) -> str:
    """Write a difference of shares in percentage points, with its sign: 0.029 as `+2.9`."""
    text = _signed(100 * difference, digits)
    return text if text.startswith(MINUS) or float(text) == 0 else f"+{text}"


def percent_interval(estimate: Estimate) -> str:
    """Write the interval of a share: `88.3 to 93.7 %`, or that there is none."""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return percent_range(estimate.low, estimate.high)


def percent_range(low: float, high: float) -> str:
    """Write the range of a share: `88.3 to 93.7 %`."""
    return f"{_signed(100 * low, 1)} to {_signed(100 * high, 1)}{NBSP}%"


def points_interval(estimate: Estimate) -> str:
    """Write the interval of a difference of shares: `-0.2 to +5.9`, or that there is none."""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"{points(estimate.low)} to {points(estimate.high)}"


def count(number: int) -> str:
    """Write a whole number with thousands apart: 1557 as `1,557`."""
    return f"{number:,}"


def amount(number: float, digits: int = 3) -> str:
    """Write any other number with so many significant digits: 0.18604 as `0.186`."""
    if number == 0 or not math.isfinite(number):
        return f"{number:g}".replace("-", MINUS)
    exponent = math.floor(math.log10(abs(number)))
    if exponent < -6 or exponent > 6:
        return _scientific(number, digits)
    return _signed(number, max(0, digits - 1 - exponent))


def fixed(number: float) -> str:
    """Write a number beside others of its kind, with three decimals: 0.18604 as `0.186`."""
    return _signed(number, 3)


def given(number: float) -> str:
    """Write a number that was chosen, not measured, as short as it is: 0.5 as `0.5`."""
    return f"{number:g}".replace("-", MINUS)


def amount_interval(estimate: Estimate) -> str:
    """Write the interval of any other number, or that there is none."""
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"{amount(estimate.low)} to {amount(estimate.high)}"


def p_value(value: float) -> str:
    """Write a p-value with its relation: `p = 0.034`, `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def size(count_bytes: int) -> str:
    """Write a file size in decimal units: `13.5 MB`."""
    if count_bytes < 1_000_000:
        return f"{count_bytes / 1e3:.0f} kB"
    return f"{count_bytes / 1e6:.1f} MB"


def sentence(words: str) -> str:
    """Give a sentence of a stage with its squares set as such."""
    return printable(words).replace("MMD^2", "MMD\N{SUPERSCRIPT TWO}")


def _scientific(number: float, digits: int) -> str:
    factor, exponent = f"{number:.{digits - 1}e}".split("e")
    return f"{factor}e{int(exponent)}".replace("-", MINUS)


def _signed(number: float, digits: int) -> str:
    text = f"{number:,.{digits}f}"
    if text.startswith("-") and not text.strip("-0.,"):
        text = text[1:]  # no negative zero
    return text.replace("-", MINUS)
