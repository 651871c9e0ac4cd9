"""Numbers as a person reads them."""

import pytest

from tasks.artifacts.records import Estimate
from tasks.reporting import text

NBSP = "\N{NO-BREAK SPACE}"


def plain(written: str) -> str:
    return written.replace(NBSP, " ").replace(text.MINUS, "-")


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.912, "91.2 %"), (1.0, "100.0 %"), (0.0, "0.0 %"), (-0.0001, "0.0 %"), (-0.05, "-5.0 %")],
)
def test_shares_are_percentages_with_one_digit(value: float, written: str) -> None:
    assert plain(text.percent(value)) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.029, "+2.9"), (-0.002, "-0.2"), (0.0001, "0.0"), (-0.0001, "0.0"), (0.1, "+10.0")],
)
def test_differences_are_points_with_a_sign_but_zero_has_none(value: float, written: str) -> None:
    assert plain(text.points(value)) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.18604, "0.186"),
        (512.0, "512"),
        (1557.2, "1,557"),
        (1.306, "1.31"),
        (9.996, "10.00"),
        (-0.4, "-0.400"),
        (0.0, "0"),
        (3.1e-8, "3.10e-8"),
        (2.5e9, "2.50e9"),
        (0.000069, "0.0000690"),
    ],
)
def test_amounts_have_three_significant_digits(value: float, written: str) -> None:
    assert plain(text.amount(value)) == written


def test_given_numbers_are_as_short_as_they_are() -> None:
    assert [plain(text.given(value)) for value in (0.5, 224.0, -0.25, 0.0)] == [
        "0.5",
        "224",
        "-0.25",
        "0",
    ]


def test_intervals_are_written_with_both_ends_or_said_to_be_missing() -> None:
    known = Estimate(value=0.9, low=0.883, high=0.937, n=444)
    unknown = Estimate(value=0.9, low=None, high=None, n=1)
    assert plain(text.percent_interval(known)) == "88.3 to 93.7 %"
    assert plain(text.points_interval(known)) == "+88.3 to +93.7"
    assert plain(text.amount_interval(known)) == "0.883 to 0.937"
    writers = (text.percent_interval, text.points_interval, text.amount_interval)
    assert {write(unknown) for write in writers} == {"no interval"}


def test_small_p_values_are_bounded_not_zero() -> None:
    assert text.p_value(0.0) == "p < 0.001"
    assert text.p_value(0.0342) == "p = 0.034"


@pytest.mark.parametrize(
    ("size", "written"), [(900, "1 kB"), (417_740, "418 kB"), (13_516_320, "13.5 MB")]
)
def test_sizes_are_decimal(size: int, written: str) -> None:
    assert text.size(size) == written


def test_nouns_agree_with_their_number() -> None:
    assert text.plural(1, "image") == "1 image"
    assert text.plural(1557, "image") == "1,557 images"
    assert text.plural(2, "class", "classes") == "2 classes"


def test_sentences_of_the_stages_get_their_square_set() -> None:
    assert text.sentence("MMD^2 0.186\n") == "MMD² 0.186\\n"
