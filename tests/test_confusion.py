"""The confusion matrix and the most frequent mistakes."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from conftest import HOSTILE

from tasks.reporting.confusion import GATHERED_CELLS, MOST_MISTAKES, matrix, mistakes

COUNTS = np.array([[20, 5, 0], [1, 30, 2], [0, 0, 0]], dtype=np.int64)
NAMES = ["cat", "dog", "empty"]


def cells(svg: str) -> list[tuple[str, float, str]]:
    """Kind, opacity and tip of every cell, row by row."""
    return [
        (
            node.attrib["class"].removeprefix("cell "),
            float(node.attrib["fill-opacity"]),
            node.findtext("title") or "",
        )
        for node in ET.fromstring(svg).iter("rect")
    ]


def test_cells_are_shares_of_their_row() -> None:
    drawn = cells(matrix(COUNTS, NAMES).svg)
    assert [kind for kind, _, _ in drawn[:4]] == ["hit", "miss", "miss", "miss"]
    assert [opacity for _, opacity, _ in drawn[:2]] == pytest.approx([0.05 + 0.72, 0.05 + 0.18])
    assert drawn[1][2].startswith("5 images called dog: 20.0")


def test_a_class_without_images_has_an_empty_row() -> None:
    svg = matrix(COUNTS, NAMES).svg
    assert [opacity for _, opacity, _ in cells(svg)[6:]] == pytest.approx([0.03] * 3)


def test_numbers_of_empty_cells_are_left_out() -> None:
    root = ET.fromstring(matrix(COUNTS, NAMES).svg)
    numbers = [n.text for n in root.iter("text") if "large" in n.attrib.get("class", "")]
    assert numbers == ["20", "5", "1", "30", "2"]


def many() -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(1)
    counts = np.diag(np.full(60, 50)) + rng.integers(0, 2, (60, 60))
    counts[7, 9] = 40
    return counts.astype(np.int64), [f"class {i:02d}" for i in range(60)]


def test_of_many_classes_the_most_mistaken_are_drawn_and_the_others_added_up() -> None:
    counts, names = many()
    svg = matrix(counts, names).svg
    drawn = cells(svg)
    assert len(drawn) == GATHERED_CELLS**2
    assert "class 07" in svg
    assert "class 09" in svg
    assert f"{60 - GATHERED_CELLS + 1} others" in svg
    assert drawn[-1][0] == "mixed"  # the others are confused with each other too


def test_adding_up_loses_no_image() -> None:
    counts, names = many()
    tips = [tip for _, _, tip in cells(matrix(counts, names).svg)]
    assert sum(int(tip.split(" ")[0].replace(",", "")) for tip in tips) == counts.sum()


def test_mistakes_are_listed_most_frequent_first() -> None:
    listed = mistakes(COUNTS, NAMES)
    assert [(m.label, m.predicted, m.images) for m in listed] == [
        ("cat", "dog", 5),
        ("dog", "empty", 2),
        ("dog", "cat", 1),
    ]
    assert listed[0].share == pytest.approx(0.2)


def test_mistakes_are_cut_and_a_perfect_matrix_has_none() -> None:
    counts, names = many()
    assert len(mistakes(counts, names)) == MOST_MISTAKES
    assert mistakes(counts, names)[0].images == 40
    assert mistakes(np.diag([3, 4]).astype(np.int64), ["a", "b"]) == []


def test_hostile_class_names_are_text() -> None:
    names = [HOSTILE, "two\nlines", "x" * 300]
    svg = matrix(COUNTS, names).svg
    assert "<script" not in svg
    assert "two\\nlines" in svg
