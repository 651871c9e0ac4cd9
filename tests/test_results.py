"""Figures of the test results."""

import xml.etree.ElementTree as ET

import pytest
from conftest import HOSTILE, number, share, tells

from tasks.artifacts.records import Difference, Estimate, Metrics, Scores
from tasks.artifacts.tables import ClassRow, ReliabilityRow
from tasks.reporting.results import MOST_CLASSES, class_recalls, comparison, gains, reliability
from tasks.reporting.svg import Drawing


def scores(accuracy: float) -> Scores:
    any_number = number(0.1, 0.02)
    return Scores(
        accuracy=share(accuracy, 0.03),
        balanced_accuracy=share(accuracy, 0.03),
        macro_f1=share(accuracy, 0.03),
        nll=any_number,
        brier=any_number,
        ece=any_number,
        ece_calibrated=any_number,
        nll_calibrated=0.1,
        temperature=1.0,
    )


def metrics(majority: float, *, tuned: bool = True) -> Metrics:
    return Metrics(
        majority=share(majority, 0.02),
        baseline=scores(0.85),
        finetuned=scores(0.9) if tuned else None,
        difference=None,
        shipped="baseline",
        shipped_reason="",
        val_baseline=0.85,
        val_finetuned=None,
    )


def dots(drawing: Drawing, kind: str) -> list[float]:
    root = ET.fromstring(drawing.svg)
    return [
        float(node.attrib["cx"]) for node in root.iter("circle") if node.attrib["class"] == kind
    ]


def test_models_stand_side_by_side_with_intervals() -> None:
    drawing = comparison(metrics(0.84), "fine-tuned")
    baseline, finetuned = dots(drawing, "baseline"), dots(drawing, "finetuned")
    assert len(baseline) == len(finetuned) == 3
    assert all(before < after for before, after in zip(baseline, finetuned, strict=True))
    assert drawing.svg.count('class="interval') == 3 * (3 + 3 + 1)


def test_a_majority_left_of_the_axis_is_written_not_drawn_at_its_edge() -> None:
    drawing = comparison(metrics(0.1), "fine-tuned")
    assert not dots(drawing, "majority")
    assert "\N{LEFTWARDS ARROW} 10.0" in drawing.svg
    assert len(dots(comparison(metrics(0.84), "fine-tuned"), "majority")) == 1


def test_the_axis_says_where_it_starts() -> None:
    svg = comparison(metrics(0.1), "fine-tuned").svg
    assert tells(svg, "share of images", "axis starts at 80\N{NO-BREAK SPACE}%")


def test_one_model_alone_is_drawn_alone() -> None:
    drawing = comparison(metrics(0.84, tuned=False), "fine-tuned")
    assert not dots(drawing, "finetuned")
    assert [name for _, name in drawing.keys] == ["frozen baseline", "always the largest class"]


def test_gains_lie_around_a_line_at_zero() -> None:
    loss, gain = number(-0.02, 0.01), number(0.03, 0.01)
    drawing = gains(
        Difference(
            accuracy=loss,
            balanced_accuracy=gain,
            macro_f1=gain,
            mcnemar_p=0.1,
            only_baseline_right=1,
            only_finetuned_right=2,
            sentence="",
        )
    )
    root = ET.fromstring(drawing.svg)
    zero = next(float(n.attrib["x1"]) for n in root.iter("line") if n.attrib["class"] == "zero")
    below, *above = dots(drawing, "finetuned")
    assert below < zero < min(above)
    assert "+3.0" in drawing.svg


def result(name: str, value: float | None, low: float = 0.7) -> ClassRow:
    return ClassRow(name, 40, 41, value, low, 1.0, value, low, 1.0, value)


def labels(drawing: Drawing) -> list[str]:
    root = ET.fromstring(drawing.svg)
    return [n.text or "" for n in root.iter("text") if n.attrib.get("class") == "key"]


def test_classes_are_sorted_worst_first_and_say_how_many_were_found() -> None:
    drawing = class_recalls([result("good", 0.95), result("bad", 0.75), result("none", None)])
    assert labels(drawing) == ["bad", "good"]
    assert "30 of 40" in drawing.svg


def test_of_many_classes_only_the_worst_are_drawn() -> None:
    drawing = class_recalls([result(f"c{i:03d}", i / 200) for i in range(150)])
    assert labels(drawing) == [f"c{i:03d}" for i in range(MOST_CLASSES)]


def test_hostile_class_names_are_text() -> None:
    assert "<script" not in class_recalls([result(HOSTILE, 0.9)]).svg


def test_reliability_draws_intervals_within_its_axes() -> None:
    bins = [
        ReliabilityRow("finetuned", True, 0, 0.9, 0.8, 0.58, 0.92, 20),
        ReliabilityRow("finetuned", False, 0, 0.95, 0.8, 0.58, 0.92, 20),
    ]
    root = ET.fromstring(reliability(bins).svg)
    bar = next(n for n in root.iter("line") if "thin" in n.attrib["class"])
    height = 300 - 30
    start = 0.5
    expected = [300 - (bound - start) / (1 - start) * height for bound in (0.58, 0.92)]
    assert [float(bar.attrib["y1"]), float(bar.attrib["y2"])] == pytest.approx(expected, abs=0.01)


def test_an_estimate_without_interval_is_a_dot_alone() -> None:
    bare = Estimate(value=0.9, low=None, high=None, n=1)
    one = metrics(0.84, tuned=False)
    scored = one.baseline.model_copy(
        update={"accuracy": bare, "balanced_accuracy": bare, "macro_f1": bare}
    )
    drawing = comparison(one.model_copy(update={"baseline": scored, "majority": bare}), "x")
    assert len(dots(drawing, "baseline")) == 3
    assert "interval" not in drawing.svg.replace("with intervals", "")
