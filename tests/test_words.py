"""Names and lists as a person reads them."""

import pytest

from tasks.artifacts import words


def test_lists_end_with_and_or_with_how_many_are_left_out() -> None:
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.listed(list("abcde"), 2) == "a, b and 3 more"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain été 猫.png", "plain été 猫.png"),
        (b"\xff.png".decode("utf-8", "surrogateescape"), "\\xff.png"),
        ("two\nlines\t", "two\\nlines\\t"),
        ("91.2\N{NO-BREAK SPACE}%", "91.2\N{NO-BREAK SPACE}%"),
        ("evil\u202egnp.exe", "evil\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_names_show_what_cannot_be_printed_as_escapes(name: str, shown: str) -> None:
    assert words.printable(name) == shown
    words.printable(name).encode("utf-8")


def test_long_names_lose_their_middle_only() -> None:
    short = words.shortened("a very long class name 17", 12)
    assert len(short) == 12
    assert short.startswith("a very")
    assert short.endswith("17")
    assert words.shortened("short", 12) == "short"


def test_a_long_list_says_how_many_are_left_out_and_where_all_of_them_are() -> None:
    names = [f"class {number}" for number in range(400)]
    expected = "class 0, class 1 and 398 more, all in health.json"
    assert words.listed(names, 2, where="health.json") == expected


def test_a_list_of_long_names_is_short() -> None:
    assert len(words.listed(["a" * 5000] * 400)) < 500
    assert words.listed(["a" * 190, "b" * 190, "c"]) == "a" * 190 + " and 2 more"


def test_lines_beyond_the_first_are_counted() -> None:
    assert words.first_of([]) == ""
    assert words.first_of("abc", 3) == "\n  a\n  b\n  c"
    assert words.first_of((str(n) for n in range(1500)), 2) == "\n  0\n  1\n  ... and 1,498 more"
