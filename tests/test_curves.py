"""Figures of training."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from tasks.artifacts.records import Estimate, Phase
from tasks.artifacts.tables import HistoryRow
from tasks.reporting.figures import accuracy_curves, loss_curves


def history(epochs: int = 3) -> list[HistoryRow]:
    return [
        HistoryRow(
            number, i + 1, {"head": 1e-3}, 0.5 - i / 50, 0.80 + i / 50, 0.6 - i / 50, 0.70 + i / 50
        )
        for number in (1, 2)
        for i in range(epochs)
    ]


def phase(name: str, *, kept: bool = True, best: int = 2) -> Phase:
    return Phase(
        name=name,
        unfrozen_from=7,
        epochs=3,
        best_epoch=best,
        stopped="finished",
        val_loss=0.5,
        val_accuracy=0.7,
        change_in_val_accuracy=Estimate(value=0.0, low=-0.1, high=0.1, n=50),
        kept=kept,
        reason="",
    )


def test_every_phase_has_its_own_lines_and_best_epoch() -> None:
    drawing = loss_curves(history(), [phase("top"), phase("deeper", best=3)], 0.6)
    root = ET.fromstring(drawing.svg)
    lines = [node for node in root.iter("polyline") if "val" in node.attrib["class"].split()]
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3]
    best = [(float(d.attrib["cx"]), float(d.attrib["cy"])) for d in root.iter("circle")]
    second, sixth = (
        tuple(map(float, lines[number].attrib["points"].split()[epoch].split(",")))
        for number, epoch in [(0, 1), (1, 2)]
    )
    assert best == [pytest.approx(second), pytest.approx(sixth)]


def test_a_lower_loss_and_a_higher_accuracy_are_drawn_where_they_belong() -> None:
    for draw, sign in ((loss_curves, 1), (accuracy_curves, -1)):
        root = ET.fromstring(draw(history(), [], 0.6).svg)
        line = next(node for node in root.iter("polyline"))
        first, *_, last = (float(point.split(",")[1]) for point in line.attrib["points"].split())
        assert (last - first) * sign > 0


def test_a_phase_rolled_back_says_so() -> None:
    kept = accuracy_curves(history(), [phase("top"), phase("deeper")], 0.7).svg
    lost = accuracy_curves(history(), [phase("top"), phase("deeper", kept=False)], 0.7).svg
    assert "rolled back" not in kept
    assert "band-lost" not in kept
    assert "phase 2 (rolled back)" in lost
    assert "band-lost" in lost
    assert len(list(ET.fromstring(kept).iter("circle"))) == 2
    assert len(list(ET.fromstring(lost).iter("circle"))) == 1  # no epoch of it was kept


def test_a_phase_of_one_epoch_is_seen() -> None:
    root = ET.fromstring(loss_curves(history()[:1], [phase("top", best=1)], 0.6).svg)
    for node in root.iter("polyline"):
        (left, _), (right, _) = (point.split(",") for point in node.attrib["points"].split())
        assert float(right) - float(left) == pytest.approx(10)


def test_the_axis_says_where_it_starts_and_the_baseline_lies_on_it() -> None:
    drawing = accuracy_curves(history(), [], 0.5)
    assert "accuracy (axis starts at 50" in drawing.svg
    root = ET.fromstring(drawing.svg)
    reference = next(n for n in root.iter("line") if "reference" in n.attrib["class"])
    assert float(reference.attrib["y1"]) == pytest.approx(222, abs=0.1)


def test_a_best_epoch_that_is_not_in_the_history_is_not_drawn() -> None:
    root = ET.fromstring(loss_curves(history(), [phase("top", best=0)], 0.6).svg)
    assert not list(root.iter("circle"))


def test_long_histories_keep_their_epoch_numbers_apart() -> None:
    long = [replace(epoch, phase=1) for epoch in history(60)]
    root = ET.fromstring(loss_curves(long, [], 0.6).svg)
    numbers = [n.text for n in root.iter("text") if n.attrib.get("y") == "238"]
    assert numbers[:2] == ["1", "9"]
    assert len(numbers) <= 16
