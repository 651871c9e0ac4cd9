"""The shapes that figures are made of."""

import xml.etree.ElementTree as ET

import pytest

from tasks.reporting import svg
from tasks.reporting.svg import Scale, scale_over


def test_texts_and_attributes_are_escaped() -> None:
    drawn = svg.figure(10, 'a "label" & more', [svg.text(1, 2, "<script>alert(1)</script>")])
    assert "<script" not in drawn
    root = ET.fromstring(drawn)
    assert root.attrib["aria-label"] == 'a "label" & more'
    assert "".join(root.itertext()) == "<script>alert(1)</script>"


def test_a_scale_maps_its_ends_and_keeps_values_inside() -> None:
    scale = Scale(0.8, 1.0, 100, 300)
    assert [scale(value) for value in (0.8, 0.9, 1.0)] == pytest.approx([100, 200, 300])
    assert (scale(0.0), scale(2.0)) == (100, 300)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.8, 1.0, [0.8, 0.85, 0.9, 0.95, 1.0]),
        (-2.0, 8.0, [-2, 0, 2, 4, 6, 8]),
        (0.0, 0.3, [0, 0.1, 0.2, 0.3]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, ticks: list[float]) -> None:
    assert Scale(low, high, 0, 1).ticks() == pytest.approx(ticks)


@pytest.mark.parametrize("values", [[3.1, 9.7], [0.0], [-5.0, -4.99], [1e-7, 3e-7], [1e6, 1e9]])
def test_a_scale_over_values_holds_all_of_them(values: list[float]) -> None:
    scale = scale_over(values, 0, 100)
    assert scale.low <= min(values)
    assert scale.high >= max(values)
    assert scale.low < scale.high


def test_a_scale_holds_what_it_must_include() -> None:
    assert scale_over([5.0, 7.0], 0, 1, include=[0]).low == 0


def test_a_scale_survives_values_that_are_not_finite() -> None:
    assert scale_over([float("nan"), 2.0, 4.0], 0, 1).high == 4.0
    assert scale_over([float("inf")], 0, 1).low == 0.0


def test_a_whisker_draws_both_ends_of_its_interval() -> None:
    scale = Scale(0, 1, 0, 100)
    root = ET.fromstring(svg.figure(9, "", [svg.whisker(scale, 5, 0.5, (0.25, 0.75), "x")]))
    bar, *ends = [node for node in root if node.tag == "line"]
    assert (float(bar.attrib["x1"]), float(bar.attrib["x2"])) == (25, 75)
    assert [float(end.attrib["x1"]) for end in ends] == [25, 75]
    assert "line" not in svg.whisker(scale, 5, 0.5, None, "x")


def test_a_cloud_has_one_dot_a_point() -> None:
    assert svg.cloud([(1.0, 2.0), (3.25, 4.0), (5, 6)], "x").count("h0") == 3
